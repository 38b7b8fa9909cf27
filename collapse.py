"""The lemma in one picture: in each experiment what was random collapses, and one deterministic thing is left.

Draws collapse.png, and collapse.gif with the runs in motion, from the history.npz that each experiment's main.py has
left in its figures/.
"""

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "MAXCUT"))

from run import BLUE, GREY, ORANGE, RED, STYLE, command_line, perturbations, whole_files, writable  # noqa: E402

FRAMES, DOTS = 60, 80
"""frames of the animation, and its dots per inch"""

History = Mapping[str, np.ndarray]
Moving = tuple[Line2D, History, Callable[[int], tuple[np.ndarray, np.ndarray]]]
"""a line, the run that it shows, and its points (x, y) at the run's i-th snapshot"""


@dataclass(frozen=True)
class Config:
    """Where the pictures go."""

    out: Path = HERE
    """folder for collapse.png and collapse.gif"""


def curve(axes: Axes, history: History, name: str, style: str = "-", **how: object) -> Moving:
    """The history's curve, which grows as the run goes on."""
    step, y = history["step"], history[name]
    return axes.plot(step, y, style, **how)[0], history, lambda i: (step[: i + 1], y[: i + 1])


def draw(figure: Figure, networks: History, maxcut: History, jl: History) -> list[Moving]:
    """Above what is seen of each experiment's randomness, below its size; returns what moves."""
    seen, size = figure.subplots(2, 3, height_ratios=(1.5, 1))
    W = networks["weights"]
    reach = 1.05 * np.abs(W[[0, -1]]).max()
    seen[0].plot(*W[0].T, ".", color=ORANGE, markersize=2.2, alpha=0.6, label="initialized")
    (neurons,) = seen[0].plot(*W[-1].T, ".", color=BLUE, markersize=2.5, label="trained")
    seen[0].set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xlabel="$w_1$", ylabel="$w_2$")
    seen[0].set_title(f"NeuralNetworks\n{W.shape[1]} neurons: one line is left")
    seen[1].set_title("MAXCUT\nrandom cuts: one is left")
    seen[1].set(xlabel="iteration", ylabel="cut")
    seen[2].set_title("JohnsonLindenstrauss\nrandom matrices: one is left")
    seen[2].set(xlabel="iteration", ylabel="worst distortion")
    moving = [
        (neurons, networks, lambda i: W[i].T),
        curve(seen[1], maxcut, "drawn_cut", ".", color=ORANGE, label="one draw"),
        curve(seen[1], maxcut, "expected_cut", color=BLUE, label="expectation"),
        curve(seen[2], jl, "drawn_distortion", ".", color=ORANGE, label="one draw"),
        curve(seen[2], jl, "distortion", color=BLUE, label="mean matrix"),
    ]
    seen[2].margins(y=0.25)  # room for the legend
    seen[2].set_ylim(0, None)
    for axes, history, norm, label in (
        (size[0], networks, "w_perp", r"$\|W_\perp\|_F$"),
        (size[1], maxcut, "sigma", r"rounding's $\sigma$"),
        (size[2], jl, "sigma", r"projection's $\sigma$"),
    ):
        axes.set(xlabel="iteration", ylabel=label, yscale="log")
        moving.append(curve(axes, history, norm, color=RED))
        perturbations(axes, history["kicks"])
    size[2].set_ylim(1e-10, 10 * jl["sigma"][0])  # as figure 7's: what is below is of rounding, and of the processor
    for axes in seen:
        axes.legend(fontsize=9, markerscale=2, frameon=True, edgecolor=GREY, framealpha=0.9)
    return moving


def animate(figure: Figure, moving: list[Moving], path: Path) -> None:
    """Write the figure as a GIF in which all runs go from their first step to their last, and stay there a while."""
    figure.set_dpi(DOTS)
    canvas = FigureCanvasAgg(figure)
    kicks = [line for axes in figure.axes[3:] for line in axes.lines if line.get_label() == "perturbation"]
    for line in (*kicks, *(line for line, *_ in moving)):
        line.set_animated(True)
    canvas.draw()
    figure.set_layout_engine("none")
    background, images = canvas.copy_from_bbox(figure.bbox), []
    for frame in range(FRAMES + 1):
        canvas.restore_region(background)
        for line, history, points in moving:
            now = frame / FRAMES * history["step"][-1]
            line.set_data(*points(np.searchsorted(history["step"], now, side="right") - 1))
            line.axes.draw_artist(line)
            for kick in kicks:
                if kick.axes is line.axes and kick.get_xdata()[0] <= now:
                    kick.axes.draw_artist(kick)
        images.append(Image.frombytes("RGBA", canvas.get_width_height(), bytes(canvas.buffer_rgba())).convert("RGB"))
    palette = images[-1].quantize(64, method=Image.Quantize.MEDIANCUT)
    images = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    durations = [600] + [80] * (FRAMES - 1) + [3000]  # milliseconds
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, loop=0, optimize=False)


def main(config: Config) -> bool:
    """Draw both pictures.

    Raises:
        OSError: a run is missing, or the folder can't be written to.
        ValueError: the last run of NeuralNetworks was not in the plane.
    """
    histories = []
    for name in ("NeuralNetworks", "MAXCUT", "JohnsonLindenstrauss"):
        file = HERE / name / "figures" / "history.npz"
        if not file.exists():
            raise FileNotFoundError(f"{file} is not there; run {name}/main.py first")
        with np.load(file) as history:
            histories.append(dict(history))
    if "weights" not in histories[0]:
        raise ValueError("the last run of NeuralNetworks/main.py was not in the plane; run it with --d 2")
    writable(config.out)
    with rc_context(STYLE | {"axes.titlesize": 12}), whole_files(config.out) as staging:
        figure = Figure(figsize=(11, 6.4), layout="constrained")
        moving = draw(figure, *histories)
        figure.savefig(staging / "collapse.png")
        animate(figure, moving, staging / "collapse.gif")
    print(f"files: {config.out.resolve() / 'collapse'}.png, .gif")
    return False


if __name__ == "__main__":
    command_line(main, Config, __doc__)
