"""One deterministic Johnson–Lindenstrauss projection from a random one, by perturbed gradient descent to an SOSP.

Run it as it is for the paper's problem and figures 6 and 7; edit the defaults below or override them by flags.
"""

import gc
import os
import time
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

if __name__ == "__main__":
    gc.disable()  # looking for garbage among imports takes a second; `command_line` enables it again
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # PyTorch's threads sleep while they wait: others need the cores

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

import plot
import run
from compare import compare
from data import check_memory, peak_memory, random_data, read_matrix
from model import Pairs, Vectors
from run import Count, Device, Momentum, NotNegative, Positive, Seed
from train import Derandomization


@dataclass(frozen=True)
class Config:
    """Hyperparameters."""

    data: str | None = None
    """file with a matrix, one row a point (.npy, .npz, .csv), digits, breast_cancer; none: the paper's unit vectors"""
    n: Annotated[int, Field(ge=2, le=10**9)] | None = None
    """rows: of the random data (100), or the first so many of the file (all)"""
    d: Count = 500
    """columns of the random data"""
    data_seed: Seed = 42
    """seed of the random data"""
    k: Count = 30
    """rows of the projection: dimensions that are kept"""
    problem: Literal["vectors", "pairs"] = "vectors"
    """preserve the norms of the vectors (the paper's), or all distances between the points"""
    objective: Literal["bound", "tail", "sampled"] = "bound"
    """closed-form bound F_τ on the worst distortion, the paper's probability, or the authors' average over draws"""
    algorithm: Literal["default", "1", "2"] = "default"
    """1, 2: the paper's Algorithm 1 or 2 and nothing else: no momentum, no first kick, steps of size lr, all pairs, and
    one τ from start to end, at most 0.3 k, which F_τ allows at the random projection"""
    tau: Positive = 1e4
    """τ at the end: F_τ is then within log(2N)/τ of the worst distortion"""
    growth: Annotated[float, Field(gt=1, le=1e30)] | None = None
    """factor by which τ grows, a step; slower is better and dearer. None: 1.05 for vectors, 1.003 for pairs"""
    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.3
    """ε: the distortion that the tail objective allows"""
    draws: Count = 20
    """sampled projections a step, for the sampled objective"""
    steps: Count = 5000
    """at most so many"""
    lr: Positive = 0.01
    """first step size; from there it adapts, but for the sampled objective and the pure algorithms"""
    lam: Positive = 1e-3
    """λ: weight of ‖σI‖², which drives the randomness out"""
    ridge: NotNegative | None = None
    """weight of E‖A‖², which holds M down where the data hardly differ: for points that are not seen. None: 1e-4 for
    pairs (0 where k reaches their rank, and for other objectives or algorithms), 0 for vectors"""
    momentum: Momentum = 0.97
    """factor of Polyak's heavy ball, which Algorithm 1 has not; 0 is none"""
    rho: Positive = 1e-6
    """ρ: the gradient norm that counts as stationary"""
    radius: NotNegative = 1e-2
    """radius of the perturbation (‖σI‖ starts at √d)"""
    patience: Count = 50
    """steps that a perturbation has to lower the objective"""
    gaussians: Count = 1000
    """single Gaussian matrices, the baseline; fewer for more than 200,000 pairs, as each costs a pass over them"""
    seed: Seed = 0
    """seed of everything random but the data"""
    device: Device = "cpu"
    """cpu, cuda, cuda:1, …"""
    checkpoint: Path | None = None
    """file to keep the run's state in as it goes; if it is there, the run goes on from it"""
    out: Path = Path(__file__).parent / "figures"
    """folder for the figures, projection.npy, history.npz and results.json"""

    def __post_init__(self) -> None:
        if self.algorithm != "default" and (self.growth or self.momentum not in (0, Config.momentum)):
            raise ValueError(f"--algorithm {self.algorithm} is pure: leave --momentum and --growth out")
        if self.algorithm == "2" and self.objective == "sampled":
            raise ValueError("--algorithm 2 follows curvature, and --objective sampled has kinks: take bound or tail")


def read(config: Config) -> torch.Tensor:
    """The vectors or points, (n, d), as they are given.

    Raises:
        ValueError: no such data, or too much of it.
        OSError: the file cannot be read.
    """
    if config.data is None:
        X = random_data(config.problem, 100 if config.n is None else config.n, config.d, config.data_seed)
    else:
        X = read_matrix(config.data, config.n)
    draws = config.draws if config.objective == "sampled" else 1
    check_memory(draws * config.k * X.shape[1], f"--k is {config.k}" + f" and --draws {draws}" * (draws > 1))
    if config.k >= X.shape[1]:
        warnings.warn(f"k = {config.k} is not below d = {X.shape[1]}: no projection is needed", stacklevel=2)
    return torch.from_numpy(X)


@run.threads(1)  # what is computed at a time fits in the cache: more would only wait for each other
def main(config: Config) -> bool:
    """Run the experiment, save its files, print the summary; returns whether Ctrl-C cut it short."""
    X = read(config)
    problem = (Pairs if config.problem == "pairs" else Vectors)(X.to(config.device))
    run.writable(config.out)
    checkpoint = run.Checkpoint(config.checkpoint, config, [X])  # another processor scales it otherwise, in a last bit

    start = time.perf_counter() - checkpoint.elapsed
    generator = torch.Generator(config.device).manual_seed(config.seed)
    descent = Derandomization(problem, config, generator)
    result = descent.run(checkpoint).result()
    seconds, interrupted = time.perf_counter() - start, result.interrupted

    try:
        compared = compare(problem, result.M, 1 if interrupted else config.gaussians, config.seed)
    except KeyboardInterrupt:  # our matrix is what counts
        with run.held():
            compared, interrupted = compare(problem, result.M, 1, config.seed), True
    results = dict(experiment="JohnsonLindenstrauss", n=len(problem.X), d=problem.d, k=config.k, problem=config.problem)
    results |= dict(preserved=problem.N, duplicates=getattr(problem, "duplicates", 0))
    results |= dict(distortion=result.distortion, sigma=result.sigma, objective=result.objective)
    results |= dict(certificate=result.certificate and asdict(result.certificate), interrupted=interrupted)
    results |= dict(seconds=seconds, steps=result.steps, perturbations=len(result.history["kicks"]))
    results |= compared.numbers() | dict(tau=result.tau if config.objective == "bound" else None)
    results |= dict(completed=dict(growth=descent.growth, ridge=descent.ridge))
    results |= dict(peak_memory=peak_memory())
    with run.whole_files(config.out) as folder:
        np.save(folder / "projection.npy", result.M.cpu().numpy())
        history = result.history | {"gaussian": compared.gaussian}
        run.save(folder, config, results, plot.figures(result, compared, config), history=history)
    run.print_summary(plot.summary(results, result, config))
    return interrupted


if __name__ == "__main__":
    run.command_line(main, Config, __doc__)
