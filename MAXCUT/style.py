"""How the figures look: colours that colour-blind readers tell apart, legends that cover nothing, the same bytes.

This file is the same to the byte in every experiment's folder, as pgd.py is.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's colours.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
PURPLE, SKY = "#CC79A7", "#56B4E9"
STYLE = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,
}


def save(figure: Figure, folder: Path, name: str) -> None:
    """Write the figure as folder/name.png and folder/name.pdf, the same bytes for the same figure."""
    with rc_context(STYLE):
        figure.savefig(folder / f"{name}.png")
        figure.savefig(folder / f"{name}.pdf", metadata={"CreationDate": None})


def perturbations(axes: Axes, kicks: Sequence[int]) -> None:
    """A line where each perturbation struck; the last one finds no way down, and PGD returns to where it was."""
    for kick in kicks:
        axes.axvline(kick, color=ORANGE, linewidth=1.5, zorder=0, label="perturbation")


def band(
    axes: Axes,
    x: Sequence[float],
    quartiles: Sequence[tuple[float, float, float]],
    color: str,
    style: str,
    label: str,
    zorder: float = 2,
) -> None:
    """A line through the medians, and a band between the first and the third quartiles."""
    q1, median, q3 = np.array(quartiles).reshape(-1, 3).T
    axes.plot(x, median, style, color=color, markersize=4, zorder=zorder, label=label)
    axes.fill_between(x, q1, q3, color=color, alpha=0.2, linewidth=0)


def legend_below(figure: Figure, columns: int | None = None) -> None:
    """One legend for all panels, below them; in one column up to three lines, else two, unless it is said."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    columns = columns or (1 if len(unique) < 4 else 2)
    figure.legend(unique.values(), unique.keys(), loc="outside lower center", ncols=columns, fontsize=9)
