"""F1 of a whole test pass, which no mean over its batches is (GPT-FL, section 7)."""

from __future__ import annotations

from torch import Tensor


def f1_scores(predictions: Tensor, labels: Tensor) -> dict[str, float]:
    """Return F1 averaged over classes, each alike (`f1_macro`) and by its number of samples (`f1_weighted`).

    F1 of a class is 2 TP / (2 TP + FP + FN). A class that neither occurs nor is predicted does not count.

    Args:
        predictions: Predicted class ids, int64 (N,), N at least 1.
        labels: True class ids, int64 (N,).

    Source: GPT-FL, section 7, item 1; the formulas are torchmetrics'.
    """
    from torchmetrics.functional.classification import multiclass_f1_score

    classes = int(max(predictions.max(), labels.max())) + 1
    return {
        f"f1_{average}": float(
            # Of two classes at least: torchmetrics takes one to mean a binary problem.
            multiclass_f1_score(predictions, labels, num_classes=max(classes, 2), average=average)
        )
        for average in ("macro", "weighted")
    }
