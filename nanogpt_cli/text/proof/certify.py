"""Proving that the tokens of a split stand for the bytes of its source, all of them and no others.

Bits per byte compare models with different tokenizers only if the bytes are counted right. So the
source is read again, every token is decoded, and both are compared. A tokenizer that restores every
text is held to that, byte by byte (``decoded.py``). One that changes the text cannot be: there the
source is encoded again, the ids must be those of the file, and what is lost is counted
(``losses.py``).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from nanogpt_cli.text.proof import decoded, losses
from nanogpt_cli.text.proof.certificate import Certificate, Difference, Progress
from nanogpt_cli.text.proof.source_stream import SourceStream
from nanogpt_cli.text.proof.source_text import SourceText
from nanogpt_cli.text.request import Request
from nanogpt_cli.text.tokenizers import cuts
from nanogpt_cli.text.tokenizers.bpe import HuggingFaceTokenizer
from nanogpt_cli.text.tokenizers.tokenizer import Tokens
from nanogpt_cli.text.tokens import TokenData


def certify(
    data: TokenData,
    split: str,
    *,
    report: Callable[[str], None] = lambda _: None,
    progress: Progress = lambda _done, _total: None,
) -> Certificate:
    """Compare every token of a split with the source it was made from.

    Args:
        data: a prepared set.
        split: ``train`` or ``val``.
        report: receives a short line if something has to be fetched.
        progress: receives the tokens that are done, and all of them.

    Raises:
        UserError: the source is gone or was changed, so that nothing can be proved.
    """
    tokenizer = data.tokenizer
    ids: Tokens = getattr(data, split)
    made = Certificate(data.manifest.raw["sources"], len(ids), _reading(data))
    if isinstance(tokenizer, HuggingFaceTokenizer) and not losses.restores(tokenizer):
        # The same pieces as when the text was encoded: each is encoded alone.
        text = SourceStream(SourceText(data, split, cuts.cutter(tokenizer), report))
        made.difference = losses.account(tokenizer, ids, text, made, progress)
    else:
        text = SourceStream(SourceText(data, split, cuts.character_cut, report))
        made.difference = decoded.compare(tokenizer, ids, text, made, progress)
    text.finish()  # a source that was changed is no failed proof, but no proof at all
    made.bytes, made.sha256 = text.source_bytes, text.digest.hexdigest()
    made.lost.broken = text.broken
    made.tokens_sha256 = hashlib.sha256(np.ascontiguousarray(ids).data).hexdigest()
    made.difference = made.difference or _miscounted(data, split, text, made)
    if made.difference and data.manifest.raw["split"].get("exact") is False:
        # Versions before this one divided text by decoding it, which some tokenizers do not allow.
        reason = f"{made.difference.reason} (the set was divided only roughly: prepare it again)"
        made.difference = replace(made.difference, reason=reason)
    return made


def _reading(data: TokenData) -> dict[str, Any]:
    """The options of ``prepare`` by which the text is not simply that of the files."""
    asked = data.manifest.raw["request"]
    defaults = {item.name: item.default for item in fields(Request)}
    names = ("encoding", "newlines", "text_field", "errors", "glob", "limit")
    given = {name: asked.get(name, defaults[name]) for name in names}
    return {name: value for name, value in given.items() if value != defaults[name]}


def _miscounted(
    data: TokenData, split: str, text: SourceStream, made: Certificate
) -> Difference | None:
    """What the manifest says of a split whose tokens are right, if that is wrong."""
    info = getattr(data.manifest, split)
    if info.bytes != text.size:
        return Difference(
            f"the manifest counts {info.bytes:,} bytes of text where the source has "
            f"{text.size:,}: bits per byte computed from it are "
            f"{text.size / max(1, info.bytes):.4f} times the true ones"
        )
    if info.sha256 != made.tokens_sha256:
        return Difference(f"the sha256 of {split}.bin is not the manifest's")
    return None
