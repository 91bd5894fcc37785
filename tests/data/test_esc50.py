"""ESC-50 from a folder that the tests write."""

from __future__ import annotations

import numpy as np
import pytest
from small_data import assert_one_line, read, write_wav

from flgen.data import ESC50
from flgen.data.esc50 import SOUNDS
from flgen.errors import FlgenError, UsageError

HEADER = "filename,fold,target,category,esc10,src_file,take"


@pytest.fixture(params=["", "ESC-50", "ESC-50-master"])
def root(request, tmp_path):
    """Three kinds of sounds, one recording in each fold, 44.1 kHz; the level says the label."""
    folder = tmp_path / request.param
    rows = [HEADER]
    for label in (0, 10, 49):
        for fold in range(1, 6):
            name = f"{fold}-100-A-{label}.wav"
            write_wav(folder / "audio" / name, np.full(44_100, 100 * label, dtype=np.int16), rate=44_100)
            rows.append(f"{name},{fold},{label},{SOUNDS[label]},False,100,A")
    (folder / "meta").mkdir()
    (folder / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")
    return tmp_path


def test_there_are_50_kinds_of_sounds():
    assert len(SOUNDS) == len(set(SOUNDS)) == ESC50().classes == 50
    assert (SOUNDS[0], SOUNDS[10], SOUNDS[49]) == ("dog", "rain", "hand_saw")


def test_one_fold_is_held_out(root):
    data = read(ESC50(str(root), test_fold=2))
    assert data.train.attributes["fold"].unique().tolist() == [1, 3, 4, 5]
    assert data.test.attributes["fold"].unique().tolist() == [2]
    assert data.test.labels.tolist() == [0, 10, 49]
    assert data.train.inputs.shape == (12, 80_000)
    levels = data.train.inputs[:, 8_000].float() / 100
    assert levels.round().int().tolist() == data.train.labels.tolist()


@pytest.mark.parametrize("fold", [0, 6])
def test_a_fold_out_of_range_is_refused_by_name(fold):
    with pytest.raises(UsageError, match=f"`--data.test_fold` is {fold}; it must be 1 to 5"):
        ESC50(test_fold=fold)


def test_a_wrong_root_says_what_was_looked_for(tmp_path):
    with pytest.raises(FlgenError) as caught:
        read(ESC50(str(tmp_path)))
    assert_one_line(caught.value, "no meta/esc50.csv and no audio", str(tmp_path), "`--data.root`")


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (f"{HEADER}\na.wav,1,0,cat,False,1,A\n", "a.wav is of class 0, cat"),
        (f"{HEADER}\na.wav,6,0,dog,False,1,A\n", "a.wav is in fold 6"),
        (f"{HEADER}\na.wav,one,0,dog,False,1,A\n", "invalid literal"),
        (f"{HEADER}\n", "it names no recordings"),
        ("filename,fold\na.wav,1\n", "no column 'target'"),
    ],
)
def test_a_damaged_table_is_named(root, table, says):
    next(root.rglob("esc50.csv")).write_text(table)
    with pytest.raises(FlgenError) as caught:
        read(ESC50(str(root)))
    assert_one_line(caught.value, "esc50.csv is damaged", says)
