"""The script that measures PRISM on a GPU, tried without one."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from statistics import median

import pytest
from gpu_scripts import run_program, run_script

from flgen import ResnetGenerator
from flgen.masks import network

PROGRAM = "gpu_prism.py"
CLIENTS, STEPS = 4, 3
TINY = ("--clients", str(CLIENTS), "--samples", "4", "--steps", str(STEPS), "--batch", "2", "--width", "2")
TINY += ("--latent", "4", "--image-size", "16", "--rounds", "2")

NUMBER = r"(-?[0-9.]+)"
ROUND = re.compile(
    rf"round (\d)/2: {NUMBER} s, (\d+) local steps on this rank {NUMBER} s \({NUMBER} steps/s\), besides {NUMBER} s "
    rf"\({NUMBER}%\)\n"
    rf"  load the model and a client's state, in round 1 also its real statistics {NUMBER} s, sample and pack {NUMBER} "
    rf"s, reduce and MADA {NUMBER} s, download, unpack and wait {NUMBER} s\n"
    r"  (\d+) bytes up, (\d+) bytes down\n"
)


def test_without_a_gpu_it_ends_with_one_line() -> None:
    done = run_script("gpu_prism.sh")
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "gpu_prism: error: torch finds no GPU here; --accelerator cpu tries the script without one\n"


def test_an_option_that_prism_lacks_is_one_line(tmp_path: Path) -> None:
    done = run_program(PROGRAM, "--accelerator", "cpu", "--method", "uplnk=coded", folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("gpu_prism: error: --method uplnk=coded: give KEY=VALUE, with a KEY out of preset, ")
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[dict[str, str]]]:
    """What a tiny trial on two processes printed, and the rows of its metrics.csv."""
    folder = tmp_path_factory.mktemp("gpu")
    cpu = ("--accelerator", "cpu", "--devices", "2")
    plain = ("--method", "preset=fixed", "--method", "uplink=bits", "--method", "downlink=scores")
    done = run_program(PROGRAM, *cpu, *plain, *TINY, "--run-dir", "run", folder=folder)
    assert done.returncode == 0, done.stderr
    with (folder / "run" / "metrics.csv").open() as file:
        return done.stdout, list(csv.DictReader(file))


def test_rounds_are_taken_apart_into_times_that_add_up(tried: tuple[str, list[dict[str, str]]]) -> None:
    printed, rows = tried
    rounds = [[float(number) for number in numbers] for numbers in ROUND.findall(printed)]
    assert len(rounds) == len(rows) == 2
    for number, (line, row) in enumerate(zip(rounds, rows, strict=True), start=1):
        told, whole, steps, local, speed, besides, share, load, sample, reduce, rest, up, down = line
        assert (told, steps) == (number, STEPS * CLIENTS / 2)  # half of the clients on each rank
        assert whole == pytest.approx(float(row["time/round_s"]), abs=1e-3)
        assert reduce == pytest.approx(float(row["time/aggregation_s"]), abs=1e-3)
        assert min(load, local, sample, rest) >= 0
        assert load + local + sample + reduce + rest == pytest.approx(whole, abs=4e-3)
        assert besides == pytest.approx(whole - local, abs=2e-3)
        assert share == pytest.approx(100 * besides / whole, abs=1)
        assert speed == pytest.approx(steps / local, rel=0.05)
        assert (up, down) == (float(row["comm/up_bytes"]), float(row["comm/down_bytes"]))


def test_a_client_sends_a_bit_and_receives_a_float_for_each_weight(tried: tuple[str, list[dict[str, str]]]) -> None:
    weights = len(network.weights_vector(ResnetGenerator(image_size=16, latent=4, width=2)))
    up, down = (int(number) / CLIENTS for number in ROUND.findall(tried[0])[-1][-2:])
    assert weights / 8 < up <= weights / 8 + 64
    assert 4 * weights < down <= 4 * weights + 64


def test_the_last_line_leaves_the_first_round_out(tried: tuple[str, list[dict[str, str]]]) -> None:
    later = [(float(line[4]), float(line[6])) for line in ROUND.findall(tried[0])][1:]
    speed, share = (median(values) for values in zip(*later, strict=True))
    assert tried[0].endswith(
        f"median of {len(later)} rounds: {speed:.2f} steps/s, {share:.2f}% of a round besides local steps\n"
    )


def test_every_rank_says_its_peak_memory_in_every_round(tried: tuple[str, list[dict[str, str]]]) -> None:
    peaks = re.findall(r"^  rank (\d): peak resident set (\d+) MB, no GPU$", tried[0], re.MULTILINE)
    assert sorted(rank for rank, _ in peaks) == ["0", "0", "1", "1"]
    assert all(int(megabytes) > 100 for _, megabytes in peaks)
