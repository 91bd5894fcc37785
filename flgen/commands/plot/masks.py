"""`flgen plot masks`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flgen.commands.plot.kind_parser import KindParser
from flgen.commands.plot.runs import run_folder
from flgen.commands.plot.tables import write_csv
from flgen.deferred import TYPE_CHECKING
from flgen.errors import FlgenError, UsageError

if TYPE_CHECKING:
    from torch import Tensor


def draw(arguments: list[str]) -> tuple[Path, ...]:
    """Draw how alike the clients' labels and their final masks are; return the files."""
    parser = KindParser(
        "masks", "Draw how alike the labels of a run's clients are, beside the distances of their masks."
    )
    parser.add_argument("run", metavar="RUN", help="The run folder.")
    parser.add_argument("--ckpt_path", default="last", help="A checkpoint of it; the newest good one by default.")
    parser.add_output("masks.png")
    options = parser.parse(arguments)

    from flgen.figures.mask_maps import draw_mask_maps
    from flgen.figures.paper import figure_files

    png, _ = figure_files(options.output)
    run = run_folder(options.run)
    found = _read_masks(run, options.ckpt_path)

    from flgen.metrics.mask_distance import aligned_similarity, hamming_distances, label_cosine, spearman

    distances = hamming_distances(found.masks)
    similarity = aligned_similarity(distances)
    cosine = label_cosine(found.label_counts)
    correlation = spearman(cosine, distances)
    share = distances.double() / found.parameters
    independent = _mean_over_pairs(_independent(found)) / found.parameters
    figures = draw_mask_maps(
        cosine.numpy(),
        similarity.numpy(),
        share.numpy(),
        options.output,
        correlation=correlation,
        independent=independent,
        clients=found.clients,
    )
    tables = {
        png.with_name(f"{png.stem}-distance.csv"): distances,
        png.with_name(f"{png.stem}-similarity.csv"): similarity,
    }
    for path, table in tables.items():
        write_csv(path, table.tolist())
    print(
        "Spearman correlation of label cosine and mask closeness (-D) "
        + ("undefined" if math.isnan(correlation) else f"{correlation:.4f}")
    )
    print(f"mean D/d {_mean_over_pairs(share):.6f}")
    print(f"independent masks D/d {independent:.6f}")
    return (*figures, *tables)


@dataclass(frozen=True)
class _Masks:
    """The masks of a run: ids of the clients, bool (K, P), int (K, C), (name, size) of each layer, weights in all."""

    clients: list[int]
    masks: Tensor
    label_counts: Tensor
    layers: list[tuple[str, int]]
    parameters: int


def _read_masks(run: Path, ckpt_path: str) -> _Masks:
    import torch

    from flgen.experiment.checkpoints import find_checkpoint
    from flgen.experiment.records import read_partition

    checkpoint = find_checkpoint(ckpt_path, run)
    if not checkpoint.path.resolve().is_relative_to(run.resolve()):
        raise UsageError(f"--ckpt_path {ckpt_path} is of another run than {run}: name that run instead")
    held = {client: state["mask"] for client, state in sorted(checkpoint.client_states().items()) if "mask" in state}
    if not held:
        raise FlgenError(f"{checkpoint.path} holds no masks: choose a run of a method that has some, such as DisPFL")
    if len(held) < 2:
        raise FlgenError(f"{checkpoint.path} holds the mask of one client: distances need two")
    masks = torch.stack(list(held.values()))
    if masks.shape[1] == 0:
        raise FlgenError(f"the masks of {checkpoint.path} are empty, as every layer is dense: choose a sparser run")
    _, counts = read_partition(run / "partition.csv")
    if max(held) >= len(counts):
        raise FlgenError(f"{run / 'partition.csv'} lacks client {max(held)} of {checkpoint.path}: it is of another run")
    method: Mapping[str, Any] = checkpoint.server_state().get("method") or {}
    layers = method.get("layers") or [("all", masks.shape[1])]
    if sum(size for _, size in layers) != masks.shape[1]:
        raise FlgenError(f"the masks of {checkpoint.path} do not fit its layers: repeat the run")
    label_counts = torch.from_numpy(counts[list(held)])
    return _Masks(list(held), masks, label_counts, layers, method.get("parameters", masks.shape[1]))


def _independent(found: _Masks) -> Tensor:
    """Return the mean distances of masks of the clients' own densities, drawn independently (K, K)."""
    import torch

    from flgen.metrics.mask_distance import independent_distances

    sizes = [size for _, size in found.layers]
    active = torch.stack([part.sum(1) for part in found.masks.split(sizes, dim=1)], dim=1)
    return independent_distances(active, sizes)


def _mean_over_pairs(table: Tensor) -> float:
    return float(table.double().triu(1).sum()) / (len(table) * (len(table) - 1) / 2)
