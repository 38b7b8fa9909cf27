"""A network's first layer keeps only what its teacher uses: structure discovery by perturbed gradient descent.

Run it as it is for the paper's figures 1, 2 and 3; edit the defaults below or override them by flags.
"""

import gc
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Literal

if __name__ == "__main__":
    gc.disable()  # looking for garbage among imports takes a second; `command_line` enables it again
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # PyTorch's threads sleep while they wait: others need the cores

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

import outcome
from activations import ACTIVATIONS
from model import LOSSES, build
from run import Checkpoint, Count, Device, Momentum, NotNegative, Positive, Seed, command_line, whole_files, writable
from train import Training, complete

torch.empty(2**25 - 2**16, dtype=torch.uint8)  # once freed, glibc's malloc keeps blocks of up to its size for reuse


@dataclass(frozen=True)
class Config:
    """Hyperparameters."""

    d: Annotated[int, Field(ge=1, le=21_200)] = 2
    """input dimension; inputs are standard normal"""
    k: Annotated[int, Field(ge=0)] = 1
    """orthonormal directions that the teacher uses, at most d; 0: it is the constant 1"""
    teacher: Literal[*ACTIVATIONS] = "tanh"
    """link h of the teacher y = Σ_j h(u_j·x)/√k"""
    noise: NotNegative = 0.0
    """standard deviation of the noise added to labels"""
    width: Count = 1000
    """neurons in each hidden layer"""
    depth: Annotated[int, Field(ge=2, le=1000)] = 2
    """layers of weights; 2 is one hidden layer"""
    activation: Literal[*ACTIVATIONS] = "relu_iota"
    """of the student"""
    iota: Positive = 2.0
    """ι: sharpness of relu_iota, log(1 + e^{ιz})/ι"""
    loss: Literal[*LOSSES] = "squared"
    """loss; for the logistic one, labels are log-odds"""
    trained: Literal["first", "all"] = "first"
    """train the first layer's W and b, as in figure 3, or all parameters"""
    freeze_bias: bool = False
    """keep the first layer's biases as initialized: the theorem then has no hold"""
    risk: Literal["quadrature", "sobol", "sampled"] = "quadrature"
    """population risk: integrated (d ≤ 3), with the error that the certificate says; a Sobol set; fresh batches"""
    samples: Literal[*(2**i for i in range(1, 31))] = 8192
    """points of the Sobol set"""
    batch: Count = 50
    """size of a fresh batch"""
    steps: Count = 10_000
    """at most so many steps"""
    lr: Positive | None = None
    """step size; none: 2 width, at most 1/λ; at momentum 0 half of that; width/20 where all parameters are trained"""
    anneal: bool = False
    """let the step size fall to 0 over the second half of the steps, so that fresh batches' noise dies out"""
    lam: NotNegative = 1e-5
    """λ: weight of ‖W‖², W the first layer's weights; 0: what the loss leaves of W⊥ stays"""
    momentum: Momentum | None = None
    """Polyak's heavy-ball factor; none: 0.9, and 0 for fresh batches, whose noise it would amplify"""
    rho: Positive | None = None
    """ρ: the gradient norm that counts as stationary; none: λ/5, or 10⁻⁶ at λ = 0"""
    radius: NotNegative = 1e-3
    """radius of the perturbation, over all parameters as one vector; also the length of Algorithm 2's step"""
    patience: Count = 25
    """steps that a perturbation has to lower the objective"""
    algorithm: Literal["default", "1", "2"] = "default"
    """the paper's 1 (Jin et al.'s PGD) or 2 (Hessian descent) alone: no momentum, and Jin et al.'s fall of f for 1"""
    toy: bool = True
    """draw figures 1 and 2 as well"""
    data: str | None = None
    """look for directions in a table instead: .csv with a header, .npz with X and y; diabetes, breast_cancer, digits"""
    target: str | None = None
    """the table's column with the answers: numbers, or two classes; for digits, a digit to tell from the others"""
    without: tuple[str, ...] = ()
    """the table's columns to leave out"""
    drop_missing: bool = False
    """leave out the table's rows where a value is missing"""
    inputs: Literal["whiten", "scores", "raw"] = "whiten"
    """the table's: whitened; each column by its normal scores first, for heavy tails; left as they are"""
    directions: Annotated[int, Field(ge=0)] | None = None
    """how many to keep of the table's inputs; none: as many as the validation rows support"""
    max_directions: Count = 8
    """at most so many are tried on the table"""
    neurons: Count = 100
    """width of the network on the table"""
    adam_steps: Count = 500
    """steps of each of its descents: two for each λ, one for each number of directions"""
    bootstrap: Annotated[int, Field(ge=0)] = 20
    """times that the table's rows are drawn again, for the directions' stability"""
    repeats: Annotated[int, Field(ge=0)] = 1
    """times that all is done again with another seed, for the same"""
    seed: Seed = 0
    """seed of everything random"""
    device: Device = "cpu"
    """cpu, cuda, cuda:1, …"""
    checkpoint: Path | None = None
    """file to keep the run's state in as it goes; if it is there, the run goes on from it"""
    out: Path = Path(__file__).parent / "figures"
    """folder for the figures, weights.npz, history.npz and results.json"""

    def __post_init__(self) -> None:
        names = [x.name for x in fields(self)]
        for x in fields(self)[names.index("target") : names.index("seed")]:
            if self.data is None and getattr(self, x.name) != x.default:
                raise ValueError(f"--{x.name.replace('_', '-')} is of a table; --data says which one")
        if self.k > self.d:
            raise ValueError(f"--k is {self.k} and --d is {self.d}; the teacher can use at most d directions")
        if self.risk == "quadrature" and self.d > 3:
            raise ValueError(f"--risk quadrature needs --d of at most 3, not {self.d}; take --risk sobol or sampled")
        if self.algorithm != "default" and (self.momentum or self.anneal or self.risk == "sampled"):
            raise ValueError(f"--algorithm {self.algorithm} is pure: without --momentum, --anneal and --risk sampled")


def main(config: Config) -> bool:
    """Run the experiment, save its files, print the summary; returns whether Ctrl-C cut it short."""
    if config.data is not None:
        from explore import explore  # pandas and scikit-learn take a second to import

        return explore(config)
    full = complete(config)
    generator = torch.Generator(config.device).manual_seed(config.seed)
    teacher, student, data, rule = build(full, generator)
    writable(config.out)
    toys = outcome.toys(config.seed) if config.toy else {}
    checkpoint = Checkpoint(config.checkpoint, config)
    start = time.perf_counter() - checkpoint.elapsed
    training = Training(student, data, teacher.directions, full, generator, rule)
    result = training.run(checkpoint).result()

    with whole_files(config.out, outcome.SOMETIMES) as folder:
        results = {"seconds": time.perf_counter() - start} | outcome.results(full, training, result, toys)
        outcome.save(folder, config, training, result, results, toys)
    outcome.say(full, result, results)
    return result.interrupted


if __name__ == "__main__":
    command_line(main, Config, __doc__)
