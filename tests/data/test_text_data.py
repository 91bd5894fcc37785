"""Texts as rows of tokens: hashed words, a tokenizer from a folder, single files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_data import assert_one_line
from small_texts import Reviews, write_bert

from flgen.data.text_data import bucket, words
from flgen.errors import FlgenError, UsageError


def test_words_keep_apostrophes_and_marks_stand_alone():
    assert words("I DON'T know... What?!") == ["i", "don't", "know", ".", ".", ".", "what", "?", "!"]


def test_every_kind_of_apostrophe_is_one():
    assert words("don\u2019t don\u0092t don`t don't") == ["don't"] * 4


def test_compatible_letters_are_the_same_word():
    assert words("ﬁne") == words("fine") == ["fine"]  # a ligature


def test_a_token_is_the_stated_hash():
    digest = int.from_bytes(hashlib.blake2b(b"joey", digest_size=8).digest(), "little")
    assert bucket("joey", 1000) == 1 + digest % 999
    assert Reviews(vocabulary=1000).tokens(["Joey"])[0, 0] == 1 + digest % 999


@given(st.text(max_size=80), st.integers(2, 50), st.integers(1, 9))
def test_rows_have_one_length_and_padding_at_the_end(text: str, vocabulary: int, length: int):
    (row,) = Reviews(length=length, vocabulary=vocabulary).tokens([text])
    kept = min(len(words(text)), length)
    assert row.dtype == torch.int64
    assert row.shape == (length,)
    assert ((row[:kept] >= 1) & (row[:kept] < vocabulary)).all()
    assert (row[kept:] == 0).all()


def test_the_layout_is_that_of_the_rows():
    data = Reviews(length=5, vocabulary=100)
    data.setup()
    assert data.layout().shape == (5,) == tuple(data.train.inputs.shape[1:])
    assert data.layout().dtype == torch.int64 == data.train.inputs.dtype
    assert (data.vocabulary, data.padding, data.noun) == (100, 0, "texts")
    assert data.standardize(data.train.inputs) is data.train.inputs


def test_a_text_file_is_tokens():
    data = Reviews(length=6)
    assert torch.equal(data.decode_sample("très bon\n".encode(), ".TXT"), data.tokens(["très bon"])[0])


@pytest.mark.parametrize(
    ("content", "extension", "says"),
    [
        (b"good", "png", "a .png file is no text; give .txt"),
        (b"tr\xe8s", ".txt", "this .txt file is not UTF-8 (byte 2)"),
    ],
)
def test_another_kind_of_file_is_refused(content: bytes, extension: str, says: str):
    with pytest.raises(FlgenError) as caught:
        Reviews().decode_sample(content, extension)
    assert_one_line(caught.value, says)


def test_a_tokenizer_has_its_own_tokens(tmp_path: Path):
    tokenizer = write_bert(tmp_path)
    data = Reviews(length=6, tokenizer=str(tmp_path))
    assert data.vocabulary == len(tokenizer)
    assert data.padding == tokenizer.pad_token_id
    assert data.layout().vocabulary == len(tokenizer)
    (row,) = data.tokens(["good film"])
    expected = tokenizer.convert_tokens_to_ids(["[CLS]", "good", "film", "[SEP]", "[PAD]", "[PAD]"])
    assert row.tolist() == expected
    assert data.tokens(["good " * 20]).shape == (1, 6)


@pytest.mark.parametrize("make", [False, True])
def test_a_folder_without_a_tokenizer_is_one_clear_line(make: bool, tmp_path: Path):
    folder = tmp_path / "tokenizer"
    if make:
        folder.mkdir()
        (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(FlgenError) as caught:
        Reviews(tokenizer=str(folder)).tokens(["good"])
    assert_one_line(caught.value, f"`--data.tokenizer {folder}`", "no tokenizer" if make else "there is no such folder")


@pytest.mark.parametrize(("option", "value"), [("length", 0), ("vocabulary", 1)])
def test_impossible_options_are_refused(option: str, value: int):
    with pytest.raises(UsageError, match=f"`--data.{option}` is {value}; it must be at least"):
        Reviews(**{option: value})
