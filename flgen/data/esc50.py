"""ESC-50, from its folder."""

from __future__ import annotations

import csv
from pathlib import Path

from flgen.data.audio_data import AudioData, AudioLayout
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    from flgen.data.labelled_set import LabelledSet

SOUND_NAMES = """
dog rooster pig cow frog cat hen insects sheep crow rain sea_waves crackling_fire crickets chirping_birds water_drops
wind pouring_water toilet_flush thunderstorm crying_baby sneezing clapping breathing coughing footsteps laughing
brushing_teeth snoring drinking_sipping door_wood_knock mouse_click keyboard_typing door_wood_creaks can_opening
washing_machine vacuum_cleaner clock_alarm clock_tick glass_breaking helicopter chainsaw siren car_horn engine train
church_bells airplane fireworks hand_saw
"""
SOUNDS = tuple(SOUND_NAMES.split())
FOLDS = range(1, 6)
SECONDS = 5.0
ORIGIN = "ESC-50, as its repository has it"


class ESC50(AudioData):
    """ESC-50: 2,000 recordings of fifty kinds of sounds of the surroundings, five seconds each, 44.1 kHz.

    `meta/esc50.csv` and `audio/` lie in `root`, `root/ESC-50` or `root/ESC-50-master`. One of the five folds is the
    test set, the other four train. The attribute `fold` is the fold. All recordings are decoded into memory (320 MB).

    Args:
        root: Folder of the data set, or the one that holds it.
        test_fold: The fold to test on, 1 to 5.
        features_mb: Most MB of log-mel features of the training set that are kept, for all clients together; where
            they are more, they are computed with every batch.
    """

    def __init__(self, root: str = "data", test_fold: int = 5, features_mb: float = 1000.0) -> None:
        super().__init__(features_mb)
        if test_fold not in FOLDS:
            raise UsageError(f"`--data.test_fold` is {test_fold}; it must be 1 to {FOLDS[-1]}")
        self.root = Path(root).expanduser()
        self.test_fold = test_fold

    def layout(self) -> AudioLayout:
        """Return name, classes and length of the recordings."""
        return AudioLayout("esc50", SOUNDS, SECONDS)

    @property
    def _folder(self) -> Path:
        places = (self.root, self.root / "ESC-50", self.root / "ESC-50-master")
        return next((place for place in places if (place / "meta" / "esc50.csv").is_file()), self.root)

    def load(self) -> tuple[LabelledSet, LabelledSet]:
        """Decode the recordings; return four folds and the fifth."""
        import torch

        from flgen.data.labelled_set import LabelledSet
        from flgen.data.waveforms import decode_waveforms

        folder = self._folder
        if absent := [name for name in ("meta/esc50.csv", "audio") if not (folder / name).exists()]:
            raise FlgenError(
                f"esc50: no {' and no '.join(absent)} in {folder}; give the folder of {ORIGIN}, with `--data.root`"
            )
        names, labels, folds = _read_table(folder / "meta" / "esc50.csv")
        waveforms = decode_waveforms([str(folder / "audio" / name) for name in names], *self.layout().shape)
        clips = LabelledSet(waveforms, torch.tensor(labels), {"fold": torch.tensor(folds)})
        tested = clips.attributes["fold"] == self.test_fold
        return clips.subset((~tested).nonzero()[:, 0]), clips.subset(tested.nonzero()[:, 0])


def _read_table(path: Path) -> tuple[list[str], list[int], list[int]]:
    """Return the recordings' file names, labels and folds, in the order of the table."""
    names, labels, folds = [], [], []
    try:
        with path.open(newline="", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                label, fold = int(row["target"]), int(row["fold"])
                if not 0 <= label < len(SOUNDS) or SOUNDS[label] != row["category"]:
                    raise ValueError(f"{row['filename']} is of class {label}, {row['category']}")
                if fold not in FOLDS:
                    raise ValueError(f"{row['filename']} is in fold {fold}")
                names.append(row["filename"])
                labels.append(label)
                folds.append(fold)
        if not names:
            raise ValueError("it names no recordings")
    except (OSError, ValueError, TypeError, KeyError, csv.Error) as error:
        from flgen.data.pixels import one_line

        reason = f"no column {error}" if isinstance(error, KeyError) else one_line(error)
        raise FlgenError(f"{path} is damaged ({reason}); fetch {ORIGIN}, again") from error
    return names, labels, folds
