"""``config.json`` means what transformers' own ``GPT2Config`` and activations say it means."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import exportable

from nanogpt_cli.interop import hf_config
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.model.mlp import ACTIVATIONS

transformers = pytest.importorskip("transformers")


def test_missing_and_renamed_keys_are_those_of_transformers() -> None:
    theirs = transformers.GPT2Config()
    assert {key: getattr(theirs, key) for key in hf_config._SIZES} == hf_config._SIZES
    assert {k: v for k, v in theirs.attribute_map.items() if v != k} == hf_config._OTHER_NAMES
    assert {key: getattr(theirs, key) for key in hf_config._FIXED} == hf_config._FIXED
    assert hf_config.read(Path("config.json"), {"model_type": "gpt2"}, []) == GPTConfig(
        n_layer=12, n_head=12, n_embd=768, block_size=1024, vocab_size=50257, dropout=0.1,
        bias=True, activation="gelu_tanh",
    )  # fmt: skip


@pytest.mark.parametrize("name", hf_config._NATIVE)
def test_activations_are_those_of_transformers(name: str) -> None:
    x = torch.linspace(-12, 12, 4001)
    theirs = transformers.activations.ACT2FN[name](x)
    ours = ACTIVATIONS[hf_config._NATIVE[name]](x)
    assert (ours - theirs).abs().max() < 2e-5


@pytest.mark.parametrize("activation", hf_config.ACTIVATIONS)
def test_what_is_written_is_read_by_both(tmp_path: Path, activation: str) -> None:
    source = exportable(activation=activation, dropout=0.25, tied=False)
    values = hf_config.to_json(source)
    assert hf_config.read(tmp_path, values, notes := []) == source.config
    assert not notes
    (tmp_path / "config.json").write_text(json.dumps(values))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path)
    assert (theirs.n_inner or 4 * theirs.n_embd) == source.config.hidden_size
    assert theirs.tie_word_embeddings is False
    assert theirs.eos_token_id is None


def test_dropout_that_differs_by_place_is_said() -> None:
    notes: list[str] = []
    hf_config.read(Path("config.json"), {"model_type": "gpt2", "attn_pdrop": 0.0}, notes)
    assert notes == [
        "one dropout rate is kept for all places: 0.1 (of resid_pdrop 0.1, embd_pdrop 0.1, "
        "attn_pdrop 0.0)"
    ]


def test_code_in_the_folder_is_not_run() -> None:
    notes: list[str] = []
    hf_config.read(Path("config.json"), {"model_type": "gpt2", "auto_map": {}}, notes)
    assert "is not run" in notes[0]
