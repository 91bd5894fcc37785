"""Which runs a figure is drawn from, which of them are repetitions, and what they measured."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from flgen.commands.plot.runs import Experiment, course, curve, find_experiments, method_name, outcomes, over_rounds
from flgen.errors import FlgenError, UsageError


def names(experiments: list[Experiment]) -> dict[str, list[str]]:
    return {one.label: [str(run) for run in one.runs] for one in experiments}


def test_the_seeds_of_one_folder_are_one_experiment(here, fit_run) -> None:
    for name in ("a/seed-10", "a/seed-9", "b", "c/seed-0", "c/seed-1", "c/seed-2"):
        fit_run(Path(name), [0.5])
    Path("a/seed-empty").mkdir()
    found = find_experiments(["b", "a", "c/seed-1", "c/seed-0"])
    assert names(found) == {
        "b": ["b"],
        "a": ["a/seed-9", "a/seed-10"],  # by number
        "c": ["c/seed-1", "c/seed-0"],  # those that are named
    }


def test_labels_name_experiments_not_runs(here, fit_run) -> None:
    for name in ("a/seed-0", "a/seed-1", "b"):
        fit_run(Path(name), [0.5])
    assert list(names(find_experiments(["a/seed-0", "b", "a/seed-1"], ["GPT-FL", "FedAvg"]))) == ["GPT-FL", "FedAvg"]
    with pytest.raises(UsageError, match=r"^--labels has 3 of the 2 names that are needed: .* seeds of one folder are"):
        find_experiments(["a/seed-0", "b", "a/seed-1"], ["x", "y", "z"])
    with pytest.raises(UsageError, match=r"^--labels has x twice: give every RUN a name of its own$"):
        find_experiments(["a", "b"], ["x", "x"])
    assert [one.label for one in find_experiments(["a", "b"], ["x", "x"], labels_may_repeat=True)] == ["x", "x"]


def test_folders_of_one_name_are_told_apart_by_what_was_typed(here, fit_run) -> None:
    for name in ("a/run", "b/run", "c/x/seed-0", "d/x/seed-0"):
        fit_run(Path(name), [0.5])
    found = find_experiments(["a/run", "b/run/", "c/x", "d/x/seed-0"])
    assert [one.label for one in found] == ["a/run", "b/run", "c/x", "d/x"]


@pytest.mark.parametrize("paths", [["a", "./a"], ["b", "b/seed-0"], ["b/seed-0", "b/seed-0"]])
def test_a_run_counts_once(here, fit_run, paths) -> None:
    for name in ("a", "b/seed-0"):
        fit_run(Path(name), [0.5])
    with pytest.raises(UsageError, match=r"is named twice: name every run once$"):
        find_experiments(paths)


def test_a_folder_without_runs_is_refused(here) -> None:
    Path("runs/seed-0").mkdir(parents=True)
    for path in ("runs", "runs/seed-0"):
        with pytest.raises(FlgenError, match=rf"^{path} is no run folder"):
            find_experiments([path])
    with pytest.raises(FlgenError, match=r"^nowhere: there is no such folder"):
        find_experiments(["nowhere"])


def test_mean_and_sample_deviation_of_the_rounds_that_all_seeds_have(here, fit_run) -> None:
    for seed, accuracy in enumerate(([0.801, None, 0.1, 0.2], [0.810, 0.5, 0.3], [0.804, 0.6, 0.5])):
        fit_run(Path(f"a/seed-{seed}"), accuracy)
    (one,) = find_experiments(["a"])
    points = over_rounds(one, "test/accuracy")
    assert [point.x for point in points] == [1, 3]
    assert points[0].spread == pytest.approx((0.805, 0.004582575695, 3), abs=1e-12)  # gptfl.md, check 12, as shares
    assert points[1].spread == pytest.approx((0.3, 0.2, 3))


def test_a_single_run_has_no_deviation(here, fit_run) -> None:
    fit_run(Path("a"), [0.25, 0.5])
    (one,) = find_experiments(["a"])
    drawn = curve("a", over_rounds(one, "test/accuracy"))
    assert (drawn.x.tolist(), drawn.mean.tolist()) == ([1, 2], [0.25, 0.5])
    assert all(map(math.isnan, drawn.std))


def test_seeds_without_a_common_round_are_refused(here, fit_run) -> None:
    fit_run(Path("a/seed-0"), [0.5, None])
    fit_run(Path("a/seed-1"), [None, 0.5])
    (one,) = find_experiments(["a"])
    with pytest.raises(FlgenError, match=r"^the seeds of a have test/accuracy in no common round"):
        over_rounds(one, "test/accuracy")


def test_final_and_best_of_every_seed(here, fit_run) -> None:
    fit_run(Path("a/seed-0"), [0.1, 0.7, 0.6])
    fit_run(Path("a/seed-1"), [0.2, 0.3, 0.4])
    (one,) = find_experiments(["a"])
    assert outcomes(one, "test/accuracy") == [(0.6, 3, 0.7, 2), (0.4, 3, 0.4, 3)]
    assert outcomes(one, "train/loss")[0].best == pytest.approx(1 / 3)  # a loss is best where it is smallest


def test_an_unfinished_seed_is_not_averaged_with_finished_ones(here, fit_run) -> None:
    fit_run(Path("a/seed-0"), [0.1, 0.7, 0.6])
    fit_run(Path("a/seed-1"), [0.2, 0.3])
    (one,) = find_experiments(["a"])
    with pytest.raises(FlgenError, match=r"^a/seed-1 has test/accuracy up to round 2, another seed up to round 3: "):
        outcomes(one, "test/accuracy")


def test_a_missing_metric_names_the_nearest_one(here, fit_run) -> None:
    run = fit_run(Path("a"), {"test/accuracy_aggregated": [0.5]})
    with pytest.raises(
        FlgenError, match=r"^a/metrics.csv has no test/accuracy: --metric test/accuracy_aggregated is there$"
    ):
        course(run, "test/accuracy")
    with pytest.raises(FlgenError, match=r"^a/metrics.csv has no xyz: choose a run that measures it, or another"):
        course(run, "xyz")


def test_a_method_that_starts_from_given_weights_is_another_one(here, fit_run) -> None:
    fit_run(Path("a"), [0.5], method="FedProx")
    fit_run(Path("b"), [0.5], initial_weights=Path("x.safetensors"))
    assert [method_name(one) for one in find_experiments(["a", "b"])] == ["FedProx", "FedAvg, pre-trained"]


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("method: 3", r"^a/config.yaml names no method: choose another run$"),
        ("- 1", r"^a/config.yaml is no configuration: choose another run$"),
        ("a: [", r"^a/config.yaml cannot be read \(while parsing .*\): choose a run that has one$"),
    ],
)
def test_a_damaged_configuration_is_one_line(here, fit_run, text, pattern) -> None:
    (fit_run(Path("a"), [0.5]) / "config.yaml").write_text(text)
    with pytest.raises(FlgenError, match=pattern):
        method_name(find_experiments(["a"])[0])
