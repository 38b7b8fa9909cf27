"""One deterministic cut from Goemans–Williamson's random one, by perturbed gradient descent to an SOSP.

Run it as it is for the paper's graph and figures 4 and 5; edit the defaults below or override them by flags.
"""

import json
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

import experiment
import plot
import style
from experiment import Checkpoint, diverged, identity, print_summary, provenance, refuse, whole_files, writable
from optimizer import Result, derandomize
from sdp import goemans_williamson, sdp_value, solve_sdp, upper_bound
from search import Search, derandomize_within
from utilities import EXACT_LIMIT, Graph, exact_maxcut, random_graph, read_graph, threads

MAX_DRAWS = 10**6
"""cuts that are drawn at once, at most"""
DRAWN = 200
"""Graphs of up to so many vertices are drawn, and run a second time without perturbations for the figure `saddle`."""


@dataclass(frozen=True)
class Config:
    """Hyperparameters."""

    graph: Path | None = None
    """file with a graph: Gset/rudy format, or by suffix .edgelist, .adjlist, .graphml, .gml; none: a random graph"""
    n: int = 15
    """vertices of the random graph; 15 with p = 0.6 and graph-seed 42 is the paper's"""
    p: float = 0.6
    """edge probability of the random graph"""
    graph_seed: int = 42
    """seed of the random graph"""
    epsilon: float = 0.03
    """ε: each vertex's own noise, beside vectors of length 1; smooths the sign"""
    gradient: Literal["exact", "sampled"] = "exact"
    """closed form, or the authors' score-function estimate"""
    draws: int = 100
    """sampled cuts a step, for the sampled gradient"""
    steps: int = 1500
    """at most so many steps; λ grows over the first 60 % of them"""
    lr: float = 0.15
    """step size"""
    lam: float = 0.1
    """λ at the end: weight of ‖V‖², which drives the randomness out"""
    growth: float = 50.0
    """factor by which λ grows from the first step on; 1 for a constant λ"""
    momentum: float = 0.9
    """factor of Polyak's heavy ball, which Algorithm 1 has not; 0 is none"""
    rho: float = 1e-6
    """ρ: the gradient norm that counts as stationary"""
    radius: float = 0.1
    """radius of the perturbation (the degree-scaled variables start with norm √2)"""
    patience: int = 50
    """steps that a perturbation has to lower the objective"""
    escape: Literal["noise", "curvature"] = "noise"
    """leave saddles by a random kick (Algorithm 1) or along the most negative curvature (Algorithm 2)"""
    rank: int = 8
    """columns of V kept after the SDP, its principal ones"""
    seconds: float | None = None
    """use so much time, the relaxation's included, for more than one SOSP, and keep the best; none: one SOSP"""
    roundings: int = 1000
    """Goemans–Williamson roundings, the baseline"""
    seed: int = 0
    """seed of everything random but the graph"""
    device: str = "cpu"
    """cpu, cuda, cuda:1, …"""
    checkpoint: Path | None = None
    """file to keep the run's state in as it goes"""
    resume: Path | None = None
    """checkpoint of a run with the same flags (--seconds may be more) to go on from, and to keep"""
    out: Path = Path(__file__).parent / "figures"
    """folder for the figures, cut.txt, history.npz and results.json"""


def check(config: Config) -> None:
    """Raise ValueError, naming flag, value and what is allowed, for a hyperparameter out of its range."""
    least = dict(draws=2, rank=1, roundings=1, growth=1)
    experiment.check(config, ("epsilon", "seconds"), least, most=dict(draws=MAX_DRAWS, roundings=MAX_DRAWS))


def read(config: Config) -> Graph:
    """The graph.

    Raises:
        ValueError: the file is no graph, or the random graph can't be made.
        OSError: the file cannot be read.
    """
    return random_graph(config.n, config.p, config.graph_seed) if config.graph is None else read_graph(config.graph)


def hyperparameters(graph: Graph, config: Config) -> dict[str, object]:
    """The config's, as `derandomize` takes them."""
    return dict(
        epsilon=config.epsilon,
        lam=config.lam,
        growth=config.growth,
        rank=config.rank,
        steps=config.steps,
        lr=config.lr,
        momentum=config.momentum,
        rho=config.rho,
        radius=config.radius,
        patience=config.patience,
        escape=config.escape,
        draws=config.draws if config.gradient == "sampled" else None,
        snapshots=100 if graph.m <= 10_000 else 30,  # E[cut] takes as long as some steps
        generator=torch.Generator(config.device).manual_seed(config.seed),
    )


def of_the_bound(cut: float, bound: float) -> str:
    """The cut's share of the bound, for people; nothing where the bound is 0."""
    return f", {cut / bound:.2%} of the bound" if bound else ""


def descend(
    config: Config, graph: Graph, V: torch.Tensor, bound: float, since: float, cores: int, checkpoint: Checkpoint
) -> tuple[Result, Search | None]:
    """PGD from the relaxation's vectors V and, with --seconds, the search; both show their progress."""
    searches = config.seconds is not None
    with (
        tqdm(desc="PGD", total=config.steps, unit=" steps", disable=None, leave=False) as bar,
        tqdm(desc="search", total=config.seconds, unit="s", disable=None if searches else True, leave=False) as times,
    ):

        def progress(step: int, history: dict[str, list[float]]) -> None:
            latest = f"E[cut] {history['expected_cut'][-1]:.6g}, σ {history['sigma'][-1]:.1e}"
            bar.set_postfix_str(latest, refresh=False)
            bar.update(step - bar.n)

        def searching(elapsed: float, best: float) -> None:
            times.set_postfix_str(f"cut {best:.10g}{of_the_bound(best, bound)}", refresh=False)
            times.update(round(elapsed, 1) - times.n)

        options = hyperparameters(graph, config) | dict(checkpoint=checkpoint, progress=progress)
        if not searches:
            return derandomize(graph, V, **options), None
        workers = min(4, cores) if config.device == "cpu" else 1
        within = dict(seconds=config.seconds, since=since, bound=bound, workers=workers, searching=searching)
        return derandomize_within(graph, V, **within, **options)


def main(config: Config) -> int:
    """Run the experiment, save its files, print the summary; returns the exit status."""
    try:
        check(config)
        graph = read(config)
        writable(config.out)
        checkpoint = Checkpoint(
            config.checkpoint, config.resume, identity(config, torch.tensor(graph.n), graph.i, graph.j, graph.w)
        )
    except (ValueError, OSError) as error:
        return refuse(error)
    cores = torch.get_num_threads()
    torch.set_num_threads(threads(graph, cores))
    torch.set_flush_denormal(True)  # densities of decided vertices underflow, and subnormal numbers are slow
    graph = graph.to(config.device)
    generator = torch.Generator(config.device).manual_seed(config.seed)

    clock = [time.perf_counter() - checkpoint.elapsed]
    with tqdm(desc="SDP", unit=" steps", disable=None, leave=False) as bar:
        V = solve_sdp(graph, generator=generator, progress=lambda _: bar.update(10))
    bound, proof = upper_bound(graph, V)
    clock.append(time.perf_counter())
    try:
        result, found = descend(config, graph, V, bound, clock[0], cores, checkpoint)
        clock.append(time.perf_counter())
        still = None
        if graph.n <= DRAWN:
            # At the saddle the curvature is of order 1/ε: smaller steps, so that the run settles there.
            unperturbed = replace(config, radius=0.0, escape="noise", lr=config.lr / 3)
            still = derandomize(graph, V, **hyperparameters(graph, unperturbed))
    except FloatingPointError as error:
        return diverged(error, config.lr)
    before = time.perf_counter()
    gw = goemans_williamson(graph, V, config.roundings, generator).cpu().numpy()
    clock.append(clock[-1] + time.perf_counter() - before)
    optimum = exact_maxcut(graph)[0] if graph.n <= EXACT_LIMIT else None
    s = result.s.cpu().numpy()
    ceiling = (bound, "upper bound") if optimum is None else (optimum, "optimum")
    figures = {
        "fig4_cut": plot.cut(result.history, gw, *ceiling),
        "fig5_sigma": plot.sigma(result.history, result.kicks),
        "saddle": plot.saddle(result, still),
    }
    if found is not None:
        figures["search"] = plot.search(found.seconds, found.best, clock[2] - clock[0], gw.max(), *ceiling)
    if graph.n <= DRAWN:
        figures["graph"] = plot.graph(graph, s, result.cut)
    results = {
        "experiment": "MAXCUT",
        **provenance(config),
        "seconds": clock[-1] - clock[0],
        "descents": 1 + (found.descents if found else 0),
        "steps": result.steps,
        "perturbations": len(result.kicks),
        "objective": result.objective,
        "certificate": asdict(result.certificate),
        "n": graph.n,
        "m": graph.m,
        "cut": result.cut,
        "expected_cut": result.history["expected_cut"][-1],
        "optimum": optimum,
        "upper_bound": bound,
        "upper_bound_proof": proof,
        "sdp_value": sdp_value(graph, V),
        "gw_mean": gw.mean(),
        "gw_best": gw.max(),
        "sigma": result.sigma,
    }
    improvements = dict(search_seconds=found.seconds, search_cut=found.best) if found else {}
    try:
        with whole_files(config.out) as folder:
            for name, figure in figures.items():
                style.save(figure, folder, name)
            np.savetxt(folder / "cut.txt", s > 0, fmt="%d")
            if graph.names:
                (folder / "vertices.txt").write_text("\n".join(graph.names) + "\n", encoding="utf-8")
            np.savez(folder / "history.npz", **result.history, kicks=result.kicks, gw=gw, **improvements)
            (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
        if not graph.names:
            (config.out / "vertices.txt").unlink(missing_ok=True)  # of another graph
    except OSError as error:
        return refuse(error)

    interrupted = result.interrupted or (found is not None and found.interrupted)
    if interrupted:
        print(f"interrupted after {clock[2] - clock[0]:.1f} s: what follows, and is saved, is the best cut so far")
    # What a resumed run had taken before counts as PGD's.
    sdp_seconds, pgd_seconds, gw_seconds = np.diff(clock) + [-checkpoint.elapsed, checkpoint.elapsed, 0]
    beside = of_the_bound(result.cut, bound) if optimum is None else f", the optimum is {optimum:.10g}"
    lines = {
        "graph": f"{graph.n} vertices, {graph.m} edges",
        "cut": f"{result.cut:.10g}{beside}",
        "upper bound": f"{bound:.10g} (SDP value {results['sdp_value']:.10g}; "
        + ("Lanczos', not proven)" if proof == "Lanczos" else f"proven by {proof})"),
        "Goemans–W.": f"mean {gw.mean():.6g}, best of {len(gw)} {gw.max():.10g}",
        "rounding": f"σ = {result.sigma:.1e} after {result.steps} steps and {len(result.kicks)} perturbations",
    }
    if found is not None:
        gains = f"{found.best[0]:.10g} → {found.best[-1]:.10g} in {found.descents} more descents"
        lines["search"] = f"{gains}, the last gain after {found.seconds[-1]:.1f} s"
    print_summary(
        lines
        | {
            "certificate": str(result.certificate),
            "seconds": f"{clock[-1] - clock[0]:.2f}: SDP and bound {sdp_seconds:.2f}, PGD and certificate "
            f"{pgd_seconds:.2f}, Goemans–Williamson {gw_seconds:.2f}",
            "files": str(config.out.resolve()),
        }
    )
    return 130 if interrupted else 0


if __name__ == "__main__":
    experiment.command_line(main, Config, __doc__)
