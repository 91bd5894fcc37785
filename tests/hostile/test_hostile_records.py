"""Tables, events and configuration of a run folder that somebody else has written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from damage import TIMES, altered, damaged, outcome, refusal, tried
from hypothesis import given

from flgen.errors import FlgenError
from flgen.experiment.plain_values import DEEPEST, NotPlainError, json_value, yaml_value
from flgen.experiment.records import (
    ClientsTable,
    EventLog,
    LedgerTable,
    MetricsTable,
    read_clients,
    read_events,
    read_ledger,
    read_metrics,
    read_partition,
    write_partition,
)
from flgen.experiment.runs import RunFolder
from flgen.experiment.summary import read_summary, summarise, write_summary
from flgen.wire.ledger import LedgerRow

CONFIG = {"seed_everything": 3, "model": {"class_path": "SmallCNN", "init_args": {"width": 8}}, "loggers": []}


def written(folder: Path) -> None:
    """All the records of a run of two rounds."""
    for t in (1, 2):
        MetricsTable(folder / "metrics.csv").write(t, {"train/loss": 1 / t, "test/accuracy": 0.25 * t})
        LedgerTable(folder / "ledger.csv").write(t, [LedgerRow("train", "client->server", 2, 100, 50)])
        ClientsTable(folder / "clients.csv").write(t, {0: {"train/loss": 1.0}, 1: {"train/loss": 2.0}})
        EventLog(folder / "events.jsonl").write("checkpoint", round=t, path="x")
    write_partition(folder / "partition.csv", np.array([[1, 2], [3, 4]]), ["a", "b"])
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    write_summary(folder / "summary.csv", summarise([read_metrics(folder / "metrics.csv")] * 2))


READERS: dict[str, Callable[[Path], Any]] = {
    "metrics.csv": read_metrics,
    "clients.csv": read_clients,
    "ledger.csv": read_ledger,
    "events.jsonl": read_events,
    "partition.csv": read_partition,
    "summary.csv": read_summary,
    "config.yaml": lambda path: RunFolder(path.parent).read_config(),
}
TABLES = {"metrics.csv": MetricsTable, "clients.csv": ClientsTable, "ledger.csv": LedgerTable}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    folder.mkdir()
    written(folder)
    return folder


@TIMES
@pytest.mark.parametrize("name", READERS)
def test_any_bytes_are_read_or_refused(name: str, times: int, run: Path) -> None:
    intact = (run / name).read_bytes()

    @tried(40 * times)
    @given(damaged(intact))
    def holds(content: bytes) -> None:
        (run / name).write_bytes(content)
        outcome(lambda: READERS[name](run / name))
        if name in TABLES:
            outcome(lambda: TABLES[name](run / name).truncate_after(1))
        assert sorted(path.name for path in run.iterdir()) == sorted(READERS)

    holds()


@TIMES
@pytest.mark.parametrize("name", [name for name in READERS if name.endswith(".csv")])
def test_any_cells_are_read_or_refused(name: str, times: int, run: Path) -> None:
    import csv
    import io

    with (run / name).open(newline="") as file:
        rows = list(csv.reader(file))

    @tried(40 * times)
    @given(altered(rows))
    def holds(changed: Any) -> None:
        text = io.StringIO()
        for row in changed if isinstance(changed, list) else [[changed]]:
            csv.writer(text).writerow(row if isinstance(row, list | str) else [row])
        (run / name).write_text(text.getvalue(), encoding="utf-8", errors="replace")
        outcome(lambda: READERS[name](run / name))
        if name in TABLES:
            outcome(lambda: TABLES[name](run / name).truncate_after(1))

    holds()


@pytest.mark.parametrize("name", READERS)
def test_what_is_no_readable_file_is_one_line(name: str, run: Path) -> None:
    (run / name).unlink()
    (run / name).mkdir()
    assert str(run / name) in refusal(lambda: READERS[name](run / name))
    (run / name).rmdir()
    os.mkfifo(run / name)  # nobody writes into it
    if name != "summary.csv":  # read where the seeds' folders were just found, not beside them
        assert "is no file" in refusal(lambda: READERS[name](run / name))


@pytest.mark.parametrize(
    "text",
    [
        '{"event": [' + "[" * 100_000,
        "5\n",
        '{"event": 5}\n',
        '{"event": "end", "round": "x"}\n',
        '{"round": 1}\n',
        '{"event": "end", "round": ' + "9" * 5000 + "}\n",
    ],
)
def test_events_that_are_none_are_one_line(text: str, run: Path) -> None:
    (run / "events.jsonl").write_text(text + "\n")
    assert "line 1 is not a JSON object of an event" in refusal(lambda: read_events(run / "events.jsonl"))


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
MERGES = "a0: &a0 {k: v}\n" + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in range(1, 10))


@pytest.mark.parametrize(
    "text",
    [
        LAUGHS,
        MERGES,
        "a: " + "[" * 100_000,
        "a: " + "[" * 200 + "]" * 200,
        "- " * 200 + "x",
        "a: &a [*a]",
        "a: !!python/object/apply:os.system ['true']",
        "a: !!python/name:os.system",
        "a: !!timestamp x",
        "a: !!int ''",
        "a: " + "9" * 5000,
        "a: '" + LAUGHS.replace("\n", "\n\n ") + "'",
        "? {a: b}\n: c",
        "\0",
        "a: *b",
    ],
    ids=range(15),
)
def test_yaml_made_to_exhaust_or_to_act_is_refused(text: str, run: Path) -> None:
    with pytest.raises(NotPlainError) as said:
        yaml_value(text)
    assert "\n" not in str(said.value)
    (run / "config.yaml").write_text(text)
    assert "config.yaml cannot be read" in refusal(RunFolder(run).read_config)


def test_yaml_and_json_within_the_bounds_are_what_they_were() -> None:
    assert yaml_value("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: {d: 1}, e: 'x [{'}\n") == {
        "a": [1, 2],
        "b": [[1, 2], [1, 2]],
        "c": {"d": 1, "e": "x [{"},
    }
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert str(json_value(deep)) == str(yaml_value(deep)) == deep
    assert json_value('["' + "[{" * 300 + '", "\\ud83d\\ude00"]') == ["[{" * 300, "\N{GRINNING FACE}"]
    with pytest.raises(NotPlainError, match=f"deeper than {DEEPEST} levels"):
        json_value("[" + deep + "]")


@pytest.mark.parametrize("link", ["metrics.csv", "samples", "checkpoints", "config.partial", "samples/round-00001.png"])
def test_a_run_writes_through_no_link_that_leads_out_of_its_folder(link: str, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    run = RunFolder(tmp_path / "run")
    run.create()
    path = run.path / link
    if path.is_dir():
        path.rmdir()
    path.symlink_to(outside / "target" if path.suffix else outside)
    with pytest.raises(FlgenError, match=f"has a link that leads out of it, {link}: "):
        run.create()
    assert not list(outside.iterdir())


def test_links_within_a_run_folder_and_those_of_wandb_are_left(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    (run.path / "wandb").mkdir()
    (run.path / "wandb" / "debug.log").symlink_to(tmp_path / "logs")
    (run.path / "newest").symlink_to("samples")
    (run.path / "loop").symlink_to("loop")
    run.create()
    linked = tmp_path / "linked"
    linked.symlink_to(run.path)
    RunFolder(linked).create()
