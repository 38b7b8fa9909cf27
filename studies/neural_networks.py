"""What the theorem leaves open about networks, answered by many runs: one subcommand a study.

`python studies/neural_networks.py lemma --jobs 2`, and so on; each prints a table of medians and quartiles.
"""

import sys
from collections.abc import Callable
from functools import partial
from math import inf, log10, sqrt
from pathlib import Path

sys.path.insert(1, str(Path(__file__).parents[1] / "NeuralNetworks"))

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from scipy.optimize import least_squares
from scipy.stats import ortho_group
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.metrics import r2_score

from activations import activation
from discover import polish, sine
from estimator import StructureDiscovery, Whitening
from main import Config
from model import Batch, Student, Teacher, build, risk, squared
from peers import PEERS
from run import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY, legend_below
from sweep import Row, Sweep, band, command_line, in_words, quartiles, report, sweep, whole
from train import Training, complete

# --- exact risk in the plane, first layer trained, as in figure 3 -----------------------------------------------------

EXACT = dict(width=64, momentum=0.99, steps=20_000)
"""so that W⊥ contracts by 200 λ lr a step; nearly every run stops long before its last step"""
LAMS = [10 ** (-i / 2) for i in range(14, 3, -1)]
"""λ from 10⁻⁷ to 10⁻², at ρ = λ/5, main.py's"""
RHOS = {1e-2: [10 ** (-i / 2) for i in range(12, 3, -1)], 1e-4: [10 ** (-i / 2) for i in range(12, 5, -1)]}
"""ρ for two λ"""
ROUNDING = 1e-12
"""‖W⊥‖ below which bound and norm are both rounding errors"""

# --- fresh batches, all parameters trained, one factor at a time around this ------------------------------------------

BASE = dict(inputs="Gaussian", d=10, k=1, width=64, depth=2, iota=2.0, noise=0.0, points=inf)
"""inputs: see `source`; iota ∞: plain ReLU; noise: of the labels; points: ∞ is a fresh batch each step"""
LAM = 0.01
"""λ times the width: a neuron's curvature falls like 1/width, and this keeps its share of λ‖W‖² the same"""
BATCH = 256
STEPS = 1500
"""‖W⊥‖ would contract by e⁻¹¹ if λ alone drove it; what is left is the batches' noise, or the inputs' doing"""
HELD_OUT = 8192
"""points for the excess risk"""
INPUTS = ("Gaussian", "correlated Gaussian, whitened", "correlated Gaussian", "Gaussian mixture")
INPUTS += ("Laplace", "Student t, 5 degrees", "uniform", "digits")
COVERED = 2
"""for so many of them, the first, the theorem holds"""
FACTORS = dict(depth=(2, 3, 4, 5), width=(16, 64, 256, 1024, 4096), k=(1, 2, 4, 8), d=(2, 5, 10, 20, 50, 100))
DEAR = 1024
"""width from which on a run takes long (two minutes at 4096), and only a third of the seeds are run"""
IOTAS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, inf)
POINTS = (100, 300, 1000, 3000, 10_000, 30_000, 100_000, inf)
NOISES = (0.0, 0.3)
MEASURED = {"left": "‖W⊥‖ / ‖W⊥‖ at the start", "leak": "‖W⊥‖ / ‖W∥‖", "risk": "excess risk / label variance"}
"""columns of `learn`, and of the tables"""

# --- directions planted in a table, one factor at a time around this --------------------------------------------------

PLANTED = dict(link="tanh(u·x)", n=2000, d=20, noise=0.3, rows="Gaussian")
"""n rows to fit, label noise; rows: correlated, 0.5 each with each; heavy-tailed, Student's t with 5 degrees; digits,
their d leading principal components; pixels, all that are not always white. Of the last two 1400 rows, whatever n."""
LINKS: dict[str, tuple[int, Callable[[np.ndarray], np.ndarray]]] = {
    "tanh(u·x)": (1, lambda t: np.tanh(t[:, 0])),
    "(u₁·x)(u₂·x)": (2, lambda t: t[:, 0] * t[:, 1]),
    "(u·x)²": (1, lambda t: t[:, 0] ** 2),
    "sin(u₁·x) + ½(u₂·x)²": (2, lambda t: np.sin(t[:, 0]) + t[:, 1] ** 2 / 2),
    "He₃(u·x)/√6": (1, lambda t: (t[:, 0] ** 3 - 3 * t[:, 0]) / sqrt(6)),
    "abs(u·x)": (1, lambda t: np.abs(t[:, 0])),
    "(u₁·x)(u₂·x)(u₃·x)": (3, lambda t: t.prod(1)),
    "max(u₁·x, u₂·x)": (2, lambda t: t.max(1)),
    "(u₁·x)/(1 + (u₂·x)²)": (2, lambda t: t[:, 0] / (1 + t[:, 1] ** 2)),
    "sign(u·x)": (1, lambda t: np.sign(t[:, 0])),
    "sin 5u·x": (1, lambda t: np.sin(5 * t[:, 0])),
    "(u₁·x)(u₂·x)(u₃·x)(u₄·x)": (4, lambda t: t.prod(1)),
}
FURTHER = tuple(LINKS)[4:]
"""links that are tried at PLANTED alone"""
STEP = "sign(u·x)"
"""has no slope, so that least squares can't start with the link known"""
HARDER = dict(n=(200, 500, 2000, 20_000), d=(5, 20, 100), noise=(0.0, 0.3, 1.0))
HARDER |= dict(rows=("Gaussian", "correlated", "heavy-tailed", "digits", "pixels"))
LONG = 20_000
"""rows with which a run takes a minute, and only a third of the seeds are run"""
TEST_ROWS = 2000


def spread(d: int) -> np.ndarray:
    """Standard deviations of the correlated inputs' principal axes, (d,): condition number 10, mean variance 1."""
    variances = np.geomspace(0.1, 1, d)
    return np.sqrt(variances / variances.mean())


def source(inputs: str, d: int, rng: np.random.Generator) -> Callable[[int], np.ndarray]:
    """A function that draws n points, (n, d), of mean 0 and mean variance 1, white but for the correlated ones.

    The coordinates are independent but for the digits: scikit-learn's, in their first d principal components, whitened.
    """
    if inputs == "digits":
        return partial(rng.choice, PCA(d, whiten=True, svd_solver="full").fit_transform(load_digits().data))
    if inputs.startswith("correlated"):
        return lambda n: rng.standard_normal((n, d)) * spread(d)
    return {
        "Gaussian": lambda n: rng.standard_normal((n, d)),
        "Gaussian mixture": lambda n: 0.6 * rng.standard_normal((n, d)) + rng.choice([-0.8, 0.8], (n, d)),
        "Laplace": lambda n: rng.laplace(scale=sqrt(1 / 2), size=(n, d)),
        "Student t, 5 degrees": lambda n: rng.standard_t(5, (n, d)) / sqrt(5 / 3),
        "uniform": lambda n: rng.uniform(-sqrt(3), sqrt(3), (n, d)),
    }[inputs]


def exact(**change: object) -> Training:
    """The training of figure 3's network with other hyperparameters, done."""
    config = complete(Config(**change))
    generator = torch.Generator().manual_seed(config.seed)
    teacher, student, data, rule = build(config, generator)
    return whole(Training(student, data, teacher.directions, config, generator, rule).run())


def descend(case: Row) -> Row:
    """PGD on the exact risk to a ρ-SOSP: ‖W⊥‖, its bounds (None where there is none), whether the first holds."""
    result = whole(exact(**EXACT | case).result())
    certificate, start = result.certificate, float(result.history["w_perp"][0])
    w_perp, identity = certificate.w_norm, certificate.w_norm_bound
    bounds = dict(identity=identity, lemma=certificate.lemma_bound)
    holds = identity is not None and w_perp <= max(identity, ROUNDING)
    ends = dict(steps=result.steps, is_sosp=certificate.is_sosp, holds=holds)
    return dict(w_perp_initial=start, w_perp=w_perp) | bounds | ends


def learn(case: Row) -> Row:
    """SGD with momentum and a falling step size on batches, all parameters trained: the columns of MEASURED.

    The teacher is Σ_j tanh(u_j·x)/√k; the u_j are random, orthonormal, and another choice for each seed: along an
    axis, or the diagonal, inputs that are not Gaussian can be symmetric enough to hide that they are not.
    """
    d, k, width, depth, seed = (case[name] for name in ("d", "k", "width", "depth", "seed"))
    rng, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    teacher = Teacher(torch.from_numpy(ortho_group.rvs(d, random_state=seed)), k, activation("tanh"))
    whitened = case["inputs"].endswith("whitened")
    scale = torch.from_numpy(spread(d)) if whitened else torch.ones(d, dtype=torch.float64)
    U = torch.linalg.qr((teacher.directions * scale).T).Q.T  # x = A z: the teacher uses U A z
    points = source(case["inputs"], d, rng)

    def draw(n: int, noise: float = 0.0) -> Batch:
        x = torch.from_numpy(points(n))
        x, y, p = teacher.labelled(x @ teacher.basis.T, torch.full((n,), 1 / n, dtype=torch.float64))
        return x / scale, y + noise * torch.from_numpy(rng.standard_normal(n)), p

    batches = partial(draw, BATCH, case["noise"])
    if case["points"] < inf:
        x, y, _ = draw(case["points"], case["noise"])
        p = torch.full((BATCH,), 1 / BATCH, dtype=torch.float64)

        def batches() -> Batch:
            chosen = torch.from_numpy(rng.integers(len(x), size=BATCH))
            return x[chosen], y[chosen], p

    relu = torch.relu if case["iota"] == inf else activation("relu_iota", case["iota"])
    student = Student(d, [width] * (depth - 1), relu, generator)
    how = dict(trained="all", risk="sampled", lam=LAM / width, momentum=0.9, steps=STEPS, anneal=True)
    config = Config(d=d, k=k, width=width, rho=1e-12, **how)  # ρ is never reached: the noise does what kicks are for
    held_out = draw(BATCH)
    history = whole(Training(student, batches, U, config, generator, lambda level: held_out).run()).history
    w_perp, w_parallel, test = history["w_perp"], history["w_parallel"], draw(HELD_OUT)
    with torch.no_grad():
        excess = float(risk(student, squared, test)) / float(test[1].var())
    return {"left": w_perp[-1] / w_perp[0], "leak": w_perp[-1] / w_parallel[-1], "risk": excess}


def planted(case: Row) -> tuple[np.ndarray, ...]:
    """X (n, d), y (n,), directions (k, d) of X that y depends on, and further X, y to test on."""
    rng, (n, d, noise, kind) = np.random.default_rng(case["seed"]), (case[x] for x in ("n", "d", "noise", "rows"))
    if kind in ("digits", "pixels"):
        n, X = 1400, rng.permutation(load_digits().data)
        X = PCA(d, whiten=True, svd_solver="full").fit_transform(X) if kind == "digits" else X - X.mean(0)
        X = X[:, X.std(0) > 0]
        whitening = Whitening(X, "whiten")
        latent, M = whitening(X), whitening.M
    else:
        latent = rng.normal(size=(n + TEST_ROWS, d))
        if kind == "heavy-tailed":
            latent = rng.standard_t(5, size=latent.shape) / sqrt(5 / 3)
        L = np.linalg.cholesky(0.5 * np.eye(d) + 0.5) if kind == "correlated" else np.eye(d)
        X, M = latent @ L.T, np.linalg.inv(L)
    k, link = LINKS[case["link"]]
    U = np.linalg.qr(rng.normal(size=(latent.shape[1], k)))[0].T
    y = link(latent @ U.T) + noise * rng.normal(size=len(latent))
    return X[:n], y[:n], U @ M, X[n:], y[n:]


def recover(case: Row) -> Row:
    """Sines of the largest angle to the planted directions, whitened inputs, all told their number; ours chosen: right.

    Beside the peers: least squares with the link known, from the true directions, what no method can hope to beat by
    much. r2: on test rows; gap: what the true directions add to it, with the same network.
    """
    X, y, U, *test = planted(case)
    (k, link), model = LINKS[case["link"]], StructureDiscovery(random_state=case["seed"]).fit(X, y)
    z, rows, unmixed = model.whitening_(X), model.rows(X, y), np.linalg.pinv(model.whitening_.M)
    V = np.linalg.qr((U @ unmixed).T)[0].T  # the planted directions, of whitened inputs
    (stage,) = (s for s in model.discovery_.ranks if s.directions == k)
    fitted = polish(stage.network, rows, model.loss, stage.lam, 200).restricted(k)
    known = stage.network.along(torch.as_tensor(V, dtype=torch.float32))
    known.B.requires_grad_(False)
    known = polish(known, rows, model.loss, stage.lam, 400)
    best = least_squares(lambda u: link(X @ u.reshape(U.shape).T) - y, U.ravel(), max_nfev=30).x.reshape(U.shape)
    r2 = r2_score(test[1], model.predict(test[0]))
    gap = r2_score(test[1], model.answers(test[0], known)) - r2
    found = {"ours": sine(fitted.directions, V), "right": model.n_directions_ == k, "r2": float(r2), "gap": float(gap)}
    found |= {name: sine(peer(z, y, k), V) for name, peer in PEERS.items()}
    return found | {"link known": sine(best @ unmixed, V)}


# --- figures and tables -----------------------------------------------------------------------------------------------

LEFT = r"$\|W_\perp\|_F$ / $\|W_\perp\|_F$ at the start"


def learnt(name: str, settings: dict[tuple, Row], options: Sweep) -> list[list]:
    """A study's lines: a setting's labels and the quartiles of MEASURED over the runs that differ from BASE so."""
    cases = {}  # BASE may be there many times, and is run once
    for change in settings.values():
        for seed in range(max(1, options.seeds // 3) if change.get("width", 0) >= DEAR else options.seeds):
            case = BASE | change | dict(seed=seed)
            cases[str(case)] = case
    rows = sweep(learn, list(cases.values()), name, options)
    return [[*labels, *(quartiles(rows, m, **(BASE | x)) for m in MEASURED)] for labels, x in settings.items()]


def lemma(options: Sweep) -> None:
    """‖W⊥‖ where PGD ends against λ and against ρ, under the bound by Stein's identity and Lemma 3.1's own."""
    lines = {r"$\lambda$, at $\rho = \lambda/5$": [(lam, lam / 5) for lam in LAMS]}
    lines |= {rf"$\rho$, at $\lambda = 10^{{{log10(lam):g}}}$": [(lam, rho) for rho in RHOS[lam]] for lam in RHOS}
    pairs = sorted({pair for line in lines.values() for pair in line})
    cases = [dict(lam=lam, rho=rho, seed=seed) for lam, rho in pairs for seed in range(options.seeds)]
    rows = sweep(descend, cases, "lemma", options)
    body, figure = [], Figure(figsize=(10, 4), layout="constrained")
    panels = figure.subplots(1, len(lines), sharey=True)
    for axes, (label, line), which in zip(panels, lines.items(), (0, *[1] * len(RHOS)), strict=True):
        x = [pair[which] for pair in line]
        kinds = {
            name: [quartiles(rows, name, lam=a, rho=b) for a, b in line] for name in ("w_perp", "identity", "lemma")
        }
        band(axes, x, kinds["w_perp"], "o-", color=BLUE, label=r"$\|W_\perp\|_F$")
        axes.axhline(quartiles(rows, "w_perp_initial")[1], color=GREY, linestyle=":", label="as initialized")
        band(axes, x, kinds["identity"], "s--", color=ORANGE, label="Stein's identity, measured")
        axes.plot(x, [q[1] for q in kinds["lemma"]], color="black", linewidth=1.2, label="Lemma 3.1, $K$ estimated")
        axes.set(xscale="log", yscale="log", xlabel=label)
        axes.set_ylim(bottom=1e-6)  # at the smallest λ the band goes on, to rounding errors
        for lam, rho in line:
            runs = [row for row in rows if (row["lam"], row["rho"]) == (lam, rho)]
            counts = [f"{sum(row[name] for row in runs)} of {len(runs)}" for name in ("holds", "is_sosp")]
            steps = quartiles(runs, "steps")
            body.append([f"{lam:.2g}", f"{rho:.2g}", *(if_any(runs, name) for name in kinds), *counts, steps])
    panels[0].set(ylabel=r"$\|W_\perp\|_F$ at the end")
    legend_below(figure, columns=2)
    header = ["λ", "ρ", "‖W⊥‖", "Stein's identity", "Lemma 3.1, K estimated", "the first holds", "SOSP", "steps"]
    findings = {"runs": len(rows), "holds": sum(row["holds"] for row in rows)}
    findings |= {"silent": sum(row["lemma"] is None for row in rows), "sosp": sum(row["is_sosp"] for row in rows)}
    report("study_lemma", header, body, figure, options.out, findings)


def if_any(runs: list[Row], bound: str) -> object:
    """Quartiles over the runs that have this bound; in words where some have none."""
    found, without = quartiles(runs, bound), sum(row[bound] is None for row in runs)
    if without in (0, len(runs)):
        return "none" if without else found
    return f"{in_words(found)}, none in {without} of {len(runs)}"


def inputs(options: Sweep) -> None:
    """How far W⊥ falls where inputs are not standard normal, and Stein's lemma no longer holds.

    Correlated Gaussian inputs x = A z: Stein's lemma gives (H W + 2λ W C⁻¹)(I − UᵀU) = 0 with C = AAᵀ, so that W⊥
    need not vanish, but for whitened ones, the student's input z, it is (H + 2λI) W (I − UᵀU) = 0, U of rows spanning
    U A.
    """
    body = learnt("inputs", {(name,): dict(inputs=name) for name in INPUTS}, options)
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes, places = figure.subplots(), np.arange(len(INPUTS))
    q1, median, q3 = np.array([line[1] for line in body]).T
    for part, color, label in (
        (places < COVERED, BLUE, "the theorem holds"),
        (places >= COVERED, ORANGE, "it does not"),
    ):
        errors = median[part] - q1[part], q3[part] - median[part]
        axes.errorbar(median[part], places[part], xerr=errors, fmt="o", color=color, capsize=4, label=label)
    axes.set(xscale="log", xlabel=LEFT, yticks=places, yticklabels=INPUTS)
    axes.invert_yaxis()
    legend_below(figure, columns=2)
    left = dict(zip(("gaussian", "whitened", "correlated", *INPUTS[3:-1], "digits"), median.tolist(), strict=True))
    others = [left[name] for name in INPUTS[3:-1]]
    findings = left | {"least_other": min(others), "most_other": max(others)}
    report("study_inputs", ["inputs", *MEASURED.values()], body, figure, options.out, findings)


def architecture(options: Sweep) -> None:
    """W⊥ at depths 2 to 5, widths 16 to 4096, for 1 to 8 directions and 2 to 100 dimensions."""
    settings = {(name, value): {name: value} for name, values in FACTORS.items() for value in values}
    body = learnt("architecture", settings, options)
    figure = Figure(figsize=(10, 3.4), layout="constrained")
    panels = figure.subplots(1, len(FACTORS), sharey=True)
    for axes, (name, x) in zip(panels, FACTORS.items(), strict=True):
        band(axes, x, [line[2] for line in body if line[0] == name], "o-", color=BLUE, label="median, quartiles")
        axes.axvline(BASE[name], color=GREY, linestyle=":", zorder=1, label="the setting that the panels share")
        axes.set(yscale="log", xlabel={"k": "directions $k$", "d": "dimension $d$"}.get(name, name))
        _ticks(axes, x, "linear" if name == "depth" else "log")
    panels[0].set(ylabel=LEFT)
    legend_below(figure, columns=2)
    findings = {"most": max(line[2][1] for line in body)}
    report("study_architecture", ["factor", "value", *MEASURED.values()], body, figure, options.out, findings)


def iota(options: Sweep) -> None:
    """Plain ReLU beside ReLU_ι, ι from 1 to 100."""
    settings = {(f"ReLU_{x:g}" if x < inf else "ReLU",): dict(iota=x) for x in IOTAS}
    body = learnt("iota", settings, options)
    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    for axes, i, label in zip(figure.subplots(1, 2), (1, 3), (LEFT, MEASURED["risk"]), strict=True):
        *smooth, plain = (line[i] for line in body)
        _level(axes, plain, ORANGE, "ReLU")
        band(axes, IOTAS[:-1], smooth, "o-", color=BLUE, label=r"ReLU$_\iota$")
        axes.set(xlabel=r"$\iota$", ylabel=label)
        axes.set_ylim(bottom=0)
        _ticks(axes, IOTAS[:-1], "log")
    legend_below(figure, columns=2)
    findings = {"softest": body[0][1][1], "relu": body[-1][1][1]}
    report("study_iota", ["activation", *MEASURED.values()], body, figure, options.out, findings)


def samples(options: Sweep) -> None:
    """The same N points for the whole run, N from 100 to 100,000, in batches, beside fresh ones."""
    settings = {(s, n if n < inf else "fresh"): dict(points=n, noise=s) for s in NOISES for n in POINTS}
    body = learnt("samples", settings, options)
    figure, ratios = Figure(figsize=(6.4, 4.4), layout="constrained"), []
    axes = figure.subplots()
    for noise, color, style in zip(NOISES, (BLUE, ORANGE), ("o-", "s-"), strict=True):
        *same, fresh = (line[2] for line in body if line[0] == noise)
        _level(axes, fresh, color, f"label noise {noise:g}, fresh points")
        band(axes, POINTS[:-1], same, style, color=color, label=f"label noise {noise:g}, the same $N$ points")
        ratios.append(same[-1][1] / fresh[1])
    axes.set(xscale="log", yscale="log", xlabel="$N$", ylabel=LEFT)
    legend_below(figure, columns=2)
    findings = {"kept_100": body[0][2][1], "ratio_low": min(ratios), "ratio_high": max(ratios)}
    report("study_samples", ["label noise", "N", *MEASURED.values()], body, figure, options.out, findings)


def structure(options: Sweep) -> None:
    """Directions planted in a table, found from rows alone: by link, n, d, noise and kind of inputs, beside peers."""
    few = [link for link in LINKS if link not in FURTHER]
    settings = [dict(link=link) for link in FURTHER]
    settings += [{"link": link, name: x} for name, values in HARDER.items() for x in values for link in few]
    cases = {}  # PLANTED is there many times, and is run once
    for seed in range(options.seeds):
        for change in settings:
            if change.get("n") != LONG or seed < max(1, options.seeds // 3):
                case = PLANTED | change | dict(seed=seed)
                cases[str(case)] = case
    rows = sweep(recover, list(cases.values()), "structure", options)
    base = {name: value for name, value in PLANTED.items() if name != "link"}
    groups = {("link", link): PLANTED | dict(link=link) for link in LINKS}
    groups |= {(name, x): base | {name: x} for name, values in HARDER.items() for x in values}
    methods, body, sines = ("ours", *PEERS, "link known"), [], {}
    findings = {"runs": len(rows), "right": sum(row["right"] for row in rows)}
    for (name, value), where in groups.items():
        runs = [row for row in rows if where.items() <= row.items() and (name == "link" or row["link"] in few)]
        sines[name, value] = ours, *peers, known = [quartiles(runs, method) for method in methods]
        r2, gap, right = quartiles(runs, "r2"), quartiles(runs, "gap"), sum(row["right"] for row in runs)
        findings |= {f"{name}_{value}": ours[1], f"gap_{name}_{value}": gap[1], f"known_{name}_{value}": known[1]}
        shown = [tuple(round(x, digits) + 0.0 for x in q) for q, digits in ((r2, 3), (gap, 4), (ours, 3))]  # no −0
        body.append([name, value, f"{right} of {len(runs)}", *shown, "–" if value == STEP else f"{known[1]:.3f}"])
        body[-1] += [f"{q[1]:.3f}" for q in reversed(peers)]
    figure = _lines(sines, methods)
    header = ["factor", "value", "right number", "test R²", "R² that the true directions add", "sine: ours"]
    header += reversed(methods[1:])
    report("study_structure", header, body, figure, options.out, findings)


def _lines(sines: dict[tuple, list], methods: tuple[str, ...]) -> Figure:
    """A panel for each of HARDER, a line for each method, quartiles for ours."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    panels, colors = figure.subplots(1, len(HARDER), sharey=True), (BLUE, GREY, ORANGE, SKY, GREEN, RED, PURPLE)
    for axes, (name, values) in zip(panels, HARDER.items(), strict=True):
        x, lines = range(len(values)), [sines[name, value] for value in values]
        how = dict(color="black", linestyle=":", linewidth=2, zorder=5)
        axes.plot(x, [line[-1][1] for line in lines], label="least squares, link known", **how)
        for i, color in reversed([*enumerate(colors)]):
            how = dict(color=color, label=methods[i], linewidth=1 + 1.4 * (i == 0))
            axes.plot(x, [line[i][1] for line in lines], "o--" if i else "o-", markersize=4, **how)
        axes.vlines(x, *zip(*((line[0][0], line[0][2]) for line in lines), strict=True), color=BLUE, linewidth=1)
        axes.set_xticks(x, [str(v) for v in values], rotation=30 * (name == "rows"), fontsize=9)
        axes.set(yscale="log", xlabel=dict(rows="inputs", noise="label noise").get(name, f"${name}$"))
    panels[0].set(ylabel="sine of the largest angle", ylim=(5e-4, 1.4))  # without noise, a link known gives 10⁻¹⁶
    legend_below(figure, columns=4)
    return figure


def _level(axes: object, quartiles: tuple[float, float, float], color: str, label: str) -> None:
    axes.axhline(quartiles[1], color=color, linestyle="--", linewidth=1.2, label=label)
    axes.axhspan(quartiles[0], quartiles[2], color=color, alpha=0.15, linewidth=0)


def _ticks(axes: object, x: tuple[float, ...], scale: str) -> None:
    axes.set(xscale=scale)
    axes.xaxis.set(major_locator=FixedLocator(x), minor_locator=NullLocator(), major_formatter="{x:g}")


if __name__ == "__main__":
    studies = {f.__name__: f for f in (lemma, inputs, architecture, iota, samples, structure)}
    sys.exit(command_line(studies, __doc__))
