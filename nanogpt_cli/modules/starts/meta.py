"""Parameters of a module on the device ``meta``, and the places that hold each of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True, eq=False)
class Slot:
    """One parameter and every place that holds it; a tied parameter has several places.

    Attributes:
        empty: the parameter on meta, put back when the values are freed.
        places: (module, attribute, full name) for each registration.
    """

    empty: nn.Parameter
    places: tuple[tuple[nn.Module, str, str], ...]

    @property
    def current(self) -> nn.Parameter:
        """The parameter that is registered now."""
        module, attribute, _ = self.places[0]
        found = module._parameters[attribute]
        assert found is not None
        return found

    @property
    def filled(self) -> bool:
        """Whether it has values now."""
        return not self.current.is_meta

    def set(self, parameter: nn.Parameter) -> None:
        """Register ``parameter`` in every place."""
        for module, attribute, _ in self.places:
            module._parameters[attribute] = parameter

    def allocate(self) -> None:
        """Register memory without values on the CPU."""
        values = torch.empty_like(self.empty, device="cpu")
        self.set(nn.Parameter(values, requires_grad=self.empty.requires_grad))

    def free(self) -> None:
        """Go back to meta."""
        self.set(self.empty)


class Slots:
    """All parameters of a module that is on meta."""

    def __init__(self, module: nn.Module) -> None:
        places: dict[nn.Parameter, list[tuple[nn.Module, str, str]]] = {}
        for path, owner in module.named_modules():
            for attribute, parameter in owner._parameters.items():
                if parameter is not None:
                    name = f"{path}.{attribute}" if path else attribute
                    places.setdefault(parameter, []).append((owner, attribute, name))
        self.all = [Slot(parameter, tuple(found)) for parameter, found in places.items()]
        self._of = {(id(m), a): slot for slot in self.all for m, a, _ in slot.places}

    def below(self, submodule: nn.Module, *, recurse: bool = True) -> list[Slot]:
        """The parameters of a submodule, each once.

        Args:
            submodule: part of the module.
            recurse: whether to include those of the modules inside it.
        """
        owners: Iterable[nn.Module] = submodule.modules() if recurse else (submodule,)
        found = [self._of.get((id(m), a)) for m in owners for a in m._parameters]
        return list(dict.fromkeys(slot for slot in found if slot is not None))
