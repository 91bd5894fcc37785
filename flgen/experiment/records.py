"""What a run writes down while it runs: metrics.csv, ledger.csv and events.jsonl in the run folder.

Only the server rank writes. Every row reaches the operating system before `write` returns, so a killed
process loses at most the row it was writing; the torn line it may leave behind is ignored by the readers and
removed before the next row is appended.
"""

from __future__ import annotations

import csv
import io
import json
import numbers
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError
from flgen.experiment.plain_values import NotPlainError, json_value

if TYPE_CHECKING:
    import numpy as np

    from flgen.wire.ledger import LedgerRow

_ROUND = re.compile("[0-9]{1,15}")

LEDGER_COLUMNS = ("round", "phase", "link", "messages", "bytes", "wire_bytes")


class MetricsTable:
    """metrics.csv: one row per logged step, `round` first, then the metrics in the order of their first appearance.

    A metric that appears late adds a column: the file is written anew beside the old one and takes its place.
    Floats are written so that reading them gives the same bits; a metric that a row lacks is an empty cell.

    Args:
        path: The file; it is created by the first row, its folder must exist.
    """

    def __init__(self, path: Path | str) -> None:
        self._table = _RoundTable(Path(path), ("round",))

    def write(self, round: int, metrics: Mapping[str, float]) -> None:
        """Append one row.

        Args:
            round: The round that the metrics belong to.
            metrics: Value by metric name; integers stay integers, everything else is stored as a float64.

        Raises:
            UsageError: If a metric is called `round`.
        """
        if "round" in metrics:
            raise UsageError("a metric is called `round`, the first column of metrics.csv: give it another name")
        self._table.add_columns(metrics)
        self._table.append(round, [metrics])

    def truncate_after(self, round: int) -> None:
        """Drop the rows of all rounds later than `round`, and a torn last line, in one atomic step."""
        self._table.truncate_after(round)


class LedgerTable:
    """ledger.csv: the bytes of each round by phase and link, in the columns of `LEDGER_COLUMNS`.

    Args:
        path: The file; it is created by the first row, its folder must exist.
    """

    def __init__(self, path: Path | str) -> None:
        self._table = _RoundTable(Path(path), LEDGER_COLUMNS)

    def write(self, round: int, rows: Iterable[LedgerRow]) -> None:
        """Append what `round` has carried, all of its rows at once."""
        cells = [{name: getattr(row, name) for name in LEDGER_COLUMNS[1:]} for row in rows]
        self._table.append(round, cells)

    def truncate_after(self, round: int) -> None:
        """Drop the rows of all rounds later than `round`, and a torn last line, in one atomic step."""
        self._table.truncate_after(round)


class ClientsTable:
    """clients.csv: what each client reported, one row per round and client, metrics in the order they appear first.

    Args:
        path: The file; it is created by the first row, its folder must exist.
    """

    def __init__(self, path: Path | str) -> None:
        self._table = _RoundTable(Path(path), ("round", "client"))

    def write(self, round: int, clients: Mapping[int, Mapping[str, float]]) -> None:
        """Append one row for each client, by ascending id.

        Args:
            round: The round that the metrics belong to.
            clients: Value by metric name, by client id.

        Raises:
            UsageError: If a metric is called `round` or `client`.
        """
        names = {name: None for client in sorted(clients) for name in clients[client]}
        for column in ("round", "client"):
            if column in names:
                raise UsageError(f"a metric is called `{column}`, a column of clients.csv: give it another name")
        self._table.add_columns(names)
        self._table.append(round, [{"client": client, **clients[client]} for client in sorted(clients)])

    def truncate_after(self, round: int) -> None:
        """Drop the rows of all rounds later than `round`, and a torn last line, in one atomic step."""
        self._table.truncate_after(round)


class EventLog:
    """events.jsonl: one JSON object per line with `time` (ISO 8601, UTC), `event` and the event's own fields.

    Args:
        path: The file; it is created by the first event, its folder must exist.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event.

        Args:
            event: What happened, as a short name such as `checkpoint` or `client_error`.
            fields: What belongs to it; values that JSON lacks (paths, errors) are stored as their text.
        """
        entry = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        _append_lines(self._path, json.dumps(entry, default=str) + "\n")


def read_metrics(path: Path | str) -> list[dict[str, float]]:
    """Return the rows of a metrics.csv: `round` and whatever metrics each row has."""
    return _read_numbers(Path(path), ("round",))


def read_clients(path: Path | str) -> list[dict[str, float]]:
    """Return the rows of a clients.csv: `round`, `client` and whatever metrics each row has."""
    return _read_numbers(Path(path), ("round", "client"))


def read_ledger(path: Path | str) -> list[dict[str, Any]]:
    """Return the rows of a ledger.csv; `phase` and `link` are text, the other columns are integers."""
    _, rows = _read_table(Path(path), LEDGER_COLUMNS)
    with _clear_damage(Path(path)):
        return [{name: cell if name in ("phase", "link") else int(cell) for name, cell in row.items()} for row in rows]


def write_partition(path: Path, label_table: np.ndarray, class_names: Sequence[str]) -> None:
    """Write partition.csv: how many training samples of each class each client holds, one row per client.

    Args:
        path: The file.
        label_table: int array (clients, classes).
        class_names: One name per class.
    """
    rows = [["client", *class_names]]
    rows += [[str(client), *(str(count) for count in counts)] for client, counts in enumerate(label_table.tolist())]
    with atomic_replace(path) as temporary:
        temporary.write_text(_csv_text(rows), encoding="utf-8", newline="")


def read_partition(path: Path) -> tuple[list[str], np.ndarray]:
    """Return the class names and the label table, int64 (clients, classes), of a partition.csv.

    Raises:
        FlgenError: The file is missing or damaged.
    """
    import numpy as np

    header, rows = _read_rows(path)
    if not rows:
        raise FlgenError(f"{path} is missing or empty: a run of `flgen fit` writes it when it starts")
    if header[0] != "client":
        raise FlgenError(f"{path} is no partition.csv: its first column is {header[0]:.40}, not client")
    with _clear_damage(path):  # by position: nothing keeps two classes from having the same name
        table = np.array([[int(cell) for cell in row[1:]] for row in rows], dtype=np.int64)
        if table.min(initial=0) < 0:
            raise ValueError("a client has a negative number of samples")
    return header[1:], table


def read_events(path: Path | str) -> list[dict[str, Any]]:
    """Return the events of an events.jsonl in the order in which they happened."""
    events = []
    for number, line in enumerate(_complete_text(Path(path)).splitlines(), start=1):
        try:
            event = json_value(line)
            if not (isinstance(event, dict) and isinstance(event.get("event"), str)):
                raise NotPlainError("no object with an `event`")
            if event["event"] != "provenance" and type(event.get("round", 0)) is not int:  # there it is a generator's
                raise NotPlainError("its round is no number")
        except NotPlainError as error:
            raise FlgenError(
                f"{path} is damaged: line {number} is not a JSON object of an event ({error}); mend or delete it"
            ) from error
        events.append(event)
    return events


@contextmanager
def atomic_replace(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what is written there takes the place of `path` if the block succeeds.

    Raises:
        FlgenError: If the folder cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with _clear_errors("write", path):
            yield temporary
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


class _RoundTable:
    """A CSV file whose first column is the round and which only grows at its end, except when columns are added."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self._path = path
        self._initial_columns = list(columns)
        self._known_columns: list[str] | None = None

    @property
    def _columns(self) -> list[str]:
        if self._known_columns is None:
            found, _ = _read_table(self._path, self._initial_columns)
            self._known_columns = found or self._initial_columns
        return self._known_columns

    def add_columns(self, names: Iterable[str]) -> None:
        columns = self._columns + [name for name in names if name not in self._columns]
        if columns != self._columns:
            _, rows = _read_table(self._path, self._initial_columns)
            if rows:
                self._replace(columns, rows)
            else:
                self._path.unlink(missing_ok=True)  # at most a header, which the first row brings along
            self._known_columns = columns

    def append(self, round: int, rows: Sequence[Mapping[str, Any]]) -> None:
        cells = [[_cell({"round": round, **row}.get(name)) for name in self._columns] for row in rows]
        _append_lines(self._path, _csv_text(cells), header=_csv_text([self._columns]))

    def truncate_after(self, round: int) -> None:
        if not self._path.exists():
            return
        columns, rows = _read_table(self._path, self._initial_columns)
        kept = [row for row in rows if int(row["round"]) <= round]
        if len(kept) < len(rows):
            self._replace(columns, kept)
        else:
            _drop_torn_line(self._path)

    def _replace(self, columns: Sequence[str], rows: Iterable[Mapping[str, str]]) -> None:
        with atomic_replace(self._path) as temporary:
            table = [columns, *([row.get(name, "") for name in columns] for row in rows)]
            temporary.write_text(_csv_text(table), encoding="utf-8", newline="")


def _read_numbers(path: Path, first: Sequence[str]) -> list[dict[str, float]]:
    """Return the rows of a table of numbers without its empty cells."""
    _, rows = _read_table(path, first)
    with _clear_damage(path):
        return [{name: _number(cell) for name, cell in row.items() if cell} for row in rows]


def _read_table(path: Path, first: Sequence[str]) -> tuple[list[str], list[dict[str, str]]]:
    """Return the column names (none if the file is missing) and the complete rows of a table.

    Args:
        path: The file.
        first: The columns that it must start with.
    """
    header, rows = _read_rows(path)
    if header and header[: len(first)] != list(first):
        raise FlgenError(f"{path} does not start with the columns {','.join(first)}: move it away")
    if len(set(header)) < len(header):
        raise FlgenError(f"{path} is damaged: it has two columns of the same name; mend it or move it away")
    return header, [dict(zip(header, row, strict=True)) for row in rows]


def _read_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the header and the complete rows of a table; every row starts with a number."""
    with _clear_damage(path):
        header, *rows = [row for row in csv.reader(io.StringIO(_complete_text(path), newline="")) if row] or [[]]
    for number, row in enumerate(rows, start=1):
        if len(row) != len(header) or not _ROUND.fullmatch(row[0]):
            raise FlgenError(
                f"{path} is damaged: row {number} has {len(row)} cells and starts with {row[0]!r:.40}, "
                f"the header has {len(header)} and starts with {header[0]!r:.40}; mend the row or move the file away"
            )
    return header, rows


def _complete_text(path: Path) -> str:
    """Return the file up to its last line end, which leaves out a line that a killed process left half written."""
    if not path.exists():
        return ""
    if not path.is_file():  # a pipe would be waited for
        raise FlgenError(f"{path} is no file: move it away")
    with _clear_errors("read", path):
        content = path.read_bytes()
    with _clear_damage(path):
        return content[: content.rfind(b"\n") + 1].decode()


def _drop_torn_line(path: Path) -> bool:
    """Cut the file after its last line end; return whether anything is left."""
    with _clear_errors("write", path), open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end == 0:
            return False
        file.seek(end - 1)
        if file.read(1) == b"\n":
            return True
        file.seek(0)
        complete = file.read().rfind(b"\n") + 1
        file.truncate(complete)
        return complete > 0


def _append_lines(path: Path, lines: str, header: str = "") -> None:
    is_new = not (path.exists() and _drop_torn_line(path))
    with _clear_errors("write", path), open(path, "a", encoding="utf-8", newline="") as file:
        file.write(header + lines if is_new else lines)


def _csv_text(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return repr(int(value)) if isinstance(value, numbers.Integral) else repr(float(value))


def _number(cell: str) -> float:
    try:
        return int(cell)
    except ValueError:
        return float(cell)


@contextmanager
def _clear_damage(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, OverflowError, csv.Error) as error:
        reason = " ".join(str(error).split())[:200]
        raise FlgenError(f"{path} is damaged ({reason}): mend it or move it away") from error


@contextmanager
def _clear_errors(verb: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        remedy = "free some space or name a folder you may write to with --run_dir"
        raise FlgenError(f"cannot {verb} {path}: {reason}" + (f"; {remedy}" if verb == "write" else "")) from error
