"""What decoder a module is, if it is a known one."""

from __future__ import annotations

from torch import nn

from nanogpt_cli.init.blueprint import Blueprint
from nanogpt_cli.modules.plan import Plan
from nanogpt_cli.modules.reader import Reader, UnclaimedError


def plan_of(module: nn.Module) -> Plan | str:
    """The plan of a known decoder, which may be on the device ``meta``, or what is unknown."""
    try:
        return Reader(module).plan()
    except UnclaimedError as unknown:
        return str(unknown)
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        return f"its configuration is not that of its model type ({error!s:.100})"


def blueprint_of(module: nn.Module) -> Blueprint | str:
    """The blueprint of a module that has values, with moments measured on its weights.

    Returns:
        The blueprint, or what part of the module is unknown.
    """
    plan = plan_of(module)
    if isinstance(plan, str):
        return plan
    parameters = dict(module.named_parameters(remove_duplicate=False))
    squares = {}
    for name, part in plan.names():
        parameter = parameters[part.parameter]
        if parameter.is_meta:
            return "its weights have no values yet"
        squares[part.key] = plan.mean_square(name, part, parameter)
    return plan.moments(squares)
