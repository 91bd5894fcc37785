"""Data sets whose files can be fetched: what `--data.root` and `--data.download` mean to all of them."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from flgen.deferred import TYPE_CHECKING, deferred_module
from flgen.errors import FlgenError

if TYPE_CHECKING:
    import filelock

    from flgen.data.labelled_data import LabelledData as _DataSet
else:
    filelock = deferred_module("filelock")
    _DataSet = object  # a mixin: one of its own among the kinds of data would be listed with every kind

DOWNLOAD_TIMEOUT_S = 3600.0


class DownloadableData(_DataSet):
    """A data set whose files lie under a folder, and can be fetched into it if it is known where from.

    It comes before the kind of the data among a class's bases: `class MNIST(DownloadableData, ImageData)`.

    Args:
        root: Folder of the files.
        download: Fetch the files into `root` if they are missing.
    """

    def __init__(self, root: str = "data", download: bool = False) -> None:
        super().__init__()
        self.root = Path(root).expanduser()
        self.download = download

    def missing(self) -> str | None:
        """Return what was looked for and not found, and where; None if the data are complete."""
        raise self._incomplete("missing")

    def fetch(self) -> None:
        """Download the files into `root`."""
        raise self._incomplete("fetch")

    def prepare_data(self) -> None:
        """Download the files if that was asked for and they are missing; one process at a time does it.

        Raises:
            FlgenError: If the download fails, or another process holds it up for more than an hour.
        """
        if not self.download or self.missing() is None:
            return
        lock = self.root / ".flgen-download.lock"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(lock, timeout=DOWNLOAD_TIMEOUT_S):
                if self.missing() is not None:
                    self.fetch()
        except filelock.Timeout:
            raise FlgenError(
                f"another process has held {lock} for {DOWNLOAD_TIMEOUT_S:.0f} s; "
                "if none is downloading, remove that file"
            ) from None
        except (OSError, RuntimeError, ImportError, EOFError, zipfile.BadZipFile, tarfile.TarError) as error:
            from flgen.data.pixels import one_line

            raise FlgenError(
                f"{self.name} could not be downloaded to {self.root} ({one_line(error)}); "
                "check the network, or put the files there and set `--data.download false`"
            ) from error

    def setup(self, stage: str | None = None) -> None:
        """Read the data into memory, once; `stage` makes no difference.

        Raises:
            FlgenError: If files are missing or damaged.
        """
        if self._loaded is None and (missing := self.missing()) is not None:
            raise FlgenError(
                f"{self.name}: {missing}; give the right folder with `--data.root`, "
                "or let the files be fetched with `--data.download true`"
            )
        super().setup(stage)
