"""Checks of an untrusted ``tokenizer.json`` before the ``tokenizers`` library reads it.

The library trusts its input. A normaliser that grows the text without bound ends the process, and
it panics on a word pattern that backtracks without bound, a length of zero, or a prefix that a
token lacks. Faults visible in the file are refused here, naming the key; those that appear only
when text is encoded are found by ``text.tokenizers.tokenizer_library`` with short texts.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any, Final

from nanogpt_cli.errors import UserError

LARGEST_ID: Final = (1 << 24) - 1  # far above any vocabulary; tables are indexed by id
LARGEST_EXPANSION: Final = 16  # Llama's is 12; the library takes 16 bytes or more for each byte
_LARGEST_DEPTH: Final = 8
_LARGEST_SEQUENCE: Final = 64
_LARGEST_CHARSMAP: Final = 1 << 23  # bytes; SentencePiece's own have a quarter of a megabyte
_LARGEST_REPLACEMENT: Final = 40  # bytes; that of U+FDFA, the longest in Unicode, has 33
_LARGEST_LENGTH: Final = 1000  # of a WordPiece word, or of what a decoder strips

# The sections of a file, the types the library knows in each, and the key of a Sequence's members.
_KINDS: Final = {
    "normalizer": "BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend "
    "Replace Sequence Strip StripAccents",
    "pre_tokenizer": "BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength Metaspace "
    "Punctuation Sequence Split UnicodeScripts Whitespace WhitespaceSplit",
    "post_processor": "BertProcessing ByteLevel RobertaProcessing Sequence TemplateProcessing",
    "decoder": "BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Sequence Strip "
    "WordPiece",
}
_MEMBERS: Final = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}
_MODELS: Final = ("BPE", "Unigram", "WordLevel", "WordPiece")


class Refused(UserError):  # noqa: N818 - the name says what happened
    """A key of the file and what is wrong with it; the hint is the same for all."""

    def __init__(self, key: str, wrong: str) -> None:
        super().__init__(
            f"{key} {wrong}", "repair the file, or give another tokenizer with --tokenizer"
        )


def check(value: object) -> None:
    """Refuse the content of a ``tokenizer.json`` that would crash or exhaust the library.

    Raises:
        UserError: the message names the key and what is wrong with it.
    """
    if not isinstance(value, dict):
        raise Refused("the tokenizer", "is not a JSON object")
    _check_model(value.get("model"))
    for index, added in enumerate(_list("added_tokens", value.get("added_tokens") or [])):
        check_added(f"added_tokens[{index}]", added)
    for section in _KINDS:
        factor = 1.0
        for key, part in _parts(section, value.get(section)):
            factor *= _expansion(key, part)
            if factor > LARGEST_EXPANSION:
                raise Refused(
                    section,
                    f"can make a text more than {LARGEST_EXPANSION} times as long (at {key})",
                )


def check_added(key: str, added: object) -> None:
    """Refuse an added token, described under ``key``, that lacks a text or an id."""
    if not isinstance(added, dict):
        raise Refused(key, "is not an object")
    _text(f"{key}.content", added.get("content"))
    _id(f"{key}.id", added.get("id"))


def model_type(model: dict[str, Any]) -> str:
    """The type of a file's ``model``, which the oldest files leave out."""
    if "type" in model:
        return str(model["type"])
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "max_input_chars_per_word" in model else "WordLevel"


def splits_like_gpt2(value: dict[str, Any]) -> bool:
    """True when a checked file cuts words by GPT-2's pattern and changes nothing before that."""
    part = value.get("pre_tokenizer") or {}
    return (
        not value.get("normalizer")
        and part.get("type") == "ByteLevel"
        and part.get("use_regex", True)
        and not part.get("add_prefix_space", True)
    )


def decoder_types(value: dict[str, Any]) -> list[str]:
    """The types of the decoders in a checked file that do more than join texts, in order."""
    types = [part["type"] for _, part in _parts("decoder", value.get("decoder"))]
    return [kind for kind in types if kind not in ("Sequence", "Fuse")]


def patterns(value: dict[str, Any]) -> list[str]:
    """The regular expressions in a file that ``check`` has passed."""
    parts = (part for section in _KINDS for _, part in _parts(section, value.get(section)))
    found = (part["pattern"].get("Regex") for part in parts if "pattern" in part)
    return [pattern for pattern in found if pattern]


def _check_model(model: object) -> None:
    if not isinstance(model, dict):
        raise Refused("model", "is missing")
    kind = model_type(model)
    if kind not in _MODELS:
        raise Refused("model.type", f"is {kind!r:.60}; known are {', '.join(_MODELS)}")
    if kind == "Unigram":
        _check_scores(model)
        return
    vocab = model.get("vocab")
    if not isinstance(vocab, dict):
        raise Refused("model.vocab", "is not an object of tokens and their ids")
    seen: dict[int, str] = {}
    for token, id in vocab.items():
        key = f"model.vocab[{token!r:.60}]"
        _text("a token of model.vocab", token)
        if _id(key, id) in seen:
            raise Refused(key, f"has the id {id}, and so has {seen[id]!r:.60}")
        seen[id] = token
    if kind == "BPE":
        _check_merges(model, vocab)
    elif kind == "WordPiece":
        _whole("model.max_input_chars_per_word", model.get("max_input_chars_per_word", 100))


def _check_scores(model: dict[str, Any]) -> None:
    vocab = _list("model.vocab", model.get("vocab"))
    seen = set()
    for id, entry in enumerate(vocab):
        key = f"model.vocab[{id}]"
        if not (isinstance(entry, list) and len(entry) == 2 and _is_number(entry[1])):
            raise Refused(key, "is not a token and its score")
        if _text(key, entry[0]) in seen:
            raise Refused(key, f"is the token {entry[0]!r:.60} a second time")
        seen.add(entry[0])


def _check_merges(model: dict[str, Any], vocab: dict[str, int]) -> None:
    if model.get("dropout"):
        raise Refused(
            "model.dropout", f"is {model['dropout']!r:.40}: the same text would get other ids"
        )
    prefix = model.get("continuing_subword_prefix") or ""
    _text("model.continuing_subword_prefix", prefix)
    for rank, merge in enumerate(_list("model.merges", model.get("merges"))):
        key = f"model.merges[{rank}]"
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(t) is str for t in pair)):
            raise Refused(key, f"is {merge!r:.60}, not a pair of tokens")
        if not pair[1].startswith(prefix):
            raise Refused(key, f"merges {pair[1]!r:.60}, which lacks the prefix {prefix!r:.40}")
        for token in (*pair, pair[0] + pair[1][len(prefix) :]):
            if token not in vocab:
                raise Refused(key, f"needs the token {token!r:.60}, which is not in model.vocab")


def _parts(section: str, value: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every part of a section with its key, including those in Sequences.

    Raises:
        UserError: a part is not an object or of unknown type, or there are too many.
    """
    count = 0

    def visit(key: str, part: object, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
        nonlocal count
        count += 1
        if depth > _LARGEST_DEPTH or count > _LARGEST_SEQUENCE:
            raise Refused(
                section,
                f"has more than {_LARGEST_SEQUENCE} members or is nested more than "
                f"{_LARGEST_DEPTH} deep",
            )
        if not isinstance(part, dict):
            raise Refused(key, "is not an object")
        known = _KINDS[section].split()
        if part.get("type") not in known:
            raise Refused(f"{key}.type", f"is {part.get('type')!r:.60}; known: {', '.join(known)}")
        yield key, part
        if part["type"] == "Sequence":
            members = f"{key}.{_MEMBERS[section]}"
            for index, member in enumerate(_list(members, part.get(_MEMBERS[section]))):
                yield from visit(f"{members}[{index}]", member, depth + 1)

    if value is not None:
        yield from visit(section, value, 1)


def _expansion(key: str, part: dict[str, Any]) -> float:
    """How many times as long this part can make a text; other faults in it are refused.

    Normalisation by Unicode's own tables is not counted: a file cannot change those.
    """
    kind = part["type"]
    if kind == "Prepend":
        return 1.0 + len(_text(f"{key}.prepend", part.get("prepend")).encode())
    if kind in ("Split", "Replace"):
        pattern = part.get("pattern")
        form, text = "", None
        if isinstance(pattern, dict) and len(pattern) == 1:
            [(form, text)] = pattern.items()
        if form not in ("String", "Regex") or not isinstance(text, str) or not text:
            raise Refused(f"{key}.pattern", "is neither a String nor a Regex with a text")
        _text(f"{key}.pattern", text)
        if kind == "Replace":
            size = len(_text(f"{key}.content", part.get("content")).encode())
            # A regular expression can match the empty text before every character.
            return max(1.0, size / len(text.encode())) if form == "String" else 1.0 + size
    elif kind == "FixedLength":
        _whole(f"{key}.length", part.get("length"), largest=LARGEST_ID)
    elif kind == "Strip" and "content" in part:
        for name in ("start", "stop"):
            _whole(f"{key}.{name}", part.get(name), smallest=0)
    elif kind == "Precompiled":
        _check_charsmap(f"{key}.precompiled_charsmap", part.get("precompiled_charsmap"))
    return 1.0


def _check_charsmap(key: str, value: object) -> None:
    """SentencePiece's table: the trie's size in 4 bytes, the trie, 0-terminated replacements."""
    if not isinstance(value, str) or len(value) > 2 * _LARGEST_CHARSMAP:
        raise Refused(key, f"is not a text of at most {_LARGEST_CHARSMAP:,} bytes in Base64")
    try:
        data = base64.b64decode(value, validate=True)
    except ValueError:
        raise Refused(key, "is not Base64") from None
    size = int.from_bytes(data[:4], "little")
    if len(data) < 8 or not size or size % 4 or size > len(data) - 4:
        raise Refused(key, "is damaged: its trie does not fit")
    if max(map(len, data[4 + size :].split(b"\0"))) > _LARGEST_REPLACEMENT:
        raise Refused(key, f"replaces a character by more than {_LARGEST_REPLACEMENT} bytes")


def _list(key: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise Refused(key, "is not a list")
    return value


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise Refused(key, f"is {value!r:.60}, not a text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise Refused(key, f"is {value!r:.60}: half a surrogate pair is not a character") from None
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _whole(key: str, value: object, *, smallest: int = 1, largest: int = _LARGEST_LENGTH) -> int:
    if type(value) is not int or not smallest <= value <= largest:
        raise Refused(key, f"is {value!r:.60}, not a whole number from {smallest} to {largest:,}")
    return value


def _id(key: str, value: object) -> int:
    return _whole(key, value, smallest=0, largest=LARGEST_ID)
