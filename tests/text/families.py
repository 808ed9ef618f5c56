"""A small tokenizer of every family, made by the libraries themselves."""

from __future__ import annotations

import functools
import json
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from nanogpt_cli.text.tokenizers import bpe, factory
from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

# Scripts, marks, spaces, and the spellings of tokens, beside each other in every order.
ATOMS = [
    "the", "The ", "quick", "Café", "naïve café", "café", "don't", " stop", " ", "  ", "\n", "\r\n",
    "\t", ".", ",", " ,", "!?", "日本", "語", "😀", "👩‍👩‍👧", "e\u0301", "ﬁ", "\u00a0", "\u3000",
    "ж", "\ufffd", "12", "</s>", "<|endoftext|>", "<0x41>", "▁", "##s", "?",
]  # fmt: skip
ADDED = ["Café", "naïve café", "日本", "<|user|>"]
WORDS = [
    f"The quick brown fox {i} jumps over naïve café owners. Hello, don't stop" for i in range(60)
]

HUGGING_FACE = (
    "byte-level", "byte-level, added tokens", "byte-level, prefix space", "byte-level, lower case",
    "unigram", "unigram, byte fallback", "wordpiece", "sentencepiece, byte fallback",
)  # fmt: skip
ALL = ("char", "byte", "gpt2", "bpe:300", *HUGGING_FACE)


def trained(library: tokenizers.Tokenizer, trainer: Any) -> dict[str, Any]:
    library.train_from_iterator(WORDS, trainer)
    value: dict[str, Any] = json.loads(library.to_str())
    return value


def byte_level(**options: bool) -> tokenizers.Tokenizer:
    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **options})
    library.decoder = decoders.ByteLevel()
    return library


def byte_level_trainer() -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=330, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip


def with_bytes(vocab: list[list[Any]]) -> list[list[Any]]:
    """A Unigram vocabulary with a token for each byte after its two special ones."""
    letters = [entry for entry in vocab[2:] if entry[0].strip("▁").isascii()]
    return [*vocab[:2], *([f"<0x{byte:02X}>", 0.0] for byte in range(256)), *letters]


@functools.cache
def tokenizer_json(family: str) -> dict[str, Any]:
    """The content of the ``tokenizer.json`` of one of ``HUGGING_FACE``."""
    if family.startswith("byte-level"):
        library = byte_level(add_prefix_space="prefix" in family)
        if "lower" in family:
            library.normalizer = normalizers.Lowercase()
        value = trained(library, byte_level_trainer())
        if "added" in family:
            made = tokenizers.Tokenizer.from_str(json.dumps(value))
            made.add_tokens(ADDED)
            value = json.loads(made.to_str())
        return value
    if family == "wordpiece":
        library = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        library.normalizer = normalizers.BertNormalizer()
        library.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        library.decoder = decoders.WordPiece()
        words = trainers.WordPieceTrainer(
            vocab_size=200, special_tokens=["[UNK]", "[SEP]"], show_progress=False
        )
        return trained(library, words)
    spaces = decoders.Replace("▁", " ")
    first = decoders.Strip(" ", 1, 0)
    fallback = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse(), first])
    if family.startswith("unigram"):
        library = tokenizers.Tokenizer(models.Unigram())
        library.normalizer = normalizers.NFKC()
        library.pre_tokenizer = pre_tokenizers.Metaspace()
        library.decoder = decoders.Metaspace()
        unigram = trainers.UnigramTrainer(
            vocab_size=150, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
        )
        value = trained(library, unigram)
        if "fallback" in family:
            library.decoder = fallback
            value["decoder"] = json.loads(library.to_str())["decoder"]
            value["model"]["byte_fallback"] = True
            value["model"]["vocab"] = with_bytes(value["model"]["vocab"])
        return value
    library = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    prepend = normalizers.Prepend("▁")
    library.normalizer = normalizers.Sequence([prepend, normalizers.Replace(" ", "▁")])
    library.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    library.decoder = fallback
    special = ["<unk>", "<s>", "</s>"]
    codes = [f"<0x{byte:02X}>" for byte in range(256)]
    merges = trainers.BpeTrainer(
        vocab_size=400, special_tokens=[*special, *codes], show_progress=False
    )
    value = trained(library, merges)
    value["pre_tokenizer"] = None  # as in Llama's file, which cuts no words
    value["added_tokens"] = value["added_tokens"][: len(special)]
    return value


@functools.cache
def library(family: str) -> tokenizers.Tokenizer:
    """The library's own object; like ours it reads special tokens in a text as text."""
    made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_json(family)))
    made.encode_special_tokens = True
    return made


@functools.cache
def ours(family: str) -> Tokenizer:
    """This program's tokenizer of the family."""
    if family == "char":
        return CharTokenizer.of_text("".join(ATOMS))
    if family == "byte":
        return ByteTokenizer(eot=True)
    if family == "gpt2":
        return factory.get("gpt2")
    if family == "bpe:300":
        return bpe.train(300, WORDS)
    return bpe.HuggingFaceTokenizer(tokenizer_json(family))
