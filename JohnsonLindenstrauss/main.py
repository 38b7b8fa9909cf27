"""One deterministic Johnson–Lindenstrauss projection from a random one, by perturbed gradient descent to an SOSP.

Run it as it is for the paper's problem and figures 6 and 7; edit the defaults below or override them by flags.
"""

import json
import sys
import time
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

import baselines
import experiment
import plot
import style
from data import check_memory, random_data, read_matrix
from experiment import Checkpoint, diverged, identity, print_summary, provenance, refuse, whole_files, writable
from model import Pairs, Problem, Vectors, distortion, distortions
from train import Result, derandomize


@dataclass(frozen=True)
class Config:
    """Hyperparameters."""

    data: str | None = None
    """file with a matrix, one row a point (.npy, .npz, .csv), or "digits"; none: the paper's random unit vectors"""
    n: int | None = None
    """rows: of the random data (100), or the first so many of the file (all)"""
    d: int = 500
    """columns of the random data"""
    data_seed: int = 42
    """seed of the random data"""
    k: int = 30
    """rows of the projection: dimensions that are kept"""
    problem: Literal["vectors", "pairs"] = "vectors"
    """preserve the norms of the vectors (the paper's), or all distances between the points"""
    objective: Literal["bound", "tail", "sampled"] = "bound"
    """closed-form bound F_τ on the worst distortion, the paper's probability, or the authors' average over draws"""
    tau: float = 1e4
    """τ at the end: F_τ is then within log(2N)/τ of the worst distortion"""
    growth: float | None = None
    """factor by which τ grows, a step; slower is better and dearer. None: 1.05 for vectors, 1.003 for pairs"""
    epsilon: float = 0.3
    """ε: the distortion that the tail objective allows"""
    draws: int = 20
    """sampled projections a step, for the sampled objective"""
    steps: int = 5000
    """at most so many"""
    lr: float = 0.01
    """first step size; from there it adapts, but for the sampled objective"""
    lam: float = 1e-3
    """λ: weight of ‖σI‖², which drives the randomness out"""
    momentum: float = 0.97
    """factor of Polyak's heavy ball, which Algorithm 1 has not; 0 is none"""
    rho: float = 1e-6
    """ρ: the gradient norm that counts as stationary"""
    radius: float = 1e-2
    """radius of the perturbation (‖σI‖ starts at √d)"""
    patience: int = 50
    """steps that a perturbation has to lower the objective"""
    gaussians: int = 1000
    """single Gaussian matrices, the baseline; fewer for more than 200,000 pairs, as each costs a pass over them"""
    seed: int = 0
    """seed of everything random but the data"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""
    checkpoint: Path | None = None
    """file to keep the run's state in as it goes"""
    resume: Path | None = None
    """checkpoint of a run with the same flags to go on from, and to keep"""
    out: Path = Path(__file__).parent / "figures"
    """folder for the figures, projection.npy, history.npz and results.json"""


def check(config: Config) -> None:
    """Raise ValueError, naming flag, value and what is allowed, for a hyperparameter out of its range."""
    experiment.check(config, ("tau",), dict(k=1, draws=1, gaussians=1))
    if config.growth is not None and not (config.growth > 1 and isfinite(config.growth)):
        raise ValueError(f"--growth is {config.growth}; it must be above 1")
    if not 0 < config.epsilon < 1:
        raise ValueError(f"--epsilon is {config.epsilon}; it must lie in (0, 1)")


def read(config: Config) -> np.ndarray:
    """The data matrix, one row a point.

    Raises:
        ValueError: there is none, or fewer rows than asked for.
        OSError: the file cannot be read.
    """
    if config.data is None:
        return random_data(config.problem, 100 if config.n is None else config.n, config.d, config.data_seed)
    X = read_matrix(config.data)
    if config.n is not None and not 2 <= config.n <= len(X):
        raise ValueError(f"--n is {config.n}; {config.data} has {len(X)} rows, and at least 2 are needed")
    return X[: config.n]


def histogram(problem: Problem, matrices: dict[str, torch.Tensor]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Edges of 20 to 100 bins, and how many distortions ‖M x‖² − 1 of each matrix lie in each."""
    reach = [(float(q.min()) - 1, float(q.max()) - 1) for M in matrices.values() for q in distortions(problem, M)]
    bins = int(min(100, max(20, problem.N**0.5)))
    edges = np.linspace(min(low for low, _ in reach), max(high for _, high in reach), bins + 1)
    counts = {name: np.zeros(bins) for name in matrices}
    for name, M in matrices.items():
        for q in distortions(problem, M):
            counts[name] += np.histogram((q - 1).cpu().numpy(), edges)[0]
    return edges, counts


def descend(config: Config, problem: Problem, checkpoint: Checkpoint) -> Result:
    """PGD from the random projection, with its progress shown."""
    with tqdm(desc="PGD", total=config.steps, unit=" steps", disable=None, leave=False) as bar:

        def progress(step: int, worst: float, sigma: float) -> None:
            bar.set_postfix_str(f"distortion {worst:.4g}, σ {sigma:.1e}", refresh=False)
            bar.update(step - bar.n)

        return derandomize(
            problem,
            config.k,
            objective=config.objective,
            tau=config.tau,
            growth=config.growth or (1.05 if config.problem == "vectors" else 1.003),
            epsilon=config.epsilon,
            draws=config.draws,
            lam=config.lam,
            steps=config.steps,
            lr=config.lr,
            momentum=config.momentum,
            rho=config.rho,
            radius=config.radius,
            patience=config.patience,
            generator=torch.Generator(config.device).manual_seed(config.seed),
            checkpoint=checkpoint,
            progress=progress,
        )


def main(config: Config) -> int:
    """Run the experiment, save its files, print the summary; returns the exit status."""
    torch.set_num_threads(1)  # what is computed at a time fits in the cache: more would only wait for each other
    try:
        check(config)
        X = read(config)
        draws = config.draws if config.objective == "sampled" else 1
        check_memory(draws * config.k * X.shape[1], f"--k is {config.k}" + f" and --draws {draws}" * (draws > 1))
        if config.problem == "pairs":
            check_memory(len(X) ** 2, f"there are {len(X)} points, and all their pairs are kept")
        problem = (Pairs if config.problem == "pairs" else Vectors)(torch.from_numpy(X).to(config.device))
        writable(config.out)
        checkpoint = Checkpoint(config.checkpoint, config.resume, identity(config, problem.X))
    except (ValueError, OSError) as error:
        return refuse(error)
    n, d, k = *X.shape, config.k
    duplicates = problem.duplicates if isinstance(problem, Pairs) else 0
    if k >= d:
        print(f"note: k = {k} is not below d = {d}: no projection is needed", file=sys.stderr)
    start = time.perf_counter() - checkpoint.elapsed
    try:
        result = descend(config, problem, checkpoint)
    except FloatingPointError as error:
        return diverged(error, config.lr)
    seconds = time.perf_counter() - start

    generator = torch.Generator(config.device).manual_seed(config.seed)
    count = min(config.gaussians, max(20, 2 * 10**8 // problem.N))
    gaussian = baselines.gaussian_distortions(problem, k, count, generator).numpy()
    matrices = {
        "derandomized": result.M,
        "Gaussian": baselines.gaussian(k, d, generator),
        "sparse random": baselines.sparse(k, d, generator),
        "best-scaled PCA": baselines.scaled_pca(problem, k),
    }
    worst = {name: distortion(problem, M) for name, M in matrices.items()}
    edges, counts = histogram(problem, matrices)
    figures = {
        "fig6_distortion": plot.distortion(
            result.history, worst["derandomized"], gaussian, config.draws if config.objective == "sampled" else None
        ),
        "fig7_variance": plot.variance(result.history, result.kicks),
        "distortions": plot.distortions(edges, counts, worst, config.problem),
    }
    results = {
        "experiment": "JohnsonLindenstrauss",
        **provenance(config),
        "seconds": seconds,
        "steps": result.steps,
        "perturbations": len(result.kicks),
        "objective": result.objective,
        "certificate": None if result.certificate is None else asdict(result.certificate),
        "n": n,
        "d": d,
        "k": k,
        "problem": config.problem,
        "distortion": worst["derandomized"],
        "gaussian_mean": gaussian.mean(),
        "gaussian_min": gaussian.min(),
        "gaussians": len(gaussian),
        "sparse": worst["sparse random"],
        "pca": worst["best-scaled PCA"],
        "duplicates": duplicates,
        "sigma": result.sigma,
    }
    try:
        with whole_files(config.out) as folder:
            for name, figure in figures.items():
                style.save(figure, folder, name)
            np.save(folder / "projection.npy", result.M.cpu().numpy())
            np.savez(folder / "history.npz", **result.history, kicks=result.kicks, gaussian=gaussian)
            (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        return refuse(error)

    if result.interrupted:
        print(f"interrupted after {result.steps} steps: what follows, and is saved, is the best matrix so far")
    why = "f has kinks" if config.objective == "sampled" else "too many pairs matter"
    reason = "none: " + ("interrupted" if result.interrupted else why)
    pairs = f", {problem.N} pairs" + (f" ({duplicates} of duplicate points left out)" if duplicates else "")
    print_summary(
        {
            "data": f"{n} × {d}{pairs if config.problem == 'pairs' else ''}, to {k} dimensions",
            "distortion": f"{worst['derandomized']:.6g}",
            "Gaussian": f"mean {gaussian.mean():.4g}, best of {len(gaussian)} {gaussian.min():.4g}",
            "others": f"sparse random {worst['sparse random']:.4g}, best-scaled PCA {worst['best-scaled PCA']:.4g}",
            "projection": f"σ = {result.sigma:.1e} after {result.steps} steps and {len(result.kicks)} perturbations",
            "certificate": str(result.certificate or reason),
            "seconds": f"{seconds:.2f}",
            "files": str(config.out.resolve()),
        }
    )
    return 130 if result.interrupted else 0


if __name__ == "__main__":
    experiment.command_line(main, Config, __doc__)
