"""Figures, each drawn from a finished run's numbers, and the summary."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from compare import ROUNDING, Comparison
from run import BLUE, GREEN, GREY, ORANGE, RED, STYLE, State, legend_below, perturbations
from train import Result

if TYPE_CHECKING:
    from main import Config


@rc_context(STYLE)
def figures(result: Result, compared: Comparison, config: "Config") -> dict[str, Figure]:
    """All figures by file name."""
    best_of = config.draws if config.objective == "sampled" else None
    return {
        "fig6_distortion": distortion(result.history, result.distortion, compared, best_of),
        "fig7_variance": variance(result.history),
        "distortions": distortions(compared, config.problem),
    }


def _digits(worst: float) -> str:
    """A worst distortion for a legend; the digits of a rounding error would be another processor's."""
    return f"{worst:.2g}" if worst >= ROUNDING else f"below {ROUNDING:g}"


def distortion(history: dict[str, np.ndarray], final: float, compared: Comparison, best_of: int | None) -> Figure:
    """Figure 6: worst distortion against iterations, of the mean M and of one draw of A, beside Gaussian matrices.

    Args:
        history: snapshots of the descent.
        final: worst distortion of the matrix that is kept: the SOSP, or if none was reached the best.
        compared: worst distortions of Gaussian matrices.
        best_of: draw also the line of the authors' script, the mean of the worst of so many Gaussian matrices.
    """
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot(history["step"], history["drawn_distortion"], ".", color=ORANGE, markersize=5, label="one draw of A")
    axes.plot(history["step"], history["distortion"], color=BLUE, label=f"mean M; kept: {_digits(final)}")
    count = len(compared.gaussian)
    for values, color, name in (
        (compared.gaussian, RED, "Gaussian"),
        (compared.gaussian_scaled, GREEN, "best-scaled Gaussian"),
    ):
        axes.axhline(values.mean(), color=color, linestyle=":", label=f"{name}, mean of {count}: {values.mean():.3g}")
        axes.axhline(values.min(), color=color, linestyle="--", label=f"{name}, best of {count}: {values.min():.3g}")
    if best_of is not None and best_of <= count:
        worst = compared.gaussian[: count // best_of * best_of].reshape(-1, best_of).max(axis=1).mean()
        axes.axhline(worst, color=GREY, linestyle="-.", label=f"the authors' line, worst of {best_of}: {worst:.3g}")
    axes.set(xlabel="iteration", ylabel=r"worst distortion $\max\,|\|Ax\|^2 - 1|$", ylim=(0, None))
    legend_below(figure)
    return figure


def variance(history: dict[str, np.ndarray]) -> Figure:
    """Figure 7: σ² against iterations: the randomness that is left in the projection."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    variances = np.where(history["sigma"] ** 2 > 0, history["sigma"] ** 2, np.nan)  # 0 is at no height
    axes.semilogy(history["step"], variances, color=BLUE)
    # Beside lengths of 1 rounding hides what is below 10⁻²⁰, and it differs on each processor: there the frame ends.
    lowest = max(1e-20, 10.0 ** (10 * np.floor(np.log10(np.nanmin(variances)) / 10)))
    axes.set_ylim(lowest, 10 * variances[0])
    perturbations(axes, history["kicks"])
    axes.set(xlabel="iteration", ylabel=r"variance $\sigma^2$")
    legend_below(figure)
    return figure


def distortions(compared: Comparison, noun: str) -> Figure:
    """Histogram of all distortions ‖A x‖² − 1, of several projections to the same dimension; noun: of what."""
    figure = Figure(figsize=(6.4, 5), layout="constrained")
    axes = figure.subplots()
    styles = [(BLUE, "-"), (GREEN, "-."), (RED, ":"), (RED, "-"), (ORANGE, ":"), (ORANGE, "-")]
    for (name, counts), (color, line) in zip(compared.counts.items(), styles, strict=True):
        label = f"{name}: worst {_digits(compared.worst[name])}"
        axes.stairs(counts, compared.edges, color=color, linestyle=line, linewidth=2, label=label)
    axes.set(xlabel=r"distortion $\|Ax\|^2 - 1$", ylabel=f"number of {noun}", yscale="log", ylim=(0.7, None))
    legend_below(figure)
    return figure


def summary(found: State, result: Result, config: "Config") -> dict[str, str]:
    """What the run found (results.json), line by line."""
    pairs = f", {found['preserved']} pairs" if found["problem"] == "pairs" else ""
    left_out = f" ({found['duplicates']} of duplicate or too near points left out)" if found["duplicates"] else ""
    one_row = f"; one row keeps all norms to at most {found['interpolation']:.1g}" if found["interpolation"] else ""
    few = ", cut short by Ctrl-C" * (found["interrupted"] and not result.interrupted)
    why = "interrupted" if result.interrupted else "f has kinks" if config.objective == "sampled" else ""
    steps = f"{found['steps']} steps and {found['perturbations']} perturbations"
    return {
        "data": f"{found['n']} × {found['d']}{pairs}{left_out}, to {found['k']} dimensions{one_row}",
        "distortion": f"{found['distortion']:.6g}" + ", the best matrix so far" * result.cut_short,
        "Gaussian": f"mean {found['gaussian_mean']:.4g}, best of {found['gaussians']} {found['gaussian_min']:.4g}{few}",
        "best-scaled": f"Gaussian mean {found['gaussian_scaled_mean']:.4g}, best {found['gaussian_scaled_min']:.4g}; "
        f"sparse random {found['sparse_scaled']:.4g} (as it is {found['sparse']:.4g}); PCA {found['pca']:.4g}",
        "projection": f"σ = {found['sigma']:.1e} after {'Ctrl-C and ' * result.cut_short}{steps}",
        "certificate": str(result.certificate or f"none: {why or 'too many pairs matter'}"),
        "seconds": f"{found['seconds']:.2f}",
        "files": str(config.out.resolve()),
    }
