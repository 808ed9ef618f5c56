"""The laws by which a module gets its initial values, read off by drawing twice."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt_cli.init.detect import guess_law
from nanogpt_cli.init.tensor_stats import measure_tensor
from nanogpt_cli.modules.starts.build import Built
from nanogpt_cli.modules.starts.draws import Write, WriteLog
from nanogpt_cli.modules.starts.meta import Slot, Slots
from nanogpt_cli.modules.starts.streaming import places

# A start at one seed; the functions below call it with several.
BuildAt = Callable[[int], nn.Module]
# The most parameters of a start that is drawn three times whole, or twice block by block.
_MOST_WHOLE, _MOST_STREAMED = 200_000_000, 1_500_000_000
_MOST_OF_ONE = 1 << 26  # entries of its largest parameter: two draws are compared at once
# Entries that agree in two draws by chance: float32 normals have about 2^24 different values.
_CHANCE = 1e-3


@dataclass(frozen=True)
class ParameterLaw:
    """How one parameter starts.

    Attributes:
        name: its name; the first one if it is tied.
        tied: its other names.
        shape: of the parameter.
        kind: ``untouched`` (memory without values), ``constant``, ``computed`` (the same in both
            draws but no constant), or ``random``.
        law: in words, such as ``normal(0.02)``.
        std: standard deviation of the entries that vary; 0 for others.
        error: standard error of ``std``, relative.
        writes: what the building code wrote into it, in order.
        declared: whether the module has a function ``_init_weights`` of its own.
        ratio: std with ``initializer_range`` doubled over ``std``; NaN if that was not tried.
    """

    name: str
    tied: tuple[str, ...]
    shape: tuple[int, ...]
    kind: str
    law: str
    std: float
    error: float
    writes: tuple[Write, ...]
    declared: bool
    ratio: float = math.nan

    @property
    def pattern(self) -> str:
        """The name with ``*`` for the index of the block, which is the first number in it."""
        return re.sub(r"(?<=\.)\d+(?=\.)", "*", self.name, count=1)

    @property
    def layer(self) -> int:
        """The index of the block; -1 outside the blocks."""
        found = re.search(r"\.(\d+)\.", self.name)
        return int(found[1]) if found else -1

    @property
    def distribution(self) -> str:
        """The law without its numbers."""
        return self.law.partition("(")[0]

    @property
    def draws(self) -> tuple[Write, ...]:
        """The draws of the whole parameter by the module's own code."""
        return tuple(w for w in self.writes if w.random and w.whole and not w.default)

    @property
    def left_to_constructor(self) -> bool:
        """Whether ``_init_weights`` leaves it as a ``torch.nn`` layer's constructor drew it."""
        return (
            self.declared
            and self.kind == "random"
            and bool(self.writes)
            and (self.writes[-1].default)
        )


def read_laws(build_at: BuildAt, doubled: BuildAt | None = None) -> list[ParameterLaw]:
    """Build a module at two seeds, watch what is written, and compare.

    Args:
        build_at: makes the module with values, at a seed.
        doubled: the same with its configuration's ``initializer_range`` doubled.
    """
    with WriteLog() as log:
        first = build_at(0)
    second = dict(build_at(1).named_parameters())
    wider = dict(doubled(0).named_parameters()) if doubled else {}
    declared = _declares(first)
    return [
        _law(names, parameter, second[names[0]], wider.get(names[0]), log, declared)
        for names, parameter in _by_names(first)
    ]


def read_streamed_laws(built: Built, blocks: Sequence[str]) -> list[ParameterLaw]:
    """As ``read_laws``, for a start on meta: one block at a time has values.

    What constructors draw is not seen: on meta they draw nothing.

    Args:
        built: a fresh start with ``fill`` and ``redraw``.
        blocks: paths of its repeated blocks.
    """
    assert built.redraw is not None
    first, second = built.redraw(0), built.redraw(1)
    assert first.fill is not None
    assert second.fill is not None
    slots, other_slots = Slots(first.module), Slots(second.module)
    others, declared = dict(second.module.named_modules()), _declares(first.module)
    found: dict[Slot, ParameterLaw] = {}
    for path, submodule in places(first.module, blocks):
        inside = path in blocks
        with WriteLog() as log:
            first.fill(path, submodule, recurse=inside)
        second.fill(path, others[path], recurse=inside)
        ours = slots.below(submodule, recurse=inside)
        theirs = other_slots.below(others[path], recurse=inside)
        for slot, other in zip(ours, theirs, strict=True):
            if slot not in found:  # a tied parameter comes up at each of its places
                names = [name for _, _, name in slot.places]
                found[slot] = _law(names, slot.current, other.current, None, log, declared)
            slot.free()
            other.free()
    return list(found.values())


def start_laws(built: Built, blocks: Sequence[str]) -> list[ParameterLaw] | None:
    """The laws of a module's start; ``None`` where there is no start, or drawing it takes minutes.

    A model of ``transformers`` is built as its users build it, by constructors and all, and once
    more with a doubled ``initializer_range``; a large one without constructors, block by block.
    """
    redraw = built.redraw
    if redraw is None:
        return None
    size = sum(p.numel() for p in built.module.parameters())
    if size > _MOST_WHOLE:
        largest = max(p.numel() for p in built.module.parameters())
        lean = built.fill is not None and size <= _MOST_STREAMED and largest <= _MOST_OF_ONE
        return read_streamed_laws(built, blocks) if lean else None
    if built.fill is None:
        return read_laws(lambda seed: redraw(seed).whole())
    from nanogpt_cli.modules.starts.library import made

    wide = copy.deepcopy(built.module.config)

    def at(seed: int, config: Any = built.module.config) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = made(config, built.label)
            return model

    return read_laws(at, (lambda seed: at(seed, wide)) if config_doubled(wide) else None)


def _declares(module: nn.Module) -> bool:
    return any(callable(getattr(m, "_init_weights", None)) for m in module.modules())


def _by_names(module: nn.Module) -> list[tuple[list[str], nn.Parameter]]:
    """Each parameter once, with all its names."""
    found: dict[nn.Parameter, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if parameter.is_floating_point():
            found.setdefault(parameter, []).append(name)
    return [(names, parameter) for parameter, names in found.items()]


def _law(
    names: list[str],
    first: Tensor,
    second: Tensor,
    wider: Tensor | None,
    log: WriteLog,
    declared: bool,
) -> ParameterLaw:
    kind, law, std, error = _compared(first.detach(), second.detach())
    ratio = math.nan
    if wider is not None and kind == "random":
        ratio = float(wider.detach().float().std() / first.detach().float().std())
    about = (names[0], tuple(names[1:]), tuple(first.shape), kind, law, std, error)
    return ParameterLaw(*about, log.of(first), declared, ratio)


def _compared(first: Tensor, second: Tensor) -> tuple[str, str, float, float]:
    """Kind, law in words, std and its relative error, from two draws of one parameter."""
    a, b = first.float().flatten(), second.float().flatten()
    if bool(a.isnan().any()):
        return "untouched", "memory without values", 0.0, 0.0
    same = a == b
    if bool(same.all()):
        if len(a) and float(a.min()) == float(a.max()):
            return "constant", f"{float(a[0]):g}", 0.0, 0.0
        return "computed", "computed, the same in every draw", 0.0, 0.0
    partly = float(same.float().mean()) > _CHANCE
    if partly:  # such as the zero row of a padding token
        stats = measure_tensor(a[~same][None, :], "", "", -1)
    else:
        stats = measure_tensor(a.view(-1, first.shape[-1]), "", "", -1)
    error = math.sqrt(max(stats.kurtosis - 1, 0.1) / (4 * max(stats.size, 1)))
    return "random", guess_law(stats, 1), stats.std, error


def by_pattern(laws: list[ParameterLaw]) -> dict[str, list[ParameterLaw]]:
    """Parameters that differ only in the index of their block, together and in its order."""
    groups: dict[str, list[ParameterLaw]] = {}
    for law in laws:
        groups.setdefault(law.pattern, []).append(law)
    return {pattern: sorted(found, key=lambda p: p.layer) for pattern, found in groups.items()}


def depth_factors(laws: list[ParameterLaw]) -> dict[str, str]:
    """Which matrices are smaller in deeper models: their factor, by pattern.

    The base is the commonest std among the matrices of the blocks. With L blocks a factor is told
    from others only if they differ by more than five standard errors and 1 %.
    """
    matrices = {
        pattern: found
        for pattern, found in by_pattern(laws).items()
        if found[0].layer >= 0 and all(p.kind == "random" and len(p.shape) > 1 for p in found)
    }
    members = [p for found in matrices.values() for p in found]
    if not members:
        return {}
    base = max(members, key=lambda p: sum(_alike(p, other) for other in members))
    count = max(len(found) for found in matrices.values())
    factors = {}
    for pattern, found in matrices.items():
        drawn_alike = all(p.distribution == base.distribution for p in found)
        if len(found) == count > 1 and drawn_alike and (name := _factor(found, base.std, count)):
            factors[pattern] = name
    return factors


def _alike(one: ParameterLaw, other: ParameterLaw) -> bool:
    return one.distribution == other.distribution and math.isclose(one.std, other.std, rel_tol=0.03)


def _factor(found: list[ParameterLaw], base: float, count: int) -> str:
    blocks = range(count)
    known: Mapping[str, list[float]] = {
        "": [1.0] * count,
        "1/√(2L)": [1 / math.sqrt(2 * count)] * count,
        "1/√L": [1 / math.sqrt(count)] * count,
        "1/(2L)": [1 / (2 * count)] * count,
        "1/√(2(l+1))": [1 / math.sqrt(2 * (block + 1)) for block in blocks],
        "1/√(l+1)": [1 / math.sqrt(block + 1) for block in blocks],
    }
    for name, factors in known.items():
        pairs = zip(found, factors, strict=True)
        apart = [abs(p.std / (base * factor) - 1) - 5 * p.error for p, factor in pairs]
        if max(apart) < 0.01:
            return name
    return ""


def config_doubled(config: Any) -> bool:
    """Double ``initializer_range`` in a configuration of ``transformers``, parts included.

    Returns:
        Whether it has one.
    """
    parts = {id(p): p for p in (config, config.get_text_config())}
    found = [p for p in parts.values() if isinstance(getattr(p, "initializer_range", None), float)]
    for part in found:
        part.initializer_range *= 2
    return bool(found)
