"""What a ``Watch`` is given: a model, its blocks and inputs, and how it is wrapped."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from nanogpt_cli import units
from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.machine.distributed import is_split
from nanogpt_cli.modules.loops.watch_forward import ForwardPass, Timed
from nanogpt_cli.user_input import whole_from_environment

Inputs = tuple[Any, ...] | Mapping[str, Any]
_SEQUENCES = 2
# What is said of a model whose blocks are not those that a watch began with.
LOST = (
    "no statistics of layers: the model's blocks were replaced by others, more or fewer; "
    "begin another Watch"
)


class Target:
    """A model as a loop has it, and what is inside.

    Args:
        model: perhaps compiled, perhaps wrapped.
        blocks: path of the blocks, or the modules themselves; empty to search for them.
        batch: arguments of a forward pass of our own.

    Raises:
        UserError: there are no such blocks.
    """

    def __init__(
        self, model: nn.Module, blocks: str | Sequence[nn.Module], batch: Inputs | None
    ) -> None:
        if not isinstance(model, nn.Module):
            raise UserError(
                f"the model is of type {type(model).__name__}, a torch module is expected"
            )
        if batch is not None and not isinstance(batch, (tuple, list, Mapping)):
            raise UserError(
                f"batch= is of type {type(batch).__name__}, a tuple or a dict is expected",
                "batch=(ids,), or batch={'input_ids': ids}",
            )
        self.raw = unwrapped(model)
        self.blocks, self._wanted = find_blocks(self.raw, blocks), blocks
        parameters = list(self.raw.parameters())
        if not parameters:
            raise UserError(f"{type(self.raw).__name__} has no parameters to be watched")
        if any(is_split(p) for p in parameters):
            raise UserError(
                "the model's parameters are split over processes (FSDP2, tensor parallelism)",
                "only whole models can be watched; with DistributedDataParallel they are whole",
            )
        self.device = parameters[0].device
        self.device_name = self.device.type
        if self.device.type == "cuda":
            self.device_name = torch.cuda.get_device_name(self.device)
        self.precision = str(parameters[0].dtype).removeprefix("torch.")
        self.parameters = sum(p.numel() for p in parameters)
        tables = [m.num_embeddings for m in self.raw.modules() if isinstance(m, nn.Embedding)]
        self.vocab_size = max(tables, default=0)
        self.processes, self.leads = _place()
        self.compiled = model is not self.raw and _is_compiled(model)
        self.compiled |= any(_is_compiled(module) for module in self.raw.modules())
        self.probes = self.compiled or batch is not None
        self._tokens = 0
        self._batch: tuple[tuple[Any, ...], Mapping[str, Any]] | None = None
        if batch is not None:
            self._batch = ((), batch) if isinstance(batch, Mapping) else (tuple(batch), {})
        self._autocast: torch.dtype | None = None
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._see, with_kwargs=True)
        ]

    def find_again(self) -> bool:
        """Follow a loop that has put other blocks in place of some; whether all are there."""
        inside = set(self.raw.modules())
        if all(block in inside for block in self.blocks):
            return True
        try:
            found = find_blocks(self.raw, self._wanted)
        except UserError:
            return False
        if len(found) != len(self.blocks):
            return False
        self.blocks = found
        return True

    def remove(self) -> None:
        """Take all hooks away and forget the batch."""
        for handle in self._handles:
            handle.remove()
        self._handles, self._batch = [], None

    def take_tokens(self) -> int:
        """Tokens of all processes in the step that was just made; 0 if they were not seen."""
        found, self._tokens = self._tokens * self.processes, 0
        if found and (self._batch or not self.probes):
            for handle in self._handles:
                handle.remove()
            self._handles = []
        return found

    def _see(self, _: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Count the tokens of the first step, and keep a small batch for a compiled model."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        given = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor) and x.dim()]
        ids = next((x for x in given if not x.is_floating_point() and x.dim() == 2), None)
        self._tokens += ids.numel() if ids is not None else 0
        if self.probes and self._batch is None and given:
            kind, count = self.device.type, len(given[0])
            if torch.is_autocast_enabled(kind):
                self._autocast = torch.get_autocast_dtype(kind)
            small = {key: _first(x, count) for key, x in kwargs.items()}
            self._batch = (tuple(_first(x, count) for x in args), small)

    def run_batch(self, timed: Timed) -> ForwardPass:
        """Run the small batch through the model as it is written, and leave no trace of it."""
        forward = ForwardPass(self.raw, self.blocks, timed, any_pass=True)
        if self._batch is None:
            return forward
        args, kwargs = self._batch
        modes = [(module, module.training) for module in self.raw.modules()]
        devices = [self.device] if self.device.type == "cuda" else []
        try:
            self.raw.eval()
            with torch.no_grad(), torch.random.fork_rng(devices), self._eager(), self._cast():
                self.raw(*args, **kwargs)
        except Exception as error:
            forward.error = f"{type(error).__name__}: {error}"
        finally:
            for module, training in modes:
                module.training = training
        return forward

    def _cast(self) -> contextlib.AbstractContextManager[object]:
        if self._autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast)

    def _eager(self) -> contextlib.AbstractContextManager[object]:
        if not self.compiled:
            return contextlib.nullcontext()
        stance: contextlib.AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance

    def missing(
        self, stats: Mapping[str, Sequence[float]], error: str, optimizers: bool
    ) -> Iterator[str]:
        """What the first sample lacks, and why, as sentences."""
        if error:
            yield f"statistics of activations are incomplete: {error}"
        elif "resid_rms" not in stats:
            yield (
                "no statistics of activations: the loop did not call the blocks of this model; "
                "give Watch the module that the loop calls, or a batch= for it"
            )
        else:
            if "attn_entropy" not in stats:
                yield (
                    "no statistics of attention: no block calls scaled_dot_product_attention or "
                    "softmax on (B, H, T, T)"
                )
            if "attn_rms" not in stats:
                yield (
                    "no attn_rms and mlp_rms: what a block adds to its input is not the sum of "
                    "one attention module and one MLP module"
                )
        if not optimizers:
            yield "no gradients, updates and learning rates: give Watch the optimizer="
        elif "resid_rms" in stats and "grad_norm" not in stats:
            yield "no gradients and updates in this step: the optimizer left it out"
        elif "grad_norm" in stats and "update_ratio" not in stats:
            yield "no updates: the optimizer got no gradient for the matrices of the blocks"
        elif frozen := [n for n, x in enumerate(stats.get("update_ratio", ())) if math.isnan(x)]:
            which = units.counted(len(frozen), "block")
            yield (
                f"no updates of {which}, the first is {frozen[0]}: frozen, or not in the "
                "optimizer's groups"
            )


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside ``torch.compile``, ``DistributedDataParallel`` and ``DataParallel``."""
    while True:
        if isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        elif isinstance(model, (DistributedDataParallel, nn.DataParallel)):
            model = model.module
        else:
            return model


def find_blocks(model: nn.Module, wanted: str | Sequence[nn.Module] = "") -> list[nn.Module]:
    """The repeated blocks of a model: those asked for, or the largest list of one class.

    Args:
        model: without wrappers.
        wanted: the path of their list, or the blocks themselves.

    Raises:
        UserError: there is no such list.
    """
    if isinstance(wanted, str):
        lists = {path: found for path, module in model.named_modules() if (found := _list(module))}
        if wanted and wanted not in lists:
            close = nearest(wanted, lists)
            raise UserError(
                f"{type(model).__name__} has no blocks at {wanted!r}",
                f"did you mean {close!r}?" if close else "give the blocks themselves: blocks=[…]",
            )
        sizes = {path: sum(p.numel() for b in found for p in b.parameters())
                 for path, found in lists.items() if _alike(found)}  # fmt: skip
        path = wanted or max(sizes, key=lambda path: sizes[path], default="")
        blocks = lists.get(path, [])
    else:
        blocks = list(wanted) if isinstance(wanted, Iterable) else []
    inside = set(model.modules())
    if not blocks or not all(block in inside for block in blocks):
        raise UserError(
            f"{type(model).__name__} has no list of blocks of one class"
            if not blocks
            else f"the given blocks are not all modules of {type(model).__name__}",
            "name them: blocks='transformer.h', or blocks=[…] of the modules themselves",
        )
    return [unwrapped(block) for block in blocks]


def _list(module: nn.Module) -> list[nn.Module]:
    return list(module.children()) if isinstance(module, (nn.ModuleList, nn.Sequential)) else []


def _alike(blocks: Sequence[nn.Module]) -> bool:
    return len({type(unwrapped(block)) for block in blocks}) == 1


def _is_compiled(module: nn.Module) -> bool:
    """Whether ``torch.compile(module)`` or ``module.compile()`` was called."""
    inner = getattr(module, "module", None)  # of a wrapper around a compiled module
    return (
        hasattr(module, "_orig_mod")
        or getattr(module, "_compiled_call_impl", None) is not None
        or (isinstance(inner, nn.Module) and inner is not module and _is_compiled(inner))
    )


def _first(value: Any, count: int) -> Any:
    """The first sequences of a tensor that has all of the batch; other values as they are."""
    if isinstance(value, Tensor) and value.dim() and len(value) == count:
        return value[:_SEQUENCES].detach().clone()
    return value


def _place() -> tuple[int, bool]:
    """How many processes the job has, and whether this is the first."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size(), torch.distributed.get_rank() == 0
    world = whole_from_environment("WORLD_SIZE", 1)
    return world, whole_from_environment("RANK", 0) == 0
