"""Input of ``nanogpt init-inspect``: a shape with a scheme or existing weights, and tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from nanogpt_cli import schemes
from nanogpt_cli.cli import console, sources
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from nanogpt_cli.init.sources import WeightSource
    from nanogpt_cli.model.gpt import GPT, GPTConfig
    from nanogpt_cli.recipe import Optim, Recipe
    from nanogpt_cli.schemes import Scheme

# (layers, heads, channels) of OpenAI's four models.
PRESETS = {
    "gpt2": (12, 12, 768),
    "gpt2-medium": (24, 16, 1024),
    "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}
# GPT-2's 50257 tokens padded to a multiple of 64, as nanoGPT does.
DEFAULT_VOCABULARY = 50304
_HEAD_SIZE = 64


class Sized(Protocol):
    """What tokens depend on; a ``GPTConfig`` has it."""

    @property
    def vocab_size(self) -> int:
        """Rows of the token embedding."""
        ...

    @property
    def block_size(self) -> int:
        """The most positions."""
        ...


@dataclass(frozen=True)
class InspectOptions:
    """Options of an inspection: its tokens, how much to compute, and how to show it."""

    seed: int
    data: str
    batch: int
    length: int
    gradients: bool
    theory_only: bool
    full: bool
    hist: bool
    as_json: bool
    details: bool = False


@dataclass(frozen=True)
class Subject:
    """The model to inspect.

    Attributes:
        config: its configuration, with the scheme's multipliers.
        scheme: the scheme of its weights; ``None`` for weights of unknown origin.
        source: source of the weights.
        label: its name in the output.
        notes: remarks for the user.
        trained: whether the weights are known to be trained, and not to be judged as a start.
        data: folder of the prepared set of its recipe; empty if there is none.
        optim: how its recipe trains it; ``None`` for existing weights.
        module: existing weights, in memory; ``None`` where they are drawn.
    """

    config: GPTConfig
    scheme: Scheme | None
    source: WeightSource
    label: str
    notes: tuple[str, ...] = field(default=())
    trained: bool = False
    data: str = ""
    optim: Optim | None = None
    module: GPT | None = None


def recipe_of(
    name: str, preset: str, sets: Sequence[str], options: dict[str, Any]
) -> tuple[Recipe, str]:
    """The recipe to inspect and a label: a recipe file, a preset or the defaults, with changes.

    Raises:
        UserError: the preset is unknown, or a value is wrong.
    """
    from nanogpt_cli.recipe import files as recipe_files

    given = {key: value for key, value in options.items() if value is not None}
    if name:
        changes = [f"model.{key}={_toml(value)}" for key, value in given.items()]
        loaded = recipe_files.load(name, [*sets, *changes])
        return loaded.recipe, f"recipe {name}"
    model: dict[str, Any] = {}
    if preset:
        if preset not in PRESETS:
            raise UserError(f"unknown preset {preset!r}", f"known: {', '.join(PRESETS)}")
        model = dict(zip(("n_layer", "n_head", "n_embd"), PRESETS[preset], strict=True))
    values = recipe_files.overridden({"model": model | given}, sets)
    model = values["model"]
    width = model.get("n_embd")
    if "n_head" not in model and isinstance(width, int) and width % _HEAD_SIZE == 0 and width > 0:
        model["n_head"] = width // _HEAD_SIZE
    return recipe_files.from_values(values, "the command line"), preset or "GPT-2"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def check_memory(config: GPTConfig) -> None:
    """Refuse a model two blocks of which, as a measurement needs, exceed the machine's memory.

    Raises:
        UserError: two blocks do not fit.
    """
    from nanogpt_cli import host
    from nanogpt_cli.model.parameters import layer_of, shapes

    one = shapes(replace(config, n_layer=1))
    two = 2 * 4 * sum(math.prod(s) for name, s in one.items() if layer_of(name) == 0)
    room = host.installed_bytes()
    if two > room > 0:
        raise UserError(
            f"two blocks of {config.n_embd} channels take {two / 2**30:.3g} GiB, but this machine "
            f"has only {room / 2**30:.3g}",
            "use --theory, which needs no weights",
        )


def subject(
    name: str, preset: str, sets: Sequence[str], options: dict[str, Any], seed: int, data: str
) -> tuple[Subject, str]:
    """The model that the command line specifies, and the kind of tokenizer for its data.

    Raises:
        UserError: the options contradict each other or a value is wrong.
    """
    found, label = recipe_of(name, preset, sets, options)
    found = found.model_copy(update={"run": found.run.model_copy(update={"seed": seed})})
    tokenizer = found.data.tokenizer if name else "gpt2"
    made = drawn(found, label, _vocabulary(found, data, tokenizer if name else ""))
    own = _prepared(found) if name and not data else ""
    return replace(made, data=own), tokenizer


def check_alone(name: str, preset: str, sets: Sequence[str], options: dict[str, Any]) -> None:
    """Refuse options that describe a model beside ``--from``, which names one."""
    others = [key for key, value in options.items() if value is not None and key != "init"]
    if name or preset or sets or others:
        raise UserError(
            "--from defines the model itself", "of the model options it allows only --init"
        )


def _prepared(recipe: Recipe) -> str:
    """Folder of a recipe's data; empty where they are not prepared, or hold too few tokens.

    Random tokens are a poor guide to gradients: those of text agree more from position to position.
    """
    from nanogpt_cli.text import prepare, tokens

    try:
        folder = prepare.ready(recipe.data.model_dump())
        found = tokens.open_data(folder) if folder else None
    except UserError:
        return ""  # whoever trains on them hears of it
    return str(folder) if found and len(found.val) > recipe.model.block_size else ""


def _vocabulary(recipe: Recipe, data: str, tokenizer: str) -> int:
    """Rows of the embedding if the recipe does not set them: those of the data or the tokenizer."""
    if data not in ("", "random"):
        return int(open_data(data, tokenizer or "gpt2").vocab_size)
    if not tokenizer or recipe.model.vocab_size:
        return DEFAULT_VOCABULARY
    from nanogpt_cli.text import prepare

    return prepare.vocabulary_size(recipe.data.model_dump(), report=console.say)


def drawn(recipe: Recipe, label: str, vocab_size: int) -> Subject:
    """A model whose weights are drawn from a recipe's scheme."""
    from nanogpt_cli.init.sources import Drawn
    from nanogpt_cli.training import spec

    scheme = spec.scheme_of(recipe)
    config = spec.model_config(recipe, recipe.model.vocab_size or vocab_size)
    source = Drawn(config, scheme, recipe.run.seed)
    return Subject(config, scheme, source, label, optim=recipe.optim)


def stored(origin: str, init: str) -> Subject:
    """Existing weights of a GPT: a run, checkpoint, Hugging Face folder or file.

    Args:
        origin: location of the weights.
        init: the scheme that they are supposed to follow; empty if unknown.

    Raises:
        UserError: the weights cannot be read, or are not those of a GPT.
    """
    found = sources.resolve(origin, checkpoint="last")
    subject = of_model(found.model, found.label, init)
    if found.step:
        note = f"trained for {found.step} steps; --input NAME measures it on data it knows"
        if init:
            note += f"; expected values are those of {init}'s start, which training leaves"
        return replace(subject, notes=(*found.notes, note), trained=True)
    return replace(subject, notes=found.notes)


def of_model(model: GPT, label: str, init: str) -> Subject:
    """A model that is in memory."""
    from nanogpt_cli.init.sources import Stored

    tensors = dict(model.named_parameters())
    scheme = schemes.get(init) if init else None
    source = Stored(model.config, tensors.__getitem__, scheme)
    return Subject(model.config, scheme, source, label, module=model)


def tokens(
    config: Sized, where: str, batch: int, length: int, seed: int, tokenizer: str = "gpt2"
) -> tuple[Tensor, Tensor, str]:
    """(B, T) token ids, the next ids, and a description of them.

    Args:
        config: the model's sizes.
        where: "random" or empty for random tokens, else a prepared folder or a named data set.
        batch: B.
        length: T, cut to the block size.
        seed: seed of the tokens or of their positions in the data.
        tokenizer: kind of tokenizer to prepare a named data set with.

    Raises:
        UserError: the data has more tokens than the model has rows, or too few.
    """
    from nanogpt_cli.init.theory import random_tokens

    length = min(length, config.block_size)
    if not where or where == "random":
        ids, targets = random_tokens(config, batch, length, seed)
        return ids, targets, f"{batch * length} random tokens"
    data = open_data(where, tokenizer)
    if data.vocab_size > config.vocab_size:
        raise UserError(
            f"{data.folder} has {data.vocab_size} different tokens, but the model has only "
            f"{config.vocab_size} rows for them",
            f"use --vocab-size {data.vocab_size}",
        )
    label = f"{batch}×{length} tokens of {data.folder.name}"
    ids, targets = _windows(data.val, batch, length, seed, str(data.folder))
    if int(max(ids.max(), targets.max())) >= data.vocab_size:
        raise UserError(f"{data.folder} contains ids beyond its vocabulary: it is damaged")
    return ids, targets, label


def open_data(where: str, tokenizer: str) -> Any:
    """A prepared data set, by folder or name."""
    from nanogpt_cli.text import prepare, tokens

    data = {"name": where, "tokenizer": tokenizer}
    return tokens.open_data(prepare.ensure(data, report=console.say))


def _windows(split: Any, batch: int, length: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Windows at random positions of a split, and the same windows one token later."""
    import numpy as np
    import torch

    if len(split) <= length:
        raise UserError(f"{name}: its val split has {len(split)} tokens, {length + 1} are needed")
    starts = np.random.default_rng(seed).integers(0, len(split) - length, batch)
    rows = np.stack([split[s : s + length + 1].astype(np.int64) for s in starts])
    ids = torch.from_numpy(rows)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
