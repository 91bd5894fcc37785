"""DisPFL's published setting with ResNet-18 for a few rounds: what each costs in time, memory and bytes, on a GPU."""

from __future__ import annotations

import argparse
import math
import resource
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

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
from flgen.data import ImageData
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet

NEVER = 10**9


class RandomImages(ImageData):
    """Noise with random labels, in the shape of CIFAR-10.

    Args:
        samples: Number of training images; there is a fifth as many test images, at least 10.
        image_size: Side of the images, pixels.
    """

    def __init__(self, samples: int, image_size: int) -> None:
        super().__init__()
        self._samples = samples
        self._size = image_size

    def layout(self) -> ImageLayout:
        return ImageLayout("random", tuple("0123456789"), channels=3, image_size=self._size)

    def load(self) -> tuple[ImageSet, ImageSet]:
        return self._draw(self._samples, 0), self._draw(max(10, self._samples // 5), 1)

    def _draw(self, count: int, seed: int) -> ImageSet:
        draws = torch.Generator().manual_seed(seed)
        images = torch.randint(0, 256, (count, 3, self._size, self._size), dtype=torch.uint8, generator=draws)
        return ImageSet(images, torch.arange(count) % 10)


class RoundCosts(Callback):
    """Prints a line per round, and one per rank with the most memory that it held in the round."""

    def on_round_start(self, trainer: FederatedTrainer, round: int) -> None:
        if torch.cuda.is_initialized():
            torch.cuda.reset_peak_memory_stats()

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


def say(line: str) -> None:
    """Print a line in one write, so that lines of several ranks stay apart."""
    print(f"{line}\n", end="", flush=True)


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def peak_memory() -> str:
    """Say how much memory this rank has held: of the GPU in this round, or in the whole run where there is none."""
    if torch.cuda.is_initialized():
        return (
            f"peak memory allocated {torch.cuda.max_memory_allocated() / 1e6:.0f} MB on {torch.cuda.get_device_name()}"
        )
    return f"peak resident set {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6:.0f} MB, no GPU"


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--accelerator", choices=["cuda", "cpu"], default="cuda", help="cpu is for trying the script")
    parser.add_argument("--devices", type=int, default=1, help="processes, one per device; over NCCL on GPUs")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    parser.add_argument("--clients", type=int, default=100, help="number of clients K")
    parser.add_argument("--samples", type=int, default=500, help="training images of each client")
    parser.add_argument("--width", type=int, default=64, help="channels of ResNet-18's first stage")
    parser.add_argument("--image-size", type=int, default=32, help="side of the images, pixels")
    parser.add_argument("--root", help="folder that holds cifar-10-batches-py; without it, images are noise")
    parser.add_argument(
        "--client-state-mb",
        type=float,
        default=16384,
        help="megabytes of client state kept on the device: the full setting has 13,000, and 8,000 of messages besides",
    )
    parser.add_argument("--run-dir", default="runs/gpu_dispfl", help="the run folder, a new one")
    return parser.parse_args()


def main() -> None:
    chosen = options()
    if chosen.accelerator == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu_dispfl: error: torch finds no GPU here; --accelerator cpu tries the script without one")
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
