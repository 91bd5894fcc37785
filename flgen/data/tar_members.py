"""The members of a tar file, whoever wrote it: ordinary files alone, and of a size that they really have.

Nothing is unpacked: names of members are keys, never paths. Links, devices and folders are passed over. A file inside
that is stored with holes, or is larger than any sample, is refused before it takes memory.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

LARGEST_MEMBER = 1 << 28
"""Bytes of one file in an archive."""


class Member(NamedTuple):
    """A file in an archive.

    Args:
        name: Its name there.
        content: Its bytes.
    """

    name: str
    content: bytes


def tar_members(
    path: Path, wanted: Callable[[str], bool] = lambda name: True, *, compressed: bool = False
) -> Iterator[Member]:
    """Yield the files of an archive in their order.

    Args:
        path: The archive.
        wanted: Which names are read at all.
        compressed: Whether the archive may be compressed.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is damaged, or what is wanted of it is too large or has holes.
    """
    for tar, member in _headers(path, compressed):
        if not member.isfile() or not wanted(member.name):
            continue
        if member.issparse() or member.size > LARGEST_MEMBER:
            raise ValueError(f"{member.name:.80} has holes, or more than {LARGEST_MEMBER} bytes")
        file = tar.extractfile(member)
        assert file is not None, "of a file there is always one"
        try:
            content = file.read()
        except (tarfile.TarError, EOFError) as error:
            raise ValueError(str(error)) from error
        yield Member(member.name, content)


def tar_places(path: Path) -> dict[str, tuple[int, int]]:
    """Return offset and size, bytes, of every file of an archive that is not compressed, by name.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is damaged.
    """
    return {
        member.name: (member.offset_data, member.size)
        for _, member in _headers(path, compressed=False)
        if member.isfile() and not member.issparse() and member.size <= LARGEST_MEMBER
    }


def shard_samples(path: Path, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[dict[str, Any]]:
    """Yield the samples of a webdataset shard: bytes by extension, and the key as `__key__`.

    Args:
        path: The tar file, not compressed.
        wanted: Which names are read at all.

    Raises:
        OSError: The file is missing or cannot be read.
        ValueError: It is damaged.
    """
    from webdataset.tariterators import group_by_keys

    members = tar_members(path, wanted)
    for sample in group_by_keys({"fname": name, "data": content, "__url__": str(path)} for name, content in members):
        yield {name: value for name, value in sample.items() if name != "__url__"}


def _headers(path: Path, compressed: bool) -> Iterator[tuple[tarfile.TarFile, tarfile.TarInfo]]:
    if path.exists() and not path.is_file():  # a pipe would be waited for
        raise ValueError("it is no file")
    try:
        # As a stream: a header that leads backwards, which could be followed for ever, is an error of it.
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|*" if compressed else "r|") as tar:
            for member in tar:
                if member.size < 0:
                    raise ValueError(f"{member.name:.80} has {member.size} bytes")
                yield tar, member
                tar.members = []  # type: ignore[attr-defined]  # it keeps them all
    except (tarfile.TarError, EOFError, RecursionError, OverflowError) as error:
        raise ValueError(" ".join(str(error).split())[:200] or type(error).__name__) from error
