"""Measure the signals of any module by depth, at the places that ``watch`` has found.

The module runs its own forward once. Each number is taken while its tensor exists, and no tensor is
kept: a module whose blocks have values only while they run can be measured too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nanogpt_cli.errors import UserError
from nanogpt_cli.init.inspect import Inspection
from nanogpt_cli.init.probes import NEAR_ZERO, mean_cosine, rms
from nanogpt_cli.init.signals import GRADIENT_CLASSES, Signals
from nanogpt_cli.init.tensor_stats import TensorStats, measure_tensor
from nanogpt_cli.modules.anatomy import MATRICES, Anatomy
from nanogpt_cli.modules.graph.passes import (
    as_written,
    evaluation,
    find_output,
    run,
    same_noise,
    unwrapped,
)
from nanogpt_cli.modules.graph.stream import Spot, Watched
from nanogpt_cli.modules.graph.trace import tensors

# Scores at or below this are masked: libraries add -10,000, the smallest number or -infinity.
_MASKED = -9_000.0
# Roles whose gradients are one class of ``Signals.weight_grad``, as GPT-2's parameters hold them.
_CLASS = {
    "q": "c_attn", "k": "c_attn", "v": "c_attn", "attn_proj": "attn_proj",
    "gate": "fc", "fc": "fc", "mlp_proj": "mlp_proj",
}  # fmt: skip
_TABLES = (*MATRICES, "wte", "wpe", "lm_head")


def measure(
    module: nn.Module, anatomy: Watched, ids: Tensor, targets: Tensor, *, backward: bool = False
) -> Inspection:
    """Run a module on token ids and measure its signals and its matrices.

    Args:
        module: the one that was watched, or another draw of it.
        anatomy: what ``watch`` found. Overrides change parts and kinds, not where things are.
        ids, targets: (B, T) int64 token ids and next ids.
        backward: whether to measure gradients, by a second pass that keeps all activations. They
            stay empty if blocks are not modules of their own.

    Raises:
        UserError: the module fails, or computes otherwise than when it was watched.
    """
    signals, _ = signals_of(module, anatomy, ids, targets, backward=backward)
    return Inspection(signals, statistics(anatomy, module))


def signals_of(
    module: nn.Module, anatomy: Watched, ids: Tensor, targets: Tensor, *, backward: bool = False
) -> tuple[Signals, Tensor]:
    """The signals alone, and the module's own result: logits (…, V), or a last state (…, C).

    Arguments and errors are those of ``measure``.
    """
    module = unwrapped(module)
    taken = _Taken(anatomy, ids)
    _, output = run(module, ids, anatomy.forward, taken)
    signals = taken.signals()
    if anatomy.head:
        _measure_logits(signals, output.detach(), ids, targets)
    if backward:
        measure_gradients(signals, module, anatomy, ids, targets)
    return signals, output.detach()


class _Taken:
    """Collects the numbers of one pass; called after each operator on activations."""

    def __init__(self, anatomy: Watched, ids: Tensor) -> None:
        self.anatomy, self.shape = anatomy, ids.shape
        self.stream: dict[int, tuple[float, float]] = {}
        self.squares: dict[tuple[str, int], list[tuple[float, int]]] = {}
        self.entropy: dict[int, list[float]] = {}
        self.dead: dict[int, list[tuple[float, int]]] = {}
        # Which experts run, and so how many activations there are, may depend on the values.
        self.missing = {
            key: name
            for key, (name, spots) in anatomy.spots.items()
            if any(spot.what not in ("preact", "hidden") for spot in spots)
        }

    def __call__(self, key: Any, name: str, args: tuple[Any, ...], result: Any) -> None:
        """Take what the spots at this node ask for."""
        expected, spots = self.anatomy.spots.get(key, (name, ()))
        if name != expected:
            _refuse(f"{name} instead of {expected} in {key[0] or 'its forward'}")
        self.missing.pop(key, None)
        for spot in spots:
            if spot.what == "scores":
                self._scores(spot.layer, args[0], result)
            else:
                self._take(spot, _of(args, result, spot.take).float())

    def _take(self, spot: Spot, x: Tensor) -> None:
        if spot.what == "stream":
            B, T = self.shape
            batched = x.reshape(B, T, -1) if x.shape[0] != T or B == T else x.transpose(0, 1)
            self.stream[spot.layer] = rms(x), mean_cosine(batched)
            return
        size = rms(x)
        place = spot.what, spot.layer
        self.squares.setdefault(place, []).append(((spot.factor * size) ** 2, x.numel()))
        if spot.what == "hidden":
            units = x.reshape(-1, x.shape[-1])
            largest = torch.maximum(units.amax(0), -units.amin(0))
            dead = float((largest <= NEAR_ZERO * size).double().mean())
            self.dead.setdefault(spot.layer, []).append((dead, x.shape[-1]))

    def _scores(self, layer: int, scores: Tensor, weights: Tensor) -> None:
        """Scores (…, T, T) before and weights after the softmax."""
        seen = scores > _MASKED
        square = scores.double().square().masked_fill(~seen, 0).sum()
        visible = seen.sum(-1)
        count = int(visible.sum())
        self.squares.setdefault(("scores", layer), []).append(
            (float(square) / max(count, 1), count)
        )
        entropy = torch.special.entr(weights.double()).sum(-1)
        several = visible > 1
        share = entropy[several] / visible[several].double().log()
        self.entropy.setdefault(layer, []).append(float(share.mean()) if len(share) else 1.0)

    def signals(self) -> Signals:
        """The lists by block.

        Raises:
            UserError: some place was not passed.
        """
        if self.missing:
            (path, *_), name = next(iter(self.missing.items()))
            _refuse(f"no {name} in {path or 'its forward'}")
        found = Signals()
        n = len(self.anatomy.blocks)
        nothing = math.nan, math.nan
        found.stream_rms, found.cosine = (
            list(values)
            for values in zip(*(self.stream.get(i, nothing) for i in range(n + 1)), strict=True)
        )
        for layer in range(n):
            found.attn_rms.append(self._added("attn", layer))
            found.mlp_rms.append(self._added("mlp", layer))
            found.score_std.append(self._pooled("scores", layer))
            found.preact_std.append(self._pooled("preact", layer))
            entropies = self.entropy.get(layer, [math.nan])
            found.attn_entropy.append(sum(entropies) / len(entropies))
            found.near_zero.append(_mean(self.dead.get(layer, [])))
        token, position = self._added("token", 0) ** 2, self._added("position", 0) ** 2
        found.token_share = 1.0 if math.isnan(position) else token / max(token + position, 1e-300)
        return found

    def _added(self, what: str, layer: int) -> float:
        """RMS of a sum of independent additions; NaN without any."""
        squares = [square for square, _ in self.squares.get((what, layer), [])]
        return math.sqrt(sum(squares)) if squares else math.nan

    def _pooled(self, what: str, layer: int) -> float:
        return math.sqrt(_mean(self.squares.get((what, layer), [])))


def _refuse(difference: str) -> NoReturn:
    raise UserError(
        f"the module does not compute what it did when it was watched: {difference}",
        "it must do the same at every call: does it draw random numbers, or keep something?",
    )


def _mean(items: list[tuple[float, int]]) -> float:
    """Mean of (value, weight) pairs; NaN without any."""
    total = sum(weight for _, weight in items)
    return sum(value * weight for value, weight in items) / total if total else math.nan


def _of(args: tuple[Any, ...], result: Any, take: int) -> Tensor:
    """A node's tensor argument or result, as ``Spot.take`` says."""
    if take < 0:
        found = [item for item in args if isinstance(item, Tensor)][-1 - take]
    else:
        found = result if isinstance(result, Tensor) else result[take]
    return found


def _measure_logits(signals: Signals, logits: Tensor, ids: Tensor, targets: Tensor) -> None:
    """Losses and sizes of logits (…, V) of the tokens, in the order of ``ids``."""
    flat = in_order(logits, ids).float()  # (N, V)
    lse = flat.logsumexp(1).double()
    mean = flat.double().mean(1)

    def at(chosen: Tensor) -> Tensor:
        return flat.gather(1, chosen.reshape(-1, 1)).squeeze(1).double()

    signals.loss = float((lse - at(targets)).mean())
    signals.loss_any = float((lse - mean).mean())
    signals.logit_std = math.sqrt(float(flat.double().var(1, correction=0).mean()))
    signals.own_logit = float((at(ids) - mean).mean())


def in_order(logits: Tensor, ids: Tensor) -> Tensor:
    """Logits as (B·T, V), in the order of the ids (B, T); those of (T, B, V) are turned."""
    if logits.dim() == 3 and logits.shape[:2] == ids.shape[::-1] != ids.shape:
        logits = logits.transpose(0, 1)
    return logits.reshape(-1, logits.shape[-1])


def measure_gradients(
    signals: Signals, module: nn.Module, anatomy: Watched, ids: Tensor, targets: Tensor
) -> str:
    """Gradients by plain autograd, with the stream taken from the blocks' arguments and results.

    Returns:
        why there are none; empty if they were written into ``signals``.
    """
    if not all(anatomy.blocks):
        return "its blocks are not modules of their own"
    if not anatomy.head:
        return "it has no head, and thus no loss"
    module = unwrapped(module)
    parameters = dict(module.named_parameters())
    wanted = {part.parameter for part in anatomy.of_role(*_CLASS)}
    frozen = [p for p in parameters.values() if not p.requires_grad]
    try:
        for p in frozen:
            p.requires_grad_()
        with (
            evaluation(module), same_noise(), as_written(), torch.enable_grad(),
            _StreamTensors(module, anatomy) as stream,
        ):  # fmt: skip
            output = find_output(anatomy.forward(module, ids), ids)
            assert output is not None  # the first pass gave one
            loss = F.cross_entropy(in_order(output, ids).float(), targets.reshape(-1))
            if not loss.requires_grad:
                return "its forward pass turns gradients off"
            names = sorted(wanted)
            inputs = [*stream.tensors, *(parameters[name] for name in names)]
            found = torch.autograd.grad(loss, inputs, allow_unused=True)
    finally:
        for p in frozen:
            p.requires_grad_(False)
    if len(stream.tensors) != len(anatomy.blocks) + 1:
        return "its blocks are not called one after another"
    n = len(stream.tensors)
    signals.grad_rms = [rms(g) if g is not None else 0.0 for g in found[:n]]
    _class_norms(signals, anatomy, dict(zip(names, found[n:], strict=True)))
    return ""


def _class_norms(signals: Signals, anatomy: Anatomy, gradients: dict[str, Tensor | None]) -> None:
    squares = {name: [0.0] * len(anatomy.blocks) for name in GRADIENT_CLASSES}
    for part in anatomy.of_role(*_CLASS):
        gradient = gradients[part.parameter]
        if part.layer >= 0 and gradient is not None:
            own = float(part.of(gradient).double().square().sum())
            squares[_CLASS[part.role]][part.layer] += own
    signals.weight_grad = _roots(squares)


def _roots(squares: dict[str, list[float]]) -> dict[str, list[float]]:
    return {name: [math.sqrt(v) for v in values] for name, values in squares.items()}


def class_norms(anatomy: Anatomy, norms: Mapping[str, float]) -> dict[str, list[float]]:
    """``Signals.weight_grad`` from the norms of whole parameters' gradients, by name.

    A class stays empty if a parameter holds matrices of several: its norm cannot be divided.
    """
    squares = {name: [0.0] * len(anatomy.blocks) for name in GRADIENT_CLASSES}
    classes: dict[str, tuple[int, set[str]]] = {}
    for part in anatomy.of_role(*_CLASS):
        if part.layer >= 0:
            classes.setdefault(part.parameter, (part.layer, set()))[1].add(_CLASS[part.role])
    for name, (layer, kinds) in classes.items():
        for kind in kinds:
            squares[kind][layer] += norms.get(name, 0.0) ** 2
    mixed = {kind for _, kinds in classes.values() if len(kinds) > 1 for kind in kinds}
    return _roots({name: [] if name in mixed else squares[name] for name in squares})


class _StreamTensors:
    """Context that keeps the stream at each block's entrance and at the last one's exit."""

    def __init__(self, module: nn.Module, anatomy: Watched) -> None:
        self.module, self.anatomy = module, anatomy
        self.tensors: list[Tensor] = []
        self._handles: list[Any] = []

    def __enter__(self) -> _StreamTensors:
        for path in dict.fromkeys(self.anatomy.blocks):
            block = self.module.get_submodule(path)
            self._handles.append(block.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(block.register_forward_hook(self._behind))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        count = len(self.tensors)
        if count < len(self.anatomy.blocks):
            entry = self.anatomy.entries[count]
            self.tensors.append(list(tensors((args, kwargs)))[entry])

    def _behind(self, _: nn.Module, __: Any, output: Any) -> None:
        if len(self.tensors) == len(self.anatomy.blocks):
            self.tensors.append(list(tensors(output))[self.anatomy.exit])


def statistics(anatomy: Anatomy, module: nn.Module) -> list[TensorStats]:
    """Statistics of each matrix of a module that has values."""
    found: list[TensorStats] = []
    observer(anatomy, found)("", module)
    return found


def observer(anatomy: Anatomy, into: list[TensorStats]) -> Callable[[str, nn.Module], None]:
    """A function that appends the statistics of a submodule's matrices while they have values.

    It takes a path and the submodule there: the whole module, or a block, with all they hold; of
    another submodule its own parameters.
    """
    tables = anatomy.of_role(*_TABLES)

    def observe(path: str, submodule: nn.Module) -> None:
        prefix = f"{path}." if path else ""
        whole = not path or path in anatomy.blocks
        own = {prefix + n: p for n, p in submodule.named_parameters(recurse=whole)}
        for part in tables:
            values = own.get(part.parameter)
            if values is not None and not values.is_meta:
                matrix = part.of(values).float()
                if matrix.dim() == 2 and matrix.numel():
                    into.append(measure_tensor(matrix, part.key, part.role, part.layer))

    return observe
