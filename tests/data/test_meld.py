"""MELD from tables that the tests write."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from small_data import assert_one_line, read
from small_texts import write_utterances

from flgen.data import MELD
from flgen.data.meld import GROUPS, Utterance, of_frequent_speakers
from flgen.errors import FlgenError, UsageError


def said(speaker: str, times: int, mood: str = "neutral") -> list[tuple[str, str, str]]:
    return [(f"{speaker} says {number}, doesn\u2019t he?", speaker, mood) for number in range(times)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Joey has 12 training utterances, Ross 11, Gunther 10 and 1 of development, a woman 15."""
    folder = tmp_path / "MELD"
    train = said("Joey", 12, "positive") + said("Woman", 15) + said("Ross", 11, "negative") + said("Gunther", 10)
    write_utterances(folder / "train_sent_emo.csv", train)
    write_utterances(folder / "dev_sent_emo.csv", said("Gunther", 1))
    write_utterances(folder / "test_sent_emo.csv", said("Gunther", 1) + said("Woman", 2, "positive"))
    return tmp_path


def test_speakers_of_more_than_ten_utterances_who_are_one_person_are_kept(root: Path):
    data = read(MELD(str(root)))
    assert len(data.train) == 23
    assert data.train.attributes["speaker"].tolist() == [0] * 12 + [1] * 11
    assert data.train.labels.tolist() == [2] * 12 + [0] * 11
    assert data.class_names == ("negative", "neutral", "positive")


def test_the_test_set_is_the_official_one_of_all_speakers(root: Path):
    assert read(MELD(str(root))).test.labels.tolist() == [1, 2, 2]


def test_development_utterances_join_if_asked_for(root: Path):
    data = read(MELD(str(root), development=True))
    assert data.train.attributes["speaker"].bincount().tolist() == [11, 12, 11]  # Gunther, Joey, Ross


def test_development_utterances_are_not_needed_otherwise(root: Path):
    (root / "MELD" / "dev_sent_emo.csv").unlink()
    assert len(read(MELD(str(root))).train) == 23
    with pytest.raises(FlgenError) as caught:
        read(MELD(str(root), development=True))
    assert_one_line(caught.value, "meld: no dev_sent_emo.csv in", "--data.root")


def test_the_least_number_of_utterances_is_an_option(root: Path):
    assert len(read(MELD(str(root), min_utterances=10)).train) == 33
    with pytest.raises(FlgenError) as caught:
        read(MELD(str(root), min_utterances=13))
    assert_one_line(caught.value, "no speaker has `--data.min_utterances 13`")
    with pytest.raises(UsageError, match=r"`--data.min_utterances` is 0"):
        MELD(min_utterances=0)


@pytest.mark.parametrize("group", GROUPS)
def test_no_group_is_a_speaker(group: str):
    ours = [Utterance("x", group, 0)] * 20 + [Utterance("y", "Monica", 0)] * 2
    assert of_frequent_speakers(ours, 2) == ours[20:]


def test_texts_are_tokens(root: Path):
    data = read(MELD(str(root / "MELD"), length=8, vocabulary=500))
    assert data.train.inputs.tolist()[3] == data.tokens(["Joey says 3, doesn't he?"])[0].tolist()
    assert data.layout().shape == (8,)
    assert data.vocabulary == 500


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([("Hi", "Joey", "happy")], "line 2 has speaker 'Joey', sentiment 'happy'"),
        ([("Hi", "", "neutral")], "line 2 has speaker ''"),
        ([], "it is empty"),
    ],
)
def test_a_damaged_table_is_one_clear_line(root: Path, rows: Iterable[tuple[str, str, str]], says: str):
    write_utterances(root / "MELD" / "train_sent_emo.csv", rows)
    with pytest.raises(FlgenError) as caught:
        read(MELD(str(root)))
    assert_one_line(caught.value, "train_sent_emo.csv is damaged", says)


@pytest.mark.parametrize(
    ("content", "says"), [(b"Utterance,Sentiment\nHi,neutral\n", "no column Speaker"), (b"\xff\xfe\x00", "damaged")]
)
def test_another_kind_of_file_is_one_clear_line(root: Path, content: bytes, says: str):
    (root / "MELD" / "test_sent_emo.csv").write_bytes(content)
    with pytest.raises(FlgenError) as caught:
        read(MELD(str(root)))
    assert_one_line(caught.value, "test_sent_emo.csv is damaged", says)


def test_missing_tables_are_one_clear_line(tmp_path: Path):
    with pytest.raises(FlgenError) as caught:
        read(MELD(str(tmp_path)))
    assert_one_line(caught.value, "meld: no train_sent_emo.csv, test_sent_emo.csv in", "--data.root")
