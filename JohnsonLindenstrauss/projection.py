"""The deterministic projection as a scikit-learn transformer, in the place of GaussianRandomProjection."""

from typing import Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data

from model import Pairs, Vectors
from train import derandomize


class DerandomizedProjection(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Linear projection that keeps the distances between the points it is fitted to, better than random ones do.

    Args:
        n_components: k, the dimensions that are kept, ≥ 1.
        problem: "pairs" to keep the distances between points, "vectors" to keep their norms.
        growth: factor > 1 by which τ grows, a step; slower is better and dearer.
        max_iter: at most so many steps.
        random_state: seed of the kick that starts the descent; None, an int or a RandomState.

    Attributes:
        components_: (k, d) the projection.
        distortion_: worst |‖M x‖²/‖x‖² − 1| over the differences x of the points fitted (or over the points).
        sigma_: σ at the end, the randomness that is left.
        n_iter_: steps taken.
        n_features_in_, feature_names_in_: as in all of scikit-learn.
    """

    def __init__(
        self,
        n_components: int = 2,
        *,
        problem: Literal["pairs", "vectors"] = "pairs",
        growth: float = 1.01,
        max_iter: int = 5000,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.n_components, self.problem, self.growth = n_components, problem, growth
        self.max_iter, self.random_state = max_iter, random_state

    def fit(self, X: np.ndarray, y: None = None) -> Self:
        """Find the projection for the rows of X (n, d); y is ignored.

        Raises:
            ValueError: fewer than 2 points, NaN, all points the same, a zero vector, a parameter out of its range.
        """
        for name, least in dict(n_components=1, max_iter=1).items():
            if not getattr(self, name) >= least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not self.growth > 1:
            raise ValueError(f"growth is {self.growth}; it must be above 1")
        if self.problem not in ("pairs", "vectors"):
            raise ValueError(f"problem is {self.problem!r}; it must be 'pairs' or 'vectors'")
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        problem = (Pairs if self.problem == "pairs" else Vectors)(torch.from_numpy(np.array(X)))
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        result = derandomize(
            problem,
            self.n_components,
            growth=self.growth,
            steps=self.max_iter,
            generator=torch.Generator().manual_seed(seed),
        )
        self.components_ = result.M.numpy()
        self.distortion_, self.sigma_, self.n_iter_ = result.distortion, result.sigma, result.steps
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """X Mᵀ: (n, k)."""
        check_is_fitted(self)
        return validate_data(self, X, dtype=np.float64, reset=False) @ self.components_.T

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)
