"""Llama, Qwen2 and Qwen3 folders: bit-exact there and back, equal in transformers, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import HOMES, TEXT, char_tokenizer, exportable, logits, quiet, same_tensors

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import huggingface, llama, llama_config
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.model import homes
from nanogpt_cli.model.gpt import GPT, Multipliers

transformers = pytest.importorskip("transformers")

SHAPES: list[dict[str, Any]] = [
    {"dropout": 0.1},
    {"n_kv_head": 1, "tied": False, "hidden": 31, "vocab_size": 64},
    {"n_kv_head": 4, "n_head": 4, "n_embd": 24, "hidden": 64},
    {"head_dim": 12, "n_head": 6, "n_embd": 30, "n_kv_head": 1},
]


def written(source: Exportable, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    huggingface.write(source, folder, quiet)
    return folder


def edited(folder: Path, **changes: Any) -> Path:
    """The folder with other values in config.json; "remove" removes a key."""
    path = folder / "config.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in values.items() if v != "remove"}))
    return folder


def their_logits(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        found: torch.Tensor = theirs(ids).logits
    return found


def their_model(home: str, **changes: Any) -> Any:
    """A model made by transformers, with weights that are far from those of a fresh start."""
    values = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
        "max_position_embeddings": 24, "initializer_range": 0.2,
    }  # fmt: skip
    kind = getattr(transformers, llama.CONVENTIONS[home].model_class)
    torch.manual_seed(0)
    return kind(kind.config_class(**{**values, **changes})).eval()


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_there_and_back_is_bit_exact(tmp_path: Path, home: str, changes: dict[str, Any]) -> None:
    source = exportable(**{**HOMES[home], **changes})
    assert homes.home(source.config) == home
    found = huggingface.read(written(source, tmp_path))
    assert same_tensors(found.model, source.model())
    assert found.model.config == source.config
    assert found.notes == ()
    assert found.tokenizer is not None
    assert found.tokenizer.fingerprint() == source.require_tokenizer("hf").fingerprint()


@pytest.mark.numeric
@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("changes", SHAPES, ids=str)
def test_transformers_computes_the_same(tmp_path: Path, home: str, changes: dict[str, Any]) -> None:
    source = exportable(**{**HOMES[home], **changes})
    ids = torch.randint(0, source.config.vocab_size, (2, 24))
    difference = their_logits(written(source, tmp_path), ids) - logits(source.model(), ids)
    assert difference.abs().max() < 1e-5


@pytest.mark.numeric
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("home", HOMES)
def test_folded_multipliers_reach_transformers(tmp_path: Path, home: str, tied: bool) -> None:
    factors = Multipliers(embedding=3.0, residual=0.4, attention=0.07, output=0.25)
    source = exportable(**HOMES[home], tied=tied, multipliers=factors)
    trained = GPT(source.weights.original).eval()
    trained.load_state_dict(
        {name: source.weights.read(name) for name in source.weights.shapes}, strict=False
    )
    written(source, tmp_path)
    ids = torch.randint(0, source.config.vocab_size, (2, 24))
    assert (their_logits(tmp_path, ids) - logits(trained, ids)).abs().max() < 1e-5


@pytest.mark.numeric
@pytest.mark.parametrize("shard", ["10GB", "20KB"])
@pytest.mark.parametrize("home", HOMES)
def test_model_saved_by_transformers_is_read(tmp_path: Path, home: str, shard: str) -> None:
    theirs = their_model(home, tie_word_embeddings=shard == "20KB")
    if home == "qwen2":
        for name, parameter in theirs.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter, std=0.2)
    theirs.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard == "20KB")
    found = huggingface.read(tmp_path)
    assert homes.home(found.model.config) == home
    ids = torch.randint(0, 50, (2, 24))
    with torch.no_grad():
        assert (theirs(ids).logits - logits(found.model, ids)).abs().max() < 1e-5


@pytest.mark.parametrize("home", HOMES)
def test_the_data_agree_with_the_classes_of_transformers(home: str) -> None:
    own = llama.CONVENTIONS[home]
    theirs = getattr(transformers, own.model_class).config_class().to_dict()
    for key, value in (llama.DEFAULTS | own.fixed).items():
        if (key, value) == ("num_key_value_heads", None):  # as many as heads
            assert theirs[key] == theirs["num_attention_heads"]
        else:
            assert theirs[key] == value, key
    assert {key: theirs[key] for key in own.defaults} == own.defaults


@pytest.mark.parametrize("home", HOMES)
def test_older_and_newer_releases_find_the_angles(tmp_path: Path, home: str) -> None:
    folder = written(exportable(**HOMES[home]), tmp_path)
    values = json.loads((folder / "config.json").read_text())
    assert values["rope_theta"] == values["rope_parameters"]["rope_theta"] == 500.0
    for key in ("rope_theta", "rope_parameters"):
        kept = {k: v for k, v in values.items() if k != key}
        assert llama_config.read(Path("c"), kept, []).rope_theta == 500.0
    without = {k: v for k, v in values.items() if not k.startswith("rope_")}
    assert llama_config.read(Path("c"), without, []).rope_theta == 10000.0


def test_gelu_gate_of_a_llama_is_computed(tmp_path: Path) -> None:
    theirs = their_model("llama", hidden_act="gelu")
    theirs.save_pretrained(tmp_path)
    found = huggingface.read(tmp_path).model
    assert homes.home(found.config) is None
    ids = torch.randint(0, 50, (2, 24))
    with torch.no_grad():
        assert (theirs(ids).logits - logits(found, ids)).abs().max() < 1e-5


@pytest.mark.parametrize("given", ["remove", None])
def test_heads_have_their_usual_size_unless_said_otherwise(tmp_path: Path, given: Any) -> None:
    source = exportable(**HOMES["llama"])
    folder = edited(written(source, tmp_path), head_dim=given)
    assert huggingface.read(folder).model.config == source.config


def test_bare_names_and_old_buffers_are_read(tmp_path: Path) -> None:
    source = exportable(**HOMES["llama"])
    folder = written(source, tmp_path)
    tensors = {
        name.removeprefix("model."): tensor
        for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors["layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / "model.safetensors")
    assert same_tensors(huggingface.read(folder).model, source.model())


YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 500.0}


@pytest.mark.parametrize(
    ("home", "changes", "named"),
    [
        ("llama", {"rope_parameters": YARN}, r"rope_parameters\.rope_type = 'yarn'"),
        ("llama", {"rope_scaling": {"type": "linear", "factor": 2}}, r"rope_scaling\.type"),
        ("llama", {"rope_scaling": {"rope_type": "default", "factor": 2}}, "factor"),
        ("llama", {"rope_scaling": [1]}, "rope_scaling"),
        ("llama", {"rope_theta": 7.0}, "contradicts"), ("llama", {"rope_theta": "x"}, "rope_theta"),
        ("llama", {"attention_bias": True}, "attention_bias"),
        ("llama", {"mlp_bias": True}, "mlp_bias"), ("qwen3", {"attention_bias": True}, "attention"),
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3", {"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ("qwen3", {"layer_types": 5}, "layer_types"),
        ("llama", {"head_dim": 16}, "_proj.weight has shape"),
        ("llama", {"head_dim": -4}, "head_d"),
        ("qwen3", {"head_dim": "remove"}, r"says \[128\]"),
        ("llama", {"head_dim": 7}, "even head size, not 7"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"hidden_act": "relu"}, "hidden_act"), ("llama", {"hidden_act": []}, "hidden_a"),
        ("llama", {"num_key_value_heads": 3}, "num_attention_heads 4 is not a multiple"),
        ("qwen2", {"num_key_value_heads": "remove"}, "num_key_value_heads 32"),
        ("llama", {"num_key_value_heads": 0}, "num_key_value_heads is 0"),
        ("llama", {"num_key_value_heads": 1}, "k_proj.weight has shape"),
        ("llama", {"intermediate_size": -1}, "intermediate_size must be"),
        ("llama", {"hidden_size": "remove"}, "hidden_size is missing"),
        ("llama", {"hidden_size": 30}, "has shape"),
        ("llama", {"hidden_size": 30, "head_dim": None}, "30 is not a multiple"),
        ("llama", {"num_hidden_layers": 10**9}, "num_hidden_layers"),
        ("llama", {"rms_norm_eps": 0}, "rms_norm_eps"), ("llama", {"attention_dropout": 2}, "drop"),
        ("llama", {"tie_word_embeddings": False}, "lm_head"),
        ("llama", {"model_type": "qwen2"}, r"lacks .*q_proj\.bias"),
        ("llama", {"model_type": "qwen3"}, r"lacks .*q_norm"),
        ("qwen3", {"model_type": "llama"}, "k_norm.*which no Llama has"),
        ("llama", {"model_type": "mixtral"}, "model_type 'mixtral'"),
        ("qwen3", {"model_type": "qwen3_moe"}, "model_type 'qwen3_moe'"),
        ("llama", {"model_type": "gpt_oss"}, "model_type 'gpt_oss'"),
        ("llama", {"model_type": ["llama"]}, "model_type"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_not_computed_is_refused_by_its_key(
    tmp_path: Path, home: str, changes: dict[str, Any], named: str
) -> None:
    folder = edited(written(exportable(**HOMES[home]), tmp_path), **changes)
    with pytest.raises(UserError, match=named) as refused:
        huggingface.read(folder)
    assert "\n" not in refused.value.message
    assert "config.json" in refused.value.message or "model.safetensors" in refused.value.message


# Another valid value of every field of a configuration that has something to do with the model.
OTHER: dict[str, Any] = {
    "vocab_size": 51, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 6, "hidden_act": "gelu",
    "max_position_embeddings": 25, "initializer_range": 0.5, "rms_norm_eps": 0.1,
    "use_cache": False, "tie_word_embeddings": True, "rope_parameters": YARN,
    "attention_bias": True, "attention_dropout": 0.5, "mlp_bias": True, "pretraining_tp": 2,
    "use_sliding_window": True, "sliding_window": 4, "max_window_layers": 0,
    "layer_types": ["full_attention", "sliding_attention"],
    "pad_token_id": 3, "bos_token_id": 4, "eos_token_id": 5, "chunk_size_feed_forward": 2,
    "is_encoder_decoder": True, "output_attentions": False, "output_hidden_states": True,
    "return_dict": False, "dtype": "float16", "id2label": {"0": "a"}, "label2id": {"a": 0},
    "problem_type": "regression", "architectures": ["Other"],
}  # fmt: skip


@pytest.mark.numeric
@pytest.mark.parametrize("home", HOMES)
def test_every_field_is_obeyed_or_refused(tmp_path: Path, home: str) -> None:
    """Whatever a valid configuration says: transformers' logits, or one line; never others."""
    kind = getattr(transformers, llama.CONVENTIONS[home].model_class)
    fields = json.loads(kind.config_class().to_json_string(use_diff=False))
    unknown = fields.keys() - OTHER.keys() - {"model_type", "transformers_version", "_name_or_path"}
    assert not unknown, "a newer transformers has a field that OTHER does not know"
    ids = torch.randint(0, 50, (2, 20), generator=torch.Generator().manual_seed(3))
    read, refusals = 0, list[str]()
    for field in fields.keys() & OTHER.keys():
        folder = tmp_path / field
        try:
            theirs = their_model(home, **{field: OTHER[field]})
        except (ValueError, TypeError, KeyError):
            continue  # their class does not take it either
        theirs.save_pretrained(folder)
        edited(folder, **{field: OTHER[field]})
        try:
            ours = huggingface.read(folder).model
        except UserError as refused:
            refusals.append(refused.message)
            continue
        read += 1
        reopened = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        reopened.config.return_dict = True
        with torch.no_grad():
            expected = reopened(ids).logits
            torch.testing.assert_close(ours(ids)[0], expected, rtol=1e-4, atol=1e-5, msg=field)
    assert read > 15
    assert not any("\n" in message for message in refusals)


@pytest.mark.parametrize("name", ["layers.0.self_attn.sinks", "layers.0.mlp.experts.0.weight"])
def test_tensor_that_no_llama_has_is_refused(tmp_path: Path, name: str) -> None:
    folder = written(exportable(**HOMES["llama"]), tmp_path)
    tensors = load_file(folder / "model.safetensors") | {f"model.{name}": torch.ones(4)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name}.*which no Llama has") as refused:
        huggingface.read(folder)
    assert refused.value.hint is not None
    assert "LlamaForCausalLM" in refused.value.hint


@pytest.mark.parametrize("home", HOMES)
def test_all_of_tiny_shakespeare_round_trips(
    tmp_path: Path, home: str, shakespeare_path: Path
) -> None:
    text = shakespeare_path.read_text("ascii")
    tokenizer = type(char_tokenizer()).of_text(text)
    folder = written(exportable(tokenizer, **HOMES[home]), tmp_path)
    reader = getattr(transformers, llama.CONVENTIONS[home].tokenizer_class)
    theirs = reader.from_pretrained(folder)
    ids = theirs(text)["input_ids"]
    assert len(ids) == 1_115_394
    assert ids == tokenizer.encode_array(text).tolist()
    assert theirs.decode(ids) == text


def test_card_names_the_home_and_the_tokenizer_that_reads_the_file(tmp_path: Path) -> None:
    from nanogpt_cli.interop import card

    for home in HOMES:
        card.write(exportable(**HOMES[home]), tmp_path)
        text = (tmp_path / "README.md").read_text()
        assert f"- {home}\n" in text
        assert f"A {homes.TITLES[home]} language model" in text  # type: ignore[index]
        assert "4, 2 of keys and values" in text
        assert ("PreTrainedTokenizerFast" in text) == (home == "qwen2")
    source = exportable(**HOMES["qwen2"])
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(written(source, tmp_path))
    assert theirs(TEXT)["input_ids"] == char_tokenizer().encode(TEXT)
