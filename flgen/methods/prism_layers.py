"""The layers of PRISM's generator: which of them send scores, and what the authors count.

The authors' code registers the layers of a block twice, and so lists them twice in a row: what it calls a share of
layers, and the megabytes that it prints, are counted on that list (PRISM, sections 2 and 5.3 of the specification).
"""

from __future__ import annotations

from typing import Any, Literal

from flgen.deferred import TYPE_CHECKING, deferred_module

if TYPE_CHECKING:
    from flgen.masks import network
else:
    network = deferred_module("flgen.masks.network")

BYTES_OF_A_SCORE, BYTES_OF_A_BIT = 4, 1
"""What one entry of their upload takes by the authors' convention (section 7)."""


def first_score_sent(generator: Any, alpha: float, split: Literal["layers", "reference"]) -> int:
    """Return where the scores that PRISM-alpha sends begin in the flat vector; before it, bits are sent (5.3).

    Args:
        generator: A generator with masks.
        alpha: Share of the layers, the last ones, that send scores.
        split: "layers" takes the last int(alpha * layers) layers. "reference" counts on the authors' list; a layer
            with any entry among the last int(alpha * entries) sends scores.
    """
    slices = network.layer_slices(generator)
    entries = list(slices) if split == "layers" else authors_list(generator)
    sent = entries[len(entries) - int(alpha * len(entries)) :]
    return min((slices[name].start for name in sent), default=max(place.stop for place in slices.values()))


def authors_list(generator: Any) -> list[str]:
    """Return the layers in the order of the authors' list of them, those of a block twice in a row."""
    names = list(network.layer_slices(generator))
    twice = [name for name, times in generator.layer_multiplicity().items() if times == 2]
    blocks = {name: [other for other in twice if _block(other) == _block(name)] for name in twice}
    entries: list[str] = []
    for name in names:
        if name not in entries:
            entries += 2 * blocks[name] if name in blocks else [name]
    return entries


def authors_upload_bytes(generator: Any, alpha: float) -> int:
    """Return what a client sends by the authors' convention: 5.758 MiB at 32x32 with alpha = 0 (section 7).

    Args:
        generator: A generator with masks.
        alpha: Share of the entries, the last ones, that are scores.
    """
    slices, entries = network.layer_slices(generator), authors_list(generator)
    bits = len(entries) - int(alpha * len(entries))
    sizes = [slices[name].stop - slices[name].start for name in entries]
    return BYTES_OF_A_BIT * sum(sizes[:bits]) + BYTES_OF_A_SCORE * sum(sizes[bits:])


def _block(layer: str) -> str:
    return layer.rpartition(".")[0]
