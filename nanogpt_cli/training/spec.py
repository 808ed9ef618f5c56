"""What a run is: resolved once from recipe, data, machine, processes and checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nanogpt_cli import schemes, shell
from nanogpt_cli.errors import UserError
from nanogpt_cli.init import drawing
from nanogpt_cli.machine import device as devices
from nanogpt_cli.machine import parts, ranks
from nanogpt_cli.machine.device import Device
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text import again, beginning
from nanogpt_cli.text.request import VAL_FRACTION
from nanogpt_cli.text.tokens import Manifest, TokenData


@dataclass(frozen=True)
class RunSpec:
    """Everything that a run is given and that does not change while it trains.

    Attributes:
        recipe: with ``tokens_per_step``, the samples' prompt and, on a CPU, ``parts`` written out.
        data: prepared tokens.
        device: where and how to compute.
        group: the processes that share each step.
        config: of the model.
        scheme: of its initial values.
        n_parts: of a micro-batch, computed side by side (``machine/parts.py``).
        folder: where checkpoints and incidents go and commands come from; ``None`` keeps
            everything in memory.
    """

    recipe: Recipe
    data: TokenData
    device: Device
    group: Group
    config: GPTConfig
    scheme: schemes.Scheme
    n_parts: int
    folder: RunFolder | None = None


def resolve(
    recipe: Recipe,
    data: TokenData,
    *,
    folder: RunFolder | None = None,
    group: Group = Group(),  # noqa: B008 - frozen
    state: Mapping[str, Any] | None = None,
) -> RunSpec:
    """Decide everything that the recipe leaves open.

    Args:
        recipe: what to do.
        data: prepared tokens.
        folder: of the run.
        group: the processes that share the work.
        state: of the checkpoint to go on from; its number of parts is taken over.

    Raises:
        UserError: the recipe does not fit the data or the machine.
    """
    check_data(recipe, data)
    recipe = _with_prompt(recipe.for_processes(group.world), data)
    if group.joined:
        ranks.check_devices(recipe.train.device, ranks.on_this_machine(group.world))
    device = devices.choose(recipe.train)
    saved = parts.saved(state or {})
    recipe = parts.with_parts(recipe, saved) if saved else recipe
    n_parts = parts.choose(recipe, device, alone=not group.joined)
    if not saved and device.device.type == "cpu":
        recipe = parts.with_parts(recipe, n_parts)  # who repeats a step makes the same bits
    config = model_config(recipe, data.vocab_size)
    return RunSpec(recipe, data, device, group, config, scheme_of(recipe), n_parts, folder)


def _with_prompt(recipe: Recipe, data: TokenData) -> Recipe:
    """The recipe with the beginning of its data as the prompt of samples, unless it has another."""
    if recipe.sample.prompt or not recipe.sample.max_new_tokens:
        return recipe
    prompt = beginning.of(data, max(1, recipe.model.block_size // 2))
    sample = recipe.sample.model_copy(update={"prompt": prompt})
    return recipe.model_copy(update={"sample": sample})


def scheme_of(recipe: Recipe) -> schemes.Scheme:
    """The initialisation scheme a recipe names or defines."""
    if recipe.model.init == "custom":
        return schemes.parse_custom(recipe.init)
    return schemes.get(recipe.model.init)


def model_config(recipe: Recipe, vocab_size: int) -> GPTConfig:
    """The model a recipe describes, for a tokenizer of ``vocab_size`` tokens.

    Raises:
        UserError: the recipe's own vocab_size is too small for the tokenizer.
    """
    section = recipe.model
    if section.vocab_size and section.vocab_size < vocab_size:
        raise UserError(
            f"model.vocab_size = {section.vocab_size} is smaller than the tokenizer's {vocab_size}",
            "leave it out, or pad it upwards (50304 for gpt2)",
        )
    plain = GPTConfig(
        n_layer=section.n_layer,
        n_head=section.n_head,
        n_embd=section.n_embd,
        block_size=section.block_size,
        vocab_size=section.vocab_size or vocab_size,
        dropout=section.dropout,
        bias=section.bias,
        activation=section.activation,
        tied=section.tied,
        norm=section.norm,
        norm_eps=section.norm_eps,
        position=section.position,
        rope_theta=section.rope_theta,
        qk_norm=section.qk_norm,
        n_kv_head=section.n_kv_head,
        hidden=section.hidden,
        head_dim=section.head_dim,
    )
    return drawing.configure(plain, scheme_of(recipe))


def _more_tokens(manifest: Manifest, split: str) -> str:
    """What to do about a split that is too short."""
    if split == "train" or manifest.val_fraction:
        return "give it more text, or a smaller model.block_size"
    words = again.prepare_words(manifest, manifest.kind, val_fraction=VAL_FRACTION)
    command = f": {shell.hint(*words)}" if words else ""
    return f"prepare the text with a share for validation, and train on that{command}"


def check_data(recipe: Recipe, data: TokenData) -> None:
    """Refuse data that is too short for the recipe.

    Raises:
        UserError: a split has fewer tokens than one window needs.
    """
    T = recipe.model.block_size
    for name, tokens, needed in (("train", data.train, T + 1), ("val", data.val, 2)):
        if len(tokens) < needed:
            raise UserError(
                f"{data.folder}: the {name} split has {len(tokens)} tokens, "
                f"model.block_size = {T} needs at least {needed}",
                _more_tokens(data.manifest, name),
            )
