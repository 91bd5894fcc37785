"""What every test may use: a quiet machine, a small PRISM run, and the real command line."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from forked_commands import run_forked

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_session(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Trained extractors are kept for the session, never in the home folder."""
    os.environ["FLGEN_CACHE"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True)
def _log_of_other_tests() -> Iterator[None]:
    """The command line takes over flgen's log, which later tests of the same process listen to."""
    log = logging.getLogger("flgen")
    handlers, propagate, level = log.handlers, log.propagate, log.level
    yield
    log.handlers, log.propagate = handlers, propagate
    log.setLevel(level)


@pytest.fixture(scope="session")
def fit_small() -> Callable[..., Any]:
    """Return a function that runs a small fit of any method on digits and returns its result.

    Five clients, two local steps, no extractor: a second of work.
    """
    import torch
    from small_methods import small_method, small_model

    from flgen import FederatedTrainer
    from flgen.callbacks import Evaluation
    from flgen.data import Digits, Shards

    def fit(
        run_dir: Path,
        *,
        method: str = "Prism",
        rounds: int = 2,
        transport: str = "reduce",
        method_options: dict[str, Any] | None = None,
        partition: Any = None,
        split: Any = None,
        every: int = 100,
        evaluation: Any = None,
        seed: int = 7,
        ckpt_path: str | None = None,
        initial_weights: Path | None = None,
        data: Any = None,
        model: Any = None,
        **trainer_options: Any,
    ) -> Any:
        torch.manual_seed(seed)  # a module's initial weights are PyTorch's, as on the command line
        algorithm = small_method(method, transport, **(method_options or {}))
        model = model or small_model(method)
        trainer = FederatedTrainer(
            **{
                "rounds": rounds,
                "accelerator": "cpu",
                "devices": 1,
                "threads_per_rank": 1,
                "callbacks": [],
                **trainer_options,
            }
        )
        return trainer.fit(
            algorithm,
            model,
            data or Digits(),
            partition or Shards(clients=5, shards_per_client=4),
            split=split,
            evaluation=evaluation or Evaluation(every=every, images=16, extractors=[]),
            run_dir=run_dir,
            seed_everything=seed,
            ckpt_path=ckpt_path,
            initial_weights=initial_weights,
        )

    return fit


@pytest.fixture
def flgen(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Return a function that runs the real command line in an empty folder."""

    def run(*arguments: str, timeout: float = 120, **environment: str) -> subprocess.CompletedProcess[str]:
        return run_forked(arguments, tmp_path, environment, timeout)

    return run
