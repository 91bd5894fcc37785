"""What is typed for the small runs that go wrong here."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"

SMALL = {
    "prism": (
        "--method.local_steps=2",
        "--method.batch_size=8",
        "--method.recalibration_batches=2",
        "--model.latent=8",
        "--model.width=8",
        "--model.loss.real_batch=8",
        "--evaluation.images=32",
        "--evaluation.extractors=[]",
        "--evaluation.every=100",
    ),
    "dispfl": ("--method.training.epochs=1", "--model.width=4", "--evaluation.every=100"),
}
"""By the name of a method: what makes its run on digits one of a few seconds."""


def small_fit(method: str, run_dir: str, rounds: int = 5) -> list[str]:
    """Return the arguments of `flgen fit` for a small run on two ranks that is taken up where it is, if it is.

    Args:
        method: "prism" or "dispfl".
        run_dir: The run folder.
        rounds: Number of rounds; every second one has a checkpoint.
    """
    return [
        f"--config={CONFIGS / f'{method}_digits.yaml'}",
        *SMALL[method],
        f"--trainer.rounds={rounds}",
        "--trainer.checkpoint_every=2",
        "--trainer.devices=2",
        f"--run_dir={run_dir}",
        "--ckpt_path=auto",
    ]
