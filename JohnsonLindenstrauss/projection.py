"""The deterministic projection as a scikit-learn transformer, in the place of GaussianRandomProjection."""

from dataclasses import replace
from numbers import Integral, Real
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

from main import Config
from model import Pairs, Vectors
from train import Derandomization

DEFAULT = Config()


class DerandomizedProjection(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Linear projection that keeps the distances between the points it is fitted to, better than random ones do.

    Args:
        n_components: k, the dimensions that are kept, ≥ 1.
        problem: "pairs" to keep the distances between points, "vectors" to keep their norms.
        growth: factor > 1 by which τ grows, a step; slower is better and dearer; None: main.py's.
        max_iter: at most so many steps.
        random_state: seed of the kick that starts the descent; None, an int or a RandomState.

    Attributes:
        components_: (k, d) the projection.
        distortion_: worst |‖M x‖²/‖x‖² − 1| over the differences x of the points fitted (or over the points).
        sigma_: σ at the end, the randomness that is left.
        certificate_: what was measured where the descent ended, see `pgd.Certificate`: whether that is a second-order
            stationary point; None where Ctrl-C ended the descent, or `max_iter` steps with too many pairs that still
            matter.
        n_iter_: steps taken.
        n_features_in_, feature_names_in_: as in all of scikit-learn.
    """

    _parameter_constraints: ClassVar[dict[str, list]] = {
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "problem": [StrOptions({"pairs", "vectors"})],
        "growth": [Interval(Real, 1, None, closed="neither"), None],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_components: int = DEFAULT.k,
        *,
        problem: Literal["pairs", "vectors"] = "pairs",
        growth: float | None = DEFAULT.growth,
        max_iter: int = DEFAULT.steps,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components, self.problem, self.growth = n_components, problem, growth
        self.max_iter, self.random_state = max_iter, random_state

    def fit(self, X: np.ndarray, y: None = None) -> Self:
        """Find the projection for the rows of X (n, d); y is ignored.

        Raises:
            ValueError: fewer than 2 points, NaN, all points the same, a zero vector, a parameter out of its range.
            KeyboardInterrupt: Ctrl-C; the best projection by then is there all the same.
        """
        self._validate_params()
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        problem = (Pairs if self.problem == "pairs" else Vectors)(torch.from_numpy(np.array(X)))
        config = replace(
            DEFAULT, k=int(self.n_components), problem=self.problem, growth=self.growth, steps=int(self.max_iter)
        )
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        result = Derandomization(problem, config, torch.Generator().manual_seed(seed)).run().result()
        self.components_ = result.M.numpy()
        self._n_features_out = len(self.components_)
        self.distortion_, self.sigma_, self.n_iter_ = result.distortion, result.sigma, result.steps
        self.certificate_ = result.certificate
        if result.interrupted:
            raise KeyboardInterrupt
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """X Mᵀ: (n, k)."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False) @ self.components_.T
