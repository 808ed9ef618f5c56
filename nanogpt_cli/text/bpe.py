"""Byte-pair encodings: tiktoken's by name, Hugging Face files, and training one on a text."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from nanogpt_cli.errors import UserError
from nanogpt_cli.text import tiktoken_spaces, tokenizer_library
from nanogpt_cli.text.gpt2_bpe import byte_characters, load_gpt2_encoding
from nanogpt_cli.text.tokenizer import END_OF_TEXT, Tokenizer, Tokens

if TYPE_CHECKING:
    import tiktoken
    import tokenizers

# Names under which published vocabularies keep their end-of-text token, most specific first.
_END_OF_TEXT_NAMES = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")


_COPY_PAYS = 1 << 22  # characters; a copy costs what encoding about a megabyte does

# Training time grows with the square of a word's length, so a word is cut after this many
# characters of one of GPT-2's classes. No vocabulary learns anything from longer words.
_LONG_WORD = 1024
_LONG_WORDS = re.compile(
    "|".join(f"{kind}{{{_LONG_WORD}}}" for kind in (r"[^\W\d_]", r"\d", r"\s", r"(?:[^\w\s]|_)"))
)


class TiktokenTokenizer(Tokenizer):
    """An encoding of the tiktoken library; ``gpt2`` works without a network once cached."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.encoding = _tiktoken_encoding(kind)
        self.vocab_size = self.encoding.n_vocab
        self.eot = self.encoding.eot_token
        self._own = threading.local()

    def encode_array(self, text: str) -> Tokens:
        """See ``Tokenizer``. Runs without the interpreter lock, so threads scale."""
        encoding = self._of_this_thread(len(text))
        try:
            # With no special token allowed this equals encode_ordinary, without a Python list.
            return encoding.encode_to_numpy(text, disallowed_special=()).astype(self.dtype)
        except ValueError:
            long_spaces = tiktoken_spaces.find(text, encoding._pat_str)
            if not long_spaces:
                raise
        return tiktoken_spaces.encode(text, encoding, long_spaces).astype(self.dtype)

    def _of_this_thread(self, size: int) -> tiktoken.Encoding:
        """The encoding, or this thread's own copy once it has encoded enough to pay for one.

        A compiled pattern keeps fast scratch space for one thread only; others take a lock for
        every word, which costs about a quarter of the speed (measured: 4.3 s instead of 3.3 s of
        processor time for 23 MB).
        """
        own = self._own
        own.seen = getattr(own, "seen", 0) + size
        if threading.current_thread() is threading.main_thread() or own.seen < _COPY_PAYS:
            return self.encoding
        if not hasattr(own, "encoding"):
            own.encoding = _copy(self.encoding)
        found: tiktoken.Encoding = own.encoding
        return found

    def encode(self, text: str) -> list[int]:
        """See ``Tokenizer``."""
        if len(text) > tiktoken_spaces.LONGEST:
            return super().encode(text)
        return self.encoding.encode_ordinary(text)

    def token_bytes(self, id: int) -> bytes:
        """See ``Tokenizer``."""
        return self.encoding.decode_single_token_bytes(id)

    def to_json(self) -> dict[str, Any]:
        """See ``Tokenizer``. The name is enough: tiktoken pins the vocabulary's hash."""
        return self._head()


def _copy(encoding: tiktoken.Encoding) -> tiktoken.Encoding:
    import tiktoken

    return tiktoken.Encoding(
        encoding.name,
        pat_str=encoding._pat_str,
        mergeable_ranks=encoding._mergeable_ranks,
        special_tokens=encoding._special_tokens,
    )


def _tiktoken_encoding(kind: str) -> tiktoken.Encoding:
    if kind == "gpt2":
        return load_gpt2_encoding()
    import tiktoken

    try:
        return tiktoken.get_encoding(kind)
    except Exception as error:  # the library raises whatever its HTTP client does
        raise UserError(
            f"cannot fetch the vocabulary of {kind!r}: {type(error).__name__}",
            "tiktoken fetches it once from its server; without a network set TIKTOKEN_CACHE_DIR "
            "to a cache filled elsewhere, or use --tokenizer gpt2",
        ) from error


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer of the ``tokenizers`` library.

    Args:
        value: the content of a ``tokenizer.json``.
        kind: ``hf``, or ``bpe:SIZE`` for one that ``train`` made.
        eot: id of end of text; by default that of the first usual name found in the vocabulary.
        source: the file it comes from, for messages.

    Raises:
        UserError: ``value`` is refused, or ``eot`` is not among its ids.
    """

    def __init__(
        self,
        value: dict[str, Any],
        *,
        kind: str = "hf",
        eot: int | None = None,
        source: str = "the tokenizer",
    ) -> None:
        self.kind = kind
        self._value = value
        self._source = source
        self._tokenizer = tokenizer_library.load(value)
        # Special tokens spelled out in a document are text, not the end of it.
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self.vocab_size = 1 + max(self._tokenizer.get_vocab().values(), default=-1)
        if eot is not None and not 0 <= eot < self.vocab_size:
            raise UserError(f"end of text has the id {eot}; the ids are 0 to {self.vocab_size - 1}")
        self.eot = eot if eot is not None else self._find_eot()
        self.cut_rule = "words" if _splits_like_gpt2(value) else "checked"
        self._bytes = None
        if _is_byte_level(value):
            self._bytes = byte_characters()

    def _find_eot(self) -> int | None:
        ids = (self._tokenizer.token_to_id(name) for name in _END_OF_TEXT_NAMES)
        return next((i for i in ids if i is not None), None)

    def encode_array(self, text: str) -> Tokens:
        """See ``Tokenizer``."""
        # The batch form skips the offsets, which would double the time and take most of the memory.
        with tokenizer_library.calling(f"{self._source} cannot encode this text"):
            found = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        return np.array(found.ids, dtype=self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        """See ``Tokenizer``."""
        with tokenizer_library.calling(f"{self._source} cannot decode these ids"):
            return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def token_bytes(self, id: int) -> bytes:
        """See ``Tokenizer``. Exact for byte-level vocabularies, the decoded text for others."""
        token = self._tokenizer.id_to_token(id)
        if token is None:
            if 0 <= id < self.vocab_size:
                return b""  # a gap between ids, which the library decodes to nothing
            raise KeyError(id)
        if self._bytes is not None and id != self.eot and all(c in self._bytes for c in token):
            return bytes(self._bytes[c] for c in token)
        return self.decode([id]).encode("utf-8", errors="replace")

    def to_json(self) -> dict[str, Any]:
        """See ``Tokenizer``."""
        return {**self._head(), "huggingface": self._value}

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The library's own object, for export."""
        return self._tokenizer


def _parts(value: dict[str, Any], section: str, children: str) -> Iterator[dict[str, Any]]:
    part = value.get(section) or {}
    yield part
    yield from part.get(children) or ()


def _is_byte_level(value: dict[str, Any]) -> bool:
    return any(p.get("type") == "ByteLevel" for p in _parts(value, "decoder", "decoders"))


def _splits_like_gpt2(value: dict[str, Any]) -> bool:
    """True when the file cuts words by GPT-2's pattern and changes nothing before that."""
    part = value.get("pre_tokenizer") or {}
    return (
        not value.get("normalizer")
        and part.get("type") == "ByteLevel"
        and part.get("use_regex", True)
        and not part.get("add_prefix_space", True)
    )


def train(size: int, texts: Iterable[str]) -> HuggingFaceTokenizer:
    """Train a byte-level BPE with GPT-2's word pattern; ``<|endoftext|>`` has id 0.

    Args:
        size: vocabulary size including the 256 bytes and the end-of-text token. A short text may
            not hold enough repeated pairs; the vocabulary is then smaller.
        texts: pieces of text, cut where words end. Words of more than 1024 characters are cut.
    """
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    library = tokenizers.Tokenizer(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        show_progress=False,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    with tokenizer_library.calling(f"cannot train a BPE of {size} tokens on this text"):
        library.train_from_iterator(_without_long_words(texts), trainer)
    return HuggingFaceTokenizer(json.loads(library.to_str()), kind=f"bpe:{size}", eot=0)


def _without_long_words(texts: Iterable[str]) -> Iterator[str]:
    """The same texts, cut within words longer than ``_LONG_WORD``."""
    for text in texts:
        start = 0
        for match in _LONG_WORDS.finditer(text):
            yield text[start : match.end()]
            start = match.end()
        yield text[start:]
