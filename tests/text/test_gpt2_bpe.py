"""Our GPT-2 encoding against tiktoken's own loader and against transformers."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tiktoken

from nanogpt_cli.text.tokenizers import gpt2_bpe

TIKTOKEN_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
SAMPLES = [
    "",
    "ROMEO:\nO, she doth teach the torches to burn bright!\n",
    "don't  stop   \n\n\t x = [1, 2]  ",
    "naïve café — 日本語 🙂🇨🇭 \x00\x7f",
    " <|endoftext|> is plain text here",
]


@pytest.fixture
def encoding(asset_cache: Callable[[str], Path]) -> tiktoken.Encoding:
    asset_cache("gpt2-vocab.bpe")
    return gpt2_bpe.load_gpt2_encoding()


def test_equal_to_tiktokens_own(
    encoding: tiktoken.Encoding,
    asset_cache: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tiktoken_ext import openai_public

    # tiktoken's cache holds a file under the sha1 of its address.
    for name in ("vocab.bpe", "encoder.json"):
        key = hashlib.sha1((TIKTOKEN_URL + name).encode()).hexdigest()
        shutil.copy(asset_cache(f"gpt2-{name}"), tmp_path / key)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    own = tiktoken.Encoding(**openai_public.gpt2())
    assert encoding._mergeable_ranks == own._mergeable_ranks
    assert encoding._pat_str == own._pat_str
    assert encoding._special_tokens == own._special_tokens
    assert (encoding.name, encoding.n_vocab) == (own.name, own.n_vocab) == ("gpt2", 50_257)
    for text in SAMPLES:
        ids = encoding.encode(text, disallowed_special=())
        assert ids == own.encode(text, disallowed_special=())
        assert encoding.decode(ids) == text


def test_ids_equal_those_of_encoder_json(
    encoding: tiktoken.Encoding, asset_cache: Callable[[str], Path]
) -> None:
    byte_of = gpt2_bpe.byte_characters()
    ids = json.loads(asset_cache("gpt2-encoder.json").read_text("utf-8"))
    assert ids.pop("<|endoftext|>") == encoding.eot_token == gpt2_bpe.END_OF_TEXT_ID
    assert {bytes(byte_of[c] for c in t): i for t, i in ids.items()} == encoding._mergeable_ranks


def test_byte_characters_equal_those_of_transformers() -> None:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    ours = {byte: character for character, byte in gpt2_bpe.byte_characters().items()}
    assert ours == bytes_to_unicode()


def test_the_end_of_text_token(encoding: tiktoken.Encoding) -> None:
    ids = encoding.encode("a<|endoftext|>b", allowed_special="all")
    assert ids == [64, 50_256, 65]
