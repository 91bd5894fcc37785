"""MELD: utterances of the series "Friends" with their sentiment."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from flgen.data.text_data import TextData, TextLayout
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    import torch

    from flgen.data.labelled_set import LabelledSet
else:
    torch = deferred_module("torch")

SENTIMENTS = ("negative", "neutral", "positive")
GROUPS = ("All", "Man", "Policeman", "Tag", "Woman")  # nobody, or several people
TRAIN, DEVELOPMENT, TEST = "train_sent_emo.csv", "dev_sent_emo.csv", "test_sent_emo.csv"
ORIGIN = f"the folder of {TRAIN}, {DEVELOPMENT} and {TEST}, as published with MELD"
COLUMNS = ("Utterance", "Speaker", "Sentiment")


@dataclass(frozen=True)
class Utterance:
    """One line of a table.

    Args:
        text: What was said.
        speaker: Who said it.
        label: Its sentiment, an index of SENTIMENTS.
    """

    text: str
    speaker: str
    label: int


class MELD(TextData):
    """MELD: utterances of the series "Friends", each negative, neutral or positive; the attribute `speaker` says whose.

    The three tables lie in `root/MELD` or in `root` itself. The training set has the utterances of the speakers who
    have enough of them; those under the name of a group (All, Man, Policeman, Tag, Woman) are left out. The test set is
    the official one, of all speakers. With `--partition.class_path ByAttribute --partition.attribute speaker` every
    speaker is a client.

    Args:
        root: Folder of the tables.
        development: Whether the official development utterances join the training set; else they are not read.
        min_utterances: Fewest training utterances of a speaker who is kept.
        length: Tokens that are kept of an utterance; shorter ones are filled with padding.
        vocabulary: Different tokens: padding, 0, and the buckets of the hashed words. Not used with a tokenizer.
        tokenizer: Folder of a tokenizer as transformers saves it; null hashes words.

    Raises:
        UsageError: If `min_utterances`, `length` or `vocabulary` is too small.

    Source: Poria et al., ACL 2019; the rule of the speakers: GPT-FL, section 5.1.
    """

    def __init__(
        self,
        root: str = "data",
        development: bool = False,
        min_utterances: int = 11,
        length: int = 64,
        vocabulary: int = 32768,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(length, vocabulary, tokenizer)
        if min_utterances < 1:
            raise UsageError(f"`--data.min_utterances` is {min_utterances}; it must be at least 1")
        self.root = Path(root).expanduser()
        self.development = development
        self.min_utterances = min_utterances

    def layout(self) -> TextLayout:
        """Return name, classes, length and tokens of the texts; nothing is read for it but the tokenizer."""
        return TextLayout("meld", SENTIMENTS, self.length, self.vocabulary, self.padding)

    @property
    def _folder(self) -> Path:
        return self.root if (self.root / TRAIN).is_file() else self.root / "MELD"

    def load(self) -> tuple[LabelledSet, LabelledSet]:
        """Read the tables; return the training and the test utterances."""
        from flgen.data.labelled_set import LabelledSet

        read = [TRAIN, DEVELOPMENT, TEST] if self.development else [TRAIN, TEST]
        if absent := [name for name in read if not (self._folder / name).is_file()]:
            raise FlgenError(f"meld: no {', '.join(absent)} in {self._folder}; give {ORIGIN}, with `--data.root`")
        tables = {name: read_utterances(self._folder / name) for name in read}
        test = tables.pop(TEST)
        kept = of_frequent_speakers([said for table in tables.values() for said in table], self.min_utterances)
        if not kept:
            raise FlgenError(
                f"meld: no speaker has `--data.min_utterances {self.min_utterances}` utterances in {self._folder}"
            )
        speakers = sorted({said.speaker for said in kept})
        numbers = torch.tensor([speakers.index(said.speaker) for said in kept], dtype=torch.int64)
        return (
            LabelledSet(self._tokens_of(kept), _labels_of(kept), {"speaker": numbers}),
            LabelledSet(self._tokens_of(test), _labels_of(test)),
        )

    def _tokens_of(self, utterances: list[Utterance]) -> torch.Tensor:
        return self.tokens([said.text for said in utterances])


def of_frequent_speakers(utterances: list[Utterance], minimum: int) -> list[Utterance]:
    """Return the utterances of the speakers who are one person and have at least `minimum` of them, in their order.

    Source: GPT-FL, section 5.1 (MELD).
    """
    counts = Counter(said.speaker for said in utterances if said.speaker not in GROUPS)
    return [said for said in utterances if counts[said.speaker] >= minimum]


def read_utterances(path: Path) -> list[Utterance]:
    """Read one table.

    Raises:
        FlgenError: If it is not a table of utterances with the columns Utterance, Speaker and Sentiment.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as lines:
            table = csv.DictReader(lines, strict=True)
            if absent := [column for column in COLUMNS if column not in (table.fieldnames or ())]:
                raise _damaged(path, f"no column {', '.join(absent)}")
            utterances = [_utterance(path, table.line_num, row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        from flgen.data.pixels import one_line

        raise _damaged(path, one_line(error)) from error
    if not utterances:
        raise _damaged(path, "it is empty")
    return utterances


def _utterance(path: Path, line: int, row: dict[str, str]) -> Utterance:
    text, speaker, sentiment = (str(row[column] or "").strip() for column in COLUMNS)
    if not text or not speaker or sentiment.lower() not in SENTIMENTS:
        raise _damaged(path, f"line {line} has speaker {speaker!r:.40}, sentiment {sentiment!r:.40}")
    return Utterance(text, speaker, SENTIMENTS.index(sentiment.lower()))


def _labels_of(utterances: list[Utterance]) -> torch.Tensor:
    return torch.tensor([said.label for said in utterances], dtype=torch.int64)


def _damaged(path: Path, reason: str) -> FlgenError:
    return FlgenError(f"{path} is damaged ({reason}); put {ORIGIN}, there again")
