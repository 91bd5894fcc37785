"""PRISM's published 32x32 setting for a few rounds: what each costs in time, memory and bytes, on a GPU."""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from gpu_trial import (
    NEVER,
    RandomImages,
    forget_peak_memory,
    parser,
    peak_memory,
    rank,
    say,
    wait_for_device,
    wanted,
)
from torch import Tensor

from flgen import IID, Callback, Evaluation, FederatedTrainer, Prism, ResnetGenerator, VggMoments


class TimedGenerator(ResnetGenerator):
    """Notes when a client's first local step begins, once the device has done all that came before it."""

    first_step: float | None = None

    def noise(self, count: int, generator: torch.Generator) -> Tensor:
        if self.first_step is None:
            wait_for_device()
            self.first_step = time.perf_counter()
        return super().noise(count, generator)


class RoundCosts(Callback):
    """Prints what a round cost on the first rank, and on each rank the most memory that it held in the round.

    Args:
        model: Whose local steps are timed.
    """

    def __init__(self, model: TimedGenerator) -> None:
        self._model = model
        self._measured: list[tuple[float, float]] = []  # (steps per second, share besides them) of each round

    def on_round_start(self, trainer: FederatedTrainer, round: int) -> None:
        forget_peak_memory()
        self._steps = self._clients = 0
        self._before = self._local = self._after = 0.0

    def on_client_start(self, trainer: FederatedTrainer, round: int, client: int) -> None:
        wait_for_device()
        self._turn_began = time.perf_counter()
        self._model.first_step = None

    def on_local_step(self, trainer: FederatedTrainer, round: int, client: int, step: int, steps: int) -> None:
        if step == steps:
            wait_for_device()
            self._last_step = time.perf_counter()
            assert self._model.first_step is not None
            self._before += self._model.first_step - self._turn_began
            self._local += self._last_step - self._model.first_step
            self._steps += steps

    def on_client_end(self, trainer: FederatedTrainer, round: int, client: int) -> None:
        wait_for_device()
        self._after += time.perf_counter() - self._last_step

    def on_round_end(self, trainer: FederatedTrainer, round: int, metrics: Mapping[str, float]) -> None:
        if trainer.is_global_zero:
            self._print(f"round {round}/{trainer.rounds}", metrics)
        say(f"  rank {rank()}: {peak_memory()}")

    def on_fit_end(self, trainer: FederatedTrainer) -> None:
        if trainer.is_global_zero:
            later = self._measured[1:] or self._measured  # the first round warms up, and takes the real statistics
            speed, share = (median(values) for values in zip(*later, strict=True))
            say(f"median of {len(later)} rounds: {speed:.2f} steps/s, {share:.2%} of a round besides local steps")

    def _print(self, round: str, metrics: Mapping[str, float]) -> None:
        whole, aggregation = metrics["time/round_s"], metrics["time/aggregation_s"]
        besides = whole - self._local
        rest = besides - self._before - self._after - aggregation
        self._measured.append((self._steps / self._local, besides / whole))
        say(
            f"{round}: {whole:.3f} s, {self._steps} local steps on this rank {self._local:.3f} s "
            f"({self._steps / self._local:.2f} steps/s), besides {besides:.3f} s ({besides / whole:.2%})\n"
            f"  load the model and a client's state, in round 1 also its real statistics {self._before:.3f} s, "
            f"sample and pack {self._after:.3f} s, reduce and MADA {aggregation:.3f} s, "
            f"download, unpack and wait {rest:.3f} s\n"
            f"  {metrics['comm/up_bytes']:.0f} bytes up, {metrics['comm/down_bytes']:.0f} bytes down"
        )


def options() -> argparse.Namespace:
    options = parser(__doc__ or "", run_dir="runs/gpu_prism", clients=10)
    options.add_argument("--samples", type=int, default=6000, help="real images of each client")
    options.add_argument("--channels", type=int, default=1, help="channels of the images")
    options.add_argument("--latent", type=int, default=128, help="length of the noise")
    options.add_argument("--width", type=int, default=64, help="channels of the generator's last block")
    options.add_argument("--steps", type=int, default=100, help="local steps E")
    options.add_argument("--batch", type=int, default=64, help="fake images of a step B")
    options.add_argument(
        "--weights", default="random", help="VGG19-BN's: imagenet, the path of a state dict, or random"
    )
    options.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true", help="Fabric's name")
    options.add_argument(
        "--method", action="append", default=[], metavar="KEY=VALUE", help="an option of Prism, such as uplink=coded"
    )
    return wanted(options, "gpu_prism")


def method_options(assignments: list[str]) -> dict[str, Any]:
    """Return the options of Prism that were given as KEY=VALUE."""
    known = inspect.signature(Prism).parameters
    given: dict[str, Any] = {"preset": "reference", "recalibration_batches": 1}  # which evaluation alone pays for
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals or key not in known:
            sys.exit(f"gpu_prism: error: --method {assignment}: give KEY=VALUE, with a KEY out of {', '.join(known)}")
        given[key] = yaml.safe_load(value)
    return given


def main() -> None:
    chosen = options()
    method = Prism(local_steps=chosen.steps, batch_size=chosen.batch, **method_options(chosen.method))
    model = TimedGenerator(
        image_size=chosen.image_size,
        channels=chosen.channels,
        latent=chosen.latent,
        width=chosen.width,
        loss=VggMoments(weights=chosen.weights),
    )
    trainer = FederatedTrainer(
        rounds=chosen.rounds,
        accelerator=chosen.accelerator,
        devices=chosen.devices,
        precision=chosen.precision,
        checkpoint_every=NEVER,
        callbacks=[RoundCosts(model)],
    )
    trainer.fit(
        method,
        model,
        RandomImages(chosen.clients * chosen.samples, chosen.image_size, chosen.channels),
        IID(chosen.clients),
        evaluation=Evaluation(every=NEVER, images=2, extractors=[]),
        run_dir=Path(chosen.run_dir),
        seed_everything=2025,
    )


if __name__ == "__main__":
    main()
