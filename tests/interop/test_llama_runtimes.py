"""Trained models of Llama, Qwen2 and Qwen3, run where such models usually run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny import HOMES, char_tokenizer, exportable, quiet

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import exporting, gguf, gguf_end, gguf_models, source
from nanogpt_cli.interop.compare import Check
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.text import prepare
from nanogpt_cli.text.tokens import TokenData, open_data

_NEEDS = {"hf": "transformers", "gguf": "xllamacpp"}
_BLOCK = 32

Trained = Callable[[str, str], Exportable]


@pytest.fixture(scope="module")
def trained(shakespeare_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """``trained(home, kind)``: a small model that has learnt some of Shakespeare's letters."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "beginning.txt"
    text.write_text(shakespeare_path.read_text("ascii")[:120_000], "ascii")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOGPT_HOME", str(folder))
        data = {
            kind: open_data(prepare.ensure({"name": str(text), "tokenizer": kind}, report=quiet))
            for kind in ("char", "bpe:320")
        }
    return functools.cache(lambda home, kind: _train(home, data[kind]))


def _train(home: str, data: TokenData) -> Exportable:
    torch.manual_seed(0)
    tokenizer = data.tokenizer
    config = GPTConfig(
        n_layer=2, n_embd=64, block_size=_BLOCK, vocab_size=tokenizer.vocab_size, dropout=0.0,
        **HOMES[home], head_dim=24 if home == "qwen3" else 0,
    )  # fmt: skip
    model = GPT(config)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    ids = torch.from_numpy(data.train.astype(np.int64))
    for _ in range(100):
        starts = torch.randint(0, len(ids) - _BLOCK - 1, (16,))
        rows = torch.stack([ids[s : s + _BLOCK + 1] for s in starts.tolist()])
        loss = model.loss(rows[:, :-1], rows[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return source.from_model(model.eval(), tokenizer, home, data={"folder": str(data.folder)})


def proved(made: Exportable, target: str, out: Path, **options: Any) -> list[Check]:
    for package in (_NEEDS[target], *exporting.TARGETS[target].packages):
        pytest.importorskip(package)
    artefacts = exporting.export(made, target, out, quiet, **options)
    return exporting.verify_all(made, artefacts, quiet)


@pytest.mark.numeric
@pytest.mark.parametrize(
    ("home", "kind"),
    [*((home, "char") for home in HOMES), ("llama", "bpe:320"), ("qwen3", "bpe:320")],
)
def test_llama_cpp_computes_the_same(
    tmp_path: Path, trained: Trained, home: str, kind: str
) -> None:
    made = trained(home, kind)
    whole, *rounded = proved(made, "gguf", tmp_path, quantizations=("f32", "q8_0"))
    assert whole.problems == []
    assert whole.facts["positions"] >= 1000
    assert whole.facts["argmax_agreement"] == 1.0
    assert whole.facts["greedy_equal"] == whole.facts["greedy_texts"] == 4
    assert whole.facts["max_abs_diff"] < 1e-4
    assert whole.facts["tokenizer_same_ids"]
    assert whole.facts["tokenizer_text_equal"]
    for check in rounded:
        # Models of 64 channels that hardly train often have two likely tokens side by side, more
        # so with 320 words to choose from.
        assert check.facts["argmax_agreement"] >= (0.97 if kind == "char" else 0.85)
        assert check.facts["max_abs_diff"] < 1.0


@pytest.mark.numeric
@pytest.mark.usefixtures("runtimes_here")
@pytest.mark.parametrize(("home", "kind"), [("qwen2", "char"), ("qwen3", "bpe:320")])
def test_transformers_computes_the_same(
    tmp_path: Path, trained: Trained, home: str, kind: str
) -> None:
    (check,) = proved(trained(home, kind), "hf", tmp_path)
    assert check.problems == []
    assert check.facts["positions"] >= 1000
    assert check.facts["argmax_agreement"] == 1.0
    assert check.facts["greedy_equal"] == check.facts["greedy_texts"] == 4
    assert check.facts["tokenizer_text_equal"]


@pytest.mark.numeric
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("home", ["llama", "qwen3"])
def test_added_channels_change_nothing_but_the_row_of_end_of_text(home: str, tied: bool) -> None:
    """The widened tensors, computed as a model of their own, against the model itself."""
    made = exportable(**HOMES[home], tied=tied)
    wide, config = gguf_end.Widened(made.weights), made.config
    assert wide.channels == 64
    tensors = {name: wide.get(name).double() for name in wide.names()}
    assert {name: tuple(t.shape) for name, t in tensors.items()} == {
        name: wide.shape(name) for name in wide.names()
    }
    ids = torch.arange(24) % config.vocab_size

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        mean_square = x.square().mean(-1, keepdim=True)
        return x / (mean_square + wide.norm_eps).sqrt() * tensors[f"{name}.weight"]

    angles = torch.arange(24).double()[:, None] * config.rope_theta ** -(
        torch.arange(0, config.head_size, 2).double() / config.head_size
    )

    def heads(x: torch.Tensor, name: str, *, turn: bool) -> torch.Tensor:
        """(heads, T, D), turned as complex numbers."""
        found = (x @ tensors[f"{name}_proj.weight"].T).view(24, -1, config.head_size)
        if turn and home == "qwen3":
            found = norm(found, f"{name}_norm")
        if turn:
            a, b = found.transpose(0, 1).chunk(2, dim=-1)
            z = torch.complex(a, b) * torch.polar(torch.ones_like(angles), angles)
            return torch.cat([z.real, z.imag], dim=-1)
        return found.transpose(0, 1)

    x = tensors["model.embed_tokens.weight"][ids]
    for layer in range(config.n_layer):
        block = f"model.layers.{layer}"
        normed = norm(x, f"{block}.input_layernorm")
        q, k = (heads(normed, f"{block}.self_attn.{n}", turn=True) for n in "qk")
        v = heads(normed, f"{block}.self_attn.v", turn=False)
        k, v = (t.repeat_interleave(config.n_head // config.kv_heads, dim=0) for t in (k, v))
        scores = q @ k.mT / config.head_size**0.5
        scores = scores.masked_fill(~torch.ones(24, 24).tril().bool(), -torch.inf)
        y = (scores.softmax(-1) @ v).transpose(0, 1).reshape(24, -1)
        x = x + y @ tensors[f"{block}.self_attn.o_proj.weight"].T
        normed = norm(x, f"{block}.post_attention_layernorm")
        gate, up = (normed @ tensors[f"{block}.mlp.{n}_proj.weight"].T for n in ("gate", "up"))
        hidden = torch.nn.functional.silu(gate) * up
        x = x + hidden @ tensors[f"{block}.mlp.down_proj.weight"].T
    found = norm(x, "model.norm") @ tensors["lm_head.weight"].T
    expected = made.model().double()(ids[None])[0][0]
    assert (found[:, :-1] - expected).abs().max() < 1e-6 * expected.abs().max().clamp(min=1)
    assert (found[:, -1] < expected.min() - 100).all()


def test_rows_of_queries_and_keys_are_in_the_order_of_llama_cpp(tmp_path: Path) -> None:
    library = pytest.importorskip("gguf")
    for home in HOMES:
        made = exportable(char_tokenizer(eot=True), **HOMES[home])
        reader = library.GGUFReader(gguf.write(made, tmp_path, quiet, "f32"))
        tensors = {tensor.name: tensor.data for tensor in reader.tensors}
        fields = {name: field.contents() for name, field in reader.fields.items()}
        assert fields["general.architecture"] == home
        assert fields[f"{home}.attention.head_count_kv"] == 2
        assert fields[f"{home}.rope.freq_base"] == 500.0
        assert fields[f"{home}.rope.dimension_count"] == made.config.head_size == 8
        assert fields[f"{home}.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
        assert "output.weight" not in tensors
        ours = made.weights.get("model.layers.1.self_attn.k_proj.weight").numpy()
        theirs = tensors["blk.1.attn_k.weight"]
        order = [0, 4, 1, 5, 2, 6, 3, 7] if home == "llama" else list(range(8))
        assert np.array_equal(theirs, ours[[*order, *(8 + i for i in order)]])
        (tmp_path / "tiny-f32.gguf").unlink()


def test_a_combination_without_a_home_is_refused_by_its_key() -> None:
    for changes, key in (
        (HOMES["llama"] | {"bias": True}, "bias = true"),
        (HOMES["qwen3"] | {"bias": "qkv"}, "qk_norm = true|bias"),
        (HOMES["llama"] | {"activation": "geglu"}, 'activation = "geglu"'),
        (HOMES["llama"] | {"position": "learned"}, 'position = "learned"'),
        ({"norm": "rms"}, 'norm = "rms"'),
    ):
        with pytest.raises(UserError, match=key) as refused:
            exportable(**changes)
        assert "\n" not in refused.value.message


def test_nanogpt_has_no_home_for_them(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="only GPT-2's parts"):
        exporting.export(exportable(**HOMES["llama"]), "nanogpt", tmp_path, quiet)


def test_every_tensor_of_every_home_has_a_name_in_the_file() -> None:
    for home in HOMES:
        made = exportable(char_tokenizer(eot=True), tied=False, **HOMES[home])
        names = {entry.name for entry in gguf_models.entries(made, added_eot=False)}
        assert len(names) == len(made.weights.shapes)
