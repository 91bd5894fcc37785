"""The CSV that lies beside a figure."""

from __future__ import annotations

import csv
from pathlib import Path


def read_csv(path: Path | str) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
