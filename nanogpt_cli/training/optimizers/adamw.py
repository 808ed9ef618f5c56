"""AdamW by PyTorch's fused kernel, without the class around it.

``torch.optim.Optimizer`` imports ``torch._dynamo`` when it is first made, 1,600 modules that take
longer to load than a small model takes to set up. What it adds (hooks, capturable and
differentiable steps, state dictionaries by number) is not used here. ``torch.optim.AdamW`` is the
slow twin in the tests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nanogpt_cli.machine import parts
from nanogpt_cli.machine.distributed import local

# Values that one thread has updated before another is awake.
_FEW = 1 << 20


class Optimizer:
    """Parameters in groups with options, and state tensors by parameter.

    Args:
        params: parameters, or groups of them: mappings with ``params`` and options of their own.
        defaults: options of a group that has none.
    """

    def __init__(self, params: Iterable[Any], defaults: Mapping[str, Any]) -> None:
        found = list(params)
        groups = found if found and isinstance(found[0], Mapping) else [{"params": found}]
        self.param_groups: list[dict[str, Any]] = [
            {**defaults, **group, "params": list(group["params"])} for group in groups
        ]
        self.state: defaultdict[Tensor, dict[str, Any]] = defaultdict(dict)

    def step(self, n_parts: int = 1) -> None:
        """Update every parameter that has a gradient.

        Args:
            n_parts: CPU threads that share the parameters, an operation on each
                (``machine/parts.py``); 1 leaves it to PyTorch to spread single operations.
        """
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


class AdamW(Optimizer):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), one kernel a group.

    Args:
        params: groups; a group may set ``lr`` and ``weight_decay``.
        lr: step size.
        betas: decays of the two moments.
        eps: added to the root of the second moment.
        weight_decay: scaled by the learning rate.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, n_parts: int = 1) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            for p in params:
                if not self.state[p]:
                    self.state[p] |= {
                        "step": torch.zeros((), device=p.device),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
            few = sum(p.numel() for p in params) < _FEW
            update = partial(self._update, params, group)
            parts.run(update, range(len(params)), 1 if few else n_parts)

    @torch.no_grad()  # of the thread that calls it
    def _update(self, params: list[Tensor], group: Mapping[str, Any], mine: range) -> None:
        chosen = params[mine.start : mine.stop]
        if not chosen:
            return
        states = [self.state[p] for p in chosen]
        steps = [state["step"] for state in states]
        torch._foreach_add_(steps, 1)
        torch._fused_adamw_(
            [local(p) for p in chosen],
            [local(p.grad) for p in chosen if p.grad is not None],
            [local(state["exp_avg"]) for state in states],
            [local(state["exp_avg_sq"]) for state in states],
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )
