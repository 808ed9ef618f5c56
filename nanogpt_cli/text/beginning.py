"""A real beginning of a text: what a model trained on it is asked to continue by default."""

from __future__ import annotations

from nanogpt_cli.text import catalogue, prepare
from nanogpt_cli.text.request import Request
from nanogpt_cli.text.sources.documents import Reader, Tally
from nanogpt_cli.text.sources.reading import Meter
from nanogpt_cli.text.tokenizers import cuts
from nanogpt_cli.text.tokens import TokenData

# Tokens in which the beginning is looked for, and the characters of a longer line that are kept.
_LOOK = 256
_LONGEST = 24


def of(data: TokenData, most_tokens: int) -> str:
    """The beginning of a set's training text: its first line that is not blank, or a part of it.

    With an end-of-text token it is "", for every text begins after that token.

    Args:
        data: a prepared set.
        most_tokens: how long it may be, at least 1.

    Returns:
        Text whose characters the tokenizer has; "" also where the text begins with nothing legible.
    """
    tokenizer = data.tokenizer
    if tokenizer.eot is not None:
        return ""
    text = tokenizer.decode(data.train[:_LOOK].tolist()).rstrip("\N{REPLACEMENT CHARACTER}")
    found = cut(text)
    while found and len(tokenizer.encode(found)) > most_tokens:
        found = found.rpartition(" ")[0].rstrip() or found[: len(found) // 2]
    return found


def of_request(request: Request) -> str:
    """The beginning of a text of the user's own that is not prepared yet; "" as in ``of``.

    Args:
        request: checked.
    """
    if request.eot or request.tokenizer not in ("char", "byte"):
        return ""  # the other vocabularies have an end-of-text token
    if any(catalogue.find(text) for text in request.inputs):
        return ""  # it may have to be fetched first
    tally = Tally()
    reader = Reader(
        cuts.character_cut, request.errors, request.encoding, request.newlines,
        request.text_field,
    )  # fmt: skip
    for source in prepare.open_sources(request, tally, lambda _: None):
        for chunk in source.chunks(reader, Meter(), tally):
            if found := cut(chunk.data[:_LOOK].decode("utf-8", "ignore")):
                return found
    return ""


def cut(text: str) -> str:
    """The first line that is not blank, at most ``_LONGEST`` characters, whole words if possible.

    The line's end belongs to it, because a heading ("ROMEO:") is followed by one.
    """
    for line in text.splitlines(keepends=True):
        bare = line.strip()
        if not bare:
            continue
        if len(bare) <= _LONGEST:
            return line.lstrip()[: len(bare) + 2]
        words = bare[: _LONGEST + 1].rpartition(" ")[0].rstrip()
        return words or bare[:_LONGEST]
    return ""
