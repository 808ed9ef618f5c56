"""Each artefact runs in its own runtime; a wrong one is caught."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TEXT, char_tokenizer, exportable, quiet

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import compare, exporting, verify
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.text.tokenizers import bpe
from nanogpt_cli.text.tokenizers.bpe import HuggingFaceTokenizer
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer

NEEDS = {"hf": "transformers", "gguf": "xllamacpp", "onnx": "onnxruntime", "pt2": "torch"}


def proved(source: Exportable, target: str, out: Path, **options: Any) -> list[compare.Check]:
    for package in (NEEDS[target], *exporting.TARGETS[target].packages):
        pytest.importorskip(package)
    artefacts = exporting.export(source, target, out, quiet, **options)
    return exporting.verify_all(source, artefacts, quiet)


@pytest.mark.parametrize("target", ["hf", "onnx", "pt2"])
def test_artefact_computes_what_the_model_computes(tmp_path: Path, target: str) -> None:
    source = exportable(bias=False, vocab_size=40, n_layer=1)
    (check,) = proved(source, target, tmp_path)
    assert check.problems == []
    assert check.facts["positions"] >= 1024
    assert check.facts["argmax_agreement"] == 1.0
    assert check.facts["greedy_equal"] == check.facts["greedy_texts"] == 4
    assert check.facts["max_abs_diff"] <= 1e-5
    if target == "onnx":
        assert check.facts["max_abs_diff_left_padded"] <= 1e-5
    if target != "pt2":
        assert check.facts["tokenizer_text_equal"]
    saved = json.loads((tmp_path / target / "verify.json").read_text())
    assert saved["passed"] is True
    assert saved["checks"][0]["facts"]["positions"] == check.facts["positions"]


@pytest.mark.parametrize("kind", ["char", "char-eot", "bpe", "char-padded"])
def test_llama_cpp_runs_every_kind_of_vocabulary(tmp_path: Path, kind: str) -> None:
    tokenizer = bpe.train(280, [TEXT]) if kind == "bpe" else char_tokenizer(eot=kind == "char-eot")
    padded = {"vocab_size": 64} if kind == "char-padded" else {}
    source = exportable(tokenizer, activation="gelu_tanh", **padded)
    whole, eight = proved(source, "gguf", tmp_path, quantizations=("f32", "q8_0"))
    assert whole.problems == []
    assert whole.facts["max_abs_diff"] < 0.02
    assert whole.facts["tokenizer_same_ids"]
    assert whole.facts["tokenizer_text_equal"]
    assert eight.facts["max_abs_diff"] > whole.facts["max_abs_diff"]


def with_added_tokens() -> Tokenizer:
    """A byte-level BPE with a special token and two that are matched in every text."""
    library = bpe.train(290, [TEXT]).backend
    library.add_special_tokens(["<|user|>"])
    library.add_tokens(["naïve café", "question;"])
    return HuggingFaceTokenizer(json.loads(library.to_str()))


@pytest.mark.usefixtures("runtimes_here")
@pytest.mark.parametrize("target", ["hf", "gguf", "onnx"])
def test_added_tokens_keep_their_ids_and_their_rows(tmp_path: Path, target: str) -> None:
    tokenizer = with_added_tokens()
    ids = tokenizer.encode(TEXT + "<|user|>")
    special, named = (tokenizer.encode(text)[0] for text in ("<", "naïve café"))
    assert ids.count(named) == 3
    assert special < 257  # the special token's name in a text is text
    padded = tokenizer.vocab_size + 5
    source = exportable(tokenizer, activation="gelu_tanh", vocab_size=padded, n_layer=1)
    (check,) = proved(source, target, tmp_path, quantizations=("f32",))
    assert check.problems == []
    assert check.facts["tokenizer_same_ids"]
    assert check.facts["tokenizer_text_equal"]


@pytest.mark.usefixtures("runtimes_here")
@pytest.mark.parametrize(("target", "reads_bytes"), [("hf", True), ("onnx", True), ("gguf", False)])
def test_added_tokens_that_a_library_decodes_otherwise_are_named(
    tmp_path: Path, target: str, reads_bytes: bool
) -> None:
    library = bpe.train(290, [TEXT]).backend
    library.add_tokens(["Café", "日本", "naĂ"])
    tokenizer = HuggingFaceTokenizer(json.loads(library.to_str()))
    cafe, naa = (tokenizer.encode(text)[0] for text in ("Café", "naĂ"))
    assert tokenizer.taken_for_bytes() == {cafe: b"Caf\xe9", naa: b"na\x02"}
    source, said = exportable(tokenizer, activation="gelu_tanh", n_layer=1), []
    for package in (NEEDS[target], *exporting.TARGETS[target].packages):
        pytest.importorskip(package)
    artefacts = exporting.export(source, target, tmp_path, said.append, quantizations=["f32"])
    (check,) = exporting.verify_all(source, artefacts, quiet)
    assert check.problems == []
    assert check.facts["tokenizer_same_ids"]
    named = check.facts.get("tokenizer_text_differs_only_in")
    assert named == (["Café", "naĂ"] if reads_bytes else None)
    assert check.facts["tokenizer_round_trip"] is not reads_bytes
    phrase = f"'Café' (id {cafe}) as 'Caf\ufffd' and 'naĂ' (id {naa}) as 'na\\x02'"
    assert any(phrase in line for line in said) is reads_bytes
    if target == "hf":
        card = (tmp_path / "hf" / "README.md").read_text()
        assert phrase in card.replace("`", "")
        assert "DIFFER" not in card


@pytest.mark.parametrize("wrong", [False, True])
def test_another_text_is_a_failure_though_a_token_is_decoded_otherwise(
    tmp_path: Path, wrong: bool
) -> None:
    library = bpe.train(290, [TEXT]).backend
    library.add_tokens(["Café"])
    source = exportable(HuggingFaceTokenizer(json.loads(library.to_str())))
    expected = verify.reference(source)
    assert expected.decoded_otherwise.endswith("Caf\ufffd")
    (tmp_path / "answer.json").write_text(json.dumps({"runtime": "x", "greedy": expected.greedy}))
    np.save(tmp_path / "logits.npy", expected.logits)
    np.save(tmp_path / "ids.npy", expected.ids)
    decoded = expected.decoded_otherwise + "?" * wrong
    (tmp_path / "decoded.txt").write_bytes(decoded.encode())
    assert len(compare.compare(expected, tmp_path, "hf", "").problems) == wrong


@pytest.mark.parametrize("flag", ["lstrip", "rstrip", "single_word"])
def test_added_token_that_llama_cpp_would_match_otherwise_is_refused(
    tmp_path: Path, flag: str
) -> None:
    value = with_added_tokens().to_json()["huggingface"]
    value["added_tokens"][-1][flag] = True
    with pytest.raises(UserError, match=rf"'question;' has {flag}"):
        exporting.export(exportable(HuggingFaceTokenizer(value)), "gguf", tmp_path, quiet)


@pytest.mark.usefixtures("runtimes_here")
def test_context_of_one_token_is_proved_without_greedy_texts(tmp_path: Path) -> None:
    source = exportable(bias=False, block_size=1, n_layer=1)
    (check,) = proved(source, "hf", tmp_path)
    assert check.problems == []
    assert check.facts["greedy_texts"] == 0
    with pytest.raises(UserError, match="context is 1 token"):
        exporting.export(source, "gguf", tmp_path, quiet)


def test_context_of_two_tokens_is_no_program_with_a_free_length(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="context of 1 or 2 tokens"):
        exporting.export(exportable(block_size=2, n_layer=1), "pt2", tmp_path, quiet)
    (check,) = proved(exportable(block_size=3, n_layer=1), "pt2", tmp_path)
    assert check.problems == []


@pytest.mark.usefixtures("runtimes_here")
def test_changed_weight_and_dropped_spaces_are_caught(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    source = exportable()
    (artefact,) = exporting.export(source, "hf", tmp_path, quiet)
    path = artefact.path / "model.safetensors"
    tensors = load_file(path)
    tensors["h.0.mlp.c_fc.weight"][0, 0] += 0.5
    save_file(tensors, path, metadata={"format": "pt"})
    # The class that transformers would choose by itself for a GPT-2.
    config = artefact.path / "tokenizer_config.json"
    config.write_text(config.read_text().replace("PreTrainedTokenizerFast", "GPT2Tokenizer"))
    (check,) = exporting.verify_all(source, [artefact], quiet)
    assert check.passed is False
    assert any("max_abs_diff" in problem for problem in check.problems)
    assert any("bit for bit" in problem for problem in check.problems)
    assert "the tokenizer does not decode its ids to the same text" in check.problems
    assert "**failed**" in (artefact.path / "README.md").read_text()
    assert json.loads((artefact.path / "verify.json").read_text())["passed"] is False


def test_long_texts_reach_llama_cpp_in_pieces_with_the_same_tokens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = exportable(bpe.train(290, [TEXT]), activation="gelu_tanh", n_layer=1)
    monkeypatch.setattr(verify, "_PIECE", (1 << 16) + 9)
    words = "To be, or not to be: that is the question; " * 4000
    monkeypatch.setattr(verify, "_random_text", lambda *_: words)
    (check,) = proved(source, "gguf", tmp_path, quantizations=("f32",))
    assert check.problems == []
    assert check.facts["tokenizer_characters"] == len(words)


def test_runtime_that_fails_is_a_failure(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    path = tmp_path / "x.gguf"
    path.write_bytes(b"nothing")
    artefact = verify.Artefact("gguf", path, "f32")
    source = exportable()
    check = verify.verify(source, verify.reference(source), artefact)
    assert check.passed is False
    assert "llama.cpp failed" in check.problems[0]


def test_interpreter_without_the_runtime_is_a_failure_not_a_pass(tmp_path: Path) -> None:
    source = exportable()
    artefacts = exporting.export(source, "hf", tmp_path, quiet)
    (check,) = exporting.verify_all(source, artefacts, quiet, python=str(tmp_path / "no-python"))
    assert check.passed is False


def test_missing_runtime_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "missing", lambda artefact: "transformers")
    source = exportable()
    artefacts = exporting.export(source, "hf", tmp_path, quiet)
    (check,) = exporting.verify_all(source, artefacts, quiet)
    assert check.passed is None
    assert "not installed" in check.problems[0]
    with pytest.raises(UserError, match="transformers"):
        exporting.verify_all(source, artefacts, quiet, wanted=True)
    assert json.loads((tmp_path / "hf" / "verify.json").read_text())["passed"] is None
    assert "not run" in (tmp_path / "hf" / "README.md").read_text()


def test_nan_is_out_of_bounds(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(2, 3, 5)).astype(np.float32)
    expected = compare.Reference(
        windows=np.zeros((2, 3), np.int64), targets=np.ones((2, 3), np.int64), logits=logits,
        prompts=[], greedy=[], eot=None, text="", ids=None, new_tokens=0, origin="",
    )  # fmt: skip
    (tmp_path / "answer.json").write_text('{"runtime": "x", "greedy": []}')
    np.save(tmp_path / "logits.npy", logits)
    assert compare.compare(expected, tmp_path, "hf", "").problems == []
    broken = logits.copy()
    broken[0, 0, 0] = np.nan
    np.save(tmp_path / "logits.npy", broken)
    assert compare.compare(expected, tmp_path, "hf", "").problems


def test_log_softmax_agrees_with_torch() -> None:
    values = torch.randn(4, 7) * 30
    expected = torch.log_softmax(values.double(), -1).numpy()
    assert np.allclose(compare.log_softmax(values.numpy()), expected)


def test_script_imports_nothing_of_the_package() -> None:
    """Another interpreter has the runtime, not this package."""
    text = Path(verify.__file__).with_name("runtimes.py").read_text()
    assert "nanogpt_cli" not in text
    assert sys.version_info >= (3, 11)  # -P, which keeps our gguf.py from hiding the library
