"""What is to be generated: one request per sample, each with a seed of its own from which everything else is drawn.

GPT-FL, specification 1.1 and 3.2. A request depends on nothing but the run's seed, its class and its number within the
class, so a set does not depend on the number of processes, on their order or on restarts, and more samples per class
are the same samples and further ones.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from flgen.errors import FlgenError, UsageError

Guidance = Literal["integers", "continuous", "pipeline"]

INTEGER_SCALES = (1.0, 2.0, 3.0, 4.0, 5.0)
INDEX_DIGITS = 7


class LabelledPrompt(Protocol):
    """What a request takes from a prompt: its id, its class and the text."""

    @property
    def id(self) -> str: ...
    @property
    def class_id(self) -> int: ...
    @property
    def prompt(self) -> str: ...


@dataclass(frozen=True)
class BareLabel:
    """The label itself as the prompt, as Speech Commands are spoken (specification 3.1)."""

    id: str
    class_id: int
    prompt: str


@dataclass(frozen=True)
class SampleRequest:
    """One sample to generate.

    Args:
        id: Name of the sample; in the order of these names samples are sorted by class, then by number.
        class_id: Its class.
        index: Its number within the class, from 0.
        label: The name of the class.
        prompt: What the generator is told.
        prompt_id: Which prompt that is.
        seed: Seed of everything random about the sample, in [0, 2^63).
        guidance: Scale of classifier-free guidance; None leaves it to the generator.
        speaker: A number in [0, 1) that chooses among however many speakers there are.
    """

    id: str
    class_id: int
    index: int
    label: str
    prompt: str
    prompt_id: str
    seed: int
    guidance: float | None
    speaker: float


def sample_seed(run_seed: int, class_id: int, index: int) -> int:
    """Return BLAKE2b-64("run_seed|class_id|index") mod 2^63 (specification 1.1), bytes read as a big-endian number."""
    digest = hashlib.blake2b(f"{run_seed}|{class_id}|{index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 2**63


def draw_guidance(u: float, guidance: Guidance) -> float | None:
    """Map a uniform number in [0, 1) to a guidance scale (specification 3.2).

    Args:
        u: The number.
        guidance: "integers" is one of {1, 2, 3, 4, 5}, "continuous" is U[1, 5), "pipeline" is None.
    """
    if guidance == "integers":
        return INTEGER_SCALES[int(u * len(INTEGER_SCALES))]
    return 1.0 + 4.0 * u if guidance == "continuous" else None


def plan_samples(
    class_names: Sequence[str],
    prompts: Sequence[LabelledPrompt],
    per_class: int,
    *,
    seed: int,
    guidance: Guidance = "pipeline",
) -> list[SampleRequest]:
    """Return the requests of a set: first number 0 of every class, then number 1, and so on.

    Args:
        class_names: The classes, in the order of their ids.
        prompts: At least one prompt for each class.
        per_class: Samples of each class.
        seed: The run's seed.
        guidance: How guidance scales are drawn.

    Raises:
        UsageError: If `per_class` is below 1.
        FlgenError: If a class has no prompt.
    """
    if not 1 <= per_class < 10**INDEX_DIGITS:
        raise UsageError(f"--per_class is {per_class}: give 1 to {10**INDEX_DIGITS - 1}")
    of_class: list[list[LabelledPrompt]] = [[] for _ in class_names]
    for prompt in prompts:
        if not 0 <= prompt.class_id < len(class_names):
            raise FlgenError(f"prompt {prompt.id} is of class {prompt.class_id} of only {len(class_names)} classes")
        of_class[prompt.class_id].append(prompt)
    for class_id, held in enumerate(of_class):
        if not held:
            raise FlgenError(f"--prompts has none for class {class_id} ({class_names[class_id]}): add one to the file")
    return [
        _request(class_names[class_id], of_class[class_id], class_id, index, seed, guidance)
        for index in range(per_class)
        for class_id in range(len(class_names))
    ]


def _request(
    label: str, prompts: Sequence[LabelledPrompt], class_id: int, index: int, run_seed: int, guidance: Guidance
) -> SampleRequest:
    seed = sample_seed(run_seed, class_id, index)
    # random() is the one method whose numbers Python promises not to change; always three draws, so that an option
    # changes nothing but its own.
    draws = random.Random(seed)
    of_prompt, of_guidance, of_speaker = draws.random(), draws.random(), draws.random()
    prompt = prompts[int(of_prompt * len(prompts))]
    return SampleRequest(
        id=f"{class_id:05d}-{index:0{INDEX_DIGITS}d}",
        class_id=class_id,
        index=index,
        label=label,
        prompt=prompt.prompt,
        prompt_id=prompt.id,
        seed=seed,
        guidance=draw_guidance(of_guidance, guidance),
        speaker=of_speaker,
    )


def samples_per_class(amount: float, real: int, classes: int) -> int:
    """Return ceil(r |real train| / C), the samples of each class in an r-fold set (specification 3.3).

    Args:
        amount: The multiplier r.
        real: Number of real training samples.
        classes: Number of classes C.

    Raises:
        UsageError: If `amount` is not above 0.
    """
    if not 0 < amount < math.inf:
        raise UsageError(f"--amount is {amount}: give a number above 0, such as 3 for three times the real data")
    return math.ceil(round(amount * real / classes, 9))
