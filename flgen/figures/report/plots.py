"""What the plots of the page share: colours, curves thinned to what a screen shows, and their description as JSON.

Colours of text, axes and grid are the page's, which follows light and dark; plots only say what is drawn. plotly takes
its texts for HTML, so every name of a run passes through `plain`.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

from flgen.deferred import TYPE_CHECKING, deferred_module

if TYPE_CHECKING:
    import numpy as np
    from markupsafe import Markup
    from plotly import graph_objects
else:
    np = deferred_module("numpy")
    graph_objects = deferred_module("plotly.graph_objects")

# Told apart on white and on near black, with any colour vision by the first five.
HUES = ("#3182ce", "#d9742b", "#2a9d74", "#c2609f", "#8a6fd8", "#b08a1e", "#d1495b", "#1f9aa8")
DASHES = ("solid", "dash", "dot", "dashdot")

MOST_POINTS = 600  # of a curve
MOST_MARKED_POINTS = 40
LONGEST_NAME = 48


@dataclass(frozen=True)
class Plot:
    """One plot of the page.

    Args:
        title: Its heading; plain text.
        description: What it shows, for readers who cannot see it.
        figure: What is drawn.
        height: Pixels.
        kind: "plot", or "curve" where the page offers a logarithmic axis.
    """

    title: str
    description: str
    figure: graph_objects.Figure
    height: int = 280
    kind: str = "plot"
    note: str = field(default="")

    @property
    def specification(self) -> Markup:
        """The figure as JSON that may stand inside a script element."""
        return inside_script(self.figure.to_json())


def inside_script(json_text: str) -> Markup:
    """Return JSON in which nothing can end a script element or begin a comment there."""
    from markupsafe import Markup

    for character in ("&", "<", ">", "'", "\u2028", "\u2029"):
        json_text = json_text.replace(character, f"\\u{ord(character):04x}")
    return Markup(json_text)


def plain(text: object) -> str:
    """Return a text that plotly shows as it is, cut to a bearable length."""
    shown = str(text)
    shown = shown if len(shown) <= LONGEST_NAME else f"{shown[: LONGEST_NAME - 1]}…"
    return html.escape(shown.replace("%{", "% {"), quote=False)


def hue(number: int) -> str:
    """Return the colour of the experiment of this number."""
    return HUES[number % len(HUES)]


def dash(number: int) -> str:
    """Return the dashes of the experiment of this number: first all hues, then all with dashes."""
    return DASHES[number // len(HUES) % len(DASHES)]


def faint(colour: str, opacity: float) -> str:
    """Return a colour of `HUES` with an opacity."""
    red, green, blue = (int(colour[place : place + 2], 16) for place in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity})"


def new_figure(x: str = "", y: str = "", **layout: object) -> graph_objects.Figure:
    """Return an empty figure without colours of its own.

    Args:
        x: What stands below.
        y: What stands beside.
        layout: Further options of plotly's layout.
    """
    return graph_objects.Figure(
        layout={
            "template": graph_objects.layout.Template(),
            "margin": {"l": 52, "r": 12, "t": 8, "b": 40},
            "xaxis": {"title": {"text": plain(x), "standoff": 6}, "automargin": True, "zeroline": False},
            "yaxis": {"title": {"text": plain(y), "standoff": 6}, "automargin": True, "zeroline": False},
            "showlegend": False,
            "hovermode": "x unified",
            **layout,
        }
    )


def thinned(values: np.ndarray, most: int = MOST_POINTS) -> np.ndarray:
    """Return which points of a curve to draw: of each stretch its smallest and its largest, and both ends.

    Args:
        values: float64 (points,); NaN is a gap.
        most: How many to keep, about.

    Returns:
        int64 indices, ascending; all of them if there are no more than `most`.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    length = -(-count // max(1, most // 2))  # of a stretch
    padded = np.full(-(-count // length) * length, np.nan)
    padded[:count] = values
    stretches = padded.reshape(-1, length)
    begins = np.arange(len(stretches)) * length
    smallest = np.where(np.isnan(stretches), np.inf, stretches).argmin(axis=1)  # of nothing but gaps the first
    largest = np.where(np.isnan(stretches), -np.inf, stretches).argmax(axis=1)
    return np.unique(np.concatenate([begins + smallest, begins + largest, [0, count - 1]]))


def add_curve(
    figure: graph_objects.Figure,
    x: Sequence[int],
    y: Sequence[float],
    *,
    name: str,
    number: int,
    dashes: str | None = None,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
    legend: bool = False,
    most: int = MOST_POINTS,
) -> None:
    """Draw a curve, and a band around it if there is one.

    Args:
        figure: Where.
        x: Rounds, ascending.
        y: Values; infinities and NaN are gaps.
        name: Of the curve.
        number: Of the experiment, which chooses colour and dashes, and which the page can hide.
        dashes: In place of the experiment's.
        band: The lower and the upper edge.
        legend: Whether the plot itself names the curve.
        most: How many points to keep, about.
    """
    values = _finite(y)
    points = thinned(values, most)
    rounds = np.asarray(x, dtype=np.int32)
    colour = hue(number)
    common = {"x": rounds[points], "meta": number}
    if band is not None:
        lower, upper = (_finite(edge)[points] for edge in band)
        edge = {**common, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        figure.add_trace(graph_objects.Scatter(y=_short(upper), **edge))
        figure.add_trace(graph_objects.Scatter(y=_short(lower), fill="tonexty", fillcolor=faint(colour, 0.18), **edge))
    figure.add_trace(
        graph_objects.Scatter(
            y=_short(values[points]),
            name=plain(name),
            mode="lines+markers" if len(points) <= MOST_MARKED_POINTS else "lines",
            line={"color": colour, "dash": dashes or dash(number), "width": 2},
            marker={"size": 5},
            hovertemplate="%{y:.5~g}",
            showlegend=legend,
            **common,
        )
    )


def _finite(values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(found), found, np.nan)


def _short(values: np.ndarray) -> np.ndarray:
    """Return values in half the room where single precision holds them."""
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    return single if np.isfinite(single).sum() == np.isfinite(values).sum() else values
