"""MATLAB files: the numbers that SciPy writes into them are read, and nothing else is taken for numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from flgen.data import matlab_numbers
from flgen.data.matlab_numbers import read_numbers


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", ["u1", "i1", "u2", "i2", "u4", "i4", "i8", "f4", "f8"])
def test_whole_numbers_of_any_type_are_read_column_after_column(kind: str, packed: bool, tmp_path: Path) -> None:
    table = np.arange(6, dtype=kind).reshape(2, 3)
    savemat(tmp_path / "x.mat", {"a": "text", "x": table, "long": np.arange(300, dtype=kind)}, do_compression=packed)
    assert read_numbers(tmp_path / "x.mat", "x").tolist() == [0, 3, 1, 4, 2, 5]
    assert np.array_equal(read_numbers(tmp_path / "x.mat", "long"), np.arange(300).astype(kind).astype(np.int64))


@pytest.mark.parametrize(
    ("value", "said"),
    [("text", "no real numbers"), (1 + 2j, "no real numbers"), (0.5, "not whole"), ([[1, "a"]], "no real numbers")],
)
def test_what_is_no_whole_number_is_refused(value: object, said: str, tmp_path: Path) -> None:
    savemat(tmp_path / "x.mat", {"x": np.array(value, dtype=object) if isinstance(value, list) else value})
    with pytest.raises(ValueError, match=said):
        read_numbers(tmp_path / "x.mat", "x")
    with pytest.raises(ValueError, match="no variable y"):
        read_numbers(tmp_path / "x.mat", "y")


def test_a_file_that_swells_or_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matlab_numbers, "LARGEST", 1 << 12)
    savemat(tmp_path / "x.mat", {"x": np.zeros(10_000)}, do_compression=True)
    with pytest.raises(ValueError, match="more than 4096 bytes"):
        read_numbers(tmp_path / "x.mat", "x")
    (tmp_path / "y.mat").write_bytes(b"MATLAB")
    with pytest.raises(ValueError, match="no MATLAB file"):
        read_numbers(tmp_path / "y.mat", "x")
