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
from nanogpt_cli.text.tokenizers import foreign_tokenizer, huggingface_files
from nanogpt_cli.text.tokenizers.gpt2_bpe import byte_characters
from nanogpt_cli.text.tokenizers.tokenizer import END_OF_TEXT, Tokenizer

# llama.cpp's types. In a text, it matches user-defined tokens always and control tokens only on
# request, which is what added tokens and special tokens are to the ``tokenizers`` library.
NORMAL: Final = 1
CONTROL: Final = 3
USER_DEFINED: Final = 4
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


def vocabulary(tokenizer: Tokenizer, rows: int) -> Vocabulary:
    """The vocabulary of ``tokenizer``; an end-of-text token is added if it has none.

    Without one llama.cpp would treat id 11 as end of text, whatever that token is.

    Args:
        tokenizer: the model's tokenizer.
        rows: rows of the model's embedding; those beyond the tokenizer's ids become unused tokens.

    Raises:
        UserError: llama.cpp has no tokenizer that would give the same ids.
    """
    spelled, merges, types = _tokens(tokenizer)
    name = "UNUSED"
    while any(token.startswith(f"[{name}") for token in spelled.values()):
        name += "_"
    tokens = [spelled.get(id, f"[{name}{id}]") for id in range(rows)]
    eot = tokenizer.eot
    if eot is None:
        tokens.append(END_OF_TEXT)
    end = rows if eot is None else eot
    types = dict.fromkeys(spelled, NORMAL) | {end: CONTROL} | types
    kinds = [types.get(id, UNUSED) for id in range(len(tokens))]
    return Vocabulary(tokens, kinds, merges or [_NEVER_USED_MERGE], end, eot is None)


def _tokens(tokenizer: Tokenizer) -> tuple[dict[int, str], list[str], dict[int, int]]:
    """The tokens by id, the merges, and the types of added tokens by id."""
    if tokenizer.kind in ("char", "byte"):
        pieces = {id: tokenizer.token_bytes(id) for id in range(tokenizer.vocab_size)}
        if tokenizer.eot is not None:
            del pieces[tokenizer.eot]
        built = dict.fromkeys(merge for piece in pieces.values() for merge in _byte_merges(piece))
        spelled = {id: spell(piece) for id, piece in pieces.items()}
        ends = {} if tokenizer.eot is None else {tokenizer.eot: END_OF_TEXT}
        return spelled | ends, list(built), {}
    value = huggingface_files.to_json(tokenizer)
    _check_rules(tokenizer, value)
    spelled = {id: token for token, id in value["model"]["vocab"].items()}
    types = {}
    for added in value.get("added_tokens") or []:
        spelled[added["id"]] = added["content"]
        types[added["id"]] = CONTROL if added.get("special") else USER_DEFINED
    merges = [m if isinstance(m, str) else " ".join(m) for m in value["model"]["merges"]]
    return spelled, merges, types


def spell(piece: bytes) -> str:
    """Bytes as GPT-2's printable characters."""
    return "".join(_STAND_INS[byte] for byte in piece)


_STAND_INS: Final = {byte: character for character, byte in byte_characters().items()}


def _byte_merges(piece: bytes) -> Iterator[str]:
    """Merges that build one character from its bytes, left to right."""
    for end in range(1, len(piece)):
        yield f"{spell(piece[:end])} {spell(piece[end : end + 1])}"


def _check_rules(tokenizer: Tokenizer, value: dict[str, Any]) -> None:
    """Refuse a tokenizer that does not split and merge as GPT-2 and llama.cpp's "gpt-2" do."""
    model = value["model"]
    kind = foreign_tokenizer.model_type(model)
    other = next((key for key in _OTHER_MERGING if model.get(key)), "")
    different = ""
    if kind != "BPE":
        different = f"is of the type {kind}, GPT-2's is a BPE"
    elif other:
        different = f"has {other}, which GPT-2's has not"
    elif not foreign_tokenizer.splits_like_gpt2(value):
        different = "splits text into words by other rules than GPT-2's"
    if different:
        raise UserError(
            f"{tokenizer.label} {different}; llama.cpp would give this model other ids than it was "
            "trained on",
            _OTHER_CONVERTER,
        )
    for added in value.get("added_tokens") or []:
        flag = next((key for key in _MATCHING if added.get(key)), "")
        if flag and not added.get("special"):
            raise UserError(
                f"{tokenizer.label}: the added token {added['content']!r:.60} has {flag}, "
                "which llama.cpp lacks: it would give this model other ids than it was trained on",
                _OTHER_CONVERTER,
            )


_OTHER_MERGING: Final = (
    "ignore_merges", "byte_fallback", "end_of_word_suffix", "continuing_subword_prefix",
)  # fmt: skip
_MATCHING: Final = ("lstrip", "rstrip", "single_word")
_OTHER_CONVERTER: Final = (
    "export it with --to hf and use llama.cpp's own converter, which knows more rules"
)
