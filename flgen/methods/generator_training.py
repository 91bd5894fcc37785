"""What methods share that train a generator of images: the check, a client's steps, and how images are drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import repeat
from typing import Any

from flgen.data.image_data import ImageData
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import UsageError

if TYPE_CHECKING:
    import torch
    from lightning import LightningModule
    from lightning.fabric import Fabric
    from torch import Tensor

    from flgen.data import LabelledData
    from flgen.data import image_set as images
    from flgen.federation import optimizer_state
    from flgen.federation.clients import Client
    from flgen.federation.streams import RandomStreams
    from flgen.federation.trained_vector import TrainedVector
    from flgen.models.losses import Loss
else:
    torch = deferred_module("torch")
    images = deferred_module("flgen.data.image_set")
    optimizer_state = deferred_module("flgen.federation.optimizer_state")

EVALUATION_BATCH = 128
"""Images drawn at once (PRISM, section 1.7): with batch statistics it matters how many they are."""


def checked_generator(model: LightningModule, data: LabelledData, method: str, needs: Sequence[str], use: str) -> Any:
    """Return the model, which has every part that a method needs and draws images of the data's size.

    Args:
        model: What is to be trained.
        data: The clients' data.
        method: The method's name, for the messages.
        needs: Names of the attributes that the model must have.
        use: What to use in place of a model that lacks one.

    Raises:
        UsageError: The model lacks one, the data are no images, or their sizes differ.
    """
    lacking = [name for name in needs if getattr(model, name, None) is None]
    if lacking:
        raise UsageError(
            f"--model {type(model).__name__} cannot be trained by {method} (it has no {', '.join(lacking)}): use {use}"
        )
    if not isinstance(data, ImageData):
        raise UsageError(
            f"--method {method} draws images, but --data {type(data).__name__} holds {data.noun}: give images"
        )
    generator: Any = model
    wanted, given = (generator.channels, generator.image_size), (data.channels, data.image_size)
    if wanted != given:
        raise UsageError(
            f"--model draws images of {wanted[0]} x {wanted[1]} x {wanted[1]}, --data has {given[0]} x {given[1]} x "
            f"{given[1]}: make --model.channels and --model.image_size fit"
        )
    return generator


def check_decays(**options: float | tuple[float, ...]) -> None:
    """Refuse decays of moments that do not lie in [0, 1).

    Args:
        options: One or several decays, by the option's name.

    Raises:
        UsageError: One does not.
    """
    for name, given in options.items():
        decays = given if isinstance(given, tuple) else (given,)
        if not all(0 <= decay < 1 for decay in decays):
            shown = ", ".join(f"{decay:g}" for decay in decays)
            raise UsageError(f"--method.{name} is {shown}: give 0 or more, below 1")


def real_batches(loss: Loss, client: Client, steps: int, t: int) -> Iterator[Tensor | None]:
    """Return the real images of each step, uint8 (R, C, H, W), for a loss that looks at them; else None each time.

    Args:
        loss: Says how many it needs, R.
        client: Whose images they are.
        steps: Number of steps.
        t: The round.
    """
    if not loss.real_batch:
        return repeat(None)
    batches = client.data.batches(loss.real_batch, client.random("reals", t), steps=steps)
    return (reals for reals, _ in batches)


def train_generator(
    generator: Any,
    weights: TrainedVector,
    optimizer: torch.optim.Optimizer,
    loss: Loss,
    client: Client,
    t: int,
    *,
    steps: int,
    batch_size: int,
    fabric: Fabric,
    on_step: Callable[[int, int], None],
) -> None:
    """E times: z ~ N(0, I), x = G(z), w <- one step along the gradient of the loss (PRISM, section 4).

    The optimiser's moments, and what the loss has made of the client's images, are the client's state and stay with it
    from round to round. It reports `train/loss`, the mean over the steps, and `train/distance`.

    Args:
        generator: On its device, with masks if it needs any.
        weights: What is trained of it, loaded.
        optimizer: Over `weights.vector` alone.
        loss: What the client minimises.
        client: Its state has what `loss.prepare` returned.
        t: The round.
        steps: E.
        batch_size: Generated images per step, B.
        fabric: For precision and device.
        on_step: Told (steps done, steps in all) after each step.
    """
    optimizer_state.load(optimizer, client.state)
    z = client.random("noise", t, fabric.device)
    reals = real_batches(loss, client, steps, t)
    generator.train()
    total = torch.zeros((), device=fabric.device)
    for step in range(steps):
        with fabric.autocast():
            x = generator(generator.noise(batch_size, z))
        L = loss(x.float(), client.state, next(reals))
        weights.backward(L)
        optimizer.step()
        total += L.detach()
        on_step(step + 1, steps)
    optimizer_state.store(optimizer, client.state)
    client.metrics = {"train/loss": float(total) / steps, "train/distance": float(client.state["distance"])}


def draw_images(generator: Any, count: int, z: torch.Generator) -> Tensor:
    """Draw images with a generator as it stands, in batches of 128 as they are evaluated (section 1.7).

    Args:
        generator: A generator, with masks if it needs any.
        count: How many.
        z: Draws the noise.

    Returns:
        uint8 tensor (count, channels, height, width).
    """
    with torch.no_grad():
        # Whole batches only: a small last one would be normalised by few images.
        batches = [generator(generator.noise(EVALUATION_BATCH, z)) for _ in range(0, count, EVALUATION_BATCH)]
    return images.to_bytes(torch.cat(batches)[:count].float())


def draw_normalised(
    generator: Any, count: int, t: int, streams: RandomStreams, fabric: Fabric, recalibration_batches: int
) -> Tensor:
    """Settle what BatchNorm normalises by, then draw images; their noise is the same in every round and method.

    Args:
        generator: A generator, with masks if it needs any.
        count: How many images.
        t: The round.
        streams: The run's random streams.
        fabric: For precision and device.
        recalibration_batches: Noise batches of 64 that measure running statistics; 0: each batch is normalised by its
            own.

    Returns:
        uint8 tensor (count, channels, height, width).
    """
    if recalibration_batches:
        draws = streams.torch("recalibration", round=t, device=fabric.device)
        generator.recalibrate(draws, recalibration_batches)
    else:
        generator.train()
    with fabric.autocast():
        return draw_images(generator, count, streams.torch("evaluation noise", device=fabric.device))
