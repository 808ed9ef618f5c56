"""Tokenizers: ids, bytes and JSON agree with each other and with the libraries."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.tokenizers import bpe, factory
from nanogpt_cli.text.tokenizers.charset import CharsetCollector
from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, UnknownCharacters

WORDS = "the quick brown fox's 12 jumps — naïve 日本語 🙂 don't\n\n  over\tit\r\n<|endoftext|> "


@pytest.fixture(scope="module")
def trained() -> bpe.HuggingFaceTokenizer:
    return bpe.train(300, [WORDS * 20])


def test_char_ids_are_sorted_code_points() -> None:
    made = CharTokenizer.of_text("hello, wörld")
    assert made.characters == sorted(set("hello, wörld"))
    assert made.encode("ö") == [made.vocab_size - 1]


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_char_and_byte_round_trip(text: str) -> None:
    for made in (CharTokenizer.of_text(text), ByteTokenizer(), ByteTokenizer(eot=True)):
        ids = made.encode(text)
        assert made.decode(ids) == text
        assert b"".join(made.token_bytes(i) for i in ids) == text.encode()


def test_unknown_characters_are_all_named() -> None:
    made = CharTokenizer.of_text("abc")
    with pytest.raises(UnknownCharacters) as caught:
        made.encode("aéb🙂")
    assert caught.value.positions == [1, 3]
    assert "U+00E9" in caught.value.message


@pytest.mark.parametrize("eot", [False, True])
@pytest.mark.parametrize("head", [[], ["zeal"], ["zebra", "日"], ["zebra 日本", "äpfel 🙂"]])
def test_collected_characters_become_the_sorted_vocabulary(eot: bool, head: list[str]) -> None:
    collector = CharsetCollector(eot=eot)
    collector.settle(head)
    texts = ["zebra", "日本", "äpfel 🙂", *head]
    arrays = [collector.encode_array(text) for text in texts]
    ids = np.concatenate([a for text in arrays for a in (text, *([[collector.eot]] * eot))])
    made, order = collector.finished(np.bincount(ids.astype(int)))
    assert made.characters == sorted(set("".join(texts)))
    assert (order is None) == (set("".join(head)) == set("".join(texts)))
    if order is None:
        order = np.arange(made.vocab_size)
    expected = [i for text in texts for i in (*made.encode(text), *([made.eot] * eot))]
    assert order.take(ids.astype(int)).tolist() == expected


def test_too_many_characters_are_refused() -> None:
    everything = "".join(map(chr, [*range(0xD800), *range(0xE000, 0x1F000)]))
    with pytest.raises(UserError, match="distinct characters"):
        CharsetCollector().encode_array(everything)


def test_gpt2_is_tiktokens(asset_cache) -> None:
    asset_cache("gpt2-vocab.bpe")
    made = factory.get("gpt2")
    assert (made.vocab_size, made.eot, made.dtype) == (50257, 50256, np.dtype("<u2"))
    assert made.encode_array(WORDS).tolist() == made.encode(WORDS)
    assert made.encode("Hello world") == [15496, 995]
    assert 50256 not in made.encode(WORDS)
    assert made.decode(made.encode(WORDS)) == WORDS


def test_trained_bpe_has_its_size_and_gives_text_back(trained: bpe.HuggingFaceTokenizer) -> None:
    assert (trained.kind, trained.vocab_size, trained.eot) == ("bpe:300", 300, 0)
    ids = trained.encode(WORDS)
    assert 0 not in ids  # the text spells the end-of-text token; it stays text
    assert trained.decode(ids) == WORDS
    assert b"".join(map(trained.token_bytes, ids)) == WORDS.encode()
    assert len(ids) < len(WORDS.encode())


def test_training_is_deterministic(trained: bpe.HuggingFaceTokenizer) -> None:
    assert bpe.train(300, [WORDS * 20]).fingerprint() == trained.fingerprint()


@pytest.mark.parametrize("letters", ["ACGT", "0123456789", " \t", ".,;-_"])
def test_a_word_without_an_end_is_trained_on_in_parts(letters: str) -> None:
    word = "".join(np.random.default_rng(1).choice(list(letters), size=5000))
    parts = [word[i : i + 1024] for i in range(0, len(word), 1024)]
    made = bpe.train(300, ["before it " + word, word])
    again = bpe.train(300, ["before it ", *parts, *parts])
    if letters != " \t":  # whose first blanks belong to what stands before
        assert made.fingerprint() == again.fingerprint()
    assert made.vocab_size == 300
    assert made.decode(made.encode(word)) == word


def test_no_text_with_words_of_usual_length_is_cut_for_training() -> None:
    texts = [WORDS * 2000, "x" * 1023 + " " + "今日は良い天気です。" * 500]
    assert list(bpe._without_long_words(texts)) == texts


def test_huggingface_file_agrees_with_the_library(
    tmp_path: Path, trained: bpe.HuggingFaceTokenizer
) -> None:
    import tokenizers

    path = tmp_path / "tokenizer.json"
    trained.backend.save(str(path))
    made = factory.get(str(path))
    library = tokenizers.Tokenizer.from_file(str(path))
    text = WORDS.replace("<|endoftext|>", "")
    assert made.encode(text) == library.encode(text).ids
    assert (made.kind, made.eot, made.cut_rule) == ("hf", 0, "words")
    assert factory.get(str(tmp_path)).encode(text) == made.encode(text)


def test_prefix_space_forbids_cutting_at_words(trained: bpe.HuggingFaceTokenizer) -> None:
    value = json.loads(trained.backend.to_str())
    value["pre_tokenizer"]["add_prefix_space"] = True
    assert bpe.HuggingFaceTokenizer(value).cut_rule == "checked"


def test_json_round_trip(tmp_path: Path, trained: bpe.HuggingFaceTokenizer, asset_cache) -> None:
    asset_cache("gpt2-vocab.bpe")
    for made in (
        CharTokenizer("cab"), CharTokenizer("ab", eot=True), ByteTokenizer(),
        ByteTokenizer(eot=True), trained, factory.get("gpt2"),
    ):  # fmt: skip
        factory.save(made, tmp_path / "t.json")
        again = factory.load(tmp_path / "t.json")
        assert again.fingerprint() == made.fingerprint()
        assert (again.kind, again.eot, again.vocab_size) == (made.kind, made.eot, made.vocab_size)
        assert again.encode("ab") == made.encode("ab")


def damaged(**values: object) -> str:
    return json.dumps({"format": "nanogpt-cli tokenizer", **values})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not readable JSON"),
        ("[1]", "not a JSON object"),
        ('{"kind": "char"}', "not a tokenizer"),
        (damaged(kind="char"), "characters: this key is missing"),
        (damaged(kind="char", characters=["a", {}]), r"characters\.1: .* string"),
        (damaged(kind="char", characters=["a", "bc"]), r"characters\.1: .* 1 character"),
        (damaged(kind="char", characters=["a"], vocab_size=2), "vocab_size is 2, .* tokens 1"),
        (damaged(kind="char", characters=["a"], eot=0), "eot is 0, .* tokens 1"),
        (damaged(kind="byte", eot="end"), "eot: .* integer"),
        (damaged(kind=["char"]), "kind: .* string"),
        (damaged(kind="bpe:300"), "vocabulary is missing"),
        (damaged(kind="hf", huggingface=[], eot=None), "huggingface: a table"),
        ('{"model": {"type": "no such model"}}', "model.type"),
    ],
)
def test_broken_files_are_refused_by_name(tmp_path: Path, content: str, reason: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UserError, match=reason) as caught:
        factory.load(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("kind", ["bpe:100", "gtp2", "words"])
def test_unknown_kinds_are_refused(kind: str) -> None:
    with pytest.raises(UserError, match=kind):
        factory.check_kind(kind)
