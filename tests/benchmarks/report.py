"""The table of the benchmarks: what was measured, against which budget, on which machine."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

EXPLANATION = """\
Written by `FLGEN_BENCHMARK_REPORT=1 make benchmark`. Ratios are medians of runs that took turns. Times of one process
are processor time, which other jobs on the machine disturb least, with the wall clock in the last column; those of
several processes are wall clock. *load* is the mean number of processes that wanted a core in the last minute, this one
included: above the number of cores, the wall clock is that of a busy machine."""
COLUMNS = ("what", "budget", "measured", "within", "load", "how")


@dataclass(frozen=True)
class Row:
    """One measurement.

    Args:
        what: What was measured.
        measured: The number, in `unit`.
        budget: Most it may be; None for a number that only helps to read another one.
        unit: "x" for a ratio, "%", "ms", "s", "B", ...
        how: Sizes, repetitions, and whatever a reader must know.
        load: Processes that wanted a core, this one included (mean of the last minute).
    """

    what: str
    measured: float
    budget: float | None
    unit: str
    how: str
    load: float

    def cells(self) -> tuple[str, ...]:
        """Return the row as text, in the order of COLUMNS."""
        budget = "" if self.budget is None else amount(self.budget, self.unit)
        within = "" if self.budget is None else "yes" if self.measured <= self.budget else "NO"
        return self.what, budget, amount(self.measured, self.unit), within, f"{self.load:.1f}", self.how


@dataclass
class Report:
    """Rows in the order in which they were measured."""

    rows: list[Row] = field(default_factory=list)

    def add(self, what: str, measured: float, budget: float | None, unit: str, how: str) -> None:
        """Add one measurement and print it."""
        row = Row(what, measured, budget, unit, how, os.getloadavg()[0])
        self.rows.append(row)
        print("\n" + "  |  ".join(cell for cell in row.cells() if cell), flush=True)

    def text(self) -> str:
        """Return the table for a terminal: the numbers in columns, then how each came about."""
        lines = [row.cells() for row in self.rows]
        narrow = [COLUMNS[:-1], *(line[:-1] for line in lines)]
        widths = [max(len(line[column]) for line in narrow) for column in range(len(COLUMNS) - 1)]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in narrow]
        notes = [f"  {line[0]}: {line[-1]}" for line in lines]
        return "\n".join([machine(), "", *table, "", *notes])

    def markdown(self) -> str:
        """Return the page for the documentation."""
        lines = ["| " + " | ".join(row.cells()) + " |" for row in self.rows]
        return "\n".join(
            [
                "# Benchmarks",
                "",
                EXPLANATION,
                "",
                f"Machine: {machine()}.",
                "",
                "| " + " | ".join(COLUMNS) + " |",
                "|" + "---|" * len(COLUMNS),
                *lines,
                "",
            ]
        )

    def write(self, path: Path) -> None:
        """Write the page."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.markdown())


def amount(number: float, unit: str) -> str:
    """Return a number with its unit: bytes exact, everything else to three digits."""
    if unit == "B":
        return f"{number:,.0f} B"
    digits = f"{number:.2f}" if unit == "x" else f"{number:.3g}"
    return digits if unit == "x" else f"{digits} {unit}"


def machine() -> str:
    """Return the machine's name: processor, cores, memory, versions, threads, date."""
    cores = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        _processor(),
        f"{cores} cores",
        f"{memory_gib:.0f} GiB",
        f"Linux {platform.release().split('-')[0]}",
        f"Python {platform.python_version()}",
        f"torch {torch.__version__}",
        f"{torch.get_num_threads()} thread per process",
        time.strftime("%Y-%m-%d"),
    ]
    return ", ".join(parts)


def _processor() -> str:
    about = Path("/proc/cpuinfo").read_text().splitlines()
    named = dict(line.split(":", 1) for line in about if ":" in line)
    fields = {key.strip(): value.strip() for key, value in named.items()}
    name = fields.get("model name", platform.machine())
    return f"{name} (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else name
