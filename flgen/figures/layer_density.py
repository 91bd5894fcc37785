"""Which share of each layer's weights the masks keep (prism.md, section 7)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from flgen.figures.banded_curves import Curve, draw_curve, name_curves, panels
from flgen.figures.paper import paper_style, save_figure
from flgen.metrics.over_seeds import Spread

LEAST_RANGE = 0.1  # of the axis: differences of a thousandth are not blown up
MOST_SLANTED_LAYERS = 16  # whose names stand at 45 degrees; those of more stand upright
LETTER = 0.045  # inches, of a layer's name


def draw_layer_density(runs: Mapping[str, Mapping[str, Spread]], output: str | Path) -> tuple[Path, Path]:
    """Draw the density of each layer's mask, a hue per run, with a band of one standard deviation over seeds.

    Args:
        runs: By the run's name, mean and spread of the density in [0, 1] by layer, from input to output; a layer that
            a run lacks has no mark.
        output: The PNG; an SVG of the same name is saved beside it.

    Returns:
        The two files.

    Raises:
        FlgenError: They cannot be written.
        UsageError: `output` is no name for a PNG or SVG.
    """
    layers = list(dict.fromkeys(layer for densities in runs.values() for layer in densities))
    curves = [_curve(label, densities, layers) for label, densities in runs.items()]
    with paper_style():
        figure, (axes,) = panels(1, list(runs))
        figure.set_figheight(figure.get_figheight() + LETTER * max(map(len, layers)))
        lines = [draw_curve(axes, curve, number, marked=True) for number, curve in enumerate(curves)]
        low, high = axes.dataLim.intervaly
        missing = max(0.0, LEAST_RANGE - (high - low)) / 2
        room = 0.08 * max(high - low, LEAST_RANGE)
        axes.set_ylim(max(0.0, low - missing - room), min(1.0, high + missing + room))
        rotation = 45 if len(layers) <= MOST_SLANTED_LAYERS else 90
        axes.set_xticks(range(len(layers)), layers, parse_math=False, fontsize=6)
        for text in axes.get_xticklabels():
            text.set(rotation=rotation, ha="right", va="center", rotation_mode="anchor")
        axes.set_ylabel("share of weights kept")
        name_curves(figure, lines, list(runs))
        return save_figure(figure, output)


def _curve(label: str, densities: Mapping[str, Spread], layers: Sequence[str]) -> Curve:
    import numpy as np

    lacking = Spread(np.nan, np.nan, 0)
    found = [densities.get(layer, lacking) for layer in layers]
    mean, std = (np.array([getattr(spread, name) for spread in found], dtype=np.float64) for name in ("mean", "std"))
    return Curve(label, np.arange(len(layers), dtype=np.float64), mean, std)
