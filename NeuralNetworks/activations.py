"""Smooth activations and links, by name.

The lemma needs a twice differentiable student; the constants of its theory need bounds on the derivatives, given here
for each. All are stable for large |z|, up to the overflow of the polynomials themselves.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import gelu, softplus

Activation = Callable[[Tensor], Tensor]


def relu_iota(z: Tensor, iota: float = 2.0) -> Tensor:
    """ReLU_ι(z) = log(1 + e^{ιz}) / ι, which tends to ReLU as ι → ∞; 0 < σ' < 1, 0 < σ'' ≤ ι/4, |σ'''| ≤ ι²/(6√3)."""
    return _ReLUIota.apply(z, iota)


class _ReLUIota(torch.autograd.Function):
    """softplus with σ'(z) = sigmoid(ιz), differentiated as such: PyTorch's own second derivative takes far longer."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, z: Tensor, iota: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.iota = iota
        return softplus(z, beta=iota, threshold=40)  # log(1 + e^40) is 40 to the last bit of a double

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return grad * (ctx.iota * z).sigmoid_(), None


def relu3(z: Tensor) -> Tensor:
    """ReLU(z)³, the toy's; σ'' is continuous and σ''' = 6 [z > 0] bounded, σ, σ' and σ'' are not."""
    return z.relu() ** 3


def he2(z: Tensor) -> Tensor:
    """Hermite polynomial He₂(z) = z² − 1; σ'' = 2, σ and σ' are unbounded."""
    return z * z - 1


def he3(z: Tensor) -> Tensor:
    """Hermite polynomial He₃(z) = z³ − 3z; σ''' = 6, the lower derivatives are unbounded."""
    return z * (z * z - 3)


def he4(z: Tensor) -> Tensor:
    """Hermite polynomial He₄(z) = z⁴ − 6z² + 3; no derivative below the fourth is bounded: for teachers."""
    return z * z * (z * z - 6) + 3


# tanh: |σ| < 1, 0 < σ' ≤ 1, |σ''| ≤ 4/(3√3), |σ'''| ≤ 2.
# GELU: z Φ(z); −0.17 < σ, |σ'| ≤ 1.13, |σ''| ≤ √(2/π), |σ'''| ≤ 0.7788.
# Sigmoid: 1/(1 + e^{−z}); 0 < σ < 1, 0 < σ' ≤ 1/4, |σ''| ≤ 1/(6√3), |σ'''| ≤ 1/8.
SMOOTH = relu_iota, torch.tanh, gelu, torch.sigmoid, relu3, he2, he3, he4
ACTIVATIONS: dict[str, Activation] = {f.__name__: f for f in SMOOTH}


def activation(name: str, iota: float = 2.0) -> Activation:
    """The activation of that name; iota is the sharpness of relu_iota.

    Raises:
        ValueError: an unknown name, or iota ≤ 0.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"there is no activation {name}; known are {', '.join(ACTIVATIONS)}")
    if not iota > 0:
        raise ValueError(f"iota is {iota}; it must be positive")
    return partial(relu_iota, iota=iota) if name == "relu_iota" else ACTIVATIONS[name]
