"""Local training of any LightningModule: its own optimiser, its own `training_step`, its own logging."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor

from flgen.deferred import TYPE_CHECKING
from flgen.errors import UsageError
from flgen.metrics.classification import f1_scores

if TYPE_CHECKING:
    from lightning import LightningModule
    from lightning.fabric import Fabric


class LoggedValues:
    """Receives what a module says to `self.log` during local training, and averages it.

    It stands where Lightning expects the module's Fabric, and is Fabric for everything but logging.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = defaultdict(int)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # a copy in the making has no Fabric to ask yet
            raise AttributeError(name)
        return getattr(self._fabric, name)

    def log_dict(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add one reading of each metric."""
        for name, value in metrics.items():
            reading = value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
            self._sums[name] = self._sums[name] + reading if name in self._sums else reading
            self._counts[name] += 1

    def means(self) -> dict[str, float]:
        """Return the mean of each metric and start again."""
        means = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        self._sums, self._counts = {}, defaultdict(int)
        return means


def only_optimizer(module: LightningModule) -> torch.optim.Optimizer:
    """Return the optimiser that `configure_optimizers` makes.

    Raises:
        UsageError: The module asks for several optimisers or a scheduler, which a local phase of a few steps
            has no use for, or wants to take its steps itself.
    """
    if not module.automatic_optimization:
        raise UsageError(
            f"{type(module).__name__} takes its optimiser steps itself (automatic_optimization = False): federated "
            "training takes one step per training_step; let that return the loss"
        )
    configured = module.configure_optimizers()
    if isinstance(configured, (list, tuple)) and len(configured) == 1:
        configured = configured[0]
    if not isinstance(configured, torch.optim.Optimizer):
        raise UsageError(
            f"{type(module).__name__}.configure_optimizers must return one optimiser for federated training, "
            f"it returned {type(configured).__name__}"
        )
    return configured


def train_locally(
    module: LightningModule,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    fabric: Fabric,
    *,
    seed: int,
    steps: int,
    on_step: Callable[[int, int], None],
    loss: Callable[[Any, int], Any] | None = None,
    before_step: Callable[[], object] | None = None,
    after_step: Callable[[], object] | None = None,
) -> None:
    """Take one optimiser step per batch, as Lightning's automatic optimisation would.

    Args:
        module: On its device.
        optimizer: Over the module's parameters.
        batches: What `training_step` takes, on the device.
        fabric: For precision and backward.
        seed: Of the global generators inside this call, for modules that draw from them (dropout).
        steps: Number of batches to come, for `on_step`.
        on_step: Told (steps done, steps in all) after each.
        loss: Takes (batch, its number from 0) in place of `training_step`.
        before_step: Called when the gradients are there, before the optimiser uses them.
        after_step: Called when the optimiser has changed the parameters.
    """
    training_step = loss or module.training_step
    module.train()
    with _global_seed(seed, fabric.device):
        for index, batch in enumerate(batches):
            with fabric.autocast():
                outcome: Any = training_step(batch, index)
            value: Any = outcome["loss"] if isinstance(outcome, Mapping) else outcome
            if value is not None:  # a module may pass over a batch
                optimizer.zero_grad()
                fabric.backward(value)
                if before_step is not None:
                    before_step()
                optimizer.step()
                if after_step is not None:
                    after_step()
            on_step(index + 1, steps)


def test_module(
    module: LightningModule, batches: Iterable[tuple[Tensor, Tensor]], fabric: Fabric, logged: LoggedValues
) -> dict[str, float]:
    """Return what `test_step` (or `validation_step`) logs, each batch weighted by its samples.

    A step that returns {"predictions": int64 (B,), "labels": int64 (B,)} also gives the F1 scores of the whole pass, as
    `test/f1_macro` and `test/f1_weighted` (`val/...`).

    Args:
        module: On its device, with `logged` as its Fabric.
        batches: (inputs, labels), on the device.
        fabric: For precision.
        logged: Receives the readings.
    """
    stages = {"test": "test_step", "val": "validation_step"}
    stage = next((stage for stage, step in stages.items() if is_overridden(step, module)), None)
    if stage is None:
        return {}
    step = getattr(module, stages[stage])
    module.eval()
    sums: dict[str, float] = defaultdict(float)
    samples = 0
    answers: list[Mapping[str, Tensor]] = []
    with torch.no_grad(), fabric.autocast():
        for index, batch in enumerate(batches):
            outcome = step(batch, index)
            if isinstance(outcome, Mapping) and {"predictions", "labels"} <= outcome.keys():
                answers.append(outcome)
            for name, value in logged.means().items():
                sums[name] += value * len(batch[1])
            samples += len(batch[1])
    metrics = {name: total / samples for name, total in sums.items()}
    if answers:
        predictions, labels = (torch.cat([answer[name] for answer in answers]) for name in ("predictions", "labels"))
        metrics |= {f"{stage}/{name}": score for name, score in f1_scores(predictions, labels).items()}
    return metrics


def test_predictions(
    module: LightningModule,
    batches: Iterable[tuple[Tensor, Tensor]],
    fabric: Fabric,
    predict: Callable[[Tensor], Tensor],
) -> dict[str, float]:
    """Return accuracy and F1 scores of what is predicted, under the names of a `test_step`.

    Args:
        module: On its device.
        batches: (inputs, labels), on the device.
        fabric: For precision.
        predict: Maps inputs (B, ...) to classes int64 (B,).
    """
    module.eval()
    predicted, true = [], []
    with torch.no_grad(), fabric.autocast():
        for x, y in batches:
            predicted.append(predict(x))
            true.append(y)
    predictions, labels = torch.cat(predicted), torch.cat(true)
    accuracy = float((predictions == labels).double().mean())
    return {"test/accuracy": accuracy} | {f"test/{name}": f1 for name, f1 in f1_scores(predictions, labels).items()}


@contextmanager
def _global_seed(seed: int, device: torch.device) -> Iterator[None]:
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        if device.type == "cpu":
            torch.default_generator.manual_seed(seed)  # torch.manual_seed prepares every kind of device: 0.1 ms
        else:
            torch.manual_seed(seed)
        yield
