"""One forward pass of somebody else's model, watched by hooks that are gone when it is over.

Blocks and their branches are recognised by what they do: a branch in which attention was computed,
and one with matrices whose output, added to that of attention, makes up what the block adds to the
stream. Nothing here changes a value, draws a random number or keeps a tensor of the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from nanogpt_cli.init.expected import QUERIES
from nanogpt_cli.training.activations import attention_statistics, kurtosis, rms

# Positions of which statistics are taken; what is computed from them needs little memory.
_POSITIONS = 4096
# Sequences whose attention is looked at.
_SEQUENCES = 2
# How far a block may be from stream + attention + MLP, as a share of what it adds.
_CLOSE = 0.02
_SOFTMAXES = (F.softmax, torch.softmax, Tensor.softmax)

Timed = Callable[[], Any]


class ForwardPass:
    """Hooks on the blocks of a model for one forward pass with gradients.

    A pass without gradients is somebody's evaluation and is let through, and what runs after the
    pass (the recomputation of activation checkpointing) is not looked at.

    Args:
        model: on whose call the pass begins; the blocks lie somewhere below.
        blocks: one module per layer.
        timed: a context manager that measures what the hooks take.
        any_pass: take a pass without gradients too.
    """

    def __init__(
        self, model: nn.Module, blocks: Sequence[nn.Module], timed: Timed, *, any_pass: bool = False
    ) -> None:
        self.blocks, self.timed, self.any_pass = blocks, timed, any_pass
        self.values: dict[str, list[Tensor | None]] = {}
        self.error = ""
        self.over = False
        self._layer = -1
        self._branch = -1
        self._attending: set[int] = set()
        self._outputs: dict[int, Tensor] = {}
        self._stream: Tensor | None = None
        self._mode: _AttentionMode | None = None
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._begin),
            model.register_forward_hook(self._end, always_call=True),
        ]

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._outputs, self._stream = {}, None

    def complete(self) -> dict[str, list[Tensor]]:
        """The statistics that every layer has, scalars on the device."""
        rows = {name: [v for v in row if v is not None] for name, row in self.values.items()}
        return {name: row for name, row in rows.items() if len(row) == len(self.blocks)}

    def _begin(self, *_: object) -> None:
        if torch.compiler.is_compiling() or self.over or self._mode:
            return
        if not (torch.is_grad_enabled() or self.any_pass):
            return
        with self.timed():
            for layer, block in enumerate(self.blocks):
                enter, leave = self._enter(layer), self._leave(layer)
                self._handles += [
                    block.register_forward_pre_hook(enter, with_kwargs=True),
                    block.register_forward_hook(leave),
                ]
                for number, child in enumerate(block.children()):
                    start, stop = self._start(number), self._stop(number, child)
                    self._handles += [
                        child.register_forward_pre_hook(start),
                        child.register_forward_hook(stop),
                    ]
            self._mode = _AttentionMode(self)
            self._mode.__enter__()  # type: ignore[no-untyped-call]

    def _end(self, *_: object) -> None:
        if torch.compiler.is_compiling() or self._mode is None:
            return
        with self.timed():
            self._mode.__exit__(None, None, None)  # type: ignore[no-untyped-call]
            self._mode, self.over = None, True
            self.remove()

    def _safely(self, look: Callable[[], None]) -> None:
        """Look at something; whatever goes wrong must not stop a training that is only watched."""
        if self.error or self._mode is None:
            return
        try:
            with self.timed(), torch.no_grad(), torch.autocast(self._device_type(), enabled=False):
                look()
        except Exception as error:
            self.error = f"{type(error).__name__}: {error}"

    def _device_type(self) -> str:
        return "cpu" if self._stream is None else self._stream.device.type

    def _enter(self, layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
            self._layer, self._branch = layer, -1
            self._attending, self._outputs = set(), {}
            self._stream = _stream((*args, *kwargs.values()))

        return hook

    def _leave(self, layer: int) -> Callable[..., None]:
        def hook(_: nn.Module, __: object, output: object) -> None:
            self._safely(lambda: self._block(layer, _stream((output,))))
            self._layer, self._stream, self._outputs = -1, None, {}

        return hook

    def _start(self, number: int) -> Callable[..., None]:
        def hook(*_: object) -> None:
            self._branch = number

        return hook

    def _stop(self, number: int, child: nn.Module) -> Callable[..., None]:
        has_matrices = any(p.dim() > 1 for p in child.parameters())
        if isinstance(child, nn.MultiheadAttention):

            def mark() -> None:
                self._attending.add(number)
        else:

            def mark() -> None:
                pass

        def hook(_: nn.Module, __: object, output: object) -> None:
            self._branch = -1
            mark()
            found = _stream((output,))
            if has_matrices and found is not None:
                self._outputs[number] = found.detach()

        return hook

    def _put(self, name: str, value: Tensor) -> None:
        row = self.values.setdefault(name, [None] * len(self.blocks))
        row[self._layer] = value.float()

    def _block(self, layer: int, after: Tensor | None) -> None:
        """Take what a block that has run leaves in the stream, and what its branches added."""
        if after is None or layer != self._layer:
            return
        stream = _some(after)
        self._put("resid_rms", rms(stream))
        self._put("resid_kurtosis", kurtosis(stream))
        before = self._stream
        if before is None or before.shape != after.shape:
            return
        attention = [x for n, x in self._outputs.items() if n in self._attending]
        others = [x for n, x in self._outputs.items() if n not in self._attending]
        if len(attention) != 1 or len(others) != 1:
            return
        attn, mlp = (_some(x).float() for x in (attention[0], others[0]))
        if attn.shape != stream.shape or mlp.shape != stream.shape:
            return
        added = attn + mlp
        off = (stream.float() - _some(before).float() - added).norm()
        room = _CLOSE * added.norm() + 4 * torch.finfo(stream.dtype).eps * stream.float().norm()
        unknown = torch.full_like(off, torch.nan)  # a comparison would wait for the device
        self._put("attn_rms", torch.where(off <= room, rms(attn), unknown))
        self._put("mlp_rms", torch.where(off <= room, rms(mlp), unknown))

    def attention(self, scores: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Take the logits (B, H, R, T) of an attention, and what each query sees."""
        if self._layer < 0:
            return
        self._attending.add(self._branch)

        def look() -> None:
            for name, value in attention_statistics(*scores()).items():
                self._put(name, value)

        self._safely(look)


class _AttentionMode(TorchFunctionMode):
    """Shows a pass the attention that is computed while it runs."""

    def __init__(self, watching: ForwardPass) -> None:
        super().__init__()
        self.watching = watching

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Call the function, then look at its arguments if it computes attention."""
        del types
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self.watching.attention(lambda: _scores(*args, **kwargs))
        elif func in _SOFTMAXES:
            x = args[0] if args else kwargs.get("input")
            if isinstance(x, Tensor) and x.dim() == 4 and x.shape[-1] == x.shape[-2]:
                self.watching.attention(lambda: _masked(x.detach()))
        return func(*args, **kwargs)


def _scores(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> tuple[Tensor, Tensor]:
    """Logits of the last queries (B, H, R, T), and what they see, as PyTorch documents them."""
    del value, dropout_p, enable_gqa
    q, k = query[:_SEQUENCES].detach().float(), key[:_SEQUENCES].detach().float()
    Tq, T = q.shape[-2], k.shape[-2]
    if q.shape[1] != k.shape[1]:  # grouped keys
        k = k.repeat_interleave(q.shape[1] // k.shape[1], 1)
    rows = min(QUERIES, Tq)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    scores = q[..., Tq - rows :, :] @ k.mT * factor
    seen = torch.ones(rows, T, dtype=torch.bool, device=q.device)
    if is_causal:
        seen = seen.tril(Tq - rows)
    if attn_mask is not None:
        mask = attn_mask.detach()
        mask = mask[:_SEQUENCES] if mask.dim() == 4 else mask
        mask = mask[..., Tq - rows :, :] if mask.shape[-2] == Tq else mask
        if mask.dtype == torch.bool:
            seen = seen & mask
        else:
            seen = seen & (mask > torch.finfo(mask.dtype).min / 2)
            scores = scores + mask.float().clamp(min=torch.finfo(torch.float32).min)
    return scores, seen


def _masked(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of the last queries of (B, H, T, T); what is masked is infinite or nearly so."""
    last = scores[:_SEQUENCES, :, -QUERIES:]
    seen = last > torch.finfo(last.dtype).min / 2
    return last.float().clamp(min=torch.finfo(torch.float32).min), seen


def _stream(values: object) -> Tensor | None:
    """The first tensor of numbers (…, T, C) in what a module takes or gives."""
    return next(_streams(values), None)


def _streams(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        if values.is_floating_point() and values.dim() >= 3:
            yield values
    elif isinstance(values, (list, tuple)):
        for value in values:
            yield from _streams(value)


def _some(x: Tensor) -> Tensor:
    """Rows (n, C) of (…, T, C), evenly spread; an odd distance reaches every position in turn."""
    flat = x.detach().reshape(-1, x.shape[-1])
    return flat[:: (max(1, len(flat) // _POSITIONS) | 1)]
