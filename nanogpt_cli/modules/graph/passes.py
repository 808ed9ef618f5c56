"""Running somebody else's module on token ids, so that its operators can be seen."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from nanogpt_cli.errors import UserError
from nanogpt_cli.modules.graph.recorder import OnNode, Recorder
from nanogpt_cli.modules.graph.trace import Trace

HINT: Final = "give a module that maps token ids (B, T) to logits (B, T, V)"
Forward = Callable[[nn.Module, Tensor], Any]


def unwrapped(module: nn.Module) -> nn.Module:
    """The module inside wrappers of compilation and data parallelism."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if not isinstance(inner, nn.Module) and len(list(module.children())) == 1:
            inner = getattr(module, "module", None)
        if not isinstance(inner, nn.Module):
            return module
        module = inner


def call(module: nn.Module, ids: Tensor) -> Any:
    """What a language model makes of token ids (B, T), without a cache of keys and values."""
    known = inspect.signature(module.forward).parameters
    options = {"use_cache": False} if "use_cache" in known else {}
    first = next(iter(known.values()), None)
    if first is not None and first.kind is first.KEYWORD_ONLY:
        return module(**{first.name: ids}, **options)
    return module(ids, **options)


def call_with_targets(module: nn.Module, ids: Tensor) -> Any:
    """The same for modules such as nanoGPT's, which otherwise give the last position's logits."""
    return module(ids, targets=ids)


def find_output(result: Any, ids: Tensor) -> Tensor | None:
    """The logits or last state in a module's result: one vector for each of the (B, T) ids."""
    for name in ("logits", "last_hidden_state"):
        found = result.get(name) if isinstance(result, dict) else getattr(result, name, None)
        if isinstance(found, Tensor):
            return found
    return next((t for t in _floating(result) if t.numel() // t.shape[-1] == ids.numel()), None)


def _floating(result: Any) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        if result.is_floating_point() and result.dim() >= 2:
            yield result
    elif isinstance(result, list | tuple):
        for item in result:
            yield from _floating(item)
    elif isinstance(result, dict):
        for item in result.values():
            yield from _floating(item)
    elif dataclasses.is_dataclass(result):
        yield from _floating(vars(result))


def first_run(module: nn.Module, ids: Tensor, forward: Forward | None) -> tuple[Trace, Forward]:
    """The graph of one pass, and how the module was called: as given, or as it accepts.

    Raises:
        UserError: as ``run``.
    """
    targets = inspect.signature(module.forward).parameters.get("targets")
    if forward is None and targets is not None:
        if targets.default is not targets.empty:
            with contextlib.suppress(_NoVectorsError):
                return run(module, ids, call)[0], call
        forward = call_with_targets
    forward = forward or call
    return run(module, ids, forward)[0], forward


class _NoVectorsError(UserError):
    """The result holds no vector for each token."""


def run(
    module: nn.Module, ids: Tensor, forward: Forward, on_node: OnNode | None = None
) -> tuple[Trace, Tensor]:
    """Run one pass without gradients.

    Returns:
        its graph, and logits (…, V) or the last state (…, C).

    Raises:
        UserError: the module fails, or gives no vector per token.
    """
    recorder = Recorder(module, ids, on_node)
    try:
        with evaluation(module), same_noise(), plain_operators(), recorder:
            output = find_output(forward(module, ids), ids)
            if output is not None:
                recorder.trace.output = recorder.value(output)
    except UserError:
        raise
    except Exception as error:  # code of others may raise anything
        words = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        raise UserError(f"the module's forward pass failed: {words}", HINT) from error
    finally:
        recorder.remove()
    if output is None:
        raise _NoVectorsError("the module's result holds no vector for each token id", HINT)
    if output.is_inference():
        raise UserError(
            "the module runs in torch.inference_mode, which hides most of its operators",
            "use torch.no_grad in its forward, or leave that to whoever calls it",
        )
    return recorder.trace, output


@contextlib.contextmanager
def plain_operators() -> Iterator[None]:
    """Without gradients, compiled graphs and fused attention, which hide operators and scores."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), as_written():
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def as_written() -> contextlib.AbstractContextManager[Any]:
    """Run compiled functions as they were written; nothing is compiled before Dynamo is loaded."""
    if "torch._dynamo" not in sys.modules:
        return contextlib.nullcontext()
    stance: contextlib.AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextlib.contextmanager
def same_noise() -> Iterator[None]:
    """Let what a forward pass draws be the same in every pass, and leave the process's state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@contextlib.contextmanager
def evaluation(module: nn.Module) -> Iterator[None]:
    """Run a module in evaluation mode, and restore the mode of each submodule."""
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True
