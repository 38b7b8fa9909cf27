"""The lemma in one picture: in each experiment what was random collapses, and one deterministic thing is left.

`python collapse.py [FOLDER]` draws FOLDER/collapse.png, by default beside this file, from the history.npz that each
experiment's main.py has left in its figures/.
"""

import sys
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "MAXCUT"))

from experiment import refuse, whole_files, writable  # noqa: E402
from style import BLUE, GREY, ORANGE, RED, STYLE, perturbations  # noqa: E402


def collapse(networks: dict[str, np.ndarray], maxcut: dict[str, np.ndarray], jl: dict[str, np.ndarray]) -> Figure:
    """Above what is seen of each experiment's randomness, below its size; from the runs' histories."""
    figure = Figure(figsize=(11, 6.4), layout="constrained")
    seen, size = figure.subplots(2, 3, height_ratios=(1.5, 1))

    W = networks["weights"]
    reach = 1.05 * np.abs(W[[0, -1]]).max()
    seen[0].scatter(*W[0].T, s=5, color=ORANGE, linewidths=0, alpha=0.6, label="at the start")
    seen[0].scatter(*W[-1].T, s=6, color=BLUE, linewidths=0, zorder=3, label="at the end")
    seen[0].set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="$w_1$", ylabel="$w_2$")
    seen[0].set_title("NeuralNetworks\n1000 neurons: one line is left")

    seen[1].plot(maxcut["step"], maxcut["drawn_cut"], ".", color=ORANGE, label="one draw")
    seen[1].plot(maxcut["step"], maxcut["expected_cut"], color=BLUE, label="expectation")
    seen[1].set(xlabel="iteration", ylabel="cut")
    seen[1].set_title("MAXCUT\nrandom cuts: one is left")

    seen[2].plot(jl["step"], jl["drawn_distortion"], ".", color=ORANGE, label="one draw")
    seen[2].plot(jl["step"], jl["distortion"], color=BLUE, label="mean matrix")
    seen[2].set(xlabel="iteration", ylabel="worst distortion", ylim=(0, None))
    seen[2].set_title("JohnsonLindenstrauss\nrandom matrices: one is left")

    for axes, history, norm, label in (
        (size[0], networks, "w_perp", r"$\|W_\perp\|_F$"),
        (size[1], maxcut, "sigma", r"rounding's $\sigma$"),
        (size[2], jl, "sigma", r"projection's $\sigma$"),
    ):
        axes.semilogy(history["step"], history[norm], color=RED)
        perturbations(axes, history["kicks"])
        axes.set(xlabel="iteration", ylabel=label)
    for axes in seen:
        axes.legend(fontsize=9, markerscale=2, frameon=True, edgecolor=GREY, framealpha=0.9)
    return figure


def main(folder: Path = HERE) -> int:
    """Draw the picture; returns the exit status, 2 where a run is missing."""
    histories = []
    try:
        for name in ("NeuralNetworks", "MAXCUT", "JohnsonLindenstrauss"):
            file = HERE / name / "figures" / "history.npz"
            if not file.exists():
                raise FileNotFoundError(f"{file} is not there; run {name}/main.py first")
            with np.load(file) as history:
                histories.append(dict(history))
        if histories[0]["weights"].ndim < 3:
            raise ValueError("the last run of NeuralNetworks/main.py was not in the plane; run it with --d 2")
        writable(folder)
        with rc_context(STYLE | {"axes.titlesize": 12}), whole_files(folder) as staging:
            collapse(*histories).savefig(staging / "collapse.png")
    except (ValueError, OSError) as error:
        return refuse(error)
    print(folder.resolve() / "collapse.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:2])))
