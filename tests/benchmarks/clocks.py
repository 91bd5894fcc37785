"""Two clocks at once."""

from __future__ import annotations

import time
from typing import NamedTuple


class Seconds(NamedTuple):
    """Time by the wall clock, and processor time of this process, which other jobs on the machine disturb less."""

    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Seconds:
        """Read both clocks."""
        return cls(time.perf_counter(), time.process_time())

    def __add__(self, other: object) -> Seconds:
        assert isinstance(other, Seconds)
        return Seconds(self.wall + other.wall, self.cpu + other.cpu)

    def __sub__(self, earlier: Seconds) -> Seconds:
        return Seconds(self.wall - earlier.wall, self.cpu - earlier.cpu)


NO_TIME = Seconds(0.0, 0.0)
