"""Preconditioned sharpness before the first step: what learning rate needs no warmup?

Adam's step is η·P⁻¹·m with a diagonal P. Along an eigenvector of P^(-1/2)·H·P^(-1/2), H the Hessian
of the loss, a quadratic with eigenvalue λ is stable under it while λ < (2 + 2β₁)/((1 - β₁)·η),
which is 38/η for β₁ = 0.9 (Cohen et al. 2207.14484). Training that starts above this limit grows
along that direction until the loss is flatter, and warmup is the time given to flatten it (Kalra
and Barkeshli 2406.09405).

P is √v + ε. At the first step √v is |g|, which is close to zero in many places by chance, so that λ
is large; a few batches later v is a mean over them, and such places have gone. Only the second
limit tells the learning rates at which the loss rises (docs/initialisation.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogpt_cli.init.lanczos import lanczos
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.training.optim import Optimizers
from nanogpt_cli.training.optimizers.adamw import AdamW

PRODUCTS = 10
# Batches whose gradients make up Adam's second moment.
BATCHES = 8


@dataclass(frozen=True)
class Sharpness:
    """The result of ``sharpness``.

    Attributes:
        value: largest eigenvalue λ of the preconditioned Hessian, for a learning rate of 1 times
            each group's own factor. Lanczos approaches it from below.
        estimates: λ after each Hessian-vector product.
        beta1: of the optimizer.
    """

    value: float
    estimates: tuple[float, ...]
    beta1: float

    @property
    def limit(self) -> float:
        """η at which λ = (2 + 2β₁)/((1 - β₁)·η)."""
        return (2 + 2 * self.beta1) / ((1 - self.beta1) * self.value)


def sharpness(
    model: GPT,
    optimizers: Optimizers,
    batches: Sequence[tuple[Tensor, Tensor]],
    *,
    products: int = PRODUCTS,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Sharpness:
    """Measure λ of the loss on the first batch by the Lanczos method.

    Args:
        model: before its first step, without dropout.
        optimizers: AdamW alone, for ε, β₁ and the factors on the learning rate.
        batches: (ids, next ids), (B, T) int64 each, whose gradients make P; one for that of the
            first step.
        products: Hessian-vector products; each costs about two backward passes.
        seed: of the first direction.
        progress: called with (products done, products).
    """
    (adamw,) = optimizers.members
    assert isinstance(adamw, AdamW)
    params = [p for group in adamw.param_groups for p in group["params"]]
    # The fused attention kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        half = _inverse_root(model, adamw, params, batches)
        _, loss = model(*batches[0])
        gradients = torch.autograd.grad(loss, params, create_graph=True)

        def product(v: Sequence[Tensor]) -> list[Tensor]:
            scaled = [h * x for h, x in zip(half, v, strict=True)]
            found = torch.autograd.grad(gradients, params, scaled, retain_graph=True)
            return [h * x for h, x in zip(half, found, strict=True)]

        estimates = lanczos(product, params, products, seed, progress)
    return Sharpness(estimates[-1], tuple(estimates), adamw.param_groups[0]["betas"][0])


def _inverse_root(
    model: GPT, adamw: AdamW, params: Sequence[Tensor], batches: Sequence[tuple[Tensor, Tensor]]
) -> list[Tensor]:
    """P^(-1/2) of each parameter, with its group's factor on the learning rate."""
    squares = [torch.zeros_like(p) for p in params]
    for idx, targets in batches:
        _, loss = model(idx, targets)
        for square, g in zip(squares, torch.autograd.grad(loss, params), strict=True):
            square.addcmul_(g, g, value=1 / len(batches))
    groups = [group for group in adamw.param_groups for _ in group["params"]]
    return [
        (group["lr_scale"] / (square.sqrt() + group["eps"])).sqrt()
        for square, group in zip(squares, groups, strict=True)
    ]
