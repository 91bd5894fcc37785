"""What the scripts that measure a method on a GPU have in common: random images, options, memory, lines of text."""

from __future__ import annotations

import argparse
import resource
import sys

import torch

from flgen.data import ImageData
from flgen.data.image_data import ImageLayout
from flgen.data.image_set import ImageSet

NEVER = 10**9


class RandomImages(ImageData):
    """Noise with random labels of ten classes.

    Args:
        samples: Number of training images; there is a fifth as many test images, at least 10.
        image_size: Side of the images, pixels.
        channels: Channels of the images.
    """

    def __init__(self, samples: int, image_size: int, channels: int = 3) -> None:
        super().__init__()
        self._samples = samples
        self._size = image_size
        self._channels = channels

    def layout(self) -> ImageLayout:
        return ImageLayout("random", tuple("0123456789"), channels=self._channels, image_size=self._size)

    def load(self) -> tuple[ImageSet, ImageSet]:
        return self._draw(self._samples, 0), self._draw(max(10, self._samples // 5), 1)

    def _draw(self, count: int, seed: int) -> ImageSet:
        draws = torch.Generator().manual_seed(seed)
        shape = (count, self._channels, self._size, self._size)
        images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=draws)
        return ImageSet(images, torch.arange(count) % 10)


def parser(description: str, *, run_dir: str, clients: int) -> argparse.ArgumentParser:
    """Return a parser with the options that every trial has."""
    options = argparse.ArgumentParser(description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    options.add_argument("--accelerator", choices=["cuda", "cpu"], default="cuda", help="cpu is for trying the script")
    options.add_argument("--devices", type=int, default=1, help="processes, one per device; over NCCL on GPUs")
    options.add_argument("--rounds", type=int, default=3, help="number of rounds")
    options.add_argument("--clients", type=int, default=clients, help="number of clients K")
    options.add_argument("--image-size", type=int, default=32, help="side of the images, pixels")
    options.add_argument("--run-dir", default=run_dir, help="the run folder, a new one")
    return options


def wanted(options: argparse.ArgumentParser, script: str) -> argparse.Namespace:
    """Parse the command line; without the GPU that it asks for, end with one line."""
    chosen = options.parse_args()
    if chosen.accelerator == "cuda" and not torch.cuda.is_available():
        sys.exit(f"{script}: error: torch finds no GPU here; --accelerator cpu tries the script without one")
    return chosen


def say(line: str) -> None:
    """Print a line in one write, so that lines of several ranks stay apart."""
    print(f"{line}\n", end="", flush=True)


def rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def wait_for_device() -> None:
    """Wait until the GPU, if there is one, has done what it was given."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def forget_peak_memory() -> None:
    """Begin to measure the GPU's memory anew."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> str:
    """Say how much memory this rank has held: of the GPU since it was last asked to forget, or all in all without."""
    if torch.cuda.is_initialized():
        return (
            f"peak memory allocated {torch.cuda.max_memory_allocated() / 1e6:.0f} MB on {torch.cuda.get_device_name()}"
        )
    return f"peak resident set {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6:.0f} MB, no GPU"
