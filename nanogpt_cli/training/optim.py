"""Parameter groups, optimizers and the learning rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt_cli import recipe, schemes
from nanogpt_cli.machine.distributed import Group, like
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.model.parameters import is_block_matrix, stacked_matrices, update_class
from nanogpt_cli.training.optimizers.adamw import AdamW, Optimizer
from nanogpt_cli.training.optimizers.muon import Muon


def lr_factor(step: int, optim: recipe.Optim, max_steps: int) -> float:
    """The learning rate of ``step`` (from 0) as a share of its peak.

    Linear warmup, then by ``optim.schedule``: "cosine" and "linear" fall to min_lr/lr at
    ``max_steps``, "wsd" (warmup-stable-decay, Hu et al. 2024) stays up and falls during the last
    ``decay_fraction`` linearly or as 1-√, "constant" stays.
    """
    if step < optim.warmup_steps:
        return (step + 1) / (optim.warmup_steps + 1)
    floor = optim.min_lr / optim.lr
    return floor + (1 - floor) * _decay(step, optim, max_steps)


def _decay(step: int, optim: recipe.Optim, max_steps: int) -> float:
    """1 at the end of warmup, 0 at ``max_steps``."""
    if optim.schedule == "constant":
        return 1.0
    start = optim.warmup_steps
    if optim.schedule == "wsd":
        start = max(start, round(max_steps * (1 - optim.decay_fraction)))
    done = min(max((step - start) / max(1, max_steps - start), 0.0), 1.0)
    if optim.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * done))
    if optim.schedule == "wsd" and optim.decay_shape == "1-sqrt":
        return 1 - math.sqrt(done)
    return 1 - done


def takes_muon(optim: recipe.Optim, name: str, parameter: Tensor) -> bool:
    """Whether Muon updates a parameter: the matrices of the blocks, if the recipe asks for it."""
    return optim.name == "muon" and is_block_matrix(name, parameter.shape)


def _groups(
    model: GPT, optim: recipe.Optim, scheme: schemes.Scheme
) -> Iterator[tuple[str, str, nn.Parameter, dict[str, Any]]]:
    """(optimizer, name, parameter, options) of every parameter.

    Matrices decay; vectors (biases, the gains of norms) do not. Muon takes the matrices of the
    blocks; embeddings and a head stay with AdamW. A scheme of the µP family multiplies learning
    rate, decay and AdamW's ε of some classes.
    """
    config = model.config
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2
        muon = takes_muon(optim, name, parameter)
        # Orthogonal updates have the size that a width asks for already (Yang et al. 2310.17813),
        # so of a scheme's factor Muon takes the part for depth alone.
        width = scheme.base_width if muon else config.n_embd
        kind, shape = update_class(name), {"n_embd": width, "n_layer": config.n_layer}
        decay = optim.weight_decay * scheme.decay_multiplier(kind, **shape)
        options = {
            "lr_scale": scheme.lr_multiplier(kind, **shape),
            "weight_decay": decay if matrix else 0.0,
            "peak_lr": optim.muon_lr if muon else optim.lr,
        }
        if muon:
            options["split"] = stacked_matrices(name)
        else:
            options["eps"] = optim.eps * scheme.eps_multiplier(kind, **shape)
        yield "muon" if muon else "adamw", name, parameter, options


class Optimizers:
    """The optimizers of a run behind one ``step``, with state tensors by parameter name."""

    def __init__(
        self,
        model: GPT,
        optim: recipe.Optim,
        scheme: schemes.Scheme,
        *,
        max_steps: int,
        muon_dtype: torch.dtype = torch.float32,
        group: Group = Group(),  # noqa: B008 - frozen
    ) -> None:
        self.optim = optim
        self.max_steps = max_steps
        self.names: dict[Tensor, str] = {}
        groups: dict[tuple[str, str], dict[str, Any]] = {}
        for kind, name, parameter, options in _groups(model, optim, scheme):
            self.names[parameter] = name
            key = (kind, repr(sorted(options.items())))
            groups.setdefault(key, {"params": [], **options})["params"].append(parameter)
        by_kind = {kind: [g for (k, _), g in groups.items() if k == kind] for kind, _ in groups}
        self.members: list[Optimizer] = []
        if "adamw" in by_kind:
            self.members.append(
                AdamW(by_kind["adamw"], lr=optim.lr, betas=optim.betas, eps=optim.eps)
            )
        if "muon" in by_kind:
            self.members.append(
                Muon(
                    by_kind["muon"],
                    lr=optim.muon_lr,
                    momentum=optim.momentum,
                    weight_decay=optim.weight_decay,
                    ns_steps=optim.ns_steps,
                    dtype=muon_dtype,
                    group=group,
                )
            )

    def set_lr(self, step: int, factor: float = 1.0) -> float:
        """Set the learning rates of ``step``; returns AdamW's.

        Args:
            step: from 0.
            factor: the user's multiplier.
        """
        share = lr_factor(step, self.optim, self.max_steps) * factor
        for member in self.members:
            for group in member.param_groups:
                group["lr"] = group["peak_lr"] * group["lr_scale"] * share
        return self.optim.lr * share

    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for member in self.members:
            member.step()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for member in self.members:
            member.zero_grad()

    def tensors(self) -> dict[str, Tensor]:
        """Every state tensor as ``PARAMETER.NAME``."""
        return {
            f"{self.names[parameter]}.{key}": value
            for member in self.members
            for parameter, state in member.state.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        """The inverse of ``tensors``.

        Raises:
            ValueError: a tensor belongs to no parameter, has the wrong shape, or is missing where
                other parameters of the same optimizer have it.
        """
        owners = {
            name: (member, parameter)
            for member in self.members
            for group in member.param_groups
            for parameter in group["params"]
            for name in [self.names[parameter]]
        }
        for key, value in tensors.items():
            name, _, item = key.rpartition(".")
            if name not in owners:
                raise ValueError(f"optimizer state {key} belongs to no parameter of the model")
            member, parameter = owners[name]
            if value.dim() and value.shape != parameter.shape:
                raise ValueError(f"optimizer state {key} is {tuple(value.shape)}")
            # Fused AdamW counts its steps on the parameter's device.
            placed = like(value, parameter) if value.dim() else value.to(parameter.device)
            member.state[parameter][item] = placed.clone()
        for member in self.members:
            items = {item for state in member.state.values() for item in state}
            for parameter, state in member.state.items():
                if lacking := sorted(items - state.keys()):
                    raise ValueError(
                        f"optimizer state {self.names[parameter]}.{lacking[0]} is missing"
                    )
