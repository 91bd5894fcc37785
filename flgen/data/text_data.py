"""Text data sets: labelled data whose samples are rows of token numbers, all of one length."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from flgen.data.labelled_data import LabelledData, Layout
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    from typing import Any

    import torch
else:
    torch = deferred_module("torch")

_WORD = re.compile(r"\w+(?:'\w+)*|[^\w\s]")  # a word with its apostrophes, or one mark of punctuation
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u0091\u0092`", "'"))  # the C1 codes are Windows-1252 misread


@dataclass(frozen=True)
class TextLayout(Layout):
    """What is known of a text data set before it is read.

    Args:
        name: Name of the data set, as it appears in file names and metrics.
        class_names: One name per class, in the order of the labels.
        length: Tokens of every text, L.
        vocabulary: Number of different tokens; they are numbered from 0.
        padding: The token that fills short texts.
    """

    length: int
    vocabulary: int
    padding: int

    @property
    def shape(self) -> tuple[int]:
        """(L,)."""
        return (self.length,)

    @property
    def dtype(self) -> torch.dtype:
        """int64."""
        return torch.int64


class TextData(LabelledData):
    """A set of training texts and a set of test texts, in memory as rows of tokens.

    A data set of your own derives from it and defines `layout()` and `load()`, in which `tokens()` makes the rows.
    Without a tokenizer a text is its words and marks of punctuation, in lower case, and a word's token is the number of
    the bucket that its BLAKE2b hash falls into; so there is no list of words to agree on, and words may share a bucket.

    Args:
        length: Tokens that are kept of a text; shorter ones are filled with padding.
        vocabulary: Different tokens: padding, 0, and the buckets. Not used with a tokenizer, which has its own.
        tokenizer: Folder of a tokenizer as transformers saves it, such as that of a pre-trained encoder; null hashes
            words.

    Raises:
        UsageError: If `length` or `vocabulary` is too small.

    Source: GPT-FL, section 5.3 (text model).
    """

    noun = "texts"

    def __init__(self, length: int = 64, vocabulary: int = 32768, tokenizer: str | None = None) -> None:
        super().__init__()
        if length < 1:
            raise UsageError(f"`--data.length` is {length}; it must be at least 1")
        if vocabulary < 2:
            raise UsageError(f"`--data.vocabulary` is {vocabulary}; it must be at least 2: padding, and one bucket")
        self.length = length
        self.tokenizer = tokenizer
        self._buckets = vocabulary

    def layout(self) -> TextLayout:
        """Return name, classes, length and tokens of the texts; nothing is read for it but the tokenizer."""
        raise self._incomplete("layout")

    @property
    def vocabulary(self) -> int:
        """Number of different tokens; they are numbered from 0."""
        return self._buckets if self.tokenizer is None else len(self._loaded_tokenizer)

    @property
    def padding(self) -> int:
        """The token that fills short texts."""
        return 0 if self.tokenizer is None else int(self._loaded_tokenizer.pad_token_id)

    def standardize(self, stored: torch.Tensor) -> torch.Tensor:
        """Return texts as a module takes them: the tokens themselves, int64 (B, L)."""
        return stored

    def decode_sample(self, content: bytes, extension: str) -> torch.Tensor:
        """Return one text file as tokens.

        Args:
            content: The file's bytes, UTF-8.
            extension: `.txt`; the dot may be missing.

        Returns:
            int64 tensor (L,).

        Raises:
            FlgenError: If the file is of another kind, or not UTF-8.
        """
        kind = extension.lower().removeprefix(".")
        if kind != "txt":
            raise FlgenError(f"a .{kind} file is no text; give .txt")
        try:
            text = content.decode("utf-8")
        except UnicodeDecodeError as error:
            raise FlgenError(f"this .txt file is not UTF-8 (byte {error.start}); convert it") from error
        return self.tokens([text])[0]

    def tokens(self, texts: Sequence[str]) -> torch.Tensor:
        """Return the tokens of texts, cut or filled to one length.

        Args:
            texts: N texts.

        Returns:
            int64 tensor (N, L).
        """
        if self.tokenizer is not None:
            encoded = self._loaded_tokenizer(
                list(texts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
            )
            rows: torch.Tensor = encoded["input_ids"]
            return rows.to(torch.int64)
        rows = torch.full((len(texts), self.length), self.padding, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            buckets = [bucket(word, self._buckets) for word in words(text)[: self.length]]
            row[: len(buckets)] = torch.tensor(buckets, dtype=torch.int64)
        return rows

    @cached_property
    def _loaded_tokenizer(self) -> Any:
        """The tokenizer of transformers.

        Raises:
            FlgenError: If transformers or the tokenizer's files are missing, or it has no token for padding.
        """
        folder = Path(str(self.tokenizer)).expanduser()
        if not folder.is_dir():
            raise FlgenError(
                f"`--data.tokenizer {folder}`: there is no such folder; give one that transformers' save_pretrained "
                "wrote, or null to hash words"
            )
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise FlgenError("`--data.tokenizer` needs the package transformers: install flgen[synthesis]") from error
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        except Exception as error:  # a damaged file can raise nearly anything
            from flgen.data.pixels import one_line

            raise FlgenError(f"`--data.tokenizer {folder}` holds no tokenizer ({one_line(error)})") from error
        if tokenizer.pad_token_id is None:
            raise FlgenError(f"`--data.tokenizer {folder}` has no token for padding; give its `pad_token` one")
        return tokenizer


def words(text: str) -> list[str]:
    """Return the words and the marks of punctuation of a text, normalised (NFKC), in lower case."""
    return _WORD.findall(unicodedata.normalize("NFKC", text.translate(_APOSTROPHES)).lower())


@lru_cache(maxsize=100_000)
def bucket(word: str, vocabulary: int) -> int:
    """Return a word's token, from 1 to vocabulary - 1: the 64-bit BLAKE2b hash, read little-endian, modulo that."""
    digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % (vocabulary - 1)
