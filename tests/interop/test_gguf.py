"""GGUF files: names and values, vocabularies, and the end-of-text row that is never written."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import HOMES, TEXT, char_tokenizer, exportable, make_model, quiet
from torch.nn import functional as F

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import gguf, gguf_end, gguf_vocab, source
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokenizers import bpe
from nanogpt_cli.text.tokenizers.bpe import HuggingFaceTokenizer
from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer
from nanogpt_cli.training.checkpoints import checkpoint

library = pytest.importorskip("gguf")


def opened(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors by name and metadata, read by the library."""
    reader = library.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    return {tensor.name: tensor for tensor in reader.tensors}, fields


def test_every_tensor_and_all_biases_are_there(tmp_path: Path) -> None:
    source = exportable(char_tokenizer(eot=True), bias=False)
    tensors, fields = opened(gguf.write(source, tmp_path, quiet, "f32"))
    assert len(tensors) == 2 + 2 + 2 * 12  # tables, final norm, twelve in a block
    ours = source.weights.get("transformer.h.1.mlp.c_fc.weight")
    assert np.array_equal(tensors["blk.1.ffn_up.weight"].data, ours.numpy())
    assert not tensors["blk.0.attn_qkv.bias"].data.any()
    assert fields["general.architecture"] == "gpt2"
    assert fields["gpt2.context_length"] == 24
    assert fields["gpt2.attention.head_count"] == 2
    assert fields["gpt2.attention.layer_norm_epsilon"] == pytest.approx(1e-5)


@pytest.mark.parametrize("quantization", list(gguf.TYPES))
def test_stored_values_are_near_and_the_file_is_smaller(tmp_path: Path, quantization: str) -> None:
    source = exportable(char_tokenizer(eot=True))
    tensors, _ = opened(gguf.write(source, tmp_path, quiet, quantization))
    ours = source.weights.get("transformer.h.0.attn.c_attn.weight").numpy()
    stored = tensors["blk.0.attn_qkv.weight"]
    theirs = library.quants.dequantize(stored.data, stored.tensor_type)
    # Steps of a block of 32 whose largest value is about 0.7.
    steps = {"f32": 0, "f16": 3e-4, "bf16": 3e-3, "q8_0": 4e-3, "q5_1": 0.03, "q5_0": 0.03,
             "q4_1": 0.06, "q4_0": 0.06}  # fmt: skip
    assert np.abs(ours - theirs).max() <= steps[quantization]
    # Positions are looked up, not multiplied: always whole.
    assert tensors["position_embd.weight"].tensor_type == library.GGMLQuantizationType.F32


def test_rows_that_blocks_do_not_divide_stay_half(tmp_path: Path) -> None:
    source = exportable(char_tokenizer(eot=True), n_embd=24)
    tensors, _ = opened(gguf.write(source, tmp_path, quiet, "q8_0"))
    assert tensors["blk.0.attn_qkv.weight"].tensor_type == library.GGMLQuantizationType.F16
    assert tensors["blk.0.ffn_down.weight"].tensor_type == library.GGMLQuantizationType.Q8_0


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dead_channel", [True, False])
def test_added_end_of_text_is_never_likely_and_changes_nothing(
    tied: bool, bias: bool, dead_channel: bool
) -> None:
    source = exportable(tied=tied, bias=bias)
    model = source.model()
    if dead_channel:
        with torch.no_grad():
            model.transformer.ln_f.weight[3] = 0.0
        from nanogpt_cli.interop.source import from_model

        source = from_model(model, source.tokenizer)
    replaced = gguf_end.layer_norm_tensors(source)
    weight = source.weights.get("transformer.ln_f.weight")
    bias_before = source.weights.get("transformer.ln_f.bias") if bias else torch.zeros(32)
    name = "transformer.wte.weight" if tied else "lm_head.weight"
    head = source.weights.get(name)
    stream = torch.randn(500, 32) * torch.logspace(-1, 2, 500)[:, None]
    before = F.layer_norm(stream, (32,), weight, bias_before) @ head.T
    changed_bias = replaced["transformer.ln_f.bias"]
    after = F.layer_norm(stream, (32,), weight, changed_bias) @ replaced["lm_head.weight"].T
    assert (after[:, :-1] - before).abs().max() < 2e-5
    assert torch.allclose(after[:, -1], before.mean(1) - 50, atol=1e-3)
    assert replaced["transformer.wte.weight"].shape == (source.config.vocab_size + 1, 32)


def test_vocabulary_with_end_of_text_keeps_its_rows(tmp_path: Path) -> None:
    source = exportable(char_tokenizer(eot=True))
    tensors, fields = opened(gguf.write(source, tmp_path, quiet, "f32"))
    assert "output.weight" not in tensors
    assert fields["tokenizer.ggml.eos_token_id"] == source.config.vocab_size - 1
    assert len(fields["tokenizer.ggml.tokens"]) == source.config.vocab_size


def test_ascii_vocabulary_gets_a_merge_that_never_applies() -> None:
    from nanogpt_cli.text.tokenizers.tokenizer import CharTokenizer

    found = gguf_vocab.vocabulary(CharTokenizer("abc\n"), 4)
    assert found.merges == ["ÿ ÿ"]
    assert found.added_eot
    assert found.eot == 4
    assert found.types[found.eot] == gguf_vocab.CONTROL


def test_merges_build_each_character_and_nothing_across() -> None:
    found = gguf_vocab.vocabulary(char_tokenizer(), char_tokenizer().vocab_size)
    ranks = {tuple(merge.split(" ")): rank for rank, merge in enumerate(found.merges)}
    ids = {token: id for id, token in enumerate(found.tokens)}
    for text in (TEXT, "éé🙂你", "🙂\n🙂"):
        symbols = list(gguf_vocab.spell(text.encode()))
        while True:
            pairs = [(ranks[p], i) for i, p in enumerate(itertools.pairwise(symbols))
                     if p in ranks]  # fmt: skip
            if not pairs:
                break
            _, i = min(pairs)
            symbols[i : i + 2] = [symbols[i] + symbols[i + 1]]
        known = [c for c in text if c in char_tokenizer().characters]
        assert [ids[s] for s in symbols if s in ids] == char_tokenizer().encode("".join(known))


@pytest.mark.parametrize(
    "tokenizer",
    [ByteTokenizer(), ByteTokenizer(eot=True), bpe.train(280, [TEXT])],
    ids=["byte", "byte-eot", "bpe"],
)
def test_other_vocabularies_are_written(tmp_path: Path, tokenizer: Any) -> None:
    _, fields = opened(gguf.write(exportable(tokenizer), tmp_path, quiet, "f32"))
    assert len(fields["tokenizer.ggml.tokens"]) == tokenizer.vocab_size + (tokenizer.eot is None)
    assert fields["tokenizer.ggml.merges"]


def test_what_llama_cpp_lacks_is_refused(tmp_path: Path) -> None:
    for activation in ("relu", "relu2", "silu", "swiglu"):
        with pytest.raises(UserError, match=activation):
            gguf.write(exportable(activation=activation), tmp_path, quiet)
    odd = HOMES["qwen2"] | {"head_dim": 6}
    with pytest.raises(UserError, match=r"Qwen2 has heads of n_embd / n_head = 8 .* head_dim is 6"):
        gguf.write(exportable(**odd), tmp_path, quiet)
    gguf.write(exportable(**odd | {"head_dim": 8}), tmp_path, quiet)
    with pytest.raises(UserError, match="llama-quantize") as refused:
        gguf.write(exportable(), tmp_path, quiet, "Q4_K_M")
    assert "Q4_K_M" in refused.value.message


def words(kind: str) -> dict[str, Any]:
    """A small tokenizer.json that splits otherwise than GPT-2's."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    vocab = {"[UNK]": 0, "to": 1, "be": 2}
    made = {
        "WordLevel": lambda: models.WordLevel(vocab, unk_token="[UNK]"),
        "WordPiece": lambda: models.WordPiece(vocab, unk_token="[UNK]"),
        "ignore_merges": lambda: models.BPE(vocab, [], unk_token="[UNK]", ignore_merges=True),
        "words by other rules": lambda: models.BPE(vocab, [], unk_token="[UNK]"),
    }
    library = tokenizers.Tokenizer(made[kind]())
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    value: dict[str, Any] = json.loads(library.to_str())
    return value


@pytest.mark.parametrize(
    "kind", ["WordLevel", "WordPiece", "ignore_merges", "words by other rules"]
)
def test_refused_tokenizer_is_named_with_its_file_and_what_differs(
    tmp_path: Path, kind: str
) -> None:
    run = RunFolder(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    tokenizer = HuggingFaceTokenizer(words(kind))
    model = make_model(vocab_size=3, n_layer=1)
    checkpoint.save(run, model, {"step": 7}, tokenizer=tokenizer.to_json())
    with pytest.raises(UserError) as refused:
        gguf.check(source.from_run(run))
    assert "tokenizer.json" in refused.value.message
    assert kind in refused.value.message
    assert "'hf'" not in refused.value.message
