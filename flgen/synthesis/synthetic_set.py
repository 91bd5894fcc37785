"""A folder of generated samples as a data set's own kind of training set."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from flgen.data import LabelledData
from flgen.data.image_data import ImageData
from flgen.data.image_set import ImageSet
from flgen.data.labelled_set import LabelledSet
from flgen.errors import FlgenError, UsageError
from flgen.privacy.label_table import canonical
from flgen.synthesis.sample_store import StoredSample, read_index, read_manifest, read_shard


def load_synthetic(folder: str | Path, data: LabelledData, per_class: int | None = None) -> LabelledSet:
    """Read generated samples as `data` stores its own.

    Samples come in the order of their ids, by class and then by number, however they are spread over shards. Fewer per
    class are the first ones of each, so that sets of several amounts are nested.

    Args:
        folder: What `flgen synthesize` wrote.
        data: Says how a file becomes a sample (`decode_sample`), and which classes there are.
        per_class: Samples of each class; None takes all.

    Returns:
        Inputs of the data set's shape and type, and int64 labels: the data set's classes, which are matched by name.

    Raises:
        UsageError: If the classes are not those of `data`, or there are fewer samples than `per_class`.
        FlgenError: If the folder is not finished, or damaged, or a file cannot be decoded.
    """
    folder = Path(folder).expanduser()
    index = read_index(folder)
    if index is None:
        raise FlgenError(f"{folder / 'index.json'} is missing; give a folder that `flgen synthesize` wrote")
    if not index["complete"]:
        raise FlgenError(f"{folder} is not finished; run `flgen synthesize` again, which goes on where it stopped")
    class_ids = _class_ids(folder, index["class_names"], data)
    held = index["per_class"]
    if per_class is not None and not 1 <= per_class <= held:
        raise UsageError(
            f"{folder} has {held} samples of each class, and {per_class} are wanted; make more with "
            f"`flgen synthesize --per_class {max(per_class, 1)}`"
        )
    of_shard: dict[str, list[str]] = {}
    for entry in read_manifest(folder):
        if int(entry["id"].rpartition("-")[2]) < (per_class or held):
            of_shard.setdefault(entry["shard"], []).append(entry["id"])
    rows = {id: row for row, id in enumerate(sorted(id for ids in of_shard.values() for id in ids))}
    if len(rows) != len(index["class_names"]) * (per_class or held):
        raise FlgenError(f"{folder} lacks samples that its index has; run `flgen synthesize` again, which makes them")

    layout = data.layout()
    inputs = torch.zeros(len(rows), *layout.shape, dtype=layout.dtype)
    labels = torch.zeros(len(rows), dtype=torch.int64)

    def decode(sample: StoredSample) -> None:
        row = rows[sample.id]
        try:
            inputs[row] = data.decode_sample(sample.content, sample.extension)
        except FlgenError as error:
            raise FlgenError(f"{folder}: sample {sample.id} does not fit {data.name}: {error}") from error
        if sample.facts["class_id"] >= len(class_ids):
            raise FlgenError(f"{folder}: sample {sample.id} is of none of the {len(class_ids)} classes of its index")
        labels[row] = class_ids[sample.facts["class_id"]]

    with ThreadPoolExecutor() as threads:
        for shard in sorted(of_shard):  # one shard's files are in memory at a time
            wanted = [sample for sample in read_shard(folder / shard) if sample.id in rows]
            for task in [threads.submit(decode, sample) for sample in wanted]:
                task.result()
    return ImageSet(inputs, labels) if isinstance(data, ImageData) else LabelledSet(inputs, labels)


def _class_ids(folder: Path, class_names: Sequence[str], data: LabelledData) -> list[int]:
    """Return the data set's class of each of the folder's: prompts number classes in an order of their own."""
    theirs, ours = [canonical(name) for name in class_names], [canonical(name) for name in data.class_names]
    for one, other, has in ((ours, theirs, "lacks"), (theirs, ours, "has, beyond those of this data set,")):
        missing = [name for name in one if name not in other]
        if missing:
            raise UsageError(
                f"{folder} {has} {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}; make prompts of "
                f"the labels of {data.name}, and samples from them"
            )
    return [ours.index(name) for name in theirs]
