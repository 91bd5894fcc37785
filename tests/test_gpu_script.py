"""The script that measures DisPFL on a GPU, tried without one."""

from __future__ import annotations

import csv
import re

import pytest
from gpu_scripts import run_program, run_script

SCRIPT = "gpu_dispfl.sh"
WEIGHTS = 44_622  # of ResNet-18 at width 4
TINY = ("--clients", "4", "--samples", "6", "--width", "4", "--image-size", "8", "--rounds", "2")


def test_without_a_gpu_it_ends_with_one_line() -> None:
    done = run_script(SCRIPT)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "gpu_dispfl: error: torch finds no GPU here; --accelerator cpu tries the script without one\n"
    )


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, str]]]:
    """What a tiny trial on two processes printed, and the rows of its metrics.csv."""
    folder = tmp_path_factory.mktemp("gpu")
    run_dir = folder / "run"
    options = ("--accelerator", "cpu", "--devices", "2", *TINY, "--run-dir", str(run_dir))
    done = run_program("gpu_dispfl.py", *options, folder=folder)
    assert done.returncode == 0, done.stderr
    with (run_dir / "metrics.csv").open() as file:
        return done.stdout, list(csv.DictReader(file))


def test_a_line_per_round_says_what_the_run_folder_says(tried: tuple[str, list[dict[str, str]]]) -> None:
    printed, rows = tried
    lines = [line for line in printed.splitlines() if line.startswith("round ")]
    assert len(lines) == len(rows) == 2
    for number, (line, row) in enumerate(zip(lines, rows, strict=True), start=1):
        seconds, local = float(row["time/round_s"]), float(row["time/local_s"])
        sent, busiest = float(row["comm/bytes"]) / 1e6, float(row["comm/max_sent_bytes"]) / 1e6
        mixed, trained = float(row["test/accuracy_aggregated"]), float(row["test/accuracy_trained"])
        assert line == (
            f"round {number}/2: {seconds:.2f} s (local {local:.2f} s), {sent:.3f} MB sent in total, {busiest:.3f} MB "
            f"by the busiest client, accuracy {mixed:.4f} after mixing, {trained:.4f} after training"
        )
    # Of 4 clients with 3 neighbours each everyone sends to all others: half of its weights, and a bit for each.
    assert sent == pytest.approx(4 * busiest, rel=0.01)
    assert busiest * 1e6 == pytest.approx(3 * WEIGHTS * (4 / 2 + 1 / 8), rel=0.01)


def test_every_rank_says_its_peak_memory_in_every_round(tried: tuple[str, list[dict[str, str]]]) -> None:
    peaks = re.findall(r"^  rank (\d): peak resident set (\d+) MB, no GPU$", tried[0], re.MULTILINE)
    assert sorted(rank for rank, _ in peaks) == ["0", "0", "1", "1"]
    assert all(int(megabytes) > 100 for _, megabytes in peaks)
