"""`flgen privacy`: the noise of a budget, the epsilon of some noise, and what random bits keep."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from flgen.privacy.accounting import epsilon_spent, noise_multiplier

Flgen = Callable[..., subprocess.CompletedProcess[str]]


def rows_of(done: subprocess.CompletedProcess[str]) -> dict[str, list[float]]:
    """The numbers of each accountant's row."""
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    words = [line.split() for line in done.stdout.splitlines() if line.startswith("  ")]
    return {name: [float(number) for number in numbers] for name, *numbers in words[1:]}


def test_the_noise_of_a_budget_by_every_accountant(flgen: Flgen) -> None:
    done = flgen("privacy", "--epsilon", "9.8", "--delta", "1e-5", "--rounds", "500")
    assert done.stdout.startswith("noise multiplier for epsilon 9.8, delta 1e-05, after 500 rounds of everybody:\n")
    rows = rows_of(done)
    assert list(rows) == ["exact", "prv", "rdp"]
    assert rows["exact"] == [11.3629, 9.8]
    assert rows["rdp"][0] == 12.0425
    assert rows["exact"][0] < rows["prv"][0] < rows["rdp"][0]
    for z, certified in rows.values():
        assert certified == pytest.approx(epsilon_spent(z, 1e-5, 500), abs=2e-4)
    assert len({len(line) for line in done.stdout.splitlines() if line.startswith("  ")}) == 1  # one width


def test_the_epsilon_of_some_noise(flgen: Flgen) -> None:
    rows = rows_of(flgen("privacy", "--noise_multiplier", "11.3629", "--rounds", "500"))
    assert rows["exact"] == [pytest.approx(9.8, abs=2e-4)]
    assert rows["prv"] == [pytest.approx(9.81, abs=5e-3)]
    assert rows["rdp"] == [pytest.approx(10.515, abs=0.02)]


def test_sampling_is_for_the_accountants_that_can_count_it_and_comes_with_its_condition(flgen: Flgen) -> None:
    done = flgen("privacy", "--noise_multiplier", "1.429", "--rounds", "500", "--sampling_rate", "0.1")
    assert done.stdout.splitlines()[-1].startswith("only for Poisson sampling that the server hides")
    rows = rows_of(done)
    assert list(rows) == ["prv", "rdp"]
    assert rows["rdp"] == [pytest.approx(9.8, abs=0.02)]
    assert 8.5 < rows["prv"][0] < rows["rdp"][0]


def test_an_accountant_without_an_answer_says_why_and_the_others_answer(flgen: Flgen) -> None:
    done = flgen("privacy", "--noise_multiplier", "0.5", "--rounds", "500")
    assert done.stdout.splitlines()[-1].startswith("prv: the prv accountant cannot follow 500 releases at this noise")
    assert list(rows_of(done)) == ["exact", "rdp"]


def test_the_noise_of_feature_statistics(flgen: Flgen) -> None:
    done = flgen("privacy", "--epsilon=9.8", "--records=6000", "--rounds=500")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "feature statistics of 6000 records, released once: epsilon 9.8, delta 1e-05 for each record, for any number "
        "of rounds:",
        "  noise multiplier z                    0.508162",
        "  sensitivity 2 C / n                0.000333333",
        "  standard deviation per coordinate  0.000169387",
    ]
    # Check 10: four records, C = 1; twice the bound is twice the noise.
    for clip, std in ((1, 0.254081), (2, 0.508162)):
        z = noise_multiplier(9.8, 1e-5, 1)
        said = flgen("privacy", f"--noise_multiplier={z}", "--records=4", f"--clip={clip}").stdout
        assert float(said.split()[-1]) == pytest.approx(std, abs=1e-6)


def test_random_bits(flgen: Flgen) -> None:
    done = flgen("privacy", "--mask_clamp", "0.1", "--rounds", "500")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "random bits by themselves, probabilities in [0.1, 0.9]: epsilon 2.197225 per bit, times d T for d weights and "
        "T rounds: 1098.61 d after 500 rounds\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--epsilon is missing: give a budget such as 9.8, or a --noise_multiplier"),
        (["--mask_clamp=0.1", "--records=9"], "--epsilon is missing: give a budget such as 9.8, or a --noise_mult"),
        (["--epsilon=1", "--noise_multiplier=1"], "--epsilon and --noise_multiplier are both given: one follows from"),
        (["--epsilon=-1"], "--epsilon is -1.0: give a number above 0"),
        (["--noise_multiplier=-1"], "--noise_multiplier is -1.0: give a number of 0 or more"),
        (["--epsilon=much"], "--epsilon: much is not of type float"),
        (["--epsilon=1", "--delta=1"], "--delta is 1.0: give a number between 0 and 1"),
        (["--epsilon=1", "--rounds=0"], "--rounds is 0: give 1 or more"),
        (["--epsilon=1", "--sampling_rate=2"], "--sampling_rate is 2.0: give a share above 0, at most 1"),
        (["--epsilon=1", "--records=0"], "--records is 0: give 1 or more"),
        (["--epsilon=1", "--records=9", "--clip=0"], "--clip is 0: give a number above 0"),
        (
            ["--epsilon=1", "--records=9", "--sampling_rate=0.1"],
            "--sampling_rate is given with --records: that release",
        ),
        (["--epsilon=1", "--clip=1"], "--clip is given without --records"),
        (["--mask_clamp=0.1", "--sampling_rate=0.1"], "--sampling_rate is given with --mask_clamp alone: what random"),
        (["--mask_clamp=0.1", "--delta=1e-6"], "--delta is given with --mask_clamp alone: what random bits keep does"),
        (["--mask_clamp=0.5"], "--mask_clamp is 0.5: give a number above 0 and below 0.5"),
        (["--epslon=1"], "--epslon: there is no such option; did you mean epsilon?"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str, flgen: Flgen, tmp_path: Path) -> None:
    done = flgen("privacy", *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"flgen: error: {message}")
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())
