"""GPT-2's byte-pair encoding as a ``tiktoken.Encoding``, built from the cached merge list.

``tiktoken.get_encoding("gpt2")`` downloads two files at run time. They are assets here, so that the
encoding works offline once they are cached, and a user's ``TIKTOKEN_CACHE_DIR`` stays untouched.

Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.2, and
the files released with it.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from nanogpt_cli import assets

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 50_256
VOCAB_SIZE = 50_257


def load_gpt2_encoding() -> tiktoken.Encoding:
    """The encoding "gpt2", with the same ranks, pattern and special token as tiktoken's own.

    Raises:
        UserError: the merge list is not cached and no source provided it.
    """
    return _encoding(assets.fetch("gpt2-vocab.bpe"))


def byte_characters() -> dict[str, int]:
    """The printable character that represents each byte in GPT-2's files -> that byte.

    Printable Latin-1 characters represent themselves; the other 68 bytes are shifted, in order, to
    U+0100 and up. The order of the keys is the order of the token ids 0 to 255.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    shifted = {chr(0x100 + i): byte for i, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


def merge_ranks(vocab_bpe: str) -> dict[bytes, int]:
    """Token bytes -> id, from the text of ``vocab.bpe``.

    Ids 0 to 255 are the single bytes; then each line, a pair of tokens to merge, adds the next id.
    """
    byte_of = byte_characters()
    tokens = list(byte_of) + [line.replace(" ", "") for line in vocab_bpe.splitlines()[1:]]
    return {bytes(byte_of[c] for c in token): rank for rank, token in enumerate(tokens)}


@functools.lru_cache(maxsize=1)
def _encoding(path: Path) -> tiktoken.Encoding:
    import tiktoken

    # tiktoken's own pattern, so that its improvements to GPT-2's pattern are used here as well.
    from tiktoken_ext.openai_public import r50k_pat_str  # type: ignore[import-untyped]

    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=merge_ranks(path.read_text("utf-8")),
        special_tokens={END_OF_TEXT: END_OF_TEXT_ID},
        explicit_n_vocab=VOCAB_SIZE,
    )
