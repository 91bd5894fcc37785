"""A run of the shipped digits configuration that takes a second: what integration tests type."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

CONFIGS = Path(__file__).parents[2] / "configs"
DIGITS = str(CONFIGS / "prism_digits.yaml")
QUICK = (
    "--trainer.rounds=2",
    "--method.local_steps=2",
    "--method.batch_size=8",
    "--method.recalibration_batches=2",
    "--model.latent=8",
    "--model.width=8",
    "--model.loss.real_batch=8",
    "--evaluation.images=32",
)

Flgen = Callable[..., subprocess.CompletedProcess[str]]
