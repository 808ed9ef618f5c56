"""Inspect a module of any architecture: one pass in which all that is told of it is measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from nanogpt_cli.errors import UserError
from nanogpt_cli.init.inspect import Inspection
from nanogpt_cli.init.lint import Verdict
from nanogpt_cli.init.lint_parts import on_parts
from nanogpt_cli.init.lint_signals import on_signals, on_trained
from nanogpt_cli.init.signals import Signals
from nanogpt_cli.init.tensor_stats import TensorStats
from nanogpt_cli.model.rms_norm import RMSNorm
from nanogpt_cli.modules.anatomy import Anatomy
from nanogpt_cli.modules.blueprint import plan_of
from nanogpt_cli.modules.faults.lint import forward_mismatch, lint, looks_trained, nearest_scheme
from nanogpt_cli.modules.faults.sketch import Sketch, sketch
from nanogpt_cli.modules.graph import stream
from nanogpt_cli.modules.graph.blocks import likely_blocks
from nanogpt_cli.modules.graph.override import Override
from nanogpt_cli.modules.graph.stream import Watched
from nanogpt_cli.modules.measure import class_norms, measure_gradients, observer, signals_of
from nanogpt_cli.modules.reference import TOLERANCE, agrees
from nanogpt_cli.modules.sizes import sizes_of
from nanogpt_cli.modules.starts.build import Built
from nanogpt_cli.modules.starts.gradients import stream_gradients
from nanogpt_cli.modules.starts.library import in_one_line
from nanogpt_cli.modules.starts.streaming import streamed
from nanogpt_cli.modules.theory import expectation
from nanogpt_cli.modules.witness import Witness

OnProgress = Callable[[int, int], None]
# The most tokens that theory is computed on: its cost grows with their square.
_THEORY_TOKENS = 512
_FEW = 8  # positions on which a module's structure shows


@dataclass(frozen=True)
class ModuleInspection:
    """What was found in a module.

    Attributes:
        found: signals by block and statistics of every matrix.
        expected: what theory expects of them, or ``None``.
        unclaimed: why theory is not claimed, or what it leaves out; empty if all is there.
        ungraded: why there are no gradients; empty if there are, or none were wanted.
        verdicts: on the forward pass, the weights and the signals.
        trained: whether the weights are trained.
        scheme: the known scheme that a start follows, as ``gpt2 × 0.5``; empty if none is near.
    """

    found: Inspection
    expected: Signals | None
    unclaimed: str
    ungraded: str
    verdicts: list[Verdict]
    trained: bool
    scheme: str


def _tolerance(module: nn.Module, anatomy: Anatomy) -> float:
    """The difference of logits that rounding explains, as a share of the largest.

    About ten operators of a block round in the format of the weights, each on its own.
    """
    formats = {p.dtype for p in module.parameters() if p.is_floating_point()}
    eps = max((torch.finfo(dtype).eps for dtype in formats), default=0.0)
    return max(TOLERANCE, eps * math.sqrt(10 * max(1, len(anatomy.blocks))))


def _table_rows(module: nn.Module, anatomy: Anatomy) -> int:
    """Rows of the token embedding; 0 if it is not found."""
    shapes = {name: p.shape for name, p in module.named_parameters()}
    return next((shapes[p.parameter][0] for p in anatomy.of_role("wte")), 0)


def watch(built: Built, ids: Tensor, override: Override | None = None) -> Watched:
    """Find the stream and the roles of a module; see ``stream.watch``.

    On meta nothing is computed. Experts, which are chosen by value, need values for that.
    """
    try:
        with _kept_buffers(built.module):
            return stream.watch(built.module, ids, override=override)
    except UserError:
        if built.fill is None:
            raise
    with streamed(built, likely_blocks(built.module)):
        return stream.watch(built.module, ids, override=override)


@contextmanager
def _kept_buffers(module: nn.Module) -> Iterator[None]:
    """Give back buffers that a pass replaces, as by some on the device of its activations: meta."""
    kept = [(child, dict(child._buffers)) for child in module.modules()]
    try:
        yield
    finally:
        for child, buffers in kept:
            child._buffers.update(buffers)


def inspect(
    built: Built,
    anatomy: Watched,
    ids: Tensor,
    targets: Tensor,
    *,
    backward: bool = True,
    progress: OnProgress | None = None,
) -> ModuleInspection:
    """Measure a module and judge it, with the values of one block at a time where it is lean.

    Args:
        built: the module.
        anatomy: what ``stream.watch`` found in it on token ids of this shape.
        ids, targets: (B, T) int64 token ids and next ids.
        backward: whether to measure gradients, in a second pass.
        progress: called with (blocks done, total blocks).

    Raises:
        UserError: the module fails on these tokens.
    """
    blocks = tuple(dict.fromkeys(path for path in anatomy.blocks if path))
    lean = built.fill is not None
    seen = _Seen(built.module, anatomy, ids, blocks, progress)
    with streamed(built, blocks, seen):
        signals, logits = signals_of(built.module, anatomy, ids, targets)
    ungraded = ""
    if backward:
        try:
            if lean:
                ungraded = _stream_gradients(signals, built, anatomy, blocks, ids, targets)
            else:
                ungraded = measure_gradients(signals, built.module, anatomy, ids, targets)
        except Exception as error:  # a forward pass need not be one that can be differentiated
            ungraded = f"its backward pass raised {in_one_line(error)}"
    trained = not built.fresh and looks_trained(seen.sketches)
    depth = len(anatomy.blocks)
    verdicts = lint(seen.sketches, tied=anatomy.tied, trained=trained, depth=depth)
    expected, unclaimed = None, seen.unclaimed
    comparable = seen.witness is not None and bool(logits.isfinite().all())
    allowed = _tolerance(built.module, anatomy)
    if comparable and not (apart := seen.difference(logits)) <= allowed:
        unclaimed = "its own code computes something else than the model it is named after"
        verdicts.append(forward_mismatch(apart))
    if trained:
        unclaimed = unclaimed or "theory is of a start, and these weights are trained"
        verdicts += on_trained(signals, head=anatomy.head)
    else:
        if not unclaimed:
            expected, unclaimed = seen.expected(ids, targets, backward=bool(signals.grad_rms))
        sizes = sizes_of(built.module, anatomy.width, _table_rows(built.module, anatomy))
        verdicts += on_signals(
            signals, sizes, expected, head=anatomy.head, known=expected is not None,
            normed=anatomy.normed,
            by_position={s.part.layer for s in seen.sketches if s.placed and s.part.role == "q"},
        )  # fmt: skip
        plan = seen.witness.blueprint() if expected is not None and seen.witness else ""
        if not isinstance(plan, str):
            verdicts += on_parts(plan, sizes.block_size, signals.stream_rms[0])
    found = Inspection(signals, seen.tensors)
    scheme = "" if trained else nearest_scheme(seen.sketches, tied=anatomy.tied, depth=depth)
    return ModuleInspection(found, expected, unclaimed, ungraded, verdicts, trained, scheme)


def judge_weights(module: nn.Module, *, trained: bool | None = None) -> tuple[list[Verdict], bool]:
    """Faults in the weights of a module that is in memory, and whether they are trained.

    Args:
        module: with values; its call maps token ids to logits.
        trained: if it is known; else the weights tell.
    """
    sizes = sizes_of(module)
    ids = torch.arange(min(_FEW, sizes.block_size or _FEW))[None] % max(1, sizes.vocab_size)
    anatomy = stream.watch(module, ids)
    parameters = dict(module.named_parameters())
    with torch.no_grad():
        sketches = [sketch(p, p.of(parameters[p.parameter]).float()) for p in anatomy.parts]
    known = looks_trained(sketches) if trained is None else trained
    found = lint(
        sketches, tied=anatomy.tied, trained=known, depth=len(anatomy.blocks),
        plain_gains=_plain_gains(module, sketches),
    )  # fmt: skip
    return found, known


def _plain_gains(module: nn.Module, sketches: list[Sketch]) -> frozenset[str]:
    """The gains that are multiplied with as they are; some models' norms take 1 + gain."""
    plain = (RMSNorm, nn.RMSNorm, nn.LayerNorm)
    return frozenset(
        s.key
        for s in sketches
        if s.part.role in ("norm", "qk_norm")
        and isinstance(module.get_submodule(s.part.parameter.rpartition(".")[0]), plain)
    )


class _Seen:
    """Called with each part of a module while it has values; keeps numbers only."""

    def __init__(
        self,
        module: nn.Module,
        anatomy: Anatomy,
        ids: Tensor,
        blocks: Sequence[str],
        progress: OnProgress | None,
    ) -> None:
        self.module, self.anatomy, self.ids, self.blocks = module, anatomy, ids, blocks
        self._progress, self._done = progress, 0
        self.tensors: list[TensorStats] = []
        self.sketches: list[Sketch] = []
        self._observe = observer(anatomy, self.tensors)
        plan = plan_of(module)
        self.unclaimed = plan if isinstance(plan, str) else ""
        self.witness = None if isinstance(plan, str) else Witness(plan, ids)

    @torch.no_grad()
    def __call__(self, path: str, submodule: nn.Module) -> None:
        """See ``streaming.Observe``."""
        with _disable_current_modes():  # what is computed here is no part of the module's pass
            self._look(path, submodule)
        if path in self.blocks:
            self._done += 1
            if self._progress is not None:
                self._progress(self._done, len(self.blocks))

    def _look(self, path: str, submodule: nn.Module) -> None:
        self._observe(path, submodule)
        prefix = f"{path}." if path else ""
        whole = path in self.blocks
        own = {prefix + name: p for name, p in submodule.named_parameters(recurse=whole)}
        for part in self.anatomy.parts:
            if part.parameter in own:
                self.sketches.append(sketch(part, part.of(own[part.parameter]).float()))
        if self.witness is not None:
            try:
                self.witness.observe(path, submodule)
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError):
                self.witness = None
                self.unclaimed = "its weights are not those that its configuration describes"

    def difference(self, logits: Tensor) -> float:
        """How far the module's own logits are from those of its plan; see ``reference.agrees``."""
        assert self.witness is not None
        if self.witness.logits is None and not any(p.is_meta for p in self.module.parameters()):
            # Its parts were seen in another order than that in which they run.
            return agrees(self.module, self.witness.plan, self.ids)
        return self.witness.difference(logits)

    def expected(
        self, ids: Tensor, targets: Tensor, *, backward: bool
    ) -> tuple[Signals | None, str]:
        """What theory expects on (the first of) these tokens, or why nothing."""
        assert self.witness is not None
        blueprint = self.witness.blueprint()
        if isinstance(blueprint, str):
            return None, blueprint
        n, part = ids.numel(), (slice(None), slice(None))
        if n > _THEORY_TOKENS:
            part = (slice(0, 1), slice(0, _THEORY_TOKENS))
        theory = expectation(blueprint, ids[part], targets[part], backward=backward)
        found = theory.signals
        if found is not None and (few := ids[part].numel()) < n:
            found.grad_rms = [g * few / n for g in found.grad_rms]
            found.weight_grad = {}
        return found, theory.reason


def _stream_gradients(
    signals: Signals,
    built: Built,
    anatomy: Watched,
    blocks: Sequence[str],
    ids: Tensor,
    targets: Tensor,
) -> str:
    """Measure gradients into ``signals``; why there are none, or an empty string."""
    if not blocks or not all(anatomy.blocks):
        return "its blocks are not modules of their own"
    if not anatomy.head:
        return "it has no head, and thus no loss"
    found = stream_gradients(built, blocks, ids, targets)
    if found.reason:
        return found.reason
    if len(found.stream) != len(anatomy.blocks) + 1:
        return "its blocks are not called one after another"
    signals.grad_rms = found.stream
    signals.weight_grad = class_norms(anatomy, found.parameters)
    return ""
