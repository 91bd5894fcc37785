"""The plan of a synthetic set: what depends on what."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from requests_of import NAMES, PROMPTS, some_requests

from flgen.errors import FlgenError, UsageError
from flgen.synthesis.samples import BareLabel, draw_guidance, plan_samples, sample_seed, samples_per_class


def test_a_seed_is_the_hash_of_run_class_and_number() -> None:
    digest = hashlib.blake2b(b"7|3|12", digest_size=8).digest()
    assert sample_seed(7, 3, 12) == int.from_bytes(digest, "big") % 2**63
    seeds = {sample_seed(run, class_id, n) for run in (0, 1) for class_id in range(20) for n in range(100)}
    assert len(seeds) == 2 * 20 * 100
    assert max(seeds) < 2**63


@settings(max_examples=30, deadline=None)
@given(fewer=st.integers(1, 12), more=st.integers(0, 12), seed=st.integers(0, 2**40))
def test_a_larger_set_holds_the_smaller_one(fewer: int, more: int, seed: int) -> None:
    small, large = (some_requests(n, "integers", seed) for n in (fewer, fewer + more))
    assert large[: len(small)] == small
    assert len({request.id for request in large}) == len(large) == 2 * (fewer + more)
    assert sorted(large, key=lambda r: r.id) == sorted(large, key=lambda r: (r.class_id, r.index))


def test_a_class_does_not_depend_on_the_others() -> None:
    alone = plan_samples(NAMES[:1], PROMPTS[:1], 9, seed=1, guidance="continuous")
    assert alone == [request for request in some_requests(9, "continuous") if request.class_id == 0]


def test_every_integer_scale_is_drawn_equally_often() -> None:
    """Specification of GPT-FL, section 10, check 12."""
    drawn = Counter(request.guidance for request in some_requests(5000, "integers"))
    assert set(drawn) == {1.0, 2.0, 3.0, 4.0, 5.0}
    assert all(abs(count / 10_000 - 0.2) < 0.02 for count in drawn.values())


def test_continuous_scales_fill_one_to_five_and_the_pipeline_s_own_is_left_alone() -> None:
    drawn = [request.guidance or 0.0 for request in some_requests(2000, "continuous")]
    assert 1.0 <= min(drawn) < 1.05
    assert 4.95 < max(drawn) < 5.0
    assert sum(drawn) / len(drawn) == pytest.approx(3.0, abs=0.06)
    assert draw_guidance(0.3, "pipeline") is None


def test_the_last_prompt_and_the_last_speaker_are_drawn_too() -> None:
    """Specification of GPT-FL, section 9, defect 13."""
    prompts = [BareLabel(f"p{n}", 0, f"prompt {n}") for n in range(4)]
    requests = plan_samples(["cat"], prompts, 4000, seed=0)
    of_prompt = Counter(request.prompt_id for request in requests)
    of_speaker = Counter(int(request.speaker * 4) for request in requests)
    for drawn in (of_prompt, of_speaker):
        assert len(drawn) == 4
        assert all(abs(count / 4000 - 0.25) < 0.03 for count in drawn.values())


def test_how_guidance_is_drawn_changes_nothing_else() -> None:
    of = {kind: some_requests(20, kind) for kind in ("integers", "continuous", "pipeline")}
    without = {kind: [(r.id, r.seed, r.prompt_id, r.speaker) for r in requests] for kind, requests in of.items()}
    assert without["integers"] == without["continuous"] == without["pipeline"]


@pytest.mark.parametrize(
    ("amount", "real", "classes", "expected"),
    [
        (1, 50_000, 10, 5000),
        (3, 50_000, 10, 15_000),
        (1, 1020, 102, 10),
        (1, 2000, 50, 40),
        (0.1, 1000, 10, 10),
        (2, 7, 3, 5),
    ],
)
def test_an_amount_is_a_multiple_of_the_real_data(amount: float, real: int, classes: int, expected: int) -> None:
    assert samples_per_class(amount, real, classes) == expected


def test_what_cannot_be_planned_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--amount is 0"):
        samples_per_class(0, 10, 2)
    with pytest.raises(UsageError, match=r"--per_class is 0"):
        some_requests(0)
    with pytest.raises(FlgenError, match=r"none for class 1 \(dog\)"):
        plan_samples(NAMES, PROMPTS[:1], 1, seed=0)
    with pytest.raises(FlgenError, match=r"prompt p1 is of class 1 of only 1 classes"):
        plan_samples(NAMES[:1], PROMPTS, 1, seed=0)
