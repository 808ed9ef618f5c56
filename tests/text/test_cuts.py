"""A text encoded in chunks has the tokens of the whole."""

import functools
import io

import families
import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from nanogpt_cli.text.sources.documents import Reader, Tally, text_chunks
from nanogpt_cli.text.tokenizers import bpe, cuts, factory, tiktoken_bpe
from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer

# Everything the word patterns treat specially, beside itself in every order.
ATOMS = [
    "a", "The", "don't", "'ll", "'S", "'", " ", "  ", "\n", "\r\n", "\n\n", "\t", ".", "...", ",",
    "!?", "-", "_", "/", "12", "3456", "²", "½", "é", "e\u0301", "ß", "日本", "語", "。", "，",
    "「", "🙂", "👩‍👩‍👧", "\u00a0", "\u3000", "\u200b", "x1", "A9b", "(", "İ", "ǅ",
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(ATOMS), min_size=40, max_size=300).map("".join)


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    """Blocks of a few words, so that short texts are cut often."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuts, "BLOCK", 48)
        patch.setattr(cuts, "HEAD", 4)
        patch.setattr(cuts, "LIMIT", 1 << 20)
        yield


def chunks(text: str, cut: cuts.Cutter) -> tuple[list[str], Tally]:
    tally = Tally()
    found = text_chunks(io.BytesIO(text.encode()), "text", Reader(cut), tally)
    return [chunk.data.decode() for chunk in found], tally


def patterns() -> dict[str, str]:
    """The word patterns of tiktoken's encodings, without their vocabularies."""
    from tiktoken_ext import openai_public as public

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(public, "data_gym_to_mergeable_bpe_ranks", lambda **_: {})
        patch.setattr(public, "load_tiktoken_bpe", lambda *_, **__: {})
        names = ("gpt2", "r50k_base", "p50k_base", "cl100k_base", "o200k_base")
        return {name: getattr(public, name)()["pat_str"] for name in names}


@settings(max_examples=150, deadline=None)
@given(text=TEXTS)
def test_no_word_of_any_pattern_spans_a_cut(text: str) -> None:
    found, _ = chunks(text, cuts.word_cut)
    assert "".join(found) == text
    for name, pattern in patterns().items():
        words = regex.compile(pattern).findall
        assert [w for chunk in found for w in words(chunk)] == words(text), name


SPACES = [" ", "  ", "    ", "\n", "\r\n", "\t", "\u3000", "\u00a0", "\x1c", "\u2003", "\x85"]


@functools.cache
def encodings() -> list[tiktoken.Encoding]:
    """tiktoken's patterns with the bytes and a few merges of white space as vocabulary."""
    merges = [b"  ", b"    ", b" a", b"\n\n", b" \n", b"\n ", b"\r\n", b".\n", b"\t\t", b"\xc2\xa0"]
    ranks = {bytes([byte]): byte for byte in range(256)}
    ranks |= {token: 256 + i for i, token in enumerate(merges)}
    return [
        tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        for name, pattern in patterns().items()
    ]


@settings(max_examples=300, deadline=None)
@given(text=st.lists(st.sampled_from([*ATOMS, *SPACES * 2]), max_size=30).map("".join))
def test_white_space_taken_as_one_word_gives_the_ids_of_the_whole(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiktoken_bpe, "_LONGEST_SPACES", 2)
        for encoding in encodings():
            found = tiktoken_bpe.long_spaces(text, encoding._pat_str)
            ids = tiktoken_bpe.encode_around(text, encoding, found).tolist()
            assert ids == encoding.encode_ordinary(text), encoding.name


def test_more_white_space_than_tiktoken_can_match(asset_cache) -> None:
    asset_cache("gpt2-vocab.bpe")
    made = factory.get("gpt2")
    text = "hello." + " " * 1_200_000 + "\n the end"
    with pytest.raises(ValueError, match="Max stack size"):
        made.encoding.encode_to_numpy(text, disallowed_special=())
    ids = made.encode(text)
    assert made.decode(ids) == text
    assert ids == made.encode_array(text).tolist()
    # The library itself, in three texts: up to the white space, its word, and the rest.
    parts = ("hello.", " " * 1_200_000 + "\n", " the end")
    assert ids == [id for part in parts for id in made.encoding.encode_ordinary(part)]


def test_texts_are_cut_at_all() -> None:
    found, _ = chunks("some plain words, and more of them. " * 20, cuts.word_cut)
    assert len(found) > 10
    assert len(chunks("今日は良い天気です。" * 30, cuts.word_cut)[0]) > 5


@settings(max_examples=60, deadline=None)
@given(text=TEXTS)
def test_chunks_encode_to_the_whole(text: str, kinds: list[Tokenizer]) -> None:
    for made in kinds:
        found, tally = chunks(text, cuts.cutter(made))
        assert tally.forced_cuts == 0
        ids = np.concatenate([made.encode_array(chunk) for chunk in found])
        assert ids.tolist() == made.encode(text), made.kind


@pytest.fixture(scope="module")
def kinds() -> list[Tokenizer]:
    import json

    trained = bpe.train(400, ["".join(ATOMS) * 5 + "the quick brown fox. " * 50])
    value = json.loads(trained.backend.to_str())
    value["pre_tokenizer"] = {
        "type": "Split", "pattern": {"Regex": r"\s+|\S+"}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip
    checked = bpe.HuggingFaceTokenizer(value)
    assert checked.cut_rule == "checked"
    return [CharTokenizer.of_text("".join(ATOMS)), ByteTokenizer(), trained, checked]


def test_a_token_that_begins_at_the_end_of_a_block_is_not_cut() -> None:
    made = families.ours("byte-level, added tokens")
    for size in range(1, 60):
        text = "x" * size + " naïve café and more. " * 30
        ids = [made.encode(chunk) for chunk in chunks(text, cuts.cutter(made))[0]]
        assert len(ids) > 1
        assert [id for chunk in ids for id in chunk] == made.encode(text)


def test_gpt2_chunks_encode_to_the_whole(asset_cache) -> None:
    asset_cache("gpt2-vocab.bpe")
    made = factory.get("gpt2")
    generator = np.random.default_rng(7)
    for _ in range(200):
        text = "".join(generator.choice(ATOMS, size=200))
        found, _ = chunks(text, cuts.cutter(made))
        ids = np.concatenate([made.encode_array(chunk) for chunk in found])
        assert ids.tolist() == made.encode(text)


def test_a_text_without_a_word_end_is_cut_by_force(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts, "LIMIT", 200)
    found, tally = chunks("é" * 1000, cuts.word_cut)
    assert "".join(found) == "é" * 1000
    assert tally.forced_cuts == len(found) - 1 > 5


@given(st.text(alphabet="aé日🙂", min_size=1, max_size=200))
def test_character_cuts_never_split_a_character(text: str) -> None:
    found, _ = chunks(text, cuts.character_cut)
    assert "".join(found) == text
