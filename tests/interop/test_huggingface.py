"""Hugging Face folders: bit-exact there and back, equal in transformers, lies refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TEXT, char_tokenizer, exportable, logits, quiet, same_tensors

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import card, huggingface
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.model.gpt import Multipliers
from nanogpt_cli.text.tokenizers import bpe
from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer


def written(source: Exportable, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    huggingface.write(source, folder, quiet)
    return folder


def edited(folder: Path, **changes: Any) -> Path:
    """The folder with other values in config.json; None removes a key."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "remove"}))
    return folder


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": False}, {"bias": True}, {"tied": False}, {"activation": "gelu_tanh"},
        {"activation": "relu"}, {"activation": "silu", "dropout": 0.1}, {"vocab_size": 64},
    ],
    ids=str,
)  # fmt: skip
def test_there_and_back_is_bit_exact(tmp_path: Path, changes: dict[str, Any]) -> None:
    source = exportable(**changes)
    found = huggingface.read(written(source, tmp_path))
    assert same_tensors(found.model, source.model())
    assert found.model.config == source.config
    assert found.tokenizer is not None
    assert found.tokenizer.fingerprint() == source.require_tokenizer("hf").fingerprint()


def bpe_tokenizer() -> Tokenizer:
    return bpe.train(300, [TEXT, "the cat sat on the mat " * 20])


@pytest.mark.parametrize(
    "make",
    [
        char_tokenizer,
        lambda: char_tokenizer(eot=True),
        lambda: CharTokenizer("zyx wvu\n\t"),
        ByteTokenizer,
        lambda: ByteTokenizer(eot=True),
        bpe_tokenizer,
    ],
    ids=["char", "char-eot", "char-unsorted", "byte", "byte-eot", "bpe"],
)
def test_tokenizer_survives_and_transformers_agrees(tmp_path: Path, make: Any) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer: Tokenizer = make()
    folder = written(exportable(tokenizer), tmp_path)
    again = huggingface.read(folder).tokenizer
    assert again is not None
    assert again.fingerprint() == tokenizer.fingerprint()
    text = "zyx wvu\n\t \n" if isinstance(tokenizer, CharTokenizer) and "z" in tokenizer.characters[
        :1] else TEXT  # fmt: skip
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    encoded = theirs(text, add_special_tokens=False)
    assert encoded["input_ids"] == tokenizer.encode(text)
    assert theirs.decode(encoded["input_ids"]) == text
    assert set(encoded) == {"input_ids", "attention_mask"}  # token_type_ids would be added to x
    assert len(theirs) == tokenizer.vocab_size


@pytest.mark.parametrize("make", [lambda: ByteTokenizer(eot=True), bpe_tokenizer])
def test_the_card_says_how_transformers_reads_a_special_token_as_text(
    tmp_path: Path, make: Any
) -> None:
    transformers = pytest.importorskip("transformers")
    tokenizer: Tokenizer = make()
    found = exportable(tokenizer)
    folder = written(found, tmp_path)
    card.write(found, folder)
    assert "split_special_tokens=True" in (folder / "README.md").read_text()
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    text = "one<|endoftext|>two"
    assert theirs(text, split_special_tokens=True).input_ids == tokenizer.encode(text)
    assert tokenizer.eot in theirs(text).input_ids


@pytest.mark.parametrize(
    "changes",
    [
        {"bias": False}, {"bias": True}, {"tied": False}, {"activation": "gelu_tanh"},
        {"activation": "relu"}, {"activation": "silu"}, {"vocab_size": 64},
    ],
    ids=str,
)  # fmt: skip
def test_transformers_computes_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    source = exportable(**changes)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(written(source, tmp_path)).eval()
    ids = torch.randint(0, source.config.vocab_size, (2, 24))
    with torch.no_grad():
        difference = theirs(ids).logits - logits(source.model(), ids)
    assert difference.abs().max() < 1e-5


def test_folded_multipliers_reach_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    source = exportable(multipliers=Multipliers(3.0, 0.4, 0.07, 0.25))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(written(source, tmp_path)).eval()
    ids = torch.randint(0, source.config.vocab_size, (2, 24))
    with torch.no_grad():
        assert (theirs(ids).logits - logits(source.model(), ids)).abs().max() < 1e-5


@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_model_saved_by_transformers_is_read(tmp_path: Path, shard: str) -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=50, n_positions=24, n_embd=32, n_layer=2, n_head=4, attn_pdrop=0.0
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    found = huggingface.read(tmp_path)
    assert found.model.config.activation == "gelu_tanh"  # transformers' default, gelu_new
    assert found.model.config.bias
    assert found.tokenizer is None
    ids = torch.randint(0, 50, (2, 24))
    with torch.no_grad():
        assert (theirs(ids).logits - logits(found.model, ids)).abs().max() < 1e-5


def test_pytorch_bin_with_old_masks_and_prefixes_is_read(tmp_path: Path) -> None:
    source = exportable()
    folder = written(source, tmp_path)
    tensors = {
        f"module.transformer.{k}": v for k, v in load_file(folder / "model.safetensors").items()
    }
    tensors["module.transformer.h.0.attn.bias"] = torch.ones(1, 1, 24, 24)
    tensors["module.lm_head.weight"] = tensors["module.transformer.wte.weight"]
    torch.save(tensors, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert same_tensors(huggingface.read(folder).model, source.model())


def test_written_biases_of_a_model_without_are_zero(tmp_path: Path) -> None:
    folder = written(exportable(bias=False), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    biases = [name for name in tensors if name.endswith(".bias")]
    assert len(biases) == 2 * 6 + 1
    assert not any(tensors[name].any() for name in biases)
    # Someone trained them since: they are kept, and it is said.
    tensors[biases[0]][0] = 1.0
    save_file(tensors, folder / "model.safetensors")
    found = huggingface.read(folder)
    assert found.model.config.bias
    assert "biases" in found.notes[0]


@pytest.mark.parametrize("activation", ["swiglu"])
def test_activation_gpt2_lacks_is_refused(tmp_path: Path, activation: str) -> None:
    with pytest.raises(UserError, match=activation):
        written(exportable(activation=activation), tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"n_layer": 3}, "2 blocks"), ({"n_layer": 10**9}, "n_layer"),
        ({"n_embd": 64}, "shape"), ({"n_embd": 2**40}, "n_embd"),
        ({"vocab_size": 10**9}, "vocab_size"), ({"vocab_size": 10**7}, "shape"),
        ({"n_positions": 4096}, "shape"), ({"n_head": 5}, "multiple"), ({"n_head": 0}, "n_head"),
        ({"n_head": "2"}, "n_head"), ({"n_layer": True}, "n_layer"), ({"n_layer": None}, "n_layer"),
        ({"model_type": "llama"}, "hidden_size is missing"), ({"n_inner": 100}, "n_inner"),
        ({"layer_norm_epsilon": 1e-6}, "layer_norm_epsilon"),
        ({"scale_attn_by_inverse_layer_idx": 1}, "inverse"),
        ({"add_cross_attention": True}, "cross"), ({"activation_function": "mish"}, "mish"),
        ({"activation_function": ["gelu"]}, "activation"), ({"tie_word_embeddings": 1}, "tie"),
        ({"tie_word_embeddings": False}, "lm_head"), ({"resid_pdrop": "x"}, "resid_pdrop"),
        ({"resid_pdrop": 7}, "resid_pdrop"),
    ],
    ids=str,
)  # fmt: skip
def test_config_that_lies_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    folder = edited(written(exportable(), tmp_path), **changes)
    with pytest.raises(UserError, match=named) as refused:
        huggingface.read(folder)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", 7])
def test_index_cannot_leave_its_folder(tmp_path: Path, name: object) -> None:
    folder = written(exportable(), tmp_path)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"weight_map": {"wte.weight": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="plain file name"):
        huggingface.read(folder)


def test_missing_and_unknown_tensors_are_named(tmp_path: Path) -> None:
    folder = written(exportable(), tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "h.0.extra": torch.zeros(1)}, path)
    with pytest.raises(UserError, match="extra"):
        huggingface.read(folder)
    del tensors["ln_f.weight"]
    save_file(tensors, path)
    with pytest.raises(UserError, match=r"ln_f\.weight"):
        huggingface.read(folder)


def test_biases_that_are_left_out_have_to_fit_too(tmp_path: Path) -> None:
    folder = written(exportable(bias=False), tmp_path)
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "h.0.ln_1.bias": torch.zeros(2, 16)}, path)
    with pytest.raises(UserError, match=r"h\.0\.ln_1\.bias has shape"):
        huggingface.read(folder)


def test_integers_are_not_weights(tmp_path: Path) -> None:
    folder = written(exportable(), tmp_path)
    tensors = load_file(folder / "model.safetensors")
    tensors["ln_f.weight"] = tensors["ln_f.weight"].long()
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match="int64"):
        huggingface.read(folder)


def test_half_precision_is_read_as_float32(tmp_path: Path) -> None:
    folder = written(exportable(), tmp_path)
    tensors = {k: v.bfloat16() for k, v in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    model = huggingface.read(folder).model
    assert all(p.dtype == torch.float32 for p in model.parameters())
