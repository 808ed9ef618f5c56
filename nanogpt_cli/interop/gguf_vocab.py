"""Vocabularies in the form that llama.cpp's tokenizer "gpt2" reads.

Every token is spelled with GPT-2's printable stand-ins for bytes. This works for a character
vocabulary as well: each character of several bytes gets merges that join its own bytes, and since
leading and continuation bytes of UTF-8 are disjoint, no merge crosses a character.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from nanogpt_cli.errors import UserError
from nanogpt_cli.text import foreign_tokenizer, huggingface_files
from nanogpt_cli.text.gpt2_bpe import byte_characters
from nanogpt_cli.text.tokenizer import END_OF_TEXT, Tokenizer

NORMAL: Final = 1
CONTROL: Final = 3
UNUSED: Final = 5
# llama.cpp refuses a vocabulary without merges, and the file format an empty list. The byte 0xFF
# (spelled ÿ) never occurs in UTF-8, so this one is never used.
_NEVER_USED_MERGE: Final = "\u00ff \u00ff"


@dataclass(frozen=True)
class Vocabulary:
    """The values of ``tokenizer.ggml.*``.

    Attributes:
        tokens: the tokens by id, spelled with stand-ins.
        types: llama.cpp's type number of each token.
        merges: "a b" by rank.
        eot: id of end of text.
        added_eot: whether ``eot`` is a row that the model lacks.
    """

    tokens: list[str]
    types: list[int]
    merges: list[str]
    eot: int
    added_eot: bool


def vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    """The vocabulary of ``tokenizer``; an end-of-text token is added if it has none.

    Without one llama.cpp would treat id 11 as end of text, whatever that token is.

    Raises:
        UserError: llama.cpp has no tokenizer that would give the same ids.
    """
    tokens, merges = _tokens_and_merges(tokenizer)
    types = [UNUSED if token.startswith("[UNUSED") else NORMAL for token in tokens]
    added = tokenizer.eot is None
    eot = len(tokens) if tokenizer.eot is None else tokenizer.eot
    if added:
        tokens, types = [*tokens, END_OF_TEXT], [*types, CONTROL]
    else:
        types[eot] = CONTROL
    return Vocabulary(tokens, types, merges or [_NEVER_USED_MERGE], eot, added)


def _tokens_and_merges(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    if tokenizer.kind in ("char", "byte"):
        pieces = [tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)]
        merges: dict[str, None] = {}
        for id, piece in enumerate(pieces):
            if id != tokenizer.eot:
                merges |= dict.fromkeys(_byte_merges(piece))
        tokens = [spell(piece) for piece in pieces]
        return _named(tokens, tokenizer.eot), list(merges)
    value = huggingface_files.to_json(tokenizer)
    _check_word_rule(tokenizer, value)
    model = value["model"]
    tokens = [f"[UNUSED{id}]" for id in range(tokenizer.vocab_size)]
    for token, id in model["vocab"].items():
        tokens[id] = token
    for added in value.get("added_tokens") or []:
        tokens[added["id"]] = added["content"]
    merges_list = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    return _named(tokens, tokenizer.eot), merges_list


def _named(tokens: list[str], eot: int | None) -> list[str]:
    if eot is not None:
        tokens[eot] = END_OF_TEXT
    return tokens


def spell(piece: bytes) -> str:
    """Bytes as GPT-2's printable characters."""
    return "".join(_STAND_INS[byte] for byte in piece)


_STAND_INS: Final = {byte: character for character, byte in byte_characters().items()}


def _byte_merges(piece: bytes) -> Iterator[str]:
    """Merges that build one character from its bytes, left to right."""
    for end in range(1, len(piece)):
        yield f"{spell(piece[:end])} {spell(piece[end : end + 1])}"


def _check_word_rule(tokenizer: Tokenizer, value: dict[str, Any]) -> None:
    """Refuse a tokenizer that does not split words as GPT-2 and llama.cpp's "gpt-2" do."""
    is_bpe = foreign_tokenizer.model_type(value["model"]) == "BPE"
    if not (is_bpe and foreign_tokenizer.splits_like_gpt2(value)):
        raise UserError(
            f"tokenizer {tokenizer.kind!r} does not split words as GPT-2 does; llama.cpp would "
            "give this model other ids than it was trained on",
            "export it with --to hf and use llama.cpp's own converter, which knows more rules",
        )
