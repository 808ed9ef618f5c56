"""The check of a plan and its moments for a module whose values come and go.

A large module has values block by block only. A ``Witness`` sees each part while they are there,
and runs the reference pass beside the module's own.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nanogpt_cli.init.blueprint import Blueprint
from nanogpt_cli.modules.plan import Plan
from nanogpt_cli.modules.reference import Reference, Values, apart


class Witness:
    """Sees every part of a module once, in the order in which they run.

    Args:
        plan: what is claimed of the module.
        ids: (B, T) token ids that the module runs on at the same time.

    Attributes:
        logits: those of the reference pass, (B, T, V), after the head was seen.
    """

    def __init__(self, plan: Plan, ids: Tensor) -> None:
        self.plan, self.reference = plan, Reference(plan, ids)
        self.squares: dict[str, float] = {}
        self.rows: list[Tensor] = []
        self.held: dict[str, Tensor] = {}
        self.logits: Tensor | None = None
        self.next = 0

    @torch.no_grad()
    def observe(self, path: str, submodule: nn.Module) -> None:
        """See a submodule that has values now; the signature is that of ``streaming.Observe``."""
        prefix = f"{path}." if path else ""
        own: dict[str, Tensor] = {
            prefix + name: p for name, p in submodule.named_parameters(remove_duplicate=False)
        }
        if path in self.plan.paths:
            self._block(self.plan.paths.index(path), own.__getitem__)
        else:
            self._outside(own)

    def blueprint(self) -> Blueprint | str:
        """The blueprint with the moments of what was seen, or why there is none."""
        if any(part.key not in self.squares for _, part in self.plan.names()):
            return "not all of its weights were seen"
        return self.plan.moments(self.squares)

    def difference(self, logits: Tensor) -> float:
        """As ``reference.agrees``, for the module's logits; infinite if the head was not seen."""
        return math.inf if self.logits is None else apart(logits, self.logits)

    def _block(self, number: int, values: Values) -> None:
        for name, part in self.plan.blocks[number].items():
            self.squares[part.key] = self.plan.mean_square(name, part, values(part.parameter))
        if number == self.next == 0 and self.rows:
            self.reference.start_from(torch.as_tensor(sum(self.rows)))
        if number == self.next and self.rows:
            self.reference.block(number, values)
            self.next += 1

    def _outside(self, own: dict[str, Tensor]) -> None:
        for name, part in self.plan.outside.items():
            if part.parameter not in own or part.key in self.squares:
                continue
            self.squares[part.key] = self.plan.mean_square(name, part, own[part.parameter])
            if name in ("wte", "wpe"):
                self.rows.append(self.reference.rows(name, own.__getitem__))
            elif name != "lm_head":
                self.held[part.parameter] = own[part.parameter].detach().clone()
        if "lm_head.weight" in own and self.next == len(self.plan.blocks):
            table = self.plan.outside["wte"].parameter
            seen = {table: own["lm_head.weight"], **self.held, **own}
            self.logits = self.reference.head(seen.__getitem__)
