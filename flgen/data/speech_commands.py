"""Speech Commands, version 2, from its folder."""

from __future__ import annotations

from pathlib import Path

from flgen.data.audio_data import AudioData, AudioLayout
from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError

if TYPE_CHECKING:
    import numpy as np

    from flgen.data.labelled_set import LabelledSet
else:
    np = deferred_module("numpy")

WORD_NAMES = """
backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no off on one right
seven sheila six stop three tree two up visual wow yes zero
"""
WORDS = tuple(WORD_NAMES.split())
NOISE = "_background_noise_"
SECONDS = 1.0
ORIGIN = "speech_commands_v0.02, as published by its authors"


class SpeechCommands(AudioData):
    """Speech Commands v2: 35 words, each recording one second of one of thousands of speakers, 16 kHz.

    The folder has a sub-folder of `SPEAKER_nohash_N.wav` for each word, `validation_list.txt` and `testing_list.txt`.
    The training set is the official one, all files that are in neither list; the test set is the testing list; the
    validation files are not used. The attribute `speaker` numbers all speakers of the corpus by their ids; a message
    says how many the training set has. All recordings are decoded into memory (3.1 GB).

    Args:
        root: The folder, or one that holds it as `speech_commands_v0.02` or `SpeechCommands/speech_commands_v0.02`
            (torchaudio's place).
        silence: Whether there is a 36th class, `silence`: the seconds of `_background_noise_`, all for training, dealt
            out to the speakers one each in the order of their ids. There is no silence in the test set, and a generator
            that speaks the class's name does not make any.
        features_mb: Most MB of log-mel features of the training set that are kept, for all clients together; where
            they are more, they are computed with every batch.
    """

    def __init__(self, root: str = "data", silence: bool = False, features_mb: float = 1000.0) -> None:
        super().__init__(features_mb)
        self.root = Path(root).expanduser()
        self.silence = silence

    def layout(self) -> AudioLayout:
        """Return name, classes and length of the recordings."""
        return AudioLayout("speech_commands", (*WORDS, "silence") if self.silence else WORDS, SECONDS)

    @property
    def _folder(self) -> Path:
        name = "speech_commands_v0.02"
        places = (self.root, self.root / name, self.root / "SpeechCommands" / name)
        return next((place for place in places if (place / "testing_list.txt").is_file()), self.root)

    def load(self) -> tuple[LabelledSet, LabelledSet]:
        """Decode the recordings; return the official training and test sets."""
        folder = self._folder
        needed = [*WORDS, *([NOISE] if self.silence else []), "validation_list.txt", "testing_list.txt"]
        if absent := [name for name in needed if not (folder / name).exists()]:
            raise FlgenError(
                f"speech_commands: no {', '.join(absent[:3])}{' ...' * (len(absent) > 3)} in {folder}; give the folder "
                f"of {ORIGIN}, with `--data.root`"
            )
        files = sorted(f"{word}/{path.name}" for word in WORDS for path in (folder / word).glob("*_nohash_*.wav"))
        validation, testing = _listed(folder / "validation_list.txt"), _listed(folder / "testing_list.txt")
        if unknown := sorted(testing - set(files)):
            raise FlgenError(f"{folder} lacks {unknown[0]}, which testing_list.txt names; unpack {ORIGIN}, again")
        speakers = {speaker: number for number, speaker in enumerate(sorted({_speaker(file) for file in files}))}
        train = [file for file in files if file not in testing and file not in validation]
        noise = self._silence() if self.silence else None
        return self._decode(train, speakers, noise), self._decode(sorted(testing), speakers)

    def _decode(self, files: list[str], speakers: dict[str, int], silence: np.ndarray | None = None) -> LabelledSet:
        import torch

        from flgen.data.labelled_set import LabelledSet
        from flgen.data.waveforms import decode_waveforms

        labels = [WORDS.index(file.partition("/")[0]) for file in files]
        owners = [speakers[_speaker(file)] for file in files]
        waveforms = decode_waveforms([str(self._folder / file) for file in files], *self.layout().shape)
        if silence is not None:
            waveforms = torch.cat((waveforms, torch.from_numpy(silence)))
            labels += [len(WORDS)] * len(silence)
            of_set = sorted(set(owners))
            owners += [of_set[second % len(of_set)] for second in range(len(silence))]
        return LabelledSet(waveforms, torch.tensor(labels), {"speaker": torch.tensor(owners)})

    def _silence(self) -> np.ndarray:
        """Return the whole seconds of background noise, int16 (seconds, T)."""
        from flgen.data.waveforms import decode_waveform

        (samples,) = self.layout().shape
        seconds = []
        for path in sorted((self._folder / NOISE).glob("*.wav")):
            noise = decode_waveform(path.read_bytes(), None, str(path))
            seconds.append(noise[: len(noise) // samples * samples].reshape(-1, samples))
        if not seconds:
            raise FlgenError(f"speech_commands: no *.wav in {self._folder / NOISE}; unpack {ORIGIN}, again")
        return np.concatenate(seconds)


def _speaker(file: str) -> str:
    return file.partition("/")[2].partition("_nohash_")[0]


def _listed(path: Path) -> set[str]:
    """Return the files that a list names, `WORD/SPEAKER_nohash_N.wav` in each line."""
    try:
        return {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    except (OSError, ValueError) as error:
        from flgen.data.pixels import one_line

        raise FlgenError(f"{path} is damaged ({one_line(error)}); unpack {ORIGIN}, again") from error
