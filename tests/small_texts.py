"""Small texts that the tests build for themselves, and an encoder with its tokenizer on disk."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from flgen.data.labelled_set import LabelledSet
from flgen.data.text_data import TextData, TextLayout

WORDS = ["good", "bad", "film", "a", "very", "it", "was", "!", "."]


class Reviews(TextData):
    """Forty training and eight test texts, good or bad."""

    def layout(self) -> TextLayout:
        return TextLayout("reviews", ("bad", "good"), self.length, self.vocabulary, self.padding)

    def load(self) -> tuple[LabelledSet, LabelledSet]:
        return self._texts(40), self._texts(8)

    def _texts(self, count: int) -> LabelledSet:
        labels = torch.arange(count) % 2
        texts = [f"{'very ' * (row % 3)}{'good' if label else 'bad'} film" for row, label in enumerate(labels)]
        return LabelledSet(self.tokens(texts), labels)


def write_bert(folder: Path, words: Iterable[str] = WORDS) -> Any:
    """Write a BERT of 8 units and two layers and its tokenizer, which knows some words; return the tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizer

    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    tokenizer = BertTokenizer(vocab=vocabulary)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return tokenizer


def write_utterances(path: Path, rows: Iterable[tuple[str, str, str]]) -> None:
    """Write a table as MELD has it, of (utterance, speaker, sentiment)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["Sr No.", "Utterance", "Speaker", "Emotion", "Sentiment", "Dialogue_ID"])
        table.writerows([number, text, speaker, "joy", mood, 0] for number, (text, speaker, mood) in enumerate(rows, 1))
