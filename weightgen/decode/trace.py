"""A picture of the weight that each expert had at each token."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path


def _label(token: str) -> str:
    """A token as text of an axis: line ends written out, nothing that matplotlib reads as a formula."""
    text = token.replace("\n", "\\n").replace("\t", "\\t").replace("$", r"\$").strip()
    return "".join(one if one.isprintable() else "·" for one in text) or "·"


def plot_alphas(
    path: Path, tokens: Sequence[str], alphas: Sequence[Sequence[float]], names: Sequence[str], title: str
) -> None:
    """Write a PNG with one line an expert; it appears whole or not at all.

    Args:
        path: where.
        tokens: the generated tokens as text.
        alphas: for each token, the weight of each expert.
        names: name of each expert.
        title: heading.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width = min(max(6.0, 0.24 * len(tokens) + 1.5), 40.0)
    figure = Figure(figsize=(width, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    places = range(len(tokens))
    for column, name in enumerate(names):
        values = [row[column] for row in alphas]
        axes.plot(places, values, marker="o", markersize=3, linewidth=1.2, label=name)
    axes.axhline(1.0, color="grey", linewidth=0.8, linestyle="--", zorder=0)
    labels = [_label(token) for token in tokens]
    axes.set_xticks(list(places), labels, rotation=90, fontsize=8)
    axes.set_xlim(-0.6, max(len(tokens) - 0.4, 0.6))
    axes.set_ylim(min(0.0, *(v for row in alphas for v in row), 0.0) - 0.05, None)
    axes.set_ylabel("weight of the expert")
    axes.set_xlabel("generated token")
    axes.set_title(title, fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    if len(names) > 1:
        axes.legend(fontsize=8, frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    side = path.with_name(f".{path.name}")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a script without a font becomes boxes
        figure.savefig(side, dpi=150, format="png")
    side.rename(path)
