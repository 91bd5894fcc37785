"""Decoding on one thread per core: the decoders release the interpreter, and files arrive while others are decoded."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

ROWS_PER_TASK = 64


def for_each_row(rows: int, work: Callable[[int], None]) -> None:
    """Call `work(row)` for every row, on one thread per core; the first error ends it.

    Args:
        rows: Number of rows.
        work: What is done for a row; it writes its result where no other row does.
    """

    def some(start: int) -> None:
        for row in range(start, min(start + ROWS_PER_TASK, rows)):
            work(row)

    with ThreadPoolExecutor(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None) as threads:
        tasks = [threads.submit(some, start) for start in range(0, rows, ROWS_PER_TASK)]
        try:
            for task in tasks:
                task.result()
        except BaseException:  # an interrupt, too, must not wait for all the other files
            threads.shutdown(cancel_futures=True)
            raise
