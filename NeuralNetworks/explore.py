"""A user's table: find the directions that its answers depend on, measure what they are worth, save and say it.

No certificate of the theorem is printed: a table is a finite sample of something that is not Gaussian. What is printed
was measured, on rows that the networks did not see or on rows drawn again.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
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
from estimator import StructureDiscovery, StructureDiscoveryClassifier
from model import effective_rank
from run import State, print_summary, save, whole_files, writable
from table import Table, read, split

if TYPE_CHECKING:
    from main import Config

FLAGS = ("data", "target", "without", "drop_missing", "inputs", "directions", "max_directions", "neurons", "adam_steps")
FLAGS += ("bootstrap", "repeats", "seed", "out")
"""what of main.py's hyperparameters a table's exploration depends on"""
HELD_OUT = 0.2
"""share of the rows that the test has"""
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


def predictors(model: Estimator, X: NDArray, y: NDArray, config: "Config") -> dict[str, Predictor]:
    """The model and its rivals, fitted to the same rows: by name, functions from X to numbers or probabilities.

    Args:
        model: fitted to X and y, with `refit` not called since.
        X, y: all rows but those of the test.
        config: the networks' width, steps and seed.
    """
    classes, rows = isinstance(model, StructureDiscoveryClassifier), model.rows(X, y)
    generator, full = torch.Generator().manual_seed(config.seed), model.discovery_.full
    start = Network(X.shape[1], config.neurons, generator)
    networks = {
        "the network, these directions": model.network_,
        "the network, all directions": polish(full.network, rows, model.loss, full.lam),
        "the network at λ = 0": descend(start, rows, model.loss, 0.0, config.adam_steps * len(LAMS), generator),
    }
    linear = LogisticRegression(max_iter=1000) if classes else LinearRegression()
    trees = HistGradientBoostingClassifier if classes else HistGradientBoostingRegressor
    rivals = {
        "logistic regression" if classes else "least squares": make_pipeline(StandardScaler(), linear),
        "gradient boosting": trees(random_state=config.seed),
    }
    found = {name: lambda X, network=network: model.answers(X, network) for name, network in networks.items()}
    for name, rival in rivals.items():
        rival.fit(X, y)
        found[name] = (lambda X, rival=rival: rival.predict_proba(X)[:, 1]) if classes else rival.predict
    return found


@dataclass(frozen=True)
class Stability:
    """How far the directions move when rows are drawn again, or everything is."""

    sines: list[float]
    """of the largest angle between the directions of each bootstrap sample and those of the table, whitened inputs"""
    loadings_sd: NDArray
    """(k, d) standard deviation of the loadings over the bootstrap, each sample's turned in its plane to fit best"""
    repeats: list[tuple[int, float]]
    """number of directions, and the sine, for each other seed"""
    interrupted: bool
    """whether Ctrl-C ended this early"""


def stability(model: Estimator, table: Table, config: "Config", progress: Progress) -> Stability:
    """Refit on bootstrap samples of the rows, at the chosen λ and number, and choose anew with other seeds."""
    (z, y), network, rng = model.rows(table.X, table.y), model.network_, np.random.default_rng(config.seed)
    B, interrupted, sines, loadings, repeats = network.directions, False, [], [], []
    try:
        for _ in range(config.bootstrap if len(B) else 0):
            drawn = torch.as_tensor(rng.integers(len(z), size=len(z)))
            again = polish(network, (z[drawn], y[drawn]), model.loss, model.lam_, iterations=40)
            other = again.restricted(len(B)).directions
            sines.append(sine(other, B))
            loadings.append(model.whitening_.in_units(orthogonal_procrustes(other.T, B.T)[0].T @ other))
            progress("bootstrap")
        for seed in range(config.seed + 1, config.seed + 1 + config.repeats):
            other = estimator(config, table, seed).fit_with(table.X, table.y, progress)
            if other.discovery_.interrupted:
                raise KeyboardInterrupt
            repeats.append((other.n_directions_, sine(other.directions_ @ np.linalg.pinv(model.whitening_.M), B)))
            progress("another seed")
    except KeyboardInterrupt:
        interrupted = True
    sd = np.std(loadings, axis=0, ddof=1) if len(loadings) > 1 else np.full(B.shape, np.nan)
    return Stability(sines, sd, repeats, interrupted)


# --- files and summary ------------------------------------------------------------------------------------------------


def directions_table(model: Estimator, table: Table, loadings_sd: NDArray) -> pd.DataFrame:
    """A row for each direction and column: loading (per unit of the column), the same per standard deviation of it.

    Sorted by the size of the second, within each direction.
    """
    k, scale = model.n_directions_, model.whitening_.deviation(table.X)
    found = dict(direction=np.repeat(np.arange(1, k + 1), len(scale)), column=table.columns * k)
    beta = model.directions_
    for name, values in dict(loading=beta, standardized=beta * scale, standardized_sd=loadings_sd * scale).items():
        found[name] = values.ravel()
    return (
        pd.DataFrame(found)
        .assign(size=lambda rows: -rows["standardized"].abs())
        .sort_values(["direction", "size"], kind="stable", ignore_index=True)
        .drop(columns="size")
    )


def loadings(directions: pd.DataFrame, most: int = 8) -> str:
    """The directions for the screen: the columns of largest standardized loading, in order."""
    lines = []
    for i, rows in directions.groupby("direction"):
        lines.append(f"direction {i}   {'column':<24}{'loading':>12}{'× column sd':>14}{'± bootstrap':>14}")
        for row in rows.head(most).itertuples():
            numbers = f"{row.loading:>12.3g}{row.standardized:>14.3f}{row.standardized_sd:>14.3f}"
            lines.append(f"{'':13} {row.column[:23]:<24}{numbers}")
        if len(rows) > most:
            lines.append(f"{'':13} and {len(rows) - most} more, in directions.csv")
    return "\n".join(lines)


def results(model: Estimator, table: Table, scores: dict[str, dict], found: Stability) -> State:
    """The content of results.json, but for seconds, hyperparameters and versions."""

    def stage(s: Stage) -> State:
        risks = dict(training_risk=s.training, validation_risk=s.validation, spectrum=s.spectrum.tolist())
        return (
            dict(lam=s.lam, directions=s.directions, effective_rank=effective_rank(s.network.weights.detach())) | risks
        )

    discovery = model.discovery_
    read = dict(rows=len(table.X), columns=table.columns, target=table.target, classes=table.classes, notes=table.notes)
    chosen = dict(n_directions=model.n_directions_, lam=model.lam_, directions=model.directions_.tolist())
    spectra = dict(spectrum=model.spectrum_.tolist(), spectrum_initial=discovery.initial.tolist())
    stages = dict(path=[stage(s) for s in discovery.path], ranks=[stage(s) for s in discovery.ranks])
    again = dict(bootstrap_sines=found.sines, repeats=[dict(n_directions=k, sine=s) for k, s in found.repeats])
    again |= dict(bootstrap_median=float(np.median(found.sines)) if found.sines else None)
    interrupted = discovery.interrupted or found.interrupted
    start = dict(experiment="NeuralNetworks", problem="table", interrupted=interrupted)
    return start | read | chosen | spectra | stages | dict(test=scores) | again


def say(model: Estimator, table: Table, config: "Config", scores: dict[str, dict], found: Stability) -> None:
    """Print the summary, but for the loadings."""
    k, stage, classes = model.n_directions_, model.discovery_.full, table.classes
    if model.discovery_.interrupted or found.interrupted:
        what = "the path of λ" if model.discovery_.interrupted else "the measurement of the directions' stability"
        print(f"interrupted: {what} ends early; what follows, and is saved, is what there was")
    told = "none found: no network did better on the validation rows than the mean" if k == 0 else str(k)
    if config.directions is not None:
        told = f"{k}, as asked"
    elif k == config.max_directions < len(table.columns):
        told += f", all that were tried; --max-directions {2 * k} tries more"
    against = f", {classes[1]} against {classes[0]}" if classes else ""
    share = "deviance explained" if classes else "variance explained (R²)"
    spectrum = (
        f"at λ = {stage.lam:.2g}: {_numbers(stage.spectrum, k)}; as drawn: {_numbers(model.discovery_.initial, k)}"
    )
    lines = {"table": f"{len(table.X)} rows, {len(table.columns)} columns; target {table.target}{against}"}
    lines |= {f"note {i + 1}": note for i, note in enumerate(table.notes)}
    lines |= {"directions": told, "spectrum": f"singular values of W {spectrum}"}
    lines |= {"test": f"share of {share} of the rows held out, ± standard error"}
    for name, s in scores.items():
        accuracy = f"   {s['accuracy']:.1%} of classes right" if classes else ""
        lines[f"  {name:{max(map(len, scores))}}"] = f"{s['explained']:8.3f} ± {s['error']:.3f}{accuracy}"
    if found.sines:
        apart = f"median {np.median(found.sines):.3f}, at most {max(found.sines):.3f}"
        lines["bootstrap"] = f"sine of the largest angle to the directions of {len(found.sines)} samples: {apart}"
    for i, (number, angle) in enumerate(found.repeats):
        apart = f", sine {angle:.3f}" if number == k and k else ""
        lines[f"seed {config.seed + 1 + i}"] = f"{number} direction{'s' * (number != 1)}{apart}"
    print_summary(lines)


def _numbers(values: NDArray, k: int) -> str:
    shown = values[: max(k + 3, 5)]
    return " ".join(f"{x:.2g}" for x in shown) + (" …" if len(values) > len(shown) else "")


def explore(config: "Config") -> bool:
    """Read the table, find its directions, measure, save and print; returns whether Ctrl-C cut it short.

    Raises:
        ValueError: the table is unfit, or a hyperparameter is none of a table's, or out of range.
        OSError: the files can't be read or written.
    """
    given = [x.name for x in fields(config) if x.name not in FLAGS and getattr(config, x.name) != x.default]
    if given:
        raise ValueError(f"--{given[0].replace('_', '-')} is the experiment's, no table's; leave it out with --data")
    table = read(config.data, config.target, drop_missing=config.drop_missing, without=config.without)
    model, classes = estimator(config, table, config.seed), table.classes is not None
    model.check(len(table.columns))
    writable(config.out)
    torch.set_num_threads(1)  # batches are small: more threads wait for each other, long where the machine is busy
    start, ranks = time.perf_counter(), min(len(table.columns), config.max_directions) + 1
    rows, test = split(table.y, HELD_OUT, config.seed, classes)
    X, y = table.X[rows], table.y[rows]
    fits = (1 + config.repeats) * (len(LAMS) + (ranks if config.directions is None else 1)) + config.bootstrap
    total = fits + 1 + config.repeats
    with tqdm(desc="structure", total=total, unit=" fits", disable=None, leave=False) as bar:

        def progress(stage: str) -> None:
            bar.set_postfix_str(stage, refresh=False)
            bar.update()

        model.fit_with(X, y, progress)
        scores = {
            n: score(table.y[test], f(table.X[test]), classes) for n, f in predictors(model, X, y, config).items()
        }
        progress("rivals")
        model.refit(table.X, table.y)  # what is saved is what all rows say; it is not what was tested
        stopped = replace(config, bootstrap=0, repeats=0) if model.discovery_.interrupted else config
        found = stability(model, table, stopped, progress)
    seconds, directions = time.perf_counter() - start, directions_table(model, table, found.loadings_sd)
    content = results(model, table, scores, found) | {"seconds": seconds}
    with whole_files(config.out) as folder:
        save(folder, config, content, plot_table.figures(model, table), weights=model.arrays())
        directions.to_csv(folder / "directions.csv", index=False)
    say(model, table, config, scores, found)
    print(loadings(directions), end="\n" * bool(len(directions)))
    print_summary({"seconds": f"{seconds:.1f}", "files": str(config.out.resolve())})
    return content["interrupted"]
