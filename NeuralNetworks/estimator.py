"""StructureDiscovery: the directions of the inputs that matter, as scikit-learn estimators.

model = StructureDiscovery().fit(X, y)
model.directions_           # (k, d): a row for each direction, in the units of X's columns
model.transform(X)          # (n, k): the coordinates along them
model.predict(X)            # the network's answer, a function of those coordinates alone
"""

from copy import deepcopy
from numbers import Integral
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn import base
from sklearn.covariance import oas
from sklearn.preprocessing import QuantileTransformer
from sklearn.utils import Tags, check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from discover import Network, Progress, Rows, Search, discover, logistic, polish
from main import Config
from model import Loss, squared
from table import split

DEFAULT = Config()
Inputs = Literal["whiten", "scores", "raw"]
VALIDATION = 0.25
"""share of the rows of `fit` that λ and the number of directions are chosen on"""


class Whitening:
    """z = M (s(x) − m): coordinates of mean 0 and covariance I, as far as the rows tell.

    s is the identity, or for "scores" each column's normal scores Φ⁻¹(rank/n), ±5.2 for its least and greatest value.
    M = C^{-1/2} diag(1/sd), C the columns' correlations, shrunk to the identity by the rule of Chen et al. (2010):
    hardly where rows are many and correlations strong, much where rows are few or the columns uncorrelated anyway.
    (Ledoit and Wolf's rule takes heavy tails for noise, and leaves correlations in.) "raw": z = x.

    Args:
        X: (n, d).
        inputs: whiten, scores or raw.
    """

    def __init__(self, X: NDArray, inputs: Inputs) -> None:
        d = X.shape[1]
        self.scores, self.mean, self.M = None, np.zeros(d), np.eye(d)
        self.unit = np.where(np.ptp(X, axis=0) > 0, X.std(0), 1.0)  # scikit-learn takes 10⁻⁷ for nothing
        if inputs == "scores":
            how = dict(output_distribution="normal", subsample=None)
            self.scores = QuantileTransformer(n_quantiles=min(len(X), 1000), **how).fit(X / self.unit)
        if inputs != "raw":
            S = self._scored(X)
            self.mean, deviation = S.mean(0), S.std(0)
            # A constant tells nothing, and its standard deviation may be a rounding error instead of 0.
            scale = np.where(np.ptp(S, axis=0) > 0, deviation, np.inf)
            values, vectors = np.linalg.eigh(oas((S - self.mean) / scale, assume_centered=True)[0])
            inverse = np.where(values > 1e-10, values, np.inf) ** -0.5
            self.M = (vectors * inverse) @ vectors.T / scale

    def _scored(self, X: NDArray) -> NDArray:
        return X if self.scores is None else self.scores.transform(X / self.unit)

    def __call__(self, X: NDArray) -> NDArray:
        """z (n, d) of X (n, d)."""
        return (self._scored(X) - self.mean) @ self.M.T

    def deviation(self, X: NDArray) -> NDArray:
        """(d,) standard deviation of each column, or of its scores: what a loading is multiplied by to compare."""
        return self._scored(X).std(0)


class _StructureDiscovery(base.ClassNamePrefixFeaturesOutMixin, base.TransformerMixin, base.BaseEstimator):
    """What regressor and classifier share; see StructureDiscovery.

    Each has its loss, _learn_answers(y), which keeps what the others need to know, encoded(y), the answers as the
    network takes them, and decoded(output), its output as answers or probabilities.
    """

    loss: Loss
    _parameter_constraints: ClassVar[dict[str, list]] = {
        "n_directions": [Interval(Integral, 0, None, closed="left"), None],
        "inputs": [StrOptions({"whiten", "scores", "raw"})],
        **{name: [Interval(Integral, 1, None, closed="left")] for name in ("max_directions", "width", "steps")},
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_directions: int | None = DEFAULT.directions,
        *,
        inputs: Inputs = DEFAULT.inputs,
        max_directions: int = DEFAULT.max_directions,
        width: int = DEFAULT.neurons,
        steps: int = DEFAULT.adam_steps,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_directions, self.max_directions, self.inputs = n_directions, max_directions, inputs
        self.width, self.steps, self.random_state = width, steps, random_state

    def fit(self, X: ArrayLike, y: ArrayLike, progress: Progress = lambda stage: None) -> Self:
        """Choose λ and the directions on rows held out by chance, then fit again on all rows.

        Args:
            X: (n, d) numbers.
            y: (n,) answers.
            progress: called after each fit, with what was fitted.

        Raises:
            ValueError: X or y is no such thing, or a hyperparameter is out of its range.
            KeyboardInterrupt: Ctrl-C; what was found by then is there all the same.
        """
        vars(self).pop("network_", None)  # what was fitted before, to other data perhaps, is no answer to these
        X, y = self._checked(X, y, reset=True, ensure_min_samples=5)
        self.check(X)
        self._learn_answers(y)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        parts = split(y, VALIDATION, seed, isinstance(self, base.ClassifierMixin))
        self.whitening_ = Whitening(X, self.inputs)
        rows = self.rows(X, y)
        training, validation = (tuple(x[chosen] for x in rows) for chosen in parts)
        k, most = self.n_directions, min(X.shape[1], self.max_directions, self.width)
        counts, generator = range(most, -1, -1) if k is None else [k], torch.Generator().manual_seed(seed)
        how = (self.loss, counts, self.width, self.steps, generator, progress)
        self.discovery_ = discover(Search(training, validation, *how))
        self._keep(self.discovery_.chosen.network)
        if self.discovery_.interrupted:
            raise KeyboardInterrupt
        return self._refitted(rows)

    def refit(self, X: ArrayLike, y: ArrayLike) -> Self:
        """Fit the network on other rows of the same table, from where it was chosen, with λ and the number as chosen.

        To choose on some rows, test on others, and end with what all of them say.

        Raises:
            ValueError: X or y is no such thing.
            KeyboardInterrupt: Ctrl-C; the network stays as it was.
        """
        check_is_fitted(self, "network_")
        return self._refitted(self.rows(*self._checked(X, y, reset=False)))

    def _checked(self, X: ArrayLike, y: ArrayLike, **how: object) -> tuple[NDArray, NDArray]:
        return validate_data(self, X, y, dtype=np.float64, y_numeric=not isinstance(self, base.ClassifierMixin), **how)

    def _refitted(self, rows: Rows) -> Self:
        stage = self.discovery_.chosen
        return self._keep(polish(stage.network, rows, self.loss, stage.lam, 200))

    def _keep(self, network: Network) -> Self:
        stage = self.discovery_.chosen
        network = network.restricted(stage.directions)
        spectrum, directions = self.discovery_.full.network.spectrum(), network.directions @ self.whitening_.M
        found = dict(network_=network, spectrum_=spectrum, directions_=directions, lam_=stage.lam)
        found |= dict(n_directions_=stage.directions, _n_features_out=stage.directions)
        vars(self).update(found)  # at once: Ctrl-C may come at any time
        return self

    def transform(self, X: ArrayLike) -> NDArray:
        """Coordinates (n, k) along the directions, of mean 0; of variance 1 but for C's shrinkage; raw, as they are."""
        return self._inputs(X) @ self.network_.directions.T

    def _inputs(self, X: ArrayLike) -> NDArray:
        check_is_fitted(self, "network_")
        return self.whitening_(validate_data(self, X, dtype=np.float64, reset=False))

    def rows(self, X: ArrayLike, y: ArrayLike) -> Rows:
        """Whitened inputs and answers as the network takes them."""
        z = torch.as_tensor(self.whitening_(np.asarray(X, np.float64)), dtype=torch.float32)
        return z, torch.as_tensor(self.encoded(np.asarray(y)), dtype=torch.float32)

    def answers(self, X: ArrayLike, network: Network | None = None) -> NDArray:
        """What the fitted network, or the given one, says at X: numbers (n,), or probabilities of the second class."""
        z = self._inputs(X)
        return self.decoded(_output(network or self.network_, z))

    def answers_along(self, t: NDArray) -> NDArray:
        """The fitted network's answers at coordinates t (n, k) along the directions."""
        return self.decoded(_output(self.network_, t @ self.network_.directions))

    def arrays(self) -> dict[str, NDArray]:
        """All that `predict` needs, by name: with z = M (s(x) − mean), ŷ = a·GELU(A B z + b) + c, which is in units of
        answer_scale from answer_mean, or log-odds. s is the identity unless scores_at (quantiles, d) are there."""
        check_is_fitted(self, "network_")
        arrays = {name: p.detach().double().numpy() for name, p in self.network_.named_parameters()}
        arrays |= {"M": self.whitening_.M, "mean": self.whitening_.mean, "directions": self.directions_}
        if self.whitening_.scores is not None:
            arrays |= {"scores_at": self.whitening_.scores.quantiles_ * self.whitening_.unit}
            arrays |= {"scores_of": self.whitening_.scores.references_}
        return arrays

    def check(self, X: NDArray) -> None:
        """Raise ValueError for a hyperparameter that is out of its range, or not for these inputs (n, d)."""
        self._validate_params()
        if self.n_directions is not None and self.n_directions > (d := X.shape[1]):
            raise ValueError(f"{self.n_directions} directions: with {d} columns it can be 0 to {d}, or None to choose")
        if self.n_directions is not None and self.n_directions > self.width:
            raise ValueError(f"{self.n_directions} directions take as many neurons at least: the width is {self.width}")
        if self.inputs == "raw" and (size := np.abs(X).max()) > 1e4:
            raise ValueError(f"inputs raw: some are as large as {size:.3g}, and the network wants about 1; whiten them")


class StructureDiscovery(base.RegressorMixin, _StructureDiscovery):
    """Regression on the few directions of the inputs that the answers depend on, found by λ‖W‖² on a network's W.

    The defaults are those at the top of main.py.

    Args:
        n_directions: how many; None: as many as the validation rows support, none included.
        inputs: "whiten"; "scores": each column by its normal scores first, for heavy tails; "raw": as they are.
        max_directions: at most so many are tried; where all are taken, more may be there.
        width: neurons.
        steps: of descent for each λ.
        random_state: of the split, the weights and the batches.

    Attributes:
        directions_: (k, d) rows β with coordinates β x + const., in the units of X's columns (with scores, of those).
        n_directions_: k.
        spectrum_: (min(d, width),) singular values of W at the chosen λ, not yet restricted to k: the gap after k.
        lam_: λ that the network on k directions was fitted with.
        discovery_: the path of λ and the fits on 0, 1, … directions, see `discover.Discovery`.
        network_: the fitted `discover.Network`, of whitened inputs.
        whitening_: the `Whitening`.
    """

    loss = staticmethod(squared)

    def predict(self, X: ArrayLike) -> NDArray:
        """Answers (n,)."""
        return self.answers(X)

    def encoded(self, y: NDArray) -> NDArray:
        """The answers y (n,) as the network takes them."""
        return (y - self._mean) / self._scale

    def decoded(self, output: NDArray) -> NDArray:
        """The network's output (n,) as answers, or probabilities of the second class."""
        return output * self._scale + self._mean

    def arrays(self) -> dict[str, NDArray]:
        return super().arrays() | {"answer_mean": np.array(self._mean), "answer_scale": np.array(self._scale)}

    def _learn_answers(self, y: NDArray) -> None:
        self._mean, self._scale = float(y.mean()), float(y.std()) or 1.0


class StructureDiscoveryClassifier(base.ClassifierMixin, _StructureDiscovery):
    """Two classes by the few directions that tell them apart; as `StructureDiscovery`, with the logistic loss.

    Attributes:
        classes_: the two.
    """

    loss = staticmethod(logistic)

    def decision_function(self, X: ArrayLike) -> NDArray:
        """Log-odds (n,) of the second class."""
        z = self._inputs(X)
        return _output(self.network_, z)

    def predict_proba(self, X: ArrayLike) -> NDArray:
        """Probabilities (n, 2)."""
        p = self.answers(X)
        return np.column_stack([1 - p, p])

    def predict(self, X: ArrayLike) -> NDArray:
        """Classes (n,)."""
        second = self.decision_function(X) > 0
        return self.classes_[second.astype(int)]

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def encoded(self, y: NDArray) -> NDArray:
        """The answers y (n,) as the network takes them."""
        if new := set(y.tolist()) - set(self.classes_.tolist()):
            raise ValueError(f"y has {new.pop()!r}, which is none of the two classes, {self.classes_.tolist()}")
        return np.searchsorted(self.classes_, y)

    def decoded(self, output: NDArray) -> NDArray:
        """The network's output (n,) as answers, or probabilities of the second class."""
        return expit(output)

    def _learn_answers(self, y: NDArray) -> None:
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) > 2:
            said = "Only binary classification is supported. The type of the target is multiclass"
            raise ValueError(f"{said}; take two classes at a time")
        if len(self.classes_) < 2:
            raise ValueError(f"y has one class, {self.classes_[0]}; the classifier needs two")


@torch.no_grad()
def _output(network: Network, z: NDArray) -> NDArray:
    exact = deepcopy(network).double()  # in float32 a row's answer would depend on the others
    return exact(torch.as_tensor(z)).numpy()
