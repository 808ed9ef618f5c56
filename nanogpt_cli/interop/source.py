"""The input of an export: tensors read one at a time, with the multipliers folded into them.

To keep peak memory low, a writer reads one tensor, writes it, and reads the next, so that an export
needs memory for the largest tensors and never for the whole model.

Folding is exact but for float32 rounding. With factors e (embedding), r (residual), a (attention)
and o (output), ``wte`` and ``wpe`` are multiplied by e, both ``c_proj`` of a block by r, the query
rows of ``c_attn`` by a·√D (because the target divides by √D), and ``ln_f`` by o, and also by 1/e if
the head is the (scaled) embedding. With Llama's names it is the same; queries that have a norm are
multiplied through its weight.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_cli.errors import UserError
from nanogpt_cli.init.drawing import undrawn
from nanogpt_cli.interop import import_again
from nanogpt_cli.model import homes
from nanogpt_cli.model.config import LAYER_NORM_EPS
from nanogpt_cli.model.gpt import GPT, GPTConfig, Multipliers
from nanogpt_cli.model.parameters import shapes, tensor_class
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer
from nanogpt_cli.training.checkpoints import checkpoint, retention, tensor_files

_BRANCH_ENDS = re.compile(r"\.(c_proj|o_proj|down_proj)\.")


@dataclass(frozen=True)
class FoldedWeights:
    """The tensors of a model without multipliers, under the names of ``model/gpt.py``.

    Attributes:
        config: configuration of the plain model, without multipliers. The embedding keeps every
            row: rows beyond the tokenizer's ids may be trained, and count in every probability.
        original: configuration of the model as it was trained.
        read: reads a tensor as it was trained, by name.
    """

    config: GPTConfig
    original: GPTConfig
    read: Callable[[str], Tensor]

    @functools.cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, without a tied head and without biases the model lacks."""
        return shapes(self.config)

    def get(self, name: str) -> Tensor:
        """One tensor: float32, on the CPU, contiguous, multipliers folded in."""
        tensor = self.read(name).detach().to("cpu", torch.float32)
        return _fold(name, tensor, self.original).contiguous()

    @property
    def nbytes(self) -> int:
        """Size of all tensors in float32."""
        return 4 * sum(math.prod(shape) for shape in self.shapes.values())


def _fold(name: str, tensor: Tensor, config: GPTConfig) -> Tensor:
    factors = config.multipliers
    kind = tensor_class(name)
    if kind in ("wte", "wpe"):
        return _scaled(tensor, factors.embedding)
    if _BRANCH_ENDS.search(name):
        return _scaled(tensor, factors.residual)
    if name.startswith(("transformer.ln_f.", "model.norm.")):
        return _scaled(tensor, factors.output / (factors.embedding if config.tied else 1.0))
    if factors.attention is None:
        return tensor
    scale = factors.attention * math.sqrt(config.head_size)
    if ".attn.c_attn." in name:
        C = config.n_embd
        return torch.cat([_scaled(tensor[:C], scale), tensor[C:]])
    queries = ".self_attn.q_norm." if config.qk_norm else ".self_attn.q_proj."
    return _scaled(tensor, scale) if queries in name else tensor


def _scaled(tensor: Tensor, factor: float) -> Tensor:
    return tensor if factor == 1.0 else tensor * factor


@dataclass(frozen=True)
class Exportable:
    """A trained model and what is known about it.

    Attributes:
        name: name of the run.
        weights: its tensors.
        tokenizer: its tokenizer, or None.
        state: ``state.json`` of the checkpoint (step, recipe, ...), possibly empty.
        run: its run folder, if it has one.
    """

    name: str
    weights: FoldedWeights
    tokenizer: Tokenizer | None
    state: dict[str, Any] = field(default_factory=dict)
    run: RunFolder | None = None

    @property
    def config(self) -> GPTConfig:
        """Configuration of the plain model."""
        return self.weights.config

    @property
    def step(self) -> int:
        """Optimizer steps that the model was trained for."""
        return int(self.state.get("step", 0))

    def require_tokenizer(self, target: str) -> Tokenizer:
        """The tokenizer; raises ``UserError``, naming ``target``, if there is none."""
        if self.tokenizer is None:
            raise UserError(
                f"{self.name} has no tokenizer, and {target} needs one",
                import_again(self.state) or "put its tokenizer.json (or meta.pkl) beside it",
            )
        return self.tokenizer

    def model(self) -> GPT:
        """The plain model in memory, in evaluation mode."""
        tensors = {name: self.weights.get(name) for name in self.weights.shapes}
        return checkpoint.from_tensors(self.config, tensors, source=self.name).eval()


@contextlib.contextmanager
def without_values() -> Iterator[None]:
    """Inside, tensors have shapes but no memory, which is enough to trace a model."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), undrawn():
        yield


def plain_config(config: GPTConfig, tokenizer: Tokenizer | None) -> GPTConfig:
    """``config`` after folding.

    Raises:
        UserError: the multipliers cannot be folded, or the tokenizer has more ids than the model.
    """
    _check_written(config)
    factors = config.multipliers
    values = (factors.embedding, factors.residual, factors.output, config.attention_scale)
    if not all(math.isfinite(value) for value in values) or factors.embedding == 0:
        raise UserError(f"the model's multipliers cannot be folded into its weights: {factors}")
    check_vocabulary("the checkpoint", tokenizer, config)
    return replace(config, multipliers=Multipliers())


def _check_written(config: GPTConfig) -> None:
    """Refuse an architecture that no exporter writes.

    Raises:
        UserError: it has no home; the key is named.
    """
    if config.naming == "gpt2" and not config.hidden and config.norm_eps == LAYER_NORM_EPS:
        return  # each format says itself which activations it has
    if homes.home(config) is None:
        raise UserError(
            f"no format that is written here holds this model: {homes.why_homeless(config)}",
            "nanogpt sample and eval read the run itself",
        )


def check_vocabulary(label: str, tokenizer: Tokenizer | None, config: GPTConfig) -> None:
    """Refuse a tokenizer with more ids than the model has rows.

    Raises:
        UserError: it has; the message begins with ``label``.
    """
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{label}: the tokenizer has {tokenizer.vocab_size} ids, the model only "
            f"{config.vocab_size} rows for them",
            "the tokenizer belongs to another model; give the right one with --tokenizer",
        )


def from_model(
    model: GPT, tokenizer: Tokenizer | None, name: str = "model", **state: Any
) -> Exportable:
    """An ``Exportable`` of a model in memory."""
    tensors = checkpoint.model_tensors(model)
    config = plain_config(model.config, tokenizer)
    weights = FoldedWeights(config, model.config, tensors.__getitem__)
    return Exportable(name, weights, tokenizer, state)


def from_run(run: RunFolder, which: str = "best", *, raw: bool = False) -> Exportable:
    """A verified checkpoint of a run; its tensors are read on demand.

    Args:
        run: the run folder.
        which: "best", "last" or a step.
        raw: for a run with ``optim.ema``, use the weights themselves instead of their average.

    Raises:
        UserError: there is no such checkpoint, or it is damaged.
    """
    folder = retention.find(run, which)
    state = checkpoint.verify(folder, checkpoint.FOR_READING)
    try:
        original = GPTConfig.from_dict(state["model"])
    except (KeyError, TypeError, ValueError) as error:
        raise checkpoint.CheckpointError(f"{folder / checkpoint.STATE}: {error}") from None
    path = checkpoint.weights_file(folder, raw=raw)
    _check_shapes(path, shapes(original))
    tokenizer = checkpoint.read_tokenizer(folder)
    config = plain_config(original, tokenizer)
    weights = FoldedWeights(config, original, lambda name: _read(path, name))
    return Exportable(run.name, weights, tokenizer, state, run)


def _check_shapes(path: Path, wanted: dict[str, tuple[int, ...]]) -> None:
    found = checkpoint.tensor_shapes(path)
    wrong = sorted(name for name in wanted.keys() | found.keys()
                   if wanted.get(name) != found.get(name))  # fmt: skip
    if wrong:
        raise checkpoint.CheckpointError(f"{path} does not fit its configuration: {wrong[0]}")


def _read(path: Path, name: str) -> Tensor:
    # The file is opened for each tensor, because closing it releases its mapped pages.
    with tensor_files.opened(path) as file:
        tensor: Tensor = file.get_tensor(name)
    return tensor
