"""Tokenizers of the Hugging Face library, and training a byte-pair encoding with it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.tokenizers import foreign_tokenizer, tokenizer_library
from nanogpt_cli.text.tokenizers.gpt2_bpe import byte_characters
from nanogpt_cli.text.tokenizers.tokenizer import END_OF_TEXT, Tokenizer, Tokens
from nanogpt_cli.user_input import whole

if TYPE_CHECKING:
    import tokenizers

# Names under which published vocabularies keep their end-of-text token, most specific first.
_END_OF_TEXT_NAMES: Final = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")
_STAND_INS: Final = byte_characters()
_KIND: Final = re.compile(r"bpe:(\d+)")

# Training time grows with the square of a word's length, so a word is cut after this many
# characters of one of GPT-2's classes. No vocabulary learns anything from longer words.
_LONG_WORD: Final = 1024
_LONG_WORDS: Final = re.compile(
    "|".join(f"{kind}{{{_LONG_WORD}}}" for kind in (r"[^\W\d_]", r"\d", r"\s", r"(?:[^\w\s]|_)"))
)


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
        added = value.get("added_tokens") or []
        # A token that is matched in the text may be longer than a word.
        plain = foreign_tokenizer.splits_like_gpt2(value) and all(t.get("special") for t in added)
        self.cut_rule = "words" if plain else "checked"
        decoders = foreign_tokenizer.decoder_types(value)
        self.joins_bytes = decoders == ["ByteLevel"]
        self.byte_ids = self._find_byte_ids() if "ByteFallback" in decoders else {}
        self._added: dict[int, str] = {token["id"]: token["content"] for token in added}
        self._bytes: dict[int, bytes] = {}

    @property
    def label(self) -> str:
        """See ``Tokenizer``."""
        return self._source if self.kind == "hf" else super().label

    def _find_eot(self) -> int | None:
        ids = (self._tokenizer.token_to_id(name) for name in _END_OF_TEXT_NAMES)
        return next((i for i in ids if i is not None), None)

    def _find_byte_ids(self) -> dict[int, int]:
        found = {self._tokenizer.token_to_id(f"<0x{byte:02X}>"): byte for byte in range(256)}
        return {id: byte for id, byte in found.items() if id is not None}

    def encode_array(self, text: str) -> Tokens:
        """See ``Tokenizer``."""
        # The batch form skips the offsets, which would double the time and take most of the memory.
        with tokenizer_library.calling(f"{self._source} cannot encode this text"):
            found = self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0]
        return np.array(found.ids, dtype=self.dtype)

    def decode(self, ids: Iterable[int]) -> str:
        """See ``Tokenizer``. The library's text, in which each byte of a broken run is U+FFFD.

        Where bytes can be joined, that is done here: the library takes the letters of an added
        token, such as the é of "Café", for GPT-2's stand-ins of bytes.
        """
        if self.joins_bytes:
            return super().decode(ids)
        with tokenizer_library.calling(f"{self._source} cannot decode these ids"):
            return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=False)

    def token_bytes(self, id: int) -> bytes:
        """See ``Tokenizer``. What the token adds to a text that has begun already."""
        if id not in self._bytes:
            self._bytes[id] = self._find_bytes(id)
        return self._bytes[id]

    def _find_bytes(self, id: int) -> bytes:
        token = self._tokenizer.id_to_token(id)
        if token is None:
            if 0 <= id < self.vocab_size:
                return b""  # a gap between ids, which the library decodes to nothing
            raise KeyError(id)
        if id in self.byte_ids:
            return bytes([self.byte_ids[id]])
        if self.joins_bytes:
            if id in self._added:
                return self._added[id].encode()
            return _spelled(token)
        # At the start of a text decoders leave out a space, so the token is decoded after itself.
        once, twice = self.decode([id]), self.decode([id, id])
        return (twice[len(once) :] if twice.startswith(once) else once).encode()

    def taken_for_bytes(self) -> dict[int, bytes]:
        """The added tokens of which the library writes another text, by id, and its bytes for each.

        Its decoder takes an added token that consists of GPT-2's stand-ins alone for bytes: of
        "Café" it makes ``b"Caf\\xe9"``, of which U+FFFD is left, and of "日本" what it should.
        """
        if not self.joins_bytes:
            return {}
        taken = {id: _spelled(content) for id, content in self._added.items()}
        return {
            id: theirs
            for id, theirs in taken.items()
            if theirs != self.token_bytes(id) and self._library_text(id) != self.decode([id])
        }

    def _library_text(self, id: int) -> str:
        return self._tokenizer.decode([id], skip_special_tokens=False)

    def to_json(self) -> dict[str, Any]:
        """See ``Tokenizer``."""
        return {**self._head(), "huggingface": self._value}

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The library's own object, for export."""
        return self._tokenizer


def _spelled(token: str) -> bytes:
    """The bytes that a token spells with GPT-2's stand-ins; UTF-8 if it holds anything else."""
    spelled = all(character in _STAND_INS for character in token)
    return bytes(_STAND_INS[c] for c in token) if spelled else token.encode()


def trained_size(kind: str) -> int | None:
    """The vocabulary size asked for by ``bpe:SIZE``; None for any other kind."""
    match = _KIND.fullmatch(kind)
    return whole(match[1]) if match else None


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
