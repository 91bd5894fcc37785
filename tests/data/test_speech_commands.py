"""Speech Commands from a folder that the tests write."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from small_data import assert_one_line, read, tone, write_wav

from flgen.data import ByAttribute, SpeechCommands
from flgen.data.speech_commands import WORDS
from flgen.errors import FlgenError

SPEAKERS = ("0a2b400e", "00176480", "ffd2ba2f")


@pytest.fixture(params=["", "speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02"])
def root(request, tmp_path):
    """Every word by the first two speakers, `yes` by the third as well; `zero` has a validation and a test file."""
    folder = tmp_path / request.param
    for number, word in enumerate(WORDS):
        for speaker in SPEAKERS[:2]:
            write_wav(folder / word / f"{speaker}_nohash_0.wav", np.full(16_000, number, dtype=np.int16))
    write_wav(folder / "yes" / f"{SPEAKERS[2]}_nohash_1.wav", tone(440, 0.5))
    (folder / "validation_list.txt").write_text(f"zero/{SPEAKERS[0]}_nohash_0.wav\n")
    (folder / "testing_list.txt").write_text(f"zero/{SPEAKERS[1]}_nohash_0.wav\nyes/{SPEAKERS[2]}_nohash_1.wav\n")
    write_wav(folder / "_background_noise_" / "running_tap.wav", np.full(40_000, 5, dtype=np.int16))
    write_wav(folder / "_background_noise_" / "pink_noise.wav", np.full(16_000, 6, dtype=np.int16))
    (folder / "_background_noise_" / "README.md").write_text("noise")
    return tmp_path


def test_there_are_35_words():
    assert len(WORDS) == len(set(WORDS)) == 35
    assert list(WORDS) == sorted(WORDS)
    assert SpeechCommands().classes == 35


def test_the_lists_make_the_splits_and_validation_files_are_left_out(root):
    data = read(SpeechCommands(str(root)))
    assert len(data.train) == 2 * 34
    assert "zero" not in {WORDS[label] for label in data.train.labels.tolist()}
    assert [WORDS[label] for label in data.test.labels.tolist()] == ["yes", "zero"]
    assert data.train.inputs[:, 0].tolist() == data.train.labels.tolist()


def test_every_speaker_of_the_training_set_is_one_client(root):
    data = read(SpeechCommands(str(root)))
    partition = data.split_clients(ByAttribute(attribute="speaker"), np.random.default_rng(0))
    assert [len(rows) for rows in partition] == [34, 34]
    assert data.test.attributes["speaker"].tolist() == [2, 0]  # by their ids among all speakers


def test_silence_is_a_further_class_of_seconds_of_noise_shared_by_the_speakers(root):
    data = read(SpeechCommands(str(root), silence=True))
    silent = data.train.labels == 35
    assert data.class_names[35] == "silence"
    assert data.train.inputs[silent][:, 0].tolist() == [6, 5, 5]
    assert data.train.attributes["speaker"][silent].tolist() == [0, 1, 0]
    assert 35 not in data.test.labels


@pytest.mark.parametrize("absent", ["testing_list.txt", "validation_list.txt", "house"])
def test_what_is_missing_is_named(root, absent):
    found = next(root.rglob(absent))
    shutil.rmtree(found) if found.is_dir() else found.unlink()
    with pytest.raises(FlgenError) as caught:
        read(SpeechCommands(str(root)))
    assert_one_line(caught.value, f"no {absent}" if absent != "testing_list.txt" else "no ", "`--data.root`")


def test_a_list_that_names_other_files_is_of_another_folder(root):
    lists = next(root.rglob("testing_list.txt"))
    lists.write_text("yes/00000000_nohash_0.wav\n")
    with pytest.raises(FlgenError) as caught:
        read(SpeechCommands(str(root)))
    assert_one_line(caught.value, "lacks yes/00000000_nohash_0.wav", "testing_list.txt")


def test_silence_needs_noise(root):
    for noise in root.rglob("_background_noise_/*.wav"):
        noise.unlink()
    with pytest.raises(FlgenError) as caught:
        read(SpeechCommands(str(root), silence=True))
    assert_one_line(caught.value, "no *.wav in", "_background_noise_")
