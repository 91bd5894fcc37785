"""PRISM's local step against a plain rendering of the specification's pseudo-code."""

from __future__ import annotations

from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from clocks import Seconds
from plain_prism import PlainFeatures, PlainGenerator, PlainStep
from prism_workload import Blobs, ClockedGenerator, StepClock, fit, generator
from report import Report
from torch import Tensor

from flgen import VggMoments
from flgen.masks import network
from flgen.masks.layers import draw_mask
from flgen.models.vgg import load_state

pytestmark = pytest.mark.benchmark

BATCH_SIZE = 64
MODES: Any = pytest.mark.parametrize("mode", ["eval", "train"])


def vgg_loss(mode: Any) -> VggMoments:
    loss = VggMoments(weights="random", mode=mode, v_init="zero", matching="ama", real_range="imagenet")
    loss.load()
    return loss


def client_state(loss: VggMoments) -> dict[str, Tensor]:
    """Return what a client with 64 images knows of them."""
    data = Blobs(BATCH_SIZE)
    data.setup()
    return loss.prepare(data.client_data(0, torch.arange(BATCH_SIZE).numpy()), torch.Generator().manual_seed(0))


def plain_step(model: ClockedGenerator, mode: str, state: dict[str, Tensor]) -> PlainStep:
    """Return the plain rendering with the same frozen weights, scores, features and client."""
    layers = [layer for _, layer in network.masked_layers(model)]
    plain = PlainGenerator([layer.weight for layer in layers], [layer.scores.detach() for layer in layers])
    return PlainStep(plain, PlainFeatures(load_state("random"), mode), *state["target"].clone())


@MODES
def test_both_compute_the_same(mode: str) -> None:
    loss = vgg_loss(mode)
    state = client_state(loss)
    model = generator(loss)
    plain = plain_step(model, mode, state)
    scores = network.flatten_scores(model)
    draws = torch.Generator().manual_seed(1)
    # Apart only by float32: in float64 the gradients agree to 1e-13 (train), 4e-8 (eval, whose folding stays float32).
    for _ in range(2):  # the second step goes on from the moving average that the first one left
        mask = draw_mask(scores.vector, draws)
        z = model.noise(16, draws)
        network.fix_masks(model, mask)
        ours = loss(model(z), state)
        scores.backward(ours)

        parts = iter(mask[place] for place in scores.slices.values())
        theirs = plain(z, lambda theta, parts=parts: next(parts).view_as(theta))  # type: ignore[misc]
        plain_gradient = torch.cat([s.grad.flatten() for s in plain.network.s if s.grad is not None])
        assert abs(ours.item() - theirs) < 5e-4 * abs(theirs)
        assert (scores.grad - plain_gradient).norm() < 3e-3 * plain_gradient.norm()
        torch.testing.assert_close(state["v"], torch.stack([plain.v_mu, plain.v_var]).detach(), rtol=0, atol=2e-7)
        with torch.no_grad():  # Adam's first step is a sign, of rounding too: go on from the same scores
            for layer, place in zip(plain.network.s, scores.slices.values(), strict=True):
                layer.copy_(scores.vector[place].view_as(layer))


@MODES
def test_local_step_over_the_plain_rendering(mode: str, report: Report, tmp_path: Path) -> None:
    loss = vgg_loss(mode)
    model = generator(loss)
    plain = plain_step(model, mode, client_state(loss))
    noise = torch.Generator().manual_seed(2)
    theirs: list[Seconds] = []

    def take_plain_step() -> None:
        began = Seconds.now()
        plain(torch.randn(BATCH_SIZE, 128, 1, 1, generator=noise))
        theirs.append(Seconds.now() - began)

    clock = StepClock(model, after_step=take_plain_step)
    fit(
        model,
        tmp_path / "run",
        clients=1,
        samples_per_client=BATCH_SIZE,
        rounds=1,
        local_steps=5,
        batch_size=BATCH_SIZE,
        callbacks=[clock],
    )
    pairs = list(zip(clock.steps, theirs, strict=True))[1:]
    wall = median(ours.wall / plainly.wall for ours, plainly in pairs)
    report.add(
        f"PRISM local step over the plain rendering, VGG in {mode} mode",
        median(ours.cpu / plainly.cpu for ours, plainly in pairs),
        0.8,
        "x",
        f"32x32 grey, batch {BATCH_SIZE}, VGG19-BN with random weights, 1 thread; processor time, median of "
        f"{len(pairs)} steps in turns; by the wall clock {wall:.2f}; step "
        f"{median(ours.cpu for ours, _ in pairs):.2f} s over {median(plainly.cpu for _, plainly in pairs):.2f} s",
    )
