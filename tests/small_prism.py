"""A PRISM run of two rounds on the public half of the digits: what serves as a pre-trained generator."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from small_methods import small_method, small_model


def prism_run(run_dir: Path, *, method: str = "Prism", seed: int = 7, **method_options: Any) -> Any:
    """Train for two rounds on this process; return the method, which holds the result.

    Args:
        run_dir: The run folder.
        method: Another method's name gives a run that has no generator.
        seed: Of the run.
        method_options: Of the method.
    """
    from flgen import Digits, FederatedTrainer, Shards
    from flgen.callbacks import Evaluation

    algorithm = small_method(method, **method_options)
    trainer = FederatedTrainer(rounds=2, accelerator="cpu", devices=1, threads_per_rank=1, callbacks=[])
    trainer.fit(
        algorithm,
        small_model(method),
        Digits(part="public"),
        Shards(clients=4),
        evaluation=Evaluation(every=100, images=16, extractors=[]),
        run_dir=run_dir,
        seed_everything=seed,
    )
    return algorithm
