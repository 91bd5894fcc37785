"""The Free Spoken Digit Dataset, from its folder or a tar archive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from flgen.data.audio_data import AudioData, AudioLayout, check_seconds
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError

if TYPE_CHECKING:
    from flgen.data.labelled_set import LabelledSet

FILE_NAME = re.compile(r"(?P<digit>\d)_(?P<speaker>[^_]+)_(?P<index>\d+)\.wav")
TEST_INDICES = range(5)
ORIGIN = "the Free Spoken Digit Dataset, as its repository has it"


class SpokenDigits(AudioData):
    """The Free Spoken Digit Dataset: the digits 0 to 9, each spoken fifty times by each of its speakers, 8 kHz.

    The files `DIGIT_SPEAKER_INDEX.wav` lie in `root/recordings` or in `root` itself; `root` may also be a tar archive
    of them, or a folder with `fsdd.tar`. Recordings with an index of 0 to 4 are the test set, which is the data set's
    own rule. The attribute `speaker` numbers the speakers by name.

    Args:
        root: Folder or archive of the recordings.
        seconds: Length to which recordings are cut or filled up with silence; the median of the data is 0.4 s.
        features_mb: Most MB of log-mel features of the training set that are kept, for all clients together; where
            they are more, they are computed with every batch.
    """

    def __init__(self, root: str = "data", seconds: float = 1.0, features_mb: float = 1000.0) -> None:
        super().__init__(features_mb)
        check_seconds(seconds)
        self.root = Path(root).expanduser()
        self.seconds = seconds

    def layout(self) -> AudioLayout:
        """Return name, classes and length of the recordings."""
        return AudioLayout("spoken_digits", tuple("0123456789"), self.seconds)

    def load(self) -> tuple[LabelledSet, LabelledSet]:
        """Decode the recordings; return the training and the test ones."""
        import torch

        from flgen.data.labelled_set import LabelledSet
        from flgen.data.waveforms import decode_waveforms

        archive = self._archive
        files = _members(archive) if archive is not None else self._contents()
        parsed = {name: found for name in sorted(files) if (found := FILE_NAME.fullmatch(name))}
        if not parsed:
            raise FlgenError(
                f"spoken_digits: no DIGIT_SPEAKER_INDEX.wav in {archive or self._folder}; give the folder or the tar "
                f"archive of {ORIGIN}, with `--data.root`"
            )
        speakers = {name: number for number, name in enumerate(sorted({found["speaker"] for found in parsed.values()}))}
        recordings = LabelledSet(
            decode_waveforms(list(parsed), *self.layout().shape, read=files.__getitem__),
            torch.tensor([int(found["digit"]) for found in parsed.values()]),
            {"speaker": torch.tensor([speakers[found["speaker"]] for found in parsed.values()])},
        )
        tested = torch.tensor([int(found["index"]) in TEST_INDICES for found in parsed.values()])
        return recordings.subset((~tested).nonzero()[:, 0]), recordings.subset(tested.nonzero()[:, 0])

    @property
    def _archive(self) -> Path | None:
        places: Sequence[Path] = (self.root, self.root / "fsdd.tar")
        return next((path for path in places if path.is_file()), None)

    @property
    def _folder(self) -> Path:
        recordings = self.root / "recordings"
        return recordings if recordings.is_dir() else self.root

    def _contents(self) -> dict[str, bytes]:
        """Return the files of the folder by name."""
        try:
            return {path.name: path.read_bytes() for path in self._folder.glob("*.wav")}
        except OSError as error:
            raise FlgenError(f"{error.filename} cannot be read ({error.strerror}); fetch {ORIGIN}, again") from error


def _members(archive: Path) -> dict[str, bytes]:
    """Return the files of a tar archive by name, wherever they lie in it."""
    from flgen.data.pixels import one_line
    from flgen.data.tar_members import tar_members

    def is_recording(name: str) -> bool:
        return FILE_NAME.fullmatch(Path(name).name) is not None

    try:
        return {Path(name).name: content for name, content in tar_members(archive, is_recording, compressed=True)}
    except (OSError, ValueError) as error:
        raise FlgenError(f"{archive} is damaged ({one_line(error)}); fetch {ORIGIN}, again") from error
