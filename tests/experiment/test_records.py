import json
import math
import os
import random
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from flgen.errors import FlgenError, UsageError
from flgen.experiment.records import (
    LEDGER_COLUMNS,
    ClientsTable,
    EventLog,
    LedgerTable,
    MetricsTable,
    atomic_replace,
    read_clients,
    read_events,
    read_ledger,
    read_metrics,
    read_partition,
    write_partition,
)
from flgen.wire.ledger import LedgerRow

UP = LedgerRow(1, "upload", "client->server", messages=10, bytes=4_100, wire_bytes=820)
DOWN = LedgerRow(1, "download", "server->client", messages=10, bytes=9_999)


def test_a_metric_that_appears_late_adds_a_column_and_leaves_earlier_cells_empty(tmp_path):
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path)
    table.write(1, {"train/loss": 0.5, "comm/up_bytes": 4100})
    table.write(2, {"train/loss": 0.25, "fid/digits": 12.0})
    table.write(3, {"comm/up_bytes": 8200})
    assert path.read_text().splitlines() == [
        "round,train/loss,comm/up_bytes,fid/digits",
        "1,0.5,4100,",
        "2,0.25,,12.0",
        "3,,8200,",
    ]
    assert read_metrics(path) == [
        {"round": 1, "train/loss": 0.5, "comm/up_bytes": 4100},
        {"round": 2, "train/loss": 0.25, "fid/digits": 12.0},
        {"round": 3, "comm/up_bytes": 8200},
    ]


def test_values_come_back_bit_for_bit_and_integers_as_integers(tmp_path):
    draw = random.Random(0)
    values = [draw.uniform(-1, 1) * 10.0 ** draw.randint(-300, 300) for _ in range(50)] + [math.inf, -0.0, 5e-324]
    metrics = {f"m/{i}": value for i, value in enumerate(values)}
    metrics |= {"big": 2**63 + 1, "numpy": np.float64(0.1), "single": np.float32(0.1), "count": np.int64(7)}
    MetricsTable(tmp_path / "metrics.csv").write(1, {**metrics, "nan": math.nan})
    (row,) = read_metrics(tmp_path / "metrics.csv")
    assert math.isnan(row.pop("nan"))
    assert {name: value.hex() for name, value in row.items() if name.startswith("m/")} == {
        name: value.hex() for name, value in metrics.items() if name.startswith("m/")
    }
    assert (row["big"], row["count"]) == (2**63 + 1, 7)
    assert isinstance(row["big"], int)
    assert isinstance(row["numpy"], float)
    assert row["numpy"] == 0.1
    assert row["single"] == float(np.float32(0.1))


def test_metric_names_with_commas_and_quotes_survive(tmp_path):
    table = MetricsTable(tmp_path / "metrics.csv")
    table.write(1, {'a,"b"': 1.5})
    table.write(2, {'a,"b"': 2.5})
    assert read_metrics(tmp_path / "metrics.csv") == [{"round": 1, 'a,"b"': 1.5}, {"round": 2, 'a,"b"': 2.5}]


def test_a_metric_may_not_be_called_round(tmp_path):
    with pytest.raises(UsageError, match="called `round`"):
        MetricsTable(tmp_path / "metrics.csv").write(1, {"round": 2.0})


def test_a_second_writer_continues_the_columns_of_the_first(tmp_path):
    path = tmp_path / "metrics.csv"
    MetricsTable(path).write(1, {"a": 1.0, "b": 2.0})
    MetricsTable(path).write(2, {"b": 4.0, "a": 3.0, "c": 5.0})
    assert path.read_text() == "round,a,b,c\n1,1.0,2.0,\n2,3.0,4.0,5.0\n"


def test_truncation_drops_later_rounds_and_the_run_goes_on_behind_it(tmp_path):
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path)
    for round in (1, 2, 2, 3, 4):
        table.write(round, {"loss": round / 3})
    before = read_metrics(path)[:3]
    resumed = MetricsTable(path)
    resumed.truncate_after(2)
    assert read_metrics(path) == before
    resumed.write(3, {"loss": 9.0})
    assert read_metrics(path) == [*before, {"round": 3, "loss": 9.0}]


def test_truncating_a_table_that_does_not_exist_makes_nothing(tmp_path):
    MetricsTable(tmp_path / "metrics.csv").truncate_after(3)
    LedgerTable(tmp_path / "ledger.csv").truncate_after(3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("tear", range(1, 9))
def test_a_row_torn_by_a_kill_is_not_read_and_not_built_upon(tmp_path, tear):
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path)
    table.write(1, {"loss": 0.5})
    whole = path.read_bytes()
    table.write(22, {"loss": 0.125})
    path.write_bytes(path.read_bytes()[: len(whole) + tear])
    assert read_metrics(path) == [{"round": 1, "loss": 0.5}]
    MetricsTable(path).write(2, {"loss": 0.75})
    assert path.read_text() == "round,loss\n1,0.5\n2,0.75\n"


def test_truncation_also_removes_a_torn_row_of_a_kept_round(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("round,loss\n1,0.5\n2,0.7")
    MetricsTable(path).truncate_after(5)
    assert path.read_text() == "round,loss\n1,0.5\n"


def test_a_torn_header_is_written_anew(tmp_path):
    (tmp_path / "metrics.csv").write_text("round,lo")
    MetricsTable(tmp_path / "metrics.csv").write(1, {"loss": 0.5})
    (tmp_path / "ledger.csv").write_text("rou")
    LedgerTable(tmp_path / "ledger.csv").write(1, [UP])
    assert (tmp_path / "metrics.csv").read_text() == "round,loss\n1,0.5\n"
    assert len(read_ledger(tmp_path / "ledger.csv")) == 1


def test_sigkill_loses_no_finished_row(tmp_path):
    program = (
        "import sys; from flgen.experiment.records import EventLog, MetricsTable\n"
        "table, log = MetricsTable(sys.argv[1] + '/metrics.csv'), EventLog(sys.argv[1] + '/events.jsonl')\n"
        "for round in range(1, 1000000):\n"
        "    table.write(round, {'x': round / 7}); log.write('round', number=round)\n"
        "    if round == 20: print('running', flush=True)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"running\n"
        os.kill(process.pid, signal.SIGKILL)
    rows = read_metrics(tmp_path / "metrics.csv")
    assert len(rows) >= 20
    assert rows == [{"round": round, "x": round / 7} for round in range(1, len(rows) + 1)]
    assert len(read_events(tmp_path / "events.jsonl")) in (len(rows) - 1, len(rows))


def test_rewriting_for_a_new_column_leaves_no_other_file_and_no_damage_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "metrics.csv"
    table = MetricsTable(path)
    table.write(1, {"a": 1.0})
    before = path.read_text()

    def full_disk(source, target):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full_disk)
        with pytest.raises(FlgenError, match=r"cannot write .*metrics\.csv: No space left on device.*--run_dir"):
            table.write(2, {"b": 2.0})
    assert path.read_text() == before
    assert list(tmp_path.iterdir()) == [path]
    table.write(2, {"b": 2.0})
    assert read_metrics(path)[1] == {"round": 2, "b": 2.0}
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_and_a_damaged_file_are_one_clear_line(tmp_path):
    with pytest.raises(FlgenError, match=r"cannot write .*gone/metrics\.csv: No such file or directory"):
        MetricsTable(tmp_path / "gone" / "metrics.csv").write(1, {"a": 1.0})
    damaged = tmp_path / "metrics.csv"
    damaged.write_text("round,a\n1,2.0\n3.0\n4,5.0\n")
    with pytest.raises(FlgenError, match=r"damaged: row 2 has 1 cells and starts with '3\.0'"):
        read_metrics(damaged)
    foreign = tmp_path / "ledger.csv"
    foreign.write_text("epoch,loss\n")
    with pytest.raises(FlgenError, match="does not start with the columns round,phase,link"):
        LedgerTable(foreign).write(1, [UP])
    (tmp_path / "events.jsonl").write_text('{"event": "a"}\nnonsense\n{"event": "b"}\n')
    with pytest.raises(FlgenError, match="damaged: line 2"):
        read_events(tmp_path / "events.jsonl")


def test_the_ledger_keeps_its_columns_and_its_integers(tmp_path):
    path = tmp_path / "ledger.csv"
    table = LedgerTable(path)
    table.write(1, [DOWN, UP])
    table.write(2, [])
    table.write(3, iter([UP]))
    assert path.read_text().splitlines()[0] == "round,phase,link,messages,bytes,wire_bytes"
    assert read_ledger(path)[1] == dict(
        zip(LEDGER_COLUMNS, (1, "upload", "client->server", 10, 4100, 820), strict=True)
    )
    assert [row["round"] for row in read_ledger(path)] == [1, 1, 3]
    table.truncate_after(1)
    assert [row["bytes"] for row in read_ledger(path)] == [9_999, 4_100]


def test_clients_have_a_row_each_by_ascending_id_and_cells_for_what_they_report(tmp_path):
    path = tmp_path / "clients.csv"
    table = ClientsTable(path)
    table.write(1, {2: {"train/loss": 0.5}, 0: {"mask/density": 0.25, "train/loss": 0.75}})
    table.write(2, {10: {"test/accuracy": 1.0}, 9: {"train/loss": 0.125}})
    assert path.read_text().splitlines() == [
        "round,client,mask/density,train/loss,test/accuracy",
        "1,0,0.25,0.75,",
        "1,2,,0.5,",
        "2,9,,0.125,",
        "2,10,,,1.0",
    ]
    assert read_clients(path)[1:3] == [
        {"round": 1, "client": 2, "train/loss": 0.5},
        {"round": 2, "client": 9, "train/loss": 0.125},
    ]


def test_clients_without_metrics_still_took_part_and_a_round_without_clients_adds_nothing(tmp_path):
    path = tmp_path / "clients.csv"
    table = ClientsTable(path)
    table.write(1, {3: {}, 1: {}})
    table.write(2, {})
    assert read_clients(path) == [{"round": 1, "client": 1}, {"round": 1, "client": 3}]


def test_the_columns_of_clients_do_not_depend_on_who_reports_first(tmp_path):
    reported = {0: {"a": 1.0}, 1: {"b": 2.0}, 2: {"c": 3.0}}
    for name, order in (("forwards.csv", (0, 1, 2)), ("backwards.csv", (2, 1, 0))):
        ClientsTable(tmp_path / name).write(1, {client: reported[client] for client in order})
    assert (tmp_path / "forwards.csv").read_text() == (tmp_path / "backwards.csv").read_text()


def test_a_resumed_run_drops_the_clients_of_later_rounds(tmp_path):
    path = tmp_path / "clients.csv"
    table = ClientsTable(path)
    for round in (1, 2, 3):
        table.write(round, {0: {"loss": round / 2}, 1: {"loss": round / 4}})
    resumed = ClientsTable(path)
    resumed.truncate_after(1)
    resumed.write(2, {0: {"loss": 9.0}})
    assert [(row["round"], row["client"], row["loss"]) for row in read_clients(path)] == [
        (1, 0, 0.5),
        (1, 1, 0.25),
        (2, 0, 9.0),
    ]


@pytest.mark.parametrize("name", ["round", "client"])
def test_a_clients_metric_may_not_take_the_place_of_the_round_or_the_client(tmp_path, name):
    with pytest.raises(UsageError, match=f"a metric is called `{name}`, a column of clients.csv"):
        ClientsTable(tmp_path / "clients.csv").write(1, {0: {"loss": 1.0}, 1: {name: 2.0}})
    assert list(tmp_path.iterdir()) == []


def test_a_partition_comes_back_with_the_names_of_its_classes(tmp_path):
    names = ["plain", "with, comma", 'with "quotes"', "with\nline end", "7", "client"]
    counts = np.array([[3, 0, 0, 1, 2, 5], [0, 2**40, 7, 0, 0, 1]])
    write_partition(tmp_path / "partition.csv", counts, names)
    found, table = read_partition(tmp_path / "partition.csv")
    assert found == names
    assert table.dtype == np.int64
    assert table.tolist() == counts.tolist()
    assert list(tmp_path.iterdir()) == [tmp_path / "partition.csv"]


def test_a_partition_is_a_table_that_any_program_reads(tmp_path):
    write_partition(tmp_path / "partition.csv", np.array([[3, 0], [1, 2]]), ("a", "b,c"))
    assert (tmp_path / "partition.csv").read_text() == 'client,a,"b,c"\n0,3,0\n1,1,2\n'


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "is missing or empty: a run of `flgen fit` writes it"),
        (b"", "is missing or empty: a run of `flgen fit` writes it"),
        (b"client,a,b\n", "is missing or empty: a run of `flgen fit` writes it"),
        (b"client,a,b\n0,1,2\n1,3\n", "is damaged: row 2 has 2 cells"),
        (b"client,a,b\nzero,1,2\n", "is damaged: row 1 has 3 cells and starts with 'zero'"),
        (b"client,a,b\n0,1,many\n", "is damaged .*'many'"),
        (b"client,a,b\n0,1,\n", "is damaged .*''"),
        (b"client,a,b\n0,1,99999999999999999999\n", "is damaged .*too large"),
        (b"\xff\xfe\x00\n", "is damaged .*can't decode"),
        (b"client," + b"a" * 200_000 + b"\n0,1\n", "is damaged .*field larger than field limit"),
        (b"round,loss\n1,0.5\n", "is no partition.csv: its first column is round, not client"),
    ],
)
def test_a_damaged_partition_is_one_clear_line(tmp_path, content, complaint):
    path = tmp_path / "partition.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FlgenError, match=f"^{path} {complaint}") as refusal:
        read_partition(path)
    assert "\n" not in str(refusal.value)


def test_cells_that_are_no_numbers_are_one_clear_line(tmp_path):
    (tmp_path / "clients.csv").write_text("round,client,loss\n1,0,low\n")
    with pytest.raises(FlgenError, match=r"clients.csv is damaged \(could not convert string to float: 'low'\)"):
        read_clients(tmp_path / "clients.csv")
    (tmp_path / "ledger.csv").write_text(",".join(LEDGER_COLUMNS) + "\n1,upload,a->b,1,x,0\n")
    with pytest.raises(FlgenError, match=r"ledger.csv is damaged .*'x'"):
        read_ledger(tmp_path / "ledger.csv")
    for name, read in (("metrics.csv", read_metrics), ("events.jsonl", read_events)):
        (tmp_path / name).write_bytes(b"round,loss\n1,\xff\n")
        with pytest.raises(FlgenError, match=rf"{name} is damaged .*can't decode"):
            read(tmp_path / name)


def test_events_carry_their_time_name_and_fields(tmp_path):
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.write("checkpoint", round=10, path=tmp_path / "checkpoints")
    log.write("client_error", client=3, error=ValueError("loss is\nnan"))
    first, second = read_events(path)
    assert first["event"] == "checkpoint"
    assert (first["round"], first["path"]) == (10, str(tmp_path / "checkpoints"))
    assert (second["client"], second["error"]) == (3, "loss is\nnan")
    age = datetime.now(UTC) - datetime.fromisoformat(first["time"])
    assert datetime.fromisoformat(first["time"]).utcoffset() == timedelta(0)
    assert timedelta(0) <= age + timedelta(milliseconds=1) < timedelta(minutes=1)
    assert [list(json.loads(line))[:2] for line in path.read_text().splitlines()] == [["time", "event"]] * 2


def test_a_torn_event_is_skipped_and_the_next_one_starts_a_new_line(tmp_path):
    path = tmp_path / "events.jsonl"
    EventLog(path).write("start")
    path.write_text(path.read_text() + '{"time": "2024-01-01T00:00:00+00:00", "ev')
    assert [event["event"] for event in read_events(path)] == ["start"]
    EventLog(path).write("resume", round=4)
    assert [event["event"] for event in read_events(path)] == ["start", "resume"]


def test_a_file_takes_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail_half_way():
        with atomic_replace(path) as temporary:
            temporary.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_half_way()
    assert path.read_text() == "old"
    with atomic_replace(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_writing_needs_no_torch():
    check = "import sys, flgen.experiment.records; assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_classes_of_the_same_name_keep_their_own_counts(tmp_path):
    counts = np.array([[1, 2, 3], [4, 5, 6]])
    write_partition(tmp_path / "partition.csv", counts, ["crane", "client", "crane"])
    names, read = read_partition(tmp_path / "partition.csv")
    assert names == ["crane", "client", "crane"]
    assert np.array_equal(read, counts)
