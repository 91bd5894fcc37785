"""DisPFL's published setting with ResNet-18 for a few rounds: what each costs in time, memory and bytes, on a GPU."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from gpu_trial import NEVER, RandomImages, forget_peak_memory, parser, peak_memory, rank, say, wanted

from flgen import (
    CIFAR10,
    Callback,
    ClientDirichlet,
    DisPFL,
    Evaluation,
    FederatedTrainer,
    LocalTraining,
    RandomGraph,
    ResNet18,
    Sparsity,
)


class RoundCosts(Callback):
    """Prints a line per round, and one per rank with the most memory that it held in the round."""

    def on_round_start(self, trainer: FederatedTrainer, round: int) -> None:
        forget_peak_memory()

    def on_round_end(self, trainer: FederatedTrainer, round: int, metrics: Mapping[str, float]) -> None:
        if trainer.is_global_zero:
            say(
                f"round {round}/{trainer.rounds}: {metrics['time/round_s']:.2f} s "
                f"(local {metrics['time/local_s']:.2f} s), "
                f"{metrics['comm/bytes'] / 1e6:.3f} MB sent in total, "
                f"{metrics['comm/max_sent_bytes'] / 1e6:.3f} MB by the busiest client, "
                f"accuracy {metrics['test/accuracy_aggregated']:.4f} after mixing, "
                f"{metrics['test/accuracy_trained']:.4f} after training"
            )
        say(f"  rank {rank()}: {peak_memory()}")


def options() -> argparse.Namespace:
    options = parser(__doc__ or "", run_dir="runs/gpu_dispfl", clients=100)
    options.add_argument("--samples", type=int, default=500, help="training images of each client")
    options.add_argument("--width", type=int, default=64, help="channels of ResNet-18's first stage")
    options.add_argument("--root", help="folder that holds cifar-10-batches-py; without it, images are noise")
    options.add_argument(
        "--client-state-mb",
        type=float,
        default=16384,
        help="megabytes of client state kept on the device: the full setting has 13,000, and 8,000 of messages besides",
    )
    return wanted(options, "gpu_dispfl")


def main() -> None:
    chosen = options()
    size = chosen.image_size
    random_images = RandomImages(chosen.clients * chosen.samples, size)
    data = random_images if chosen.root is None else CIFAR10(chosen.root, image_size=size)
    training = LocalTraining(
        epochs=5, batch_size=128, learning_rate_decay=0.998, clip_norm=10.0, augmentation="crop_flip"
    )
    topology = RandomGraph(degree=min(10, chosen.clients - 1))
    torch.manual_seed(2022)
    model = ResNet18(image_size=size, width=chosen.width, groups=math.gcd(32, chosen.width))
    trainer = FederatedTrainer(
        rounds=chosen.rounds,
        accelerator=chosen.accelerator,
        devices=chosen.devices,
        checkpoint_every=NEVER,
        client_state_mb=chosen.client_state_mb,
        callbacks=[RoundCosts()],
    )
    trainer.fit(
        DisPFL(training, Sparsity(density=0.5), search="random", topology=topology),
        model,
        data,
        ClientDirichlet(chosen.clients, samples_per_client=chosen.samples),
        evaluation=Evaluation(every=1, extractors=[]),
        run_dir=Path(chosen.run_dir),
        seed_everything=2022,
    )


if __name__ == "__main__":
    main()
