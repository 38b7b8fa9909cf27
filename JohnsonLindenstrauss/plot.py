"""Figures: each function draws one from a finished run's numbers and returns it; `save` writes it."""

from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#7F7F7F"
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


@rc_context(STYLE)
def distortion(history: dict[str, np.ndarray], final: float, gaussian: np.ndarray, best_of: int | None) -> Figure:
    """Figure 6: worst distortion against iterations, of the mean M and of one draw of A, beside Gaussian matrices.

    Args:
        history: snapshots of `train.derandomize`.
        final: worst distortion of the matrix that is kept: the SOSP, or if none was reached the best.
        gaussian: worst distortions of single Gaussian matrices.
        best_of: draw also the line of the authors' script, the mean of the worst of so many Gaussian matrices.
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot(history["step"], history["drawn_distortion"], ".", color=ORANGE, markersize=5, label="one draw of A")
    axes.plot(history["step"], history["distortion"], color=BLUE, label=f"mean M; kept: {final:.2g}")
    mean, least = gaussian.mean(), gaussian.min()
    axes.axhline(mean, color=RED, linestyle=":", label=f"Gaussian matrix, mean of {len(gaussian)}: {mean:.3g}")
    axes.axhline(least, color=GREEN, linestyle="--", label=f"Gaussian matrix, best of {len(gaussian)}: {least:.3g}")
    if best_of is not None:
        groups = gaussian[: len(gaussian) // best_of * best_of].reshape(-1, best_of)
        worst = groups.max(axis=1).mean()
        axes.axhline(worst, color=GREY, linestyle="-.", label=f"the authors' line, worst of {best_of}: {worst:.3g}")
    axes.set(xlabel="iteration", ylabel=r"worst distortion $\max\,|\|Ax\|^2 - 1|$", ylim=(0, None))
    _legend_below(figure)
    return figure


@rc_context(STYLE)
def variance(history: dict[str, np.ndarray], kicks: list[int]) -> Figure:
    """Figure 7: σ² against iterations: the randomness that is left in the projection.

    Args:
        history: snapshots of `train.derandomize`.
        kicks: steps at which perturbations struck; the last one finds no way down, and PGD returns to where it was.
    """
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    axes.semilogy(history["step"], np.maximum(history["sigma"] ** 2, 1e-30), color=BLUE)
    for kick in kicks:
        axes.axvline(kick, color=ORANGE, linewidth=1.5, zorder=0, label="perturbation")
    axes.set(xlabel="iteration", ylabel=r"variance $\sigma^2$")
    _legend_below(figure)
    return figure


@rc_context(STYLE)
def distortions(edges: np.ndarray, counts: dict[str, np.ndarray], worst: dict[str, float], noun: str) -> Figure:
    """Histogram of all distortions ‖A x‖² − 1, of several projections to the same dimension.

    Args:
        edges: (bins + 1,) edges of the bins.
        counts: (bins,) numbers of vectors or pairs, by the projection's name.
        worst: worst distortion, by the same names.
        noun: "vectors" or "pairs".
    """
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    for (name, values), color, line in zip(
        counts.items(), (BLUE, RED, ORANGE, GREEN), ("-", ":", "--", "-."), strict=True
    ):
        axes.stairs(values, edges, color=color, linestyle=line, linewidth=2, label=f"{name}: worst {worst[name]:.2g}")
    axes.set(xlabel=r"distortion $\|Ax\|^2 - 1$", ylabel=f"number of {noun}", yscale="log", ylim=(0.7, None))
    _legend_below(figure)
    return figure


def _legend_below(figure: Figure) -> None:
    handles, labels = figure.axes[0].get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))
    figure.legend(
        unique.values(), unique.keys(), loc="outside lower center", ncols=1 if len(unique) < 3 else 2, fontsize=9
    )
