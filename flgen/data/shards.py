"""Client shards: the training data of every client as webdataset tar files, with one index for all of them.

    DIR/index.json                       what is stored: data set, classes, image size, partition, clients
    DIR/client-0000/shard-00000.tar      one client's samples: N.png, N.cls (label), N.json (further facts)
    DIR/test/shard-00000.tar             the held-out images

A client's samples are stored in a fixed random order, since a stream can shuffle no more than a window of them;
`position` is the place in the partition, by which a client read into memory gets its order back.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
from PIL import Image
from torch import Tensor

from flgen.data.image_data import ImageData, ImageLayout
from flgen.data.image_set import ImageSet
from flgen.data.labelled_data import LabelledData
from flgen.data.pixels import one_line
from flgen.data.tar_members import shard_samples
from flgen.errors import FlgenError, UsageError
from flgen.experiment.plain_values import json_value

FORMAT = "flgen-client-shards"
VERSION = 1
MEMBERS = (".png", ".cls", ".json")
LEAST_BYTES = 1024
"""Bytes of a shard that a sample takes at least: the header and a block of one member."""


@dataclass(frozen=True)
class Shard:
    """One tar file and the number of samples in it."""

    path: Path
    samples: int


@dataclass(frozen=True)
class StoredSplit:
    """One client's samples, or the held-out ones: where they lie and how many there are of each class."""

    shards: tuple[Shard, ...]
    label_counts: tuple[int, ...]

    @property
    def samples(self) -> int:
        """Number of samples."""
        return sum(shard.samples for shard in self.shards)


@dataclass(frozen=True)
class ShardIndex:
    """What a folder of client shards holds.

    Args:
        layout: Name, classes, channels, size and normalisation of the stored images.
        partitioner: The rule's name and options.
        seed: The run's seed that dealt the samples out, if one was given.
        clients: One entry per client.
        test: The held-out samples.
    """

    layout: ImageLayout
    partitioner: dict[str, Any]
    seed: int | None
    clients: tuple[StoredSplit, ...]
    test: StoredSplit


@dataclass(frozen=True)
class StoredSample:
    """One sample as it lies in a shard: the image is still PNG."""

    png: bytes
    label: int
    position: int
    attributes: dict[str, int]
    shard: Path

    def image(self, shape: tuple[int, int, int]) -> Tensor:
        """Decode the image: uint8 tensor of `shape`, (channels, height, width)."""
        channels, height, width = shape
        try:
            with Image.open(io.BytesIO(self.png), formats=("PNG",)) as image:
                if (image.width, image.height, image.mode) != (width, height, "L" if channels == 1 else "RGB"):
                    raise ValueError(f"{image.mode} {image.width}x{image.height} is not the size of the index")
                image.verify()  # the checksums, which decoding skips
            with Image.open(io.BytesIO(self.png), formats=("PNG",)) as image:
                pixels = np.array(image).reshape(height, width, channels)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise damaged(self.shard, error) from error
        return torch.from_numpy(pixels).permute(2, 0, 1)


def damaged(path: Path, reason: BaseException | str) -> FlgenError:
    """Return the error for a file of the folder that cannot be used."""
    text = one_line(reason) if isinstance(reason, BaseException) else reason
    return FlgenError(f"{path} is damaged ({text}); write the folder again with `flgen partition --output DIR`")


def write_client_shards(
    data: LabelledData,
    partition: Sequence[np.ndarray],
    output: str | Path,
    samples_per_shard: int = 1000,
    *,
    partitioner: dict[str, Any] | None = None,
    seed: int | None = None,
) -> ShardIndex:
    """Store the clients' training samples and the held-out ones as webdataset shards with an index.

    Everything is written to a folder of another name beside `output`, which is renamed when it is complete. The same
    request writes the same bytes.

    Args:
        data: The data set, set up.
        partition: Rows of `data.train`, one int64 array per client.
        output: Folder to make; it may exist if it is empty.
        samples_per_shard: Most samples of one tar file.
        partitioner: Description of the rule behind `partition` (`Partitioner.describe()`), for the index.
        seed: The seed behind `partition`, for the index.

    Raises:
        UsageError: If the data are no images, `output` is in use or `samples_per_shard` is below 1.
        FlgenError: If the folder cannot be written.
    """
    if not isinstance(data, ImageData):
        raise UsageError(
            f"`--output` stores images, but `--data {type(data).__name__}` holds {data.noun}; leave `--output` out "
            "and give the data set and the partition to `flgen fit` as they are"
        )
    if samples_per_shard < 1:
        raise UsageError(f"`--samples_per_shard` is {samples_per_shard}; it must be at least 1")
    output = Path(output).absolute()
    if output.exists() and not (output.is_dir() and not any(output.iterdir())):
        raise FlgenError(f"{output} exists and is not an empty folder; give another one with `--output`")
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        partial.mkdir(parents=True)
        clients = []
        for client, rows in enumerate(partition):
            order = np.random.default_rng([0, client]).permutation(len(rows))
            folder = partial / f"client-{client:04d}"
            clients.append(_write_split(data.train, rows, order, folder, samples_per_shard))
        every = np.arange(len(data.test))
        content = {
            "format": FORMAT,
            "version": VERSION,
            "name": data.name,
            "classes": data.classes,
            "class_names": list(data.class_names),
            "channels": data.channels,
            "image_size": data.image_size,
            "mean": data.layout().mean,
            "std": data.layout().std,
            "partitioner": partitioner or {},
            "seed": seed,
            "clients": [_count(split, data.classes) for split in clients],
            "test": _count(_write_split(data.test, every, every, partial / "test", samples_per_shard), data.classes),
        }
        (partial / "index.json").write_text(json.dumps(content, indent=1) + "\n")
        partial.rename(output)
    except OSError as error:
        raise FlgenError(
            f"{output} cannot be written: {one_line(error)}; give another folder with `--output`"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return read_index(output)


def _write_split(
    images: ImageSet, rows: np.ndarray, order: np.ndarray, folder: Path, samples_per_shard: int
) -> tuple[list[dict[str, Any]], Tensor]:
    """Write rows[order] as tar files; return the index's entries for them and the labels of all rows."""
    folder.mkdir()
    chosen = torch.as_tensor(rows, dtype=torch.int64)
    entries = []
    for number, start in enumerate(range(0, len(rows), samples_per_shard)):
        positions = order[start : start + samples_per_shard]
        path = folder / f"shard-{number:05d}.tar"
        part = images.subset(chosen[torch.as_tensor(positions)]).to("cpu")
        with path.open("wb") as file, webdataset.TarWriter(file, encoder=False, mtime=0) as tar:
            for place, position in enumerate(positions.tolist()):
                facts = {
                    "index": int(rows[position]),
                    "position": position,
                    "attributes": {name: int(values[place]) for name, values in part.attributes.items()},
                }
                tar.write(
                    {
                        "__key__": f"{position:08d}",
                        "png": _png(part.images[place]),
                        "cls": str(int(part.labels[place])).encode(),
                        "json": json.dumps(facts).encode(),
                    }
                )
        entries.append({"file": f"{folder.name}/{path.name}", "samples": len(positions)})
    return entries, images.labels.cpu()[chosen]


def _count(split: tuple[list[dict[str, Any]], Tensor], classes: int) -> dict[str, Any]:
    shards, labels = split
    counts = torch.bincount(labels, minlength=classes).tolist()
    return {"samples": len(labels), "label_counts": counts, "shards": shards}


def _png(image: Tensor) -> bytes:
    pixels = image[0] if len(image) == 1 else image.permute(1, 2, 0)
    buffer = io.BytesIO()
    Image.fromarray(pixels.contiguous().numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def read_index(root: str | Path) -> ShardIndex:
    """Read the index of a folder of client shards.

    Raises:
        FlgenError: If there is no index, or it is damaged, of another version, or points out of the folder.
    """
    root = Path(root).absolute()
    path = root / "index.json"
    try:
        content = json_value(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        if content["version"] != VERSION:
            raise FlgenError(
                f"{path} has version {content['version']} and this flgen reads version {VERSION}; "
                "write the folder again with `flgen partition --output DIR`"
            )
        class_names = tuple(str(name) for name in content["class_names"])
        if content["classes"] != len(class_names):
            raise ValueError(f"{content['classes']} classes with {len(class_names)} names")
        return ShardIndex(
            ImageLayout(
                str(content["name"]),
                class_names,
                int(content["channels"]),
                int(content["image_size"]),
                mean=_numbers(content.get("mean")),  # folders written before there were these two lack them
                std=_numbers(content.get("std")),
            ),
            partitioner=dict(content["partitioner"]),
            seed=content["seed"],
            clients=tuple(_read_split(root, entry, len(class_names)) for entry in content["clients"]),
            test=_read_split(root, content["test"], len(class_names)),
        )
    except FileNotFoundError:
        raise FlgenError(
            f"{path} does not exist; give a folder that `flgen partition` wrote with `--data.root`"
        ) from None
    except KeyError as error:
        raise damaged(path, f"no entry {error}") from error
    except (OSError, ValueError, TypeError, AttributeError, OverflowError, UsageError) as error:
        raise damaged(path, error) from error


def _numbers(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(float(value) for value in values)


def _read_split(root: Path, entry: dict[str, Any], classes: int) -> StoredSplit:
    shards = []
    for shard in entry["shards"]:
        path = root / shard["file"]
        if not path.resolve().is_relative_to(root.resolve()):
            raise ValueError(f"its shard {shard['file']} lies outside the folder")
        shards.append(Shard(path, int(shard["samples"])))
    split = StoredSplit(tuple(shards), tuple(int(count) for count in entry["label_counts"]))
    if min([0, *split.label_counts, *(shard.samples for shard in shards)]) < 0:
        raise ValueError("it has negative numbers of samples")
    if len(split.label_counts) != classes or not split.samples == sum(split.label_counts) == entry["samples"]:
        raise ValueError("its numbers of samples contradict each other")
    return split


def read_shards(
    shards: Sequence[Shard], classes: int, *, window: int = 1, order: random.Random | None = None
) -> Iterator[StoredSample]:
    """Read shards one after another, without decoding the images.

    Only PNG, label and JSON members are looked at, each by its own parser: nothing in a shard is ever unpickled.

    Args:
        shards: Tar files, in the order to read them.
        classes: Number of classes; every label must be below it.
        window: Samples among which the next one is drawn, if `order` is given.
        order: Source of the draws; without it samples come as they are stored.

    Raises:
        FlgenError: If a shard is missing, damaged, or holds another number of samples than its index says.
    """
    samples = (sample for shard in shards for sample in _read_shard(shard, classes))
    return samples if order is None else webdataset.shuffle(window, initial=window, rng=order)(samples)


def _read_shard(shard: Shard, classes: int) -> Iterator[StoredSample]:
    found = 0
    try:
        for sample in shard_samples(shard.path, lambda name: name.endswith(MEMBERS)):
            facts = json_value(sample["json"])
            attributes = {str(name): int(value) for name, value in facts["attributes"].items()}
            label = int(sample["cls"])
            if not 0 <= label < classes:
                raise ValueError(f"label {label} is none of {classes} classes")
            yield StoredSample(sample["png"], label, int(facts["position"]), attributes, shard.path)
            found += 1
        if found != shard.samples:
            raise ValueError(f"it holds {found} samples and not {shard.samples}")
    except FileNotFoundError:
        raise damaged(shard.path, "the file is missing") from None
    except KeyError as error:
        raise damaged(shard.path, f"a sample without {error.args[0]}") from error
    except (OSError, ValueError, TypeError, AttributeError, OverflowError) as error:
        raise damaged(shard.path, error) from error


def load_split(split: StoredSplit, shape: tuple[int, int, int]) -> ImageSet:
    """Decode all samples of a client into memory, in the order of its partition.

    Args:
        split: The client's entry in the index.
        shape: (channels, height, width) of every image.

    Raises:
        FlgenError: If a shard is damaged or contradicts the index.
    """
    for shard in split.shards:  # what an index claims takes memory before a shard is read
        if shard.path.is_file() and shard.path.stat().st_size < LEAST_BYTES * shard.samples:
            raise damaged(shard.path, f"it is too small for {shard.samples} samples")
    try:
        images = torch.empty((split.samples, *shape), dtype=torch.uint8)
    except RuntimeError as error:
        reason = f"{split.samples} images of shape {shape} do not fit into memory: {one_line(error)}"
        raise damaged(split.shards[0].path.parent if split.shards else Path(), reason) from error
    labels = torch.full((split.samples,), -1, dtype=torch.int64)
    attributes: dict[str, Tensor] = {}
    for sample in read_shards(split.shards, len(split.label_counts)):
        if not 0 <= sample.position < split.samples or labels[sample.position] >= 0:
            raise damaged(sample.shard, f"position {sample.position} is taken or too large")
        images[sample.position] = sample.image(shape)
        labels[sample.position] = sample.label
        for name, value in sample.attributes.items():
            attributes.setdefault(name, torch.zeros_like(labels))[sample.position] = value
    if (
        split.samples
        and tuple(torch.bincount(labels, minlength=len(split.label_counts)).tolist()) != split.label_counts
    ):
        raise damaged(split.shards[0].path.parent, "the labels are not those of the index")
    return ImageSet(images, labels, attributes)
