"""Writing and reading the tokenizer files of transformers, transformers.js and others.

``tokenizer.json`` is written without any library. A character vocabulary becomes a BPE without
merges and without a pre-tokenizer, with which every reader splits text into characters. That form
drops unknown characters silently; the native tokenizer reports them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from nanogpt_cli import assets, files, foreign_files
from nanogpt_cli.errors import UserError, naming
from nanogpt_cli.text import foreign_tokenizer, tokenizers
from nanogpt_cli.text.bpe import HuggingFaceTokenizer
from nanogpt_cli.text.gpt2_bpe import byte_characters
from nanogpt_cli.text.tokenizer import END_OF_TEXT, CharTokenizer, Tokenizer

# Encodings of tiktoken that are GPT-2's vocabulary under another name.
GPT2_KINDS: Final = ("gpt2", "r50k_base")
_MERGES_HEADER: Final = "#version: 0.2\n"


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
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    if tokenizer.kind == "byte":
        stand_in = {byte: character for character, byte in byte_characters().items()}
        vocab = {stand_in[byte]: byte for byte in range(256)}
        pre = {**byte_level, "use_regex": False}
        return _bpe(vocab, [], tokenizer.eot, pre_tokenizer=pre, decoder=byte_level)
    if tokenizer.kind in GPT2_KINDS:
        pre = {**byte_level, "use_regex": True}
        vocab, merges = gpt2_vocabulary()
        return _bpe(vocab, merges, tokenizer.eot, pre_tokenizer=pre, decoder=byte_level)
    raise UserError(
        f"tokenizer {tokenizer.kind!r} cannot be written as a tokenizer.json yet",
        "char, byte, gpt2, bpe:SIZE and Hugging Face tokenizers can",
    )


def _bpe(
    vocab: dict[str, int],
    merges: list[str],
    eot: int | None,
    *,
    pre_tokenizer: dict[str, Any] | None,
    decoder: dict[str, Any],
) -> dict[str, Any]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    added = [] if eot is None else [{"id": eot, "content": END_OF_TEXT, **flags, "special": True}]
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


def gpt2_vocabulary() -> tuple[dict[str, int], list[str]]:
    """GPT-2's 50256 tokens without end-of-text, token -> id, and its merges as "a b" lines."""
    merges = assets.fetch("gpt2-vocab.bpe").read_text("utf-8").splitlines()[1:]
    tokens = [*byte_characters(), *(line.replace(" ", "") for line in merges)]
    return {token: i for i, token in enumerate(tokens)}, merges


def write(tokenizer: Tokenizer, folder: Path, block_size: int) -> None:
    """Write ``tokenizer.json``, ``tokenizer_config.json`` and, for GPT-2, the older two files."""
    value = to_json(tokenizer)
    _dump(folder / "tokenizer.json", value)
    config: dict[str, Any] = {
        # Without a class, or with GPT-2's for another vocabulary, transformers 5 splits words as
        # GPT-2 does and drops every space and newline of a character vocabulary.
        "tokenizer_class": "PreTrainedTokenizerFast",
        # Otherwise transformers 4 passes token_type_ids of 0, and GPT-2 adds wte[0] everywhere.
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        "model_max_length": block_size,
    }
    if tokenizer.eot is not None:
        name = _name_of(value, tokenizer.eot)
        config |= {"bos_token": name, "eos_token": name, "unk_token": name, "pad_token": name}
    if tokenizer.kind in GPT2_KINDS:
        config |= {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
        _dump(folder / "vocab.json", value["model"]["vocab"])
        merges = _MERGES_HEADER + "".join(f"{line}\n" for line in value["model"]["merges"])
        (folder / "merges.txt").write_text(merges, encoding="utf-8", newline="\n")
    files.write_json(folder / "tokenizer_config.json", config)


def _dump(path: Path, value: dict[str, Any]) -> None:
    path.write_bytes(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8"))


def _name_of(value: dict[str, Any], id: int) -> str:
    for added in value.get("added_tokens") or []:
        if added["id"] == id:
            return str(added["content"])
    vocab = value["model"]["vocab"]
    return next((token for token, i in vocab.items() if i == id), END_OF_TEXT)


def read(folder: Path) -> Tokenizer | None:
    """The tokenizer of a Hugging Face folder; None if it has no tokenizer file.

    Characters, bytes and GPT-2's own vocabulary become native tokenizers, so that exporting and
    importing a model does not change it.

    Raises:
        UserError: a file is damaged, or only one of ``vocab.json`` and ``merges.txt`` exists.
    """
    path = folder / "tokenizer.json"
    if foreign_files.present(path):  # a dangling link does not mean that there is no tokenizer
        value = foreign_files.read_object(path, foreign_files.LARGEST_VOCABULARY)
    elif any(foreign_files.present(folder / name) for name in ("vocab.json", "merges.txt")):
        path = folder / "vocab.json"
        value = _from_two_files(folder)
    else:
        return None
    with naming(path):
        foreign_tokenizer.check(value)
        return _recognise(value) or _library(value, folder, str(path))


def _from_two_files(folder: Path) -> dict[str, Any]:
    limit = foreign_files.LARGEST_VOCABULARY
    vocab = foreign_files.read_object(folder / "vocab.json", limit)
    text = foreign_files.read_text(folder / "merges.txt", limit)
    merges = [line for line in text.split("\n") if line and not line.startswith("#version")]
    eot = vocab.pop(END_OF_TEXT, None)
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    pre = {**byte_level, "use_regex": True}
    return _bpe(vocab, merges, eot, pre_tokenizer=pre, decoder=byte_level)


def _recognise(value: dict[str, Any]) -> Tokenizer | None:
    """The native tokenizer that ``to_json`` turns into the same vocabulary, if there is one."""
    model = value["model"]
    if foreign_tokenizer.model_type(model) != "BPE":
        return None
    merges = [line if isinstance(line, str) else " ".join(line) for line in model["merges"]]
    if merges:
        return tokenizers.get("gpt2") if _is_gpt2(model["vocab"], merges) else None
    eot = END_OF_TEXT in model["vocab"]
    names = [name for name in sorted(model["vocab"], key=model["vocab"].get) if name != END_OF_TEXT]
    candidates: list[Tokenizer] = [tokenizers.get("byte", eot=eot)]
    if all(len(name) == 1 for name in names):
        candidates.append(CharTokenizer(names, eot=eot))
    for candidate in candidates:
        theirs = to_json(candidate)
        same = (theirs[key] == value.get(key) for key in ("pre_tokenizer", "decoder", "normalizer"))
        if all(same) and theirs["model"]["vocab"] == model["vocab"]:
            return candidate
    return None


def _is_gpt2(vocab: dict[str, int], merges: list[str]) -> bool:
    text = _MERGES_HEADER + "".join(f"{line}\n" for line in merges)
    expected = assets.ASSETS["gpt2-vocab.bpe"].sha256
    if files.sha256_bytes(text.encode("utf-8", errors="replace")) != expected:
        return False
    try:
        known, _ = gpt2_vocabulary()
    except UserError:  # not cached and no network: the library's tokenizer is equivalent
        return False
    return {token: i for token, i in vocab.items() if token != END_OF_TEXT} == known


def _library(value: dict[str, Any], folder: Path, source: str) -> Tokenizer:
    """Any other tokenizer, through the ``tokenizers`` library."""
    config_path = folder / "config.json"
    config = foreign_files.read_object(config_path) if foreign_files.present(config_path) else {}
    marker = config.get("nanogpt_cli")
    kind, eot = "hf", config.get("eos_token_id")
    if isinstance(marker, dict) and tokenizers.trained_size(str(marker.get("tokenizer"))):
        kind = str(marker["tokenizer"])
    tokenizer = HuggingFaceTokenizer(value, kind=kind, source=source)
    # Configurations of smaller vocabularies often keep GPT2Config's default, 50256.
    if type(eot) is int and 0 <= eot < tokenizer.vocab_size:
        tokenizer.eot = eot
    return tokenizer
