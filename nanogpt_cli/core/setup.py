"""From a recipe's sections to the objects a run is made of."""

from __future__ import annotations

from nanogpt_cli import schemes
from nanogpt_cli.core import init
from nanogpt_cli.core.model import GPTConfig
from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import Recipe
from nanogpt_cli.text.tokens import TokenData


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
    )
    return init.configure(plain, scheme_of(recipe))


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
                "give it more text, or a smaller model.block_size",
            )
