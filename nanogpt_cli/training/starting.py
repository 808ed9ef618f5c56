"""Weights to begin a run with: whether they fit its tokens and its shape, and their copy.

A token id means a piece of text only together with its tokenizer. Weights are therefore joined with
data of the same fingerprint alone, unless the user asks for new token embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from nanogpt_cli import shell
from nanogpt_cli.errors import UserError
from nanogpt_cli.init import drawing
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.model.parameters import TOKEN_TABLES
from nanogpt_cli.text import again
from nanogpt_cli.text.tokenizers.tokenizer import CharTokenizer, Tokenizer
from nanogpt_cli.text.tokens import TokenData
from nanogpt_cli.training.checkpoints import checkpoint
from nanogpt_cli.training.spec import RunSpec


@dataclass(frozen=True)
class Start:
    """A trained model that a run begins with.

    Attributes:
        model: its weights.
        tokenizer: what its token ids mean; ``None`` if nothing says so.
        label: its description for the user.
        source: what ``nanogpt prepare -t`` takes for its tokenizer, or "".
        new_tokens: draw the token embedding (and an untied head) anew, for another vocabulary.
    """

    model: GPT
    tokenizer: Tokenizer | None = None
    label: str = "the weights"
    source: str = ""
    new_tokens: bool = False

    def note(self, config: GPTConfig) -> str:
        """A sentence about what is not taken over or not known; "" if there is nothing to say."""
        if self.new_tokens:
            kept = sum(name not in TOKEN_TABLES for name, _ in self.model.named_parameters())
            return (
                f"the embeddings of {config.vocab_size:,} tokens begin anew; {kept} other tensors "
                f"come from {self.label}"
            )
        if self.tokenizer is None:
            return (
                f"nothing says which tokenizer {self.label} was trained with: its token ids are "
                "taken to mean the same as the data's"
            )
        return ""


def check_fit(start: Start, data: TokenData, config: GPTConfig) -> None:
    """Refuse weights that do not fit the data's tokenizer or the recipe's model.

    Args:
        start: the weights.
        data: what they would be trained on.
        config: the model of the recipe.

    Raises:
        UserError: they do not fit; each difference is named.
    """
    if start.tokenizer is not None and not start.new_tokens:
        check_tokenizer(
            start.tokenizer, data, start.label, start.source,
            otherwise="; or train with new token embeddings: --new-tokens",
        )  # fmt: skip
    theirs, ours = _comparable(start, config)
    if theirs != ours:
        keys = [key for key in ours if ours[key] != theirs[key]]
        differing = ", ".join(f"{key} {theirs[key]} (recipe: {ours[key]})" for key in keys)
        sets = [word for key in keys for word in shell.setting(f"model.{key}", theirs[key])]
        raise UserError(
            f"{start.label} has another shape than the recipe: {differing}",
            f"give the recipe's model that shape: {' '.join(map(shell.quoted, sets))}",
        )


def check_tokenizer(
    tokenizer: Tokenizer, data: TokenData, label: str, source: str, *, otherwise: str = ""
) -> None:
    """Refuse data whose token ids mean other text than the model's.

    Args:
        tokenizer: the model's.
        data: a prepared set.
        label: the model's description for the user.
        source: what ``nanogpt prepare -t`` takes for its tokenizer, or "".
        otherwise: what else can be done, added to the hint.

    Raises:
        UserError: the fingerprints differ.
    """
    manifest = data.manifest
    if tokenizer.fingerprint() == manifest.fingerprint:
        return
    theirs = f"{tokenizer.kind} with {tokenizer.vocab_size:,} ids"
    other = "other " if tokenizer.vocab_size == manifest.vocab_size else ""
    raise UserError(
        f"{label} has another tokenizer than {data.folder}: {theirs}, not {manifest.kind} with "
        f"{manifest.vocab_size:,} {other}ids",
        _how_to_prepare(tokenizer, data, source) + otherwise,
    )


def _how_to_prepare(tokenizer: Tokenizer, data: TokenData, source: str) -> str:
    """A hint: the command that prepares the text of a set with a model's own tokenizer."""
    if lacking := _lacking(tokenizer, data.tokenizer):
        more = f" and {len(lacking) - 1} others" if len(lacking) > 1 else ""
        return f"the model has no token for the text's {lacking[0]!r}{more}"
    words = again.prepare_words(data.manifest, source) if source else []
    command = f": {shell.hint(*words)}" if words else ""
    return f"prepare the text with the model's own tokenizer{command}"


def _lacking(tokenizer: Tokenizer, other: Tokenizer) -> list[str]:
    """The characters of another character vocabulary that a character vocabulary lacks."""
    if isinstance(tokenizer, CharTokenizer) and isinstance(other, CharTokenizer):
        return sorted(set(other.characters) - set(tokenizer.characters))
    return []


def _comparable(start: Start, config: GPTConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings that must agree: of the weights, and of the recipe."""
    theirs, ours = start.model.config.to_dict(), config.to_dict()
    # Dropout is no property of weights, and their multipliers stay as they were trained.
    left_out = {"dropout", "multipliers"} | ({"vocab_size"} if start.new_tokens else set())
    return tuple(  # type: ignore[return-value]
        {key: value for key, value in values.items() if key not in left_out}
        for values in (theirs, ours)
    )


def copied(start: Start, spec: RunSpec) -> GPT:
    """A new model with these weights and the recipe's dropout, on the CPU.

    Raises:
        UserError: see ``check_fit``.
    """
    check_fit(start, spec.data, spec.config)
    config = replace(spec.config, multipliers=start.model.config.multipliers)
    tensors = {name: t.clone() for name, t in checkpoint.model_tensors(start.model).items()}
    if start.new_tokens:
        fresh = drawing.build(config, spec.scheme, spec.recipe.run.seed)
        drawn = checkpoint.model_tensors(fresh)
        tensors |= {name: drawn[name] for name in TOKEN_TABLES if name in drawn}
    return checkpoint.from_tensors(config, tensors, source=start.label)
