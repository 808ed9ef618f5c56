"""The command that prepares the text of a set once more, from the request in its manifest."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

from nanogpt_cli import shell
from nanogpt_cli.text import catalogue
from nanogpt_cli.text.request import Request
from nanogpt_cli.text.tokenizers import factory
from nanogpt_cli.text.tokens import Manifest


def prepare_words(manifest: Manifest, tokenizer: str, **changes: object) -> list[str]:
    """The words of ``nanogpt prepare`` for the same text; empty if anything it needs is gone.

    Args:
        manifest: of the set.
        tokenizer: what to prepare it with: a kind, a file or a run folder.
        changes: other options than those of the set.
    """
    request = manifest.raw["request"] | changes
    inputs = [str(text) for text in request.get("inputs", ())]
    there = [catalogue.find(text) is not None or Path(text).exists() for text in inputs]
    if factory.is_path(tokenizer):
        there.append(Path(tokenizer).exists())
    if not inputs or not all(there):
        return []
    words = ["prepare", *(_as_typed(text) for text in inputs), "-t", tokenizer]
    for item in fields(Request):
        value = request.get(item.name, item.default)
        if item.name in ("inputs", "tokenizer") or value == item.default:
            continue
        option = f"--{item.name.replace('_', '-')}"
        words += [option] if value is True else [option, str(value)]
    return words


def _as_typed(text: str) -> str:
    return shell.path_word(Path(text)) if Path(text).exists() else text
