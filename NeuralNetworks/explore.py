"""A user's table: find the directions that its answers depend on, measure what they are worth, save and say it.

No certificate of the theorem is printed: a table is a finite sample of something that is not Gaussian. What is printed
was measured, on rows that the networks did not see or on rows drawn again.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from scipy.linalg import orthogonal_procrustes
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tqdm import tqdm

import plot_table
from discover import LAMS, Network, Progress, Stage, descend, polish, sine
from estimator import DEFAULT, StructureDiscovery, StructureDiscoveryClassifier
from model import effective_rank
from run import State, held, print_summary, save, threads, whole_files, writable
from table import Table, read, split

if TYPE_CHECKING:
    from main import Config

_NAMES = [field.name for field in fields(DEFAULT)]
FLAGS = {*_NAMES[_NAMES.index("data") :]} - {"device", "checkpoint"}
"""what of main.py's hyperparameters a table's exploration depends on"""
HELD_OUT = 0.2
"""share of the rows that the test has"""
SHOWN = 8
"""columns of each direction on the screen"""
Estimator = StructureDiscovery | StructureDiscoveryClassifier
Predictor = Callable[[NDArray], NDArray]


def estimator(config: "Config", table: Table, seed: int) -> Estimator:
    """The estimator that the config asks for, not fitted."""
    kind = StructureDiscovery if table.classes is None else StructureDiscoveryClassifier
    size = dict(max_directions=config.max_directions, width=config.neurons, steps=config.adam_steps)
    return kind(config.directions, inputs=config.inputs, random_state=seed, **size)


# --- what the directions are worth ------------------------------------------------------------------------------------


def score(y: NDArray, prediction: NDArray, classes: bool) -> dict[str, float | None]:
    """How well numbers, or probabilities of class 1, predict y (n,).

    Returns:
        explained: share of the variance of y, or of its deviance for classes; below 0 where the mean of y does better.
        error: standard error of that, from the spread of the rows' losses.
        accuracy: share of rows whose class is right; None for numbers.
    """
    losses, worst = (y - prediction) ** 2, y.var()
    if classes:
        p, share = np.clip(prediction, 1e-7, 1 - 1e-7), y.mean()
        losses = -np.where(y == 1, np.log(p), np.log1p(-p))
        worst = -(share * np.log(share) + (1 - share) * np.log1p(-share))
    error = losses.std(ddof=1) / np.sqrt(len(y)) / worst
    accuracy = float(((prediction > 0.5) == y).mean()) if classes else None
    return dict(explained=float(1 - losses.mean() / worst), error=float(error), accuracy=accuracy)


def predictors(model: Estimator, X: NDArray, y: NDArray, config: "Config") -> Iterator[tuple[str, Predictor]]:
    """The model and its rivals, fitted to the same rows: names, and functions from X to numbers or probabilities.

    Args:
        model: fitted to X and y, with `refit` not called since.
        X, y: all rows but those of the test.
        config: the networks' width, steps and seed.
    """
    classes, rows, full = isinstance(model, StructureDiscoveryClassifier), model.rows(X, y), model.discovery_.full
    generator, steps = torch.Generator().manual_seed(config.seed), config.adam_steps * len(LAMS)
    yield "the network, these directions", model.answers
    everything = polish(full.network, rows, model.loss, full.lam)
    yield "the network, all directions", lambda X: model.answers(X, everything)
    free = descend(Network(X.shape[1], config.neurons, generator), rows, model.loss, 0.0, steps, generator)
    yield "the network at λ = 0", lambda X: model.answers(X, free)
    linear = LogisticRegression(max_iter=1000) if classes else LinearRegression()
    trees = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    rivals = {"logistic regression" if classes else "least squares": make_pipeline(StandardScaler(), linear)}
    for name, rival in (rivals | {"gradient boosting": trees(random_state=config.seed)}).items():
        rival.fit(X, y if classes else model.encoded(y))  # boosting's numbers are of single precision
        if classes:
            yield name, lambda X, rival=rival: rival.predict_proba(X)[:, 1]
        else:
            yield name, lambda X, rival=rival: model.decoded(rival.predict(X))


@dataclass
class Stability:
    """How far the directions move when rows are drawn again, or everything is."""

    loadings: list[NDArray] = field(default_factory=list)
    """(k, d) of each bootstrap sample, turned in its plane to fit the table's best"""
    sines: list[float] = field(default_factory=list)
    """of the largest angle between the directions of each bootstrap sample and those of the table, whitened inputs"""
    repeats: list[dict[str, float]] = field(default_factory=list)
    """number of directions, and the sine, for each other seed"""


def stability(model: Estimator, table: Table, config: "Config", progress: Progress, found: Stability) -> None:
    """Refit on bootstrap samples of the rows, at the chosen λ and number, and choose anew with other seeds.

    What is found goes into `found` at once, where it is if Ctrl-C ends this early.
    """
    network, rng = model.network_, np.random.default_rng(config.seed)
    unit = model.whitening_.deviation(table.X)
    B, M, (z, y) = network.directions, model.whitening_.M, model.rows(table.X, table.y)
    for _ in range(config.bootstrap if len(B) else 0):
        drawn = torch.as_tensor(rng.integers(len(z), size=len(z)))
        again = polish(network, (z[drawn], y[drawn]), model.loss, model.lam_, iterations=40)
        other = again.restricted(len(B)).directions
        found.loadings.append(orthogonal_procrustes(other.T, B.T)[0].T @ other @ M)
        found.sines.append(sine(other, B))
        progress("bootstrap")
    for seed in range(config.seed + 1, config.seed + 1 + config.repeats):
        other = estimator(config, table, seed).fit(table.X, table.y, progress)
        # β x = (β M⁻¹) z: its directions in our whitened inputs; columns in units of their spread for pinv's cutoff
        apart = sine(other.directions_ * unit @ np.linalg.pinv(M * unit), B)
        found.repeats.append(dict(n_directions=other.n_directions_, sine=apart))
        progress("another seed")


# --- files and summary ------------------------------------------------------------------------------------------------


def directions_table(model: Estimator, table: Table, samples: list[NDArray]) -> pd.DataFrame:
    """A row for each direction and column: loading (per unit of the column), the same per standard deviation of it.

    Sorted by the size of the second, within each direction; and its standard deviation over the bootstrap's samples.
    """
    beta, scale = model.directions_, model.whitening_.deviation(table.X)
    loadings_sd = np.std(samples, axis=0, ddof=1) if len(samples) > 1 else np.full(beta.shape, np.nan)
    found = dict(direction=np.repeat(np.arange(1, len(beta) + 1), len(scale)), column=table.columns * len(beta))
    for name, values in dict(loading=beta, standardized=beta * scale, standardized_sd=loadings_sd * scale).items():
        found[name] = values.ravel()
    order = np.lexsort((-np.abs(found["standardized"]), found["direction"]))
    return pd.DataFrame(found).iloc[order].reset_index(drop=True)


def loadings(directions: pd.DataFrame) -> str:
    """The directions for the screen: of each, the columns of largest standardized loading, in order."""
    lines = []
    for _, rows in directions.groupby("direction"):
        lines.append("\n" + rows.head(SHOWN).to_string(index=False, float_format="{:.3g}".format))
        if len(rows) > SHOWN:
            lines.append(f"and {len(rows) - SHOWN} more, in directions.csv")
    return "\n".join(lines)


def results(model: Estimator, table: Table, scores: dict[str, dict], found: Stability) -> State:
    """The content of results.json, but for seconds, hyperparameters, versions and whether Ctrl-C cut it short."""

    def stage(s: Stage) -> State:
        W = dict(effective_rank=effective_rank(s.network.weights.detach()), spectrum=s.network.spectrum().tolist())
        return dict(lam=s.lam, directions=s.directions, training_risk=s.training, validation_risk=s.validation) | W

    discovery = model.discovery_
    read = dict(rows=len(table.X), columns=table.columns, target=table.target, classes=table.classes, notes=table.notes)
    chosen = dict(n_directions=model.n_directions_, lam=model.lam_, directions=model.directions_.tolist())
    spectra = dict(spectrum=model.spectrum_.tolist(), spectrum_initial=discovery.initial.tolist())
    stages = dict(path=[stage(s) for s in discovery.path], ranks=[stage(s) for s in discovery.ranks])
    again = dict(bootstrap_sines=found.sines, repeats=found.repeats)
    again |= dict(bootstrap_median=float(np.median(found.sines)) if found.sines else None)
    start = dict(experiment="NeuralNetworks", problem="table")
    return start | read | chosen | spectra | stages | dict(test=scores) | again


def say(model: Estimator, table: Table, config: "Config", scores: dict[str, dict], found: Stability) -> None:
    """Print the summary, but for the loadings."""
    k, full, classes = model.n_directions_, model.discovery_.full, table.classes
    told = str(k) if k else "none found: no network did better on the validation rows than the mean by more than chance"
    if config.directions is not None:
        told = f"{k}, as asked"
    elif model.discovery_.ranks[0].directions:
        told += ", and Ctrl-C came before fewer were tried"
    elif k == model.discovery_.ranks[-1].directions < len(table.columns):
        limit = f"--max-directions {2 * k}" + f" --neurons {2 * k}" * (2 * k > config.neurons)
        told += f", all that were tried; {limit} tries more"
    against = f", {classes[1]} against {classes[0]}" if classes else ""
    lines = {"table": f"{len(table.X)} rows, {len(table.columns)} columns; target {table.target}{against}"}
    lines |= {f"note {i + 1}": note for i, note in enumerate(table.notes)}
    spectrum, drawn = _numbers(model.spectrum_, k), _numbers(model.discovery_.initial, k)
    lines |= {"directions": told}
    lines |= {"spectrum": f"singular values of W at λ = {full.lam:.2g}: {spectrum}; as drawn: {drawn}"}
    explained = "deviance explained" if classes else "variance explained (R²)"
    if scores:
        lines["test"] = f"share of {explained} of the rows held out, ± standard error"
    for name, s in scores.items():
        accuracy = f"   {s['accuracy']:.1%} of classes right" if classes else ""
        lines[f"  {name:{max(map(len, scores))}}"] = f"{s['explained']:8.3f} ± {s['error']:.3f}{accuracy}"
    if found.sines:
        apart = f"median {np.median(found.sines):.3f}, at most {max(found.sines):.3f}"
        lines["bootstrap"] = f"sine of the largest angle to the directions of {len(found.sines)} samples: {apart}"
    for i, other in enumerate(found.repeats):
        number, apart = other["n_directions"], f", sine {other['sine']:.3f}" * (other["n_directions"] == k > 0)
        lines[f"seed {config.seed + 1 + i}"] = f"{number} direction{'s' * (number != 1)}{apart}"
    print_summary(lines)


def _numbers(values: NDArray, k: int) -> str:
    shown = values[: max(k + 3, 5)]
    return " ".join(f"{x:.2g}" for x in shown) + (" …" if len(values) > len(shown) else "")


@threads(1)  # batches are small: more threads wait for each other, long where the machine is busy
def explore(config: "Config") -> bool:
    """Read the table, find its directions, measure, save and print; returns whether Ctrl-C cut it short.

    Raises:
        ValueError: the table is unfit, or a hyperparameter is none of a table's, or out of range.
        OSError: the files can't be read or written.
        KeyboardInterrupt: Ctrl-C before there was a fit to keep.
    """
    given = [x.name for x in fields(config) if x.name not in FLAGS and getattr(config, x.name) != x.default]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} is the experiment's, no table's; leave it out with --data")
    if config.seed + config.repeats >= 2**32:
        raise ValueError(f"--seed is {config.seed}; on a table it and those of --repeats must be below 2³²")
    table = read(config.data, config.target, drop_missing=config.drop_missing, without=config.without)
    model, classes = estimator(config, table, config.seed), table.classes is not None
    model.check(table.X)
    rows, test = split(table.y, HELD_OUT, config.seed, classes)
    if not np.ptp(table.y[test]):
        raise ValueError(f"the target {table.target} is the same in all {len(test)} rows held out: too few rows differ")
    writable(config.out)
    start, scores, found, interrupted = time.perf_counter(), {}, Stability(), False
    X, y = table.X[rows], table.y[rows]
    ranks = min(len(table.columns), config.max_directions, config.neurons) + 1 if config.directions is None else 1
    total = (1 + config.repeats) * (len(LAMS) + ranks + 1) + config.bootstrap + 5  # predictors
    with tqdm(desc="structure", total=total, unit=" fits", disable=None, leave=False) as bar:

        def progress(stage: str) -> None:
            bar.set_postfix_str(stage, refresh=False)
            bar.update()

        try:
            model.fit(X, y, progress)
            for name, predict in predictors(model, X, y, config):
                scores[name] = score(table.y[test], predict(table.X[test]), classes)
                progress(name)
            model.refit(table.X, table.y)  # what is saved is what all rows say; it is not what was tested
            stability(model, table, config, progress, found)
        except KeyboardInterrupt:
            if not hasattr(model, "network_"):
                raise
            interrupted = True
            with held():  # a second Ctrl-C
                if not scores:
                    name, predict = next(predictors(model, X, y, config))
                    scores[name] = score(table.y[test], predict(table.X[test]), classes)
    with whole_files(config.out, ("table_answer.png", "table_answer.pdf")) as folder:
        directions = directions_table(model, table, found.loadings)
        content = results(model, table, scores, found) | {"interrupted": interrupted}
        content |= {"seconds": time.perf_counter() - start}
        save(folder, config, content, plot_table.figures(model, table), weights=model.arrays())
        directions.to_csv(folder / "directions.csv", index=False)
    if interrupted:
        print("interrupted: what follows, and is saved, is what there was")
    say(model, table, config, scores, found)
    print(loadings(directions), end="\n" * bool(len(directions)))
    print_summary({"seconds": f"{content['seconds']:.1f}", "files": str(config.out.resolve())})
    return interrupted
