"""The parts of the page: facts, curves, clients, bytes, privacy, events, each from runs written by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from written_runs import LABELS, config_of, write_run

from flgen.errors import FlgenError
from flgen.figures.report import curves as curves_module
from flgen.figures.report import words
from flgen.figures.report.clients import clients
from flgen.figures.report.curves import curves, importance
from flgen.figures.report.events import MOST_LINES, events
from flgen.figures.report.overview import overview, state_of, time_spent
from flgen.figures.report.partition import partition
from flgen.figures.report.plots import thinned
from flgen.figures.report.privacy import privacy
from flgen.figures.report.runs import ReportedExperiment, read_experiments, typed_options
from flgen.figures.report.traffic import traffic


def read(**runs: Path | list[Path]) -> list[ReportedExperiment]:
    return read_experiments({label: run if isinstance(run, list) else [run] for label, run in runs.items()})


def values_of(axis: object) -> list[float]:
    return np.asarray(axis, dtype=float).tolist()


# What ran


def test_the_facts_of_a_run(tmp_path: Path) -> None:
    (experiment,) = read(run=write_run(tmp_path / "run", {"test/accuracy": [0.1, 0.7, 0.6]}))
    content = overview([experiment]).content
    facts = {fact.name: fact.values[0] for fact in content["common"]}
    assert facts == {
        "Method": "Prism",
        "Model": "ResnetGenerator",
        "Data": "Digits (part all)",
        "Partition": "Shards",
        "Clients": "4",
        "Rounds": "3 of 3",
        "Seed": "0",
        "Device": "cpu, 2 ranks",
        "Start": "2026-01-02 03:04 UTC",
        "Duration": "10 s",
        "State": "finished, after round 3",
    }
    assert ("test/accuracy", "0.6", "best 0.7 in round 2") in content["tiles"]
    assert content["differing"] == []


def test_of_several_runs_only_what_differs_stands_side_by_side(tmp_path: Path) -> None:
    runs = {
        "slow": write_run(tmp_path / "a", {"test/accuracy": [0.5]}, config=config_of(seed=1, local_steps=10)),
        "fast": write_run(tmp_path / "b", {"test/accuracy": [0.6]}, config=config_of(seed=2, local_steps=5, mada=True)),
    }
    content = overview(read(**runs)).content
    assert [(fact.name, fact.values) for fact in content["differing"]] == [
        ("Seed", ("1", "2")),
        ("--method.local_steps", ("10", "5")),
    ]
    assert [row.name for row in content["of_some"]] == ["--method.mada"]
    assert [(row.experiment.label, row.last) for row in content["outcomes"]] == [("slow", "0.5"), ("fast", "0.6")]
    assert "Method" in {fact.name for fact in content["common"]}


def test_seeds_are_one_experiment_with_a_mean_and_a_spread(tmp_path: Path) -> None:
    seeds = [
        write_run(tmp_path / f"seed-{seed}", {"test/accuracy": [0.1, value]}, config=config_of(seed=seed))
        for seed, value in enumerate((0.5, 0.7))
    ]
    content = overview(read(both=seeds)).content
    assert {fact.name: fact.values[0] for fact in content["common"]}["Seed"] == "0, 1"
    tile = next(tile for tile in content["tiles"] if tile.name == "test/accuracy")
    assert tile.value == f"0.6 ± {np.std([0.5, 0.7], ddof=1):.5g}"


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ({"event": "end", "round": 1}, ("finished", "after round 1")),
        ({"event": "stopped", "signal": 15}, ("stopped", "after round 1, by SIGTERM")),
        ({"event": "failed", "error": "x"}, ("failed", "after round 1")),
        ({"event": "checkpoint", "round": 1}, ("no end recorded", "after round 1: still going, or killed")),
    ],
)
def test_how_a_run_ended(tmp_path: Path, last: dict[str, object], state: tuple[str, str]) -> None:
    (experiment,) = read(run=write_run(tmp_path / "run", {"train/loss": [1.0]}, events=[{"event": "start"}, last]))
    assert state_of(experiment.runs[0]) == state


def test_time_between_a_kill_and_the_resumption_is_not_spent(tmp_path: Path) -> None:
    happened = [("start", "03:00:00"), ("checkpoint", "03:00:40"), ("resume", "09:00:00"), ("end", "09:00:05")]
    log = [{"time": f"2026-01-02T{time}+00:00", "event": event} for event, time in happened]
    (experiment,) = read(run=write_run(tmp_path / "run", {"train/loss": [1.0]}, events=log))
    assert time_spent(experiment.runs[0]) == 45


def test_options_are_named_as_they_are_typed() -> None:
    config = {"method": {"class_path": "flgen.FedAvg", "init_args": {"topology": {"class_path": "flgen.Star"}}}}
    assert typed_options(config) == {"--method": "FedAvg", "--method.topology": "Star"}


def test_a_configuration_that_refers_to_itself_ends() -> None:
    endless: dict[str, object] = {}
    endless["a"] = endless
    assert len(typed_options(endless)) == 1
    wide: list[object] = [{"x": 1}]
    for _ in range(11):
        wide = [{str(n): wide for n in range(9)}]
    assert len(typed_options({"a": wide})) == 2000


# Curves


def test_metrics_are_grouped_the_most_important_first(tmp_path: Path) -> None:
    names = ("time/round_s", "comm/bytes", "train/loss", "test/std/accuracy", "test/accuracy", "extra/x", "fid/digits")
    run = write_run(tmp_path / "run", {name: [0.1, 0.2] for name in names} | {"comm/constant": [5, 5]})
    section = curves(read(run=run))
    assert section is not None
    groups = section.content["groups"]
    assert [group.name for group in groups] == ["highlights", "test", "fid", "train", "comm", "extra", "time"]
    assert [plot.title for plot in groups[1].plots] == ["test/accuracy", "test/std/accuracy"]
    assert groups[4].constant == [("comm/constant", "5")]
    assert [plot.title for plot in groups[0].plots] == ["test/accuracy", "train/loss", "fid/digits", "comm/bytes"]
    assert len(section.content["numbers"]) == len(names) + 1


def test_an_accuracy_comes_before_a_loss_and_before_its_spread() -> None:
    names = ["test/loss_a", "test/worst_decile/accuracy_a", "test/f1_a", "test/accuracy_a"]
    assert sorted(names, key=importance) == [names[3], names[2], names[0], names[1]]


def test_seeds_are_a_mean_in_a_band(tmp_path: Path) -> None:
    seeds = [write_run(tmp_path / f"seed-{n}", {"train/loss": [n, 2 * n + 1]}) for n in (1.0, 4.0)]
    section = curves(read(both=seeds))
    assert section is not None
    upper, lower, mean = section.content["groups"][0].plots[0].figure.data
    assert [values_of(trace.y) for trace in (upper, lower, mean)] == [[4, 9], [1, 3], [2.5, 6]]
    assert section.content["bands"]


def test_values_that_are_not_finite_are_gaps(tmp_path: Path) -> None:
    section = curves(read(run=write_run(tmp_path / "run", {"train/loss": [1.0, math.nan, math.inf, 2.0]})))
    assert section is not None
    plot = section.content["groups"][0].plots[0]
    np.testing.assert_array_equal(plot.figure.data[0].y, [1, np.nan, np.nan, 2])
    assert plot.note == "1 infinite value not drawn"


def test_a_long_curve_keeps_its_ends_and_its_extremes() -> None:
    values = np.sin(np.arange(10_000) / 50)
    values[4321], values[8765] = 7, -7
    values[100:300] = np.nan
    kept = thinned(values, 100)
    assert len(kept) <= 102
    assert {0, 4321, 8765, 9999} <= set(kept.tolist())
    assert kept.tolist() == sorted(set(kept.tolist()))


def test_many_long_curves_share_the_room_that_there_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(curves_module, "ROOM", 2000)
    rounds = np.random.default_rng(0).random(500)
    run = write_run(tmp_path / "run", {f"test/m{n}": list(rounds + n) for n in range(5)}, ledger=False)
    section = curves(read(**{f"run{n}": run for n in range(4)}))
    assert section is not None
    assert section.content["thinned"]
    plots = [plot for group in section.content["groups"] for plot in group.plots]
    assert len(plots) == 5
    assert all(40 < len(trace.x) <= 54 for plot in plots for trace in plot.figure.data)


# Client by client


def test_clients_are_a_distribution_over_rounds_and_after_the_last(tmp_path: Path) -> None:
    accuracies = [[0.0, 0.1, 0.2, 0.3], [0.2, 0.4, 0.6, 1.0]]
    measured = {"train/loss": [[4, 3, 2, 1]] * 2, "test/accuracy_trained": accuracies}
    section = clients(read(run=write_run(tmp_path / "run", {"train/loss": [2.5, 2.5]}, clients=measured)))
    assert section is not None
    first, second = section.content["choices"]
    assert (first.metric, second.metric) == ("test/accuracy_trained", "train/loss")
    median = next(trace for trace in first.over_rounds[0].figure.data if trace.name == "median")
    assert values_of(median.y) == pytest.approx([0.15, 0.5])
    (bars,) = first.last.figure.data
    assert sum(bars.y) == 4
    assert bars.customdata[0][0] == 0
    assert bars.customdata[-1][1] == 1
    assert "lowest 0.2, highest 1" in first.last.note


def test_of_many_runs_the_last_round_is_a_box_each(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"train/loss": [1.0]}, clients={"train/loss": [[1.0, 2.0, 3.0, 4.0]]})
    section = clients(read(**{f"run{n}": run for n in range(5)}))
    assert section is not None
    boxes = section.content["choices"][0].last.figure.data
    assert [(box.type, box.name) for box in boxes] == [("box", f"run{n}") for n in range(5)]
    assert values_of(boxes[0].y) == [1, 2, 3, 4]


def test_one_client_is_no_distribution(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"train/loss": [1.0]}, clients={"train/loss": [[1.0]]})
    assert clients(read(run=run)) is None


# Clients and classes


def test_runs_that_divide_alike_share_a_chart(tmp_path: Path) -> None:
    runs = {name: write_run(tmp_path / name, {"train/loss": [1.0]}) for name in "ab"}
    section = partition(read(**runs))
    assert section is not None
    (division,) = section.content["divisions"]
    assert division.facts == "4 clients, 251 samples; 8 to 200 samples and 1 to 2 classes per client"
    (cells,) = division.plot.figure.data
    np.testing.assert_allclose(np.asarray(cells.z)[2], [np.log10(9), 0, np.nan, np.log10(200)], rtol=1e-6)
    assert list(cells.text[0]) == ["3", "", "4", ""]
    (runs["b"] / "partition.csv").write_text("client,zero,one,two\n0,1,1,1\n")
    section = partition(read(**runs))
    assert section is not None
    assert [one.labels for one in section.content["divisions"]] == ["a", "b"]
    assert LABELS.shape == (4, 3)


# Communication


def test_bytes_per_round_and_link_and_in_all(tmp_path: Path) -> None:
    section = traffic(read(run=write_run(tmp_path / "run", {"train/loss": [1.0, 1.0, 1.0]})))
    assert section is not None
    per_round, in_all = (plot.figure for plot in section.content["plots"])
    assert {trace.name: values_of(trace.y) for trace in per_round.data} == {
        "download, server → client": [1000, 2000, 3000],
        "upload, client → server": [100, 100, 100],
    }
    assert values_of(in_all.data[0].y) == [1100, 3200, 6300]
    down, up = section.content["table"]
    assert (down.messages, down.bytes, down.per_round, down.wire_bytes) == ("12", "6 kB", "2 kB", "1.5 kB")
    assert up.bytes == "300 B"


# Privacy


def test_what_was_spent_and_what_it_promises(tmp_path: Path) -> None:
    promise = {"budget_epsilon": 8.0, "delta": 1e-5, "unit": "client", "noise_multiplier": 2.0, "clip": None}
    log = [{"event": "start"}, {"event": "provenance", "privacy": promise}, {"event": "end"}]
    run = write_run(tmp_path / "run", {"privacy/epsilon": [1.0, 1.5]}, events=log)
    section = privacy(read(run=run))
    assert section is not None
    (statement,) = section.content["statements"]
    assert statement.summary == "epsilon 1.5 at delta 1e-05 after round 2"
    assert statement.lines == [
        ("budget epsilon", "8"),
        ("delta", "1e-05"),
        ("unit", "client"),
        ("noise multiplier", "2"),
    ]
    figure = section.content["plot_of"].figure
    assert values_of(figure.data[0].y) == [1.0, 1.5]
    assert figure.layout.shapes[0].y0 == 8


def test_an_infinite_epsilon_promises_nothing(tmp_path: Path) -> None:
    section = privacy(read(run=write_run(tmp_path / "run", {"privacy/epsilon": [math.inf]})))
    assert section is not None
    assert section.content["statements"][0].summary == "epsilon is infinite: nothing is promised"
    assert section.content["plot_of"] is None


# Events


def test_errors_stand_out_and_checkpoints_are_gathered(tmp_path: Path) -> None:
    log = [
        {"time": "2026-01-02T03:04:05.678+00:00", "event": "start", "round": 1, "ranks": 2, "initial_weights": None},
        *({"event": "checkpoint", "round": t, "path": f"/somewhere/checkpoints/round-{t:05d}"} for t in (1, 2, 3, 4)),
        {"event": "client_error", "round": 5, "client": 3, "error": "ValueError: loss is nan"},
        {"event": "checkpoint", "round": 5, "path": "/somewhere/checkpoints/round-00005"},
        {"event": "stopped", "round": 5, "signal": 10},
    ]
    section = events(read(run=write_run(tmp_path / "run", {"train/loss": [1.0]}, events=log)))
    assert section is not None
    (found,) = section.content["logs"]
    assert [tuple(line[1:]) for line in found.lines] == [
        ("1", "start", "ranks 2", "plain"),
        ("1, 2 … 4", "checkpoint", "4 checkpoints", "plain"),
        ("5", "client error", "client 3: ValueError: loss is nan", "error"),
        ("5", "checkpoint", "round-00005", "plain"),
        ("5", "stopped", "by SIGUSR1", "warning"),
    ]
    assert found.lines[0].time == "2026-01-02 03:04:05"
    assert found.errors == 1


def test_of_many_events_every_error_is_kept_as_long_as_there_is_room(tmp_path: Path) -> None:
    log = [{"event": "note", "n": n} for n in range(2000)]
    log[900:1000] = [{"event": "client_error", "round": n, "client": 0, "error": "x"} for n in range(100)]
    section = events(read(run=write_run(tmp_path / "run", {"train/loss": [1.0]}, events=log)))
    assert section is not None
    (found,) = section.content["logs"]
    assert len(found.lines) == MOST_LINES
    assert sum(line.severity == "error" for line in found.lines) == 100 == found.errors
    assert found.note.startswith("400 of 2000 lines are shown")


# What is damaged


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("metrics.csv", "step,train/loss\n1,2\n", "metrics.csv does not start with the columns round"),
        ("metrics.csv", "round,train/loss\n1,x\n", "metrics.csv is damaged"),
        ("metrics.csv", f"round,train/loss\n{10**10},1\n", "metrics.csv is damaged: row 1 has an impossible round"),
        ("metrics.csv", f"round,train/loss\n1,{10**400}\n", "metrics.csv is damaged: row 1 has an impossible train/lo"),
        ("clients.csv", "round,client,train/loss\n1,,2\n", "clients.csv is damaged: row 1 has no client"),
        ("ledger.csv", "round,phase\n1,upload\n", "ledger.csv does not start with the columns round,phase"),
        ("partition.csv", "client,a\n0,x\n", "partition.csv is damaged"),
        ("config.yaml", "- a\n", "config.yaml is no configuration"),
        ("events.jsonl", f'{{"event": "x", "privacy": {{"delta": {10**400}}}}}\n', "line 1 has an impossible number"),
    ],
)
def test_a_damaged_file_is_one_line(tmp_path: Path, file: str, text: str, message: str) -> None:
    run = write_run(tmp_path / "run", {"train/loss": [1.0]})
    (run / file).write_text(text)
    with pytest.raises(FlgenError, match=message) as caught:
        read(run=run)
    assert "\n" not in str(caught.value)


def test_numbers_shortly_before_infinity_are_drawn_as_it(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name, {"train/loss": [1.0, sign * 1.7e308]}) for name, sign in (("a", 1), ("b", -1))]
    for run in runs:
        (found,) = read(run=run)[0].runs
        assert math.isinf(found.metrics[-1]["train/loss"])


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", {"train/loss": [1.0, 2.0]})
    with open(run / "metrics.csv", "a") as file:
        file.write("3,0.")
    assert read(run=run)[0].runs[0].last_round == 2


# Words


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (words.number(0.123456789), "0.12346"),
        (words.number(1234567), "1,234,567"),
        (words.number(2.0), "2"),
        (words.number(math.inf), "inf"),
        (words.size(999), "999 B"),
        (words.size(1234), "1.23 kB"),
        (words.size(999_999), "1 MB"),
        (words.size(5e15), "5e+03 TB"),
        (words.duration(59.6), "1 min 00 s"),
        (words.duration(3725), "1 h 02 min"),
        (words.duration(90_000), "1 d 01 h"),
        (words.listed(["b", "a", "b", ""]), "b, a"),
        (words.listed(map(str, range(9))), "0, 1, 2, 3, 4, … (9)"),
        (words.at(words.moment({"time": "0001-01-01T00:00:00+14:00"})), ""),
        (words.at(words.moment({"time": 3})), ""),
    ],
)
def test_numbers_and_times_as_the_page_writes_them(shown: str, expected: str) -> None:
    assert shown == expected
