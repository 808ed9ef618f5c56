"""The tokenizer files of Hugging Face folders: reading them, and the native ones as such a file.

``tokenizer.json`` is made without any library. A character vocabulary becomes a BPE without merges
and without a pre-tokenizer, with which every reader splits text into characters. That form drops
unknown characters silently; the native tokenizer reports them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from nanogpt_cli import assets, files, foreign_files
from nanogpt_cli.errors import UserError, naming
from nanogpt_cli.text.tokenizers import bpe, foreign_tokenizer
from nanogpt_cli.text.tokenizers.gpt2_bpe import byte_characters
from nanogpt_cli.text.tokenizers.tiktoken_bpe import TiktokenTokenizer
from nanogpt_cli.text.tokenizers.tokenizer import (
    END_OF_TEXT,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
)

TOKENIZER: Final = "tokenizer.json"
VOCABULARY: Final = "vocab.json"
MERGES: Final = "merges.txt"
MERGES_HEADER: Final = "#version: 0.2\n"
# Encodings of tiktoken that are GPT-2's vocabulary under another name.
GPT2_KINDS: Final = ("gpt2", "r50k_base")
_ADDED: Final = "added_tokens.json"
_CONFIG: Final = "tokenizer_config.json"
_BYTE_LEVEL: Final = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_FLAGS: Final = {"single_word": False, "lstrip": False, "rstrip": False}


def to_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """The content of ``tokenizer.json``.

    Raises:
        UserError: the tokenizer has no exact equivalent.
    """
    value = tokenizer.to_json()
    if "huggingface" in value:
        found: dict[str, Any] = value["huggingface"]
        return found
    if tokenizer.kind == "char":
        vocab = {character: i for i, character in enumerate(value["characters"])}
        return _bpe(vocab, [], tokenizer.eot, pre_tokenizer=None, decoder={"type": "Fuse"})
    if tokenizer.kind == "byte":
        pre = {**_BYTE_LEVEL, "use_regex": False}
        return _bpe(byte_characters(), [], tokenizer.eot, pre_tokenizer=pre, decoder=_BYTE_LEVEL)
    if tokenizer.kind in GPT2_KINDS:
        vocab, merges = _gpt2_vocabulary()
        return _with_gpt2_words(vocab, merges, tokenizer.eot)
    raise UserError(
        f"{tokenizer.label} cannot be written as a tokenizer.json yet",
        "char, byte, gpt2, bpe:SIZE and Hugging Face tokenizers can; --to pt2 needs no tokenizer",
    )


def _bpe(
    vocab: dict[str, int],
    merges: list[str],
    eot: int | None,
    *,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    flags = {**_FLAGS, "normalized": False, "special": True}
    added = [] if eot is None else [{"id": eot, "content": END_OF_TEXT, **flags}]
    if eot is not None:
        vocab = {**vocab, END_OF_TEXT: eot}
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
        "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
        "ignore_merges": False, "vocab": vocab, "merges": merges,
    }  # fmt: skip
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": None, "pre_tokenizer": pre_tokenizer, "post_processor": None,
        "decoder": decoder, "model": model,
    }  # fmt: skip


def _with_gpt2_words(vocab: dict[str, int], merges: list[str], eot: int | None) -> dict[str, Any]:
    pre = {**_BYTE_LEVEL, "use_regex": True}
    return _bpe(vocab, merges, eot, pre_tokenizer=pre, decoder=_BYTE_LEVEL)


def _gpt2_vocabulary() -> tuple[dict[str, int], list[str]]:
    """GPT-2's 50256 tokens without end-of-text, token -> id, and its merges as "a b" lines."""
    merges = assets.fetch("gpt2-vocab.bpe").read_text("utf-8").splitlines()[1:]
    tokens = [*byte_characters(), *(line.replace(" ", "") for line in merges)]
    return {token: i for i, token in enumerate(tokens)}, merges


def read(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None if it has no tokenizer file.

    Raises:
        UserError: a file is damaged, or only one of ``vocab.json`` and ``merges.txt`` exists.
    """
    names = (TOKENIZER, VOCABULARY, MERGES)
    path = next((folder / name for name in names if foreign_files.present(folder / name)), None)
    return None if path is None else from_value(read_value(path), path)


def read_value(path: Path) -> dict[str, Any]:
    """The object in ``path``, or its equal made of ``vocab.json`` and ``merges.txt``."""
    if path.name in (VOCABULARY, MERGES):
        return _from_two_files(path.parent)
    return foreign_files.read_object(path, foreign_files.LARGEST_VOCABULARY)


def _from_two_files(folder: Path) -> dict[str, Any]:
    limit = foreign_files.LARGEST_VOCABULARY
    vocab = foreign_files.read_object(folder / VOCABULARY, limit)
    text = foreign_files.read_text(folder / MERGES, limit)
    merges = [line for line in text.split("\n") if line and not line.startswith("#version")]
    eot = vocab.pop(END_OF_TEXT, None)
    return _with_gpt2_words(vocab, merges, eot)


def _object(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty if there is no such file."""
    if not foreign_files.present(path):
        return {}
    # Where no length is set, transformers writes "model_max_length": int(1e30).
    return foreign_files.read_object(path, long_numbers=path.name == _CONFIG)


def _completed(value: dict[str, Any], folder: Path) -> dict[str, Any]:
    """``value`` with what the files beside it add to it, as transformers reads them."""
    config = _object(folder / _CONFIG)
    described = config.get("added_tokens_decoder")
    extra: dict[str, dict[str, Any]] = {}
    with naming(folder / _CONFIG):
        for id, entry in (described if isinstance(described, dict) else {}).items():
            key = f"added_tokens_decoder[{id!r:.20}]"
            number = int(id) if id.isdecimal() and len(id) < 10 else None
            token = {**entry, "id": number} if isinstance(entry, dict) else entry
            foreign_tokenizer.check_added(key, token)
            extra[token["content"]] = token
    with naming(folder / _ADDED):
        for content, id in _object(folder / _ADDED).items():
            token = {"id": id, "content": content}
            foreign_tokenizer.check_added(f"{content!r:.60}", token)
            extra.setdefault(content, token)
    held = value.get("added_tokens") or []
    known = {token["content"] for token in held}
    missing = [token for token in extra.values() if token["content"] not in known]
    added = [_described(token) for token in sorted(missing, key=lambda token: token["id"])]
    pre, prefix = value.get("pre_tokenizer"), config.get("add_prefix_space")
    if isinstance(prefix, bool) and pre and pre["type"] == "ByteLevel":
        pre = {**pre, "add_prefix_space": prefix}
    return {**value, "added_tokens": [*held, *added], "pre_tokenizer": pre}


def _described(token: dict[str, Any]) -> dict[str, Any]:
    """An added token with every flag; the defaults are transformers'."""
    special = token.get("special") is True
    flags = {name: token.get(name) is True for name in _FLAGS}
    normalized = token.get("normalized", not special) is True
    about = {"id": token["id"], "content": token["content"]}
    return {**about, **flags, "normalized": normalized, "special": special}


def from_value(value: dict[str, Any], path: Path) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json``.

    Tokens that ``tokenizer_config.json`` or ``added_tokens.json`` add are part of it, and so is the
    end of text that ``config.json`` names. Characters, bytes and GPT-2's own vocabulary become
    native tokenizers, so that exporting and importing a model does not change it.

    Args:
        value: the content of the file.
        path: the file. Those beside it count if it has one of the usual names.

    Raises:
        UserError: the content is damaged or harmful.
    """
    config: dict[str, Any] = {}
    with naming(path):
        foreign_tokenizer.check(value)
    if path.name in (TOKENIZER, VOCABULARY, MERGES):
        value, config = _completed(value, path.parent), _object(path.parent / "config.json")
    with naming(path):
        if native := _recognise(value):
            return native
        marker, eot = config.get("nanogpt_cli"), config.get("eos_token_id")
        kind = str(marker.get("tokenizer")) if isinstance(marker, dict) else "hf"
        kind = kind if bpe.trained_size(kind) else "hf"
        made = bpe.HuggingFaceTokenizer(value, kind=kind, source=str(path))
    # Configurations of smaller vocabularies often keep GPT2Config's default, 50256.
    if type(eot) is int and 0 <= eot < made.vocab_size:
        made.eot = eot
    elif (named := made.backend.token_to_id(_named_end(path))) is not None:
        made.eot = named
    return made


def _named_end(path: Path) -> str:
    """The token that ``tokenizer_config.json`` calls the end of text; empty if it names none."""
    named = _object(path.parent / _CONFIG).get("eos_token") if path.name == TOKENIZER else None
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) else ""


def _recognise(value: dict[str, Any]) -> Tokenizer | None:
    """The native tokenizer that ``to_json`` turns into an equal file, if there is one."""
    model = value["model"]
    if foreign_tokenizer.model_type(model) != "BPE":
        return None
    names = [name for name in sorted(model["vocab"], key=model["vocab"].get) if name != END_OF_TEXT]
    eot = END_OF_TEXT in model["vocab"]
    candidates: list[Tokenizer] = []
    if _are_gpt2_merges(model["merges"]):
        try:
            candidates.append(TiktokenTokenizer("gpt2"))
        except UserError:  # not cached and no network: the library's tokenizer is equivalent
            return None
    elif not model["merges"]:
        candidates.append(ByteTokenizer(eot=eot))
        if all(len(name) == 1 for name in names):
            candidates.append(CharTokenizer(names, eot=eot))
    equal = (native for native in candidates if _essence(to_json(native)) == _essence(value))
    return next(equal, None)


def _are_gpt2_merges(merges: list[Any]) -> bool:
    lines = (merge if isinstance(merge, str) else " ".join(merge) for merge in merges)
    text = MERGES_HEADER + "".join(f"{line}\n" for line in lines)
    expected = assets.ASSETS["gpt2-vocab.bpe"].sha256
    return files.sha256_bytes(text.encode("utf-8", errors="replace")) == expected


def _essence(value: dict[str, Any]) -> dict[str, Any]:
    """Everything in a checked file that decides the ids of a text or the text of ids."""
    model = value["model"]
    pre, post, decoder = (
        value.get(key) or {} for key in ("pre_tokenizer", "post_processor", "decoder")
    )
    if pre.get("type") == "ByteLevel":
        switches = ("add_prefix_space", "use_regex")
        pre = {"type": "ByteLevel", **{name: pre.get(name, True) for name in switches}}
    if decoder.get("type") == "ByteLevel":
        decoder = {"type": "ByteLevel"}
    # ByteLevel only moves offsets, and a template without special tokens adds none.
    adds = not (post.get("type") == "TemplateProcessing" and not post.get("special_tokens"))
    added = value.get("added_tokens") or []
    flags = ("id", "content", *_FLAGS, "special")
    return {
        "normalizer": value.get("normalizer"), "pre": pre, "decoder": decoder,
        "post": post if adds and post.get("type") != "ByteLevel" else {},
        "added": [[token.get(flag) or False for flag in flags] for token in added],
        "vocab": model["vocab"],
        "model": {k: v for k, v in model.items() if v and k not in ("type", "vocab", "merges")},
    }  # fmt: skip
