"""One deterministic cut from Goemans–Williamson's random one, by perturbed gradient descent to an SOSP.

Run it as it is for the paper's graph and figures 4 and 5; edit the defaults below or override them by flags.
"""

import gc
import os
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

if __name__ == "__main__":
    gc.disable()  # looking for garbage among imports takes a second; `command_line` enables it again
os.environ |= {"OMP_WAIT_POLICY": "passive", "OPENBLAS_NUM_THREADS": "1"} | os.environ  # idle threads sleep

import numpy as np
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

import plot
import run
from optimizer import Derandomization, unperturbed
from run import Count, Device, Momentum, NotNegative, Positive, Seed
from sdp import Baselines, sdp_value, solve_sdp
from search import search
from utilities import EXACT_LIMIT, LARGE, exact_maxcut, random_graph, read_graph


@dataclass(frozen=True)
class Config:
    """Hyperparameters."""

    graph: Path | None = None
    """file with a graph: Gset/rudy format, or by suffix .edgelist, .adjlist, .graphml, .gml; none: a random graph"""
    n: Annotated[int, Field(ge=2, le=10**8)] = 15
    """vertices of the random graph; 15 with p = 0.6 and graph-seed 42 is the paper's"""
    p: Annotated[float, Field(ge=0, le=1)] = 0.6
    """edge probability of the random graph"""
    graph_seed: Seed = 42
    """seed of the random graph"""
    epsilon: Positive = 0.03
    """ε: each vertex's own noise, beside vectors of length 1; smooths the sign"""
    gradient: Literal["exact", "sampled"] = "exact"
    """closed form, or the authors' score-function estimate"""
    draws: Annotated[int, Field(ge=2, le=10**6)] = 100
    """sampled cuts a step, for the sampled gradient"""
    steps: Count = 1500
    """at most so many steps; λ grows over the first 60 % of them"""
    lr: Positive = 0.15
    """step size"""
    lam: Positive = 0.1
    """λ at the end: weight of ‖V‖² in the degree-scaled variables, which drives the randomness out"""
    growth: Annotated[float, Field(ge=1, le=1e30)] = 50.0
    """factor by which λ grows from the first step on; 1 for a constant λ"""
    momentum: Momentum = 0.9
    """factor of Polyak's heavy ball, which Algorithm 1 has not; 0 is none"""
    rho: Positive = 1e-6
    """ρ: the gradient norm that counts as stationary, in the degree-scaled variables"""
    radius: NotNegative = 0.1
    """radius of the perturbation (the degree-scaled variables start with norm √2)"""
    patience: Count = 50
    """steps that a perturbation has to lower the objective"""
    algorithm: Literal["default", "1", "2"] = "default"
    """1, 2: the paper's algorithm (Jin et al. 2017; Hessian descent) and nothing else: no kick before the rule asks for
    one, no momentum, λ constant. They want `--lr 0.05 --rho 1e-5 --patience 200 --steps 10000` on the paper's graph"""
    rank: Count = 8
    """columns of V kept after the SDP, its principal ones"""
    seconds: Positive | None = None
    """so much time, from the relaxation on, for more than one SOSP, of which the best is kept; none: one SOSP"""
    descents: Count | None = None
    """end the search after so many descents; without --seconds and with one thread the same cut in every run"""
    roundings: Annotated[int, Field(ge=1, le=10**6)] = 1000
    """Goemans–Williamson roundings, the baseline"""
    seed: Seed = 0
    """seed of everything random but the graph"""
    device: Device = "cpu"
    """cpu, cuda, cuda:1, …"""
    checkpoint: Path | None = None
    """file to keep the run's state in as it goes; if it is there, the run goes on from it (--seconds may be more)"""
    out: Path = Path(__file__).parent / "figures"
    """folder for the figures, cut.txt, history.npz and results.json"""

    def __post_init__(self) -> None:
        changed = self.momentum not in (0, Config.momentum) or self.growth not in (1, Config.growth)
        if self.algorithm != "default" and (changed or self.seconds or self.descents):
            raise ValueError("--algorithm 1 and 2 are pure: leave --seconds, --descents, --momentum and --growth out")


@run.threads()
def main(config: Config) -> bool:
    """Run the experiment, save its files, print the summary; returns whether Ctrl-C cut it short."""
    graph = random_graph(config.n, config.p, config.graph_seed) if config.graph is None else read_graph(config.graph)
    run.writable(config.out)
    optimum = exact_maxcut(graph)[0] if graph.n <= EXACT_LIMIT else None
    checkpoint = run.Checkpoint(config.checkpoint, config, [torch.tensor(graph.n), graph.i, graph.j, graph.w])
    if "search" in checkpoint.parts and not (config.seconds or config.descents):
        raise ValueError(f"--checkpoint {config.checkpoint} is in a search, which goes on with --seconds or --descents")
    workers = min(4, torch.get_num_threads()) if torch.device(config.device).type == "cpu" else 1
    if graph.m < LARGE:
        torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # densities of decided vertices underflow, and subnormal numbers are slow
    graph, generator = graph.to(config.device), torch.Generator(config.device).manual_seed(config.seed)

    # Relax: rounding these vectors is Goemans and Williamson's random cut.
    since = time.perf_counter() - checkpoint.elapsed
    V, relaxed = solve_sdp(graph, generator=generator), time.perf_counter()

    # Descend from them to one cut; search for better ones, and go where the best is an SOSP.
    descent, found = Derandomization(graph, V, config, generator), None
    s = descent.run(checkpoint).round()
    with descent.unbroken():
        baselines = Baselines(graph, V, config.roundings, torch.Generator(config.device).manual_seed(config.seed + 1))
    if (config.seconds or config.descents) and not descent.interrupted:
        most = partial(baselines.ceiling, config.seconds is not None) if optimum is None else lambda: optimum
        # Half a second is left for figures, and 80 steps' for the certificate.
        found = search(graph, V, s, config, since, most, workers, checkpoint, lambda: 0.5 + 80 * descent.pace)
        s = descent.plant(found)
    result, descended = descent.result(s), time.perf_counter()

    # Compare, also with a descent that nothing perturbs.
    interrupted = not baselines.wait(2 if result.interrupted else None) or result.interrupted
    still = None if interrupted or graph.n > plot.DRAWN else unperturbed(graph, V, config, generator)
    if still and still.interrupted:
        still, interrupted = None, True

    # Draw, save, say.
    with run.whole_files(config.out, plot.SOMETIMES) as folder:
        (bound, proof), gw = baselines.bound, baselines.cuts.cpu().numpy()
        results = dict(experiment="MAXCUT", n=graph.n, m=graph.m, cut=result.cut, optimum=optimum)
        results |= dict(expected_cut=float(result.history["expected_cut"][-1]), objective=result.objective)
        results |= dict(upper_bound=bound, upper_bound_proof=proof, sdp_value=sdp_value(graph, V), sigma=result.sigma)
        results |= dict(gw_mean=gw.mean(), gw_best=gw.max(), roundings=len(gw), interrupted=interrupted)
        results |= dict(certificate=result.certificate and asdict(result.certificate), steps=result.steps)
        results |= dict(seconds=descended - since, seconds_pgd=descended - relaxed + checkpoint.elapsed)
        results |= dict(descents=1 + (found.descents if found else 0), perturbations=len(result.history["kicks"]))
        searched = dict(search_seconds=found.seconds, search_cut=found.best) if found else {}
        drawn = plot.figures(graph, result, still, found, results, gw)
        run.save(folder, config, results, drawn, history=result.history | {"gw": gw} | searched)
        np.savetxt(folder / "cut.txt", result.s.cpu() > 0, fmt="%d")
        if graph.names:
            (folder / "vertices.txt").write_text("\n".join(graph.names) + "\n", encoding="utf-8")
    plot.summary(config, results, result, found, interrupted)
    return interrupted


if __name__ == "__main__":
    run.command_line(main, Config, __doc__)
