"""Spoken digits from files that the tests write."""

from __future__ import annotations

import tarfile

import numpy as np
import pytest
from small_data import assert_one_line, read, write_wav

from flgen.data import ByAttribute, SpokenDigits
from flgen.errors import FlgenError, UsageError

SPEAKERS = ("theo", "george", "lucas")


def value(digit: int, speaker: str, index: int) -> int:
    return 100 * digit + 10 * SPEAKERS.index(speaker) + index


@pytest.fixture(params=["recordings", "root", "tar", "fsdd.tar"])
def root(request, tmp_path):
    """Two digits, three speakers, seven recordings each, 8 kHz; a constant says which one it is."""
    folder = tmp_path / "recordings" if request.param == "recordings" else tmp_path / "files"
    for digit in (0, 7):
        for speaker in SPEAKERS:
            for index in range(7):
                level = np.full(4000, value(digit, speaker, index), dtype=np.int16)
                write_wav(folder / f"{digit}_{speaker}_{index}.wav", level, rate=8_000)
    (folder / "README.md").write_text("not a recording")
    if request.param == "recordings":
        return tmp_path
    if request.param == "root":
        return folder
    archive = tmp_path / ("fsdd.tar" if request.param == "fsdd.tar" else "digits.tar.gz")
    with tarfile.open(archive, "w:gz" if archive.suffix == ".gz" else "w") as tar:
        tar.add(folder, "recordings")
    return tmp_path if request.param == "fsdd.tar" else archive


def test_indices_below_five_are_the_test_set(root):
    data = read(SpokenDigits(str(root), seconds=0.2))
    assert (len(data.train), len(data.test)) == (2 * 3 * 2, 2 * 3 * 5)
    assert data.train.inputs.shape == (12, 3200)
    for split, indices in ((data.train, (5, 6)), (data.test, range(5))):
        speakers = [sorted(SPEAKERS)[number] for number in split.attributes["speaker"].tolist()]
        labels = zip(split.labels.tolist(), speakers, split.inputs[:, 1600].tolist(), strict=True)
        expected = {
            (digit, speaker, value(digit, speaker, index))
            for digit in (0, 7)
            for speaker in SPEAKERS
            for index in indices
        }
        assert {(digit, speaker, level) for digit, speaker, level in labels} == expected


def test_every_speaker_is_one_client(root):
    data = read(SpokenDigits(str(root), seconds=0.2))
    partition = data.split_clients(ByAttribute(attribute="speaker"), np.random.default_rng(0))
    assert len(partition) == 3
    assert [set(data.train.attributes["speaker"][rows].tolist()) for rows in partition] == [{0}, {1}, {2}]
    assert sum(map(len, partition)) == len(data.train)


@pytest.mark.parametrize("damage", ["absent", "empty", "damaged"])
def test_a_wrong_root_says_what_was_looked_for_and_what_to_do(tmp_path, damage):
    place = tmp_path / "nowhere"
    if damage == "empty":
        place.mkdir()
    elif damage == "damaged":
        place.write_bytes(b"not a tar archive")
    with pytest.raises(FlgenError) as caught:
        read(SpokenDigits(str(place)))
    wanted = ("is damaged", "fetch") if damage == "damaged" else ("no DIGIT_SPEAKER_INDEX.wav", "`--data.root`")
    assert_one_line(caught.value, str(place), *wanted)


def test_a_length_out_of_range_is_refused_by_name():
    with pytest.raises(UsageError, match=r"`--data.seconds` is 0"):
        SpokenDigits(seconds=0)
