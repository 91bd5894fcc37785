"""A process of a run is killed: the job ends with one reason and leaves nobody behind, and the run goes on later.

Promised (design, sections 4 and 6): whichever rank it is, and at whichever moment, every rank ends non-zero within a
bounded time and the reason is printed once; `--ckpt_path auto` goes on from the newest good checkpoint, and what comes
of the run is that of one that nobody disturbed, bit for bit.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from harness import assert_equal, fit, running, sabotaged
from small_faults import small_fit

from flgen.experiment.records import read_events

KILLED = "was killed by SIGKILL; continue from the last checkpoint with --ckpt_path last"


def moment(dice: random.Random) -> dict[str, str | int]:
    """Draw a moment of the third or fourth round, of whose checkpoints there is one before and one at its end."""
    hook = dice.choice(["on_round_start", "on_client_start", "on_local_step", "on_round_end"])
    often = {"on_client_start": 5, "on_local_step": 10}.get(hook, 1)  # a rank has five clients of two steps or more
    return {"hook": hook, "round": dice.choice([3, 4]), "count": dice.randint(1, often), "rank": dice.randrange(2)}


@pytest.mark.parametrize(
    ("method", "victim", "seed"),
    [
        pytest.param("prism", "rank", 1, marks=pytest.mark.system),
        ("prism", "command", 2),
        ("dispfl", "rank", 3),
        *(
            pytest.param(method, victim, seed, marks=pytest.mark.long)
            for seed in range(10, 20)
            for method in ("prism", "dispfl")
            for victim in ("rank", "command")
        ),
    ],
)
def test_a_process_that_is_killed_at_a_random_moment_costs_time_and_nothing_else(
    method: str, victim: str, seed: int, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    when = moment(random.Random(seed))
    once = tmp_path / "killed"
    strike = sabotaged(tmp_path / "strike.yaml", "Strike", victim=victim, once=str(once), **when)
    with running(tmp_path, [*small_fit(method, "run"), strike]) as run:
        assert run.wait_for(once.exists), run.process.communicate(10)[1]
        struck = time.monotonic()
        ended = run.end(30)
    assert time.monotonic() - struck < 30
    assert ended.survivors == []
    assert "Traceback" not in ended.printed
    if victim == "command":
        assert ended.status == -signal.SIGKILL
    else:
        assert ended.status == 1
        assert ended.errors == [f"flgen: error: rank {when['rank']} {KILLED}"]

    again = fit(tmp_path, *small_fit(method, "run"), strike)
    assert again.status == 0, again.printed
    assert_equal(tmp_path / "run", undisturbed(method))
    events = read_events(tmp_path / "run" / "events.jsonl")
    begun = [event["round"] for event in events if event["event"] in ("start", "resume")]
    # Rank 1 may be in the third round before rank 0 has given the checkpoint of the second its name.
    assert begun == [1, 3] or (begun == [1, 1] and when["rank"] == 1)


def test_a_run_that_is_killed_before_its_first_checkpoint_starts_afresh_in_its_folder(
    undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    once = tmp_path / "killed"
    about = {"hook": "on_round_end", "round": 1, "count": 1, "rank": 1, "victim": "rank", "once": str(once)}
    strike = sabotaged(tmp_path / "strike.yaml", "Strike", **about)
    assert fit(tmp_path, *small_fit("prism", "run"), strike).status == 1
    again = fit(tmp_path, *small_fit("prism", "run"), strike)
    assert again.status == 0, again.printed
    assert_equal(tmp_path / "run", undisturbed("prism"))
    assert [event["event"] for event in read_events(tmp_path / "run" / "events.jsonl")].count("start") == 2
