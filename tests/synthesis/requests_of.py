"""Requests for a few samples of two classes, as the plan makes them."""

from __future__ import annotations

from flgen.synthesis.samples import BareLabel, Guidance, SampleRequest, plan_samples

NAMES = ["cat", "dog"]
PROMPTS = [BareLabel("p0", 0, "a photo of a cat"), BareLabel("p1", 1, "a photo of a dog")]


def some_requests(per_class: int, guidance: Guidance = "pipeline", seed: int = 1) -> list[SampleRequest]:
    return plan_samples(NAMES, PROMPTS, per_class, seed=seed, guidance=guidance)
