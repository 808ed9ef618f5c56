"""What ``nanogpt init-inspect`` looks at: a shape and a scheme or stored weights, and tokens."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

    from nanogpt_cli.init.sources import Source
    from nanogpt_cli.model.gpt import GPT, GPTConfig
    from nanogpt_cli.recipe import Recipe
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
# Different characters of tiny Shakespeare, what a character recipe usually meets.
SHAKESPEARE_CHARACTERS = 65
_HEAD_SIZE = 64


@dataclass(frozen=True)
class Subject:
    """What is inspected.

    Attributes:
        config: with the scheme's multipliers.
        scheme: where the weights come from; None for foreign weights of unknown origin.
        source: gives the weights.
        label: what it is, for people.
        notes: what a person should know.
    """

    config: GPTConfig
    scheme: Scheme | None
    source: Source
    label: str
    notes: tuple[str, ...] = field(default=())


def recipe_of(
    name: str, preset: str, sets: Sequence[str], options: dict[str, Any]
) -> tuple[Recipe, str]:
    """The recipe that is meant and a label: a file's, a preset's or the defaults with changes.

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
    values = {"model": model | given}
    for text in sets:
        _merge(values, _parse_set(text))
    model = values["model"]
    width = model.get("n_embd")
    if "n_head" not in model and isinstance(width, int) and width % _HEAD_SIZE == 0 and width > 0:
        model["n_head"] = width // _HEAD_SIZE
    return recipe_files.from_values(values, "init-inspect"), preset or "GPT-2"


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _parse_set(text: str) -> dict[str, Any]:
    key, found, value = text.partition("=")
    if not found:
        raise UserError(f"--set {text}: expected SECTION.KEY=VALUE")
    for literal in (value, f'"{value}"'):
        try:
            return foreign_files.parse_toml(f"{key} = {literal}")
        except tomllib.TOMLDecodeError:
            continue
        except ValueError as error:
            raise UserError(f"--set {text:.60}…: {error}") from None
    raise UserError(f"--set {text:.200}: not a value")


def _merge(into: dict[str, Any], values: dict[str, Any]) -> None:
    for key, value in values.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value


def check_memory(config: GPTConfig) -> None:
    """Refuse blocks so wide that the two a measurement needs are more than the machine's memory.

    Raises:
        UserError: they do not fit.
    """
    import math
    import os
    from dataclasses import replace

    from nanogpt_cli.model.parameters import shapes

    if "SC_PHYS_PAGES" not in os.sysconf_names:
        return
    one = shapes(replace(config, n_layer=1))
    two = 2 * 4 * sum(math.prod(s) for name, s in one.items() if ".h.0." in name)
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if two > room:
        raise UserError(
            f"two blocks of {config.n_embd} channels take {two / 2**30:.3g} GiB, "
            f"this machine has {room / 2**30:.3g}",
            "--theory needs no weights",
        )


def subject(
    name: str,
    preset: str,
    sets: Sequence[str],
    options: dict[str, Any],
    origin: str,
    seed: int,
    data: str,
) -> tuple[Subject, str]:
    """What the command line asks for, and the kind of tokenizer its data would have.

    Raises:
        UserError: the options contradict each other or a value is wrong.
    """
    if origin:
        others = [key for key, value in options.items() if value is not None and key != "init"]
        if name or preset or sets or others:
            raise UserError("--from brings its own model", "of the model options only --init fits")
        return stored(origin, options["init"] or ""), "gpt2"
    found, label = recipe_of(name, preset, sets, options)
    found = found.model_copy(update={"run": found.run.model_copy(update={"seed": seed})})
    tokenizer = found.data.tokenizer if name else "gpt2"
    return drawn(found, label, _vocabulary(found, data, tokenizer if name else "")), tokenizer


def _vocabulary(recipe: Recipe, data: str, tokenizer: str) -> int:
    """Rows of the embedding where the recipe leaves them open: the data's or the tokenizer's."""
    if data != "random":
        return int(open_data(data, tokenizer or "gpt2").vocab_size)
    if not tokenizer or recipe.model.vocab_size:
        return DEFAULT_VOCABULARY
    if tokenizer == "char":
        return SHAKESPEARE_CHARACTERS
    if tokenizer.startswith("bpe:"):
        return int(tokenizer.partition(":")[2])
    from nanogpt_cli.text import tokenizers

    return tokenizers.get(tokenizer).vocab_size


def drawn(recipe: Recipe, label: str, vocab_size: int) -> Subject:
    """The weights a recipe's scheme gives."""
    from nanogpt_cli.init.sources import Drawn
    from nanogpt_cli.training import setup

    scheme = setup.scheme_of(recipe)
    config = setup.model_config(recipe, recipe.model.vocab_size or vocab_size)
    return Subject(config, scheme, Drawn(config, scheme, recipe.run.seed), label)


def stored(origin: str, init: str) -> Subject:
    """Weights that exist: a run, a checkpoint, a Hugging Face folder, a file or ``module:factory``.

    Args:
        origin: where they are.
        init: a scheme they are said to follow; empty if unknown.

    Raises:
        UserError: they cannot be read, or are not a GPT.
    """
    from nanogpt_cli.cli import init_inspect_module as modules
    from nanogpt_cli.cli import sources

    if modules.is_reference(origin):
        return of_model(modules.load(origin), origin, init)
    found = sources.resolve(origin, checkpoint="last")
    subject = of_model(found.model, found.label, init)
    if found.step and not init:
        trained = f"trained for {found.step} steps: schemes describe step 0"
        return Subject(**{**vars(subject), "notes": (*found.notes, trained)})
    return subject


def of_model(model: GPT, label: str, init: str) -> Subject:
    """A model in memory."""
    from nanogpt_cli import schemes
    from nanogpt_cli.init.sources import Stored

    tensors = dict(model.named_parameters())
    scheme = schemes.get(init) if init else None
    source = Stored(model.config, tensors.__getitem__, scheme)
    return Subject(model.config, scheme, source, label)


def tokens(
    config: GPTConfig, where: str, batch: int, length: int, seed: int, tokenizer: str = "gpt2"
) -> tuple[Tensor, Tensor, str]:
    """(B, T) token ids, the next ids, and what they are.

    Args:
        where: empty for random tokens, else a prepared folder or a named data set.

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
            f"{data.folder} has {data.vocab_size} different tokens, the model only "
            f"{config.vocab_size} rows for them",
            f"--vocab-size {data.vocab_size}",
        )
    label = f"{batch}×{length} tokens of {where}"
    ids, targets = _windows(data.val, batch, length, seed, str(data.folder))
    if int(max(ids.max(), targets.max())) >= data.vocab_size:
        raise UserError(f"{data.folder} holds ids beyond its vocabulary: it is damaged")
    return ids, targets, label


def open_data(where: str, tokenizer: str) -> Any:
    """A prepared data set, by folder or name."""
    from nanogpt_cli.text import prepare
    from nanogpt_cli.text import tokens as prepared

    if prepared.is_prepared(Path(where)):
        return prepared.open_data(Path(where))
    from nanogpt_cli.cli import console

    folder = prepare.ensure(where, tokenizer, val_fraction=0.1, report=console.say)
    return prepared.open_data(folder)


def _windows(split: Any, batch: int, length: int, seed: int, name: str) -> tuple[Tensor, Tensor]:
    """Windows of a split at random places, and the same one token later."""
    import numpy as np
    import torch

    if len(split) <= length:
        raise UserError(f"{name}: its val split has {len(split)} tokens, {length + 1} are needed")
    starts = np.random.default_rng(seed).integers(0, len(split) - length, batch)
    rows = np.stack([split[s : s + length + 1].astype(np.int64) for s in starts])
    ids = torch.from_numpy(rows)
    return ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
