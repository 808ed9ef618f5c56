"""Today's parts equal code nobody here wrote: Llama, Qwen2 and Qwen3 of ``transformers``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from nanogpt_cli import schemes
from nanogpt_cli.init import drawing
from nanogpt_cli.model import homes, parameters
from nanogpt_cli.model.accounting import account, training_flops
from nanogpt_cli.model.dropout import Noise
from nanogpt_cli.model.gpt import GPT, GPTConfig

transformers = pytest.importorskip("transformers")

LLAMA = {"norm": "rms", "position": "rope", "activation": "swiglu", "bias": False}
PARTS: dict[str, dict[str, Any]] = {
    "llama": LLAMA, "qwen2": LLAMA | {"bias": "qkv"}, "qwen3": LLAMA | {"qk_norm": True},
}  # fmt: skip


def config_of(**changes: Any) -> GPTConfig:
    plain = {
        "n_layer": 2, "n_head": 4, "n_embd": 24, "block_size": 16, "vocab_size": 61,
        "dropout": 0.0, "bias": False, "activation": "gelu",
    }  # fmt: skip
    return GPTConfig(**{**plain, **changes})


def random_model(config: GPTConfig) -> GPT:
    """Weights far from any symmetry: biases and gains are random too."""
    model = drawing.build(config, schemes.get("gpt2"), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def theirs_of(config: GPTConfig, home: str) -> torch.nn.Module:
    """The model of ``transformers`` that a configuration's home is."""
    kind = {"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[home]
    settings = getattr(transformers, f"{kind}Config")(
        vocab_size=config.vocab_size, hidden_size=config.n_embd, head_dim=config.head_size,
        intermediate_size=config.hidden_size, num_hidden_layers=config.n_layer,
        num_attention_heads=config.n_head, num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.block_size, rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tied,
    )  # fmt: skip
    found: torch.nn.Module = getattr(transformers, f"{kind}ForCausalLM")(settings)
    return found.eval()


SHAPES = [
    {},
    {"n_kv_head": 2, "tied": False},
    {"n_kv_head": 1, "hidden": 31, "rope_theta": 500.0},
    {"n_head": 3, "n_embd": 42, "vocab_size": 97, "block_size": 7, "norm_eps": 1e-3},
    {"n_layer": 1, "n_head": 1, "n_embd": 10, "vocab_size": 1, "tied": False},
    {"head_dim": 10, "n_kv_head": 2},  # as Qwen3-0.6B, whose heads are wider than the stream
    {"head_dim": 6, "n_head": 6, "n_kv_head": 1},
]


@pytest.mark.numeric
@pytest.mark.parametrize("home", PARTS)
@pytest.mark.parametrize("changes", SHAPES)
def test_logits_and_gradients_equal_transformers(home: str, changes: dict[str, Any]) -> None:
    config = config_of(**PARTS[home], **changes)
    assert homes.home(config) == home
    model = random_model(config)
    theirs = theirs_of(config, home)
    # Their own names: nothing is renamed, and nothing is left over but a tied head.
    left = theirs.load_state_dict(model.state_dict(), strict=True)
    assert not left.missing_keys
    assert sum(p.numel() for p in theirs.parameters()) == account(config).parameters
    idx = torch.randint(
        config.vocab_size, (3, config.block_size + 1), generator=torch.Generator().manual_seed(2)
    )
    logits, loss = model(idx[:, :-1], idx[:, 1:])
    expected = theirs(idx[:, :-1]).logits
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    torch.nn.functional.cross_entropy(expected.flatten(0, 1), idx[:, 1:].flatten()).backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, grads[name], rtol=1e-5, atol=1e-5)


COMBINATIONS = [
    *PARTS.values(),
    {"norm": "rms"},
    {"position": "rope", "bias": True},
    {"qk_norm": True, "bias": True, "tied": False},
    {"n_kv_head": 2, "activation": "geglu", "hidden": 40},
    {"bias": "qkv"},
    {"activation": "geglu", "hidden": 24},
]


@pytest.mark.parametrize("changes", COMBINATIONS)
def test_shapes_and_classes_are_those_of_the_module(changes: dict[str, Any]) -> None:
    config = config_of(**changes)
    model = GPT(config)
    assert parameters.shapes(config) == {n: tuple(p.shape) for n, p in model.named_parameters()}
    for layer, block in enumerate(model.blocks):
        for rest, parameter in block.named_parameters():
            name = next(n for n, p in model.named_parameters() if p is parameter)
            assert name.endswith(rest)
            assert parameters.layer_of(name) == layer
            assert parameters.is_block_matrix(name, parameter.shape) == (parameter.dim() == 2)
    assert {parameters.tensor_class(n) for n, _ in model.named_parameters()} <= {
        *schemes.CLASSES, "qkv",
    }  # fmt: skip
    assert GPTConfig.from_dict(config.to_dict()) == config


def test_the_usual_values_written_out_are_the_same_configuration() -> None:
    assert config_of(n_kv_head=4, hidden=96) == config_of()
    assert config_of(activation="swiglu", hidden=64) == config_of(activation="swiglu")


@pytest.mark.parametrize(
    ("changes", "home", "reason"),
    [
        ({}, "gpt2", ""),
        ({"bias": True, "activation": "gelu_tanh"}, "gpt2", ""),
        ({"norm": "rms"}, None, 'norm = "rms" (GPT-2 has "layer")'),
        ({"norm": "rms", "position": "rope"}, None, 'activation = "gelu" (Llama has "swiglu")'),
        (LLAMA | {"bias": True}, None, "bias = true (Llama has false)"),
        (LLAMA | {"norm_eps": 1e-6, "n_kv_head": 1}, "llama", ""),
        (PARTS["qwen2"] | {"qk_norm": True}, None, "qk_norm = true (Qwen2 has false)"),
        ({"hidden": 40}, None, "hidden = 40 (GPT-2 has 4 n_embd = 96)"),
        ({"activation": "swiglu"}, None, 'activation = "swiglu" (GPT-2 has '),
    ],
)
def test_a_combination_has_a_home_or_the_key_that_has_none(
    changes: dict[str, Any], home: str | None, reason: str
) -> None:
    config = config_of(**changes)
    assert homes.home(config) == home
    assert homes.why_homeless(config).startswith(reason)
    assert bool(reason) == bool(homes.why_homeless(config))


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"n_kv_head": 3}, "n_kv_head"),
        ({"n_embd": 20, "position": "rope"}, "even head size"),
        ({"norm": "batch"}, "norm"),
    ],
)
def test_impossible_combinations_are_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        config_of(**changes)


@pytest.mark.parametrize("home", PARTS)
def test_flops_are_those_that_torch_counts(home: str) -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    config = config_of(**PARTS[home], n_kv_head=2, hidden=40)
    model = GPT(config)
    T = config.block_size
    # The counter knows the products that attention is made of, not the fused kernel of CPUs.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        model(torch.zeros(1, T, dtype=torch.int64))
    # PyTorch counts every pair of positions, and a causal model computes (T + 1) / 2T of them.
    pairs = 4 * config.n_layer * config.n_embd * T
    causal = pairs * (T + 1) // 2
    found = counter.get_total_flops()
    assert found == account(config).flops_forward * T - causal + pairs * T
    matrices = sum(p.numel() for p in model.parameters())
    assert training_flops(config) == 6 * matrices + 12 * config.n_layer * config.n_embd * T


@pytest.mark.numeric
def test_attention_sees_distances_alone() -> None:
    """Rotary scores of equal tokens depend on how far apart they are, not on where they stand."""
    config = config_of(**PARTS["qwen3"], n_layer=1)
    seen: dict[str, torch.Tensor] = {}
    model = random_model(config).eval()
    model(torch.full((1, 16), 7), probe=lambda what, _, x: seen.update({what: x.detach()}))
    scores = seen["q"] @ seen["k"].mT  # (1, H, T, T)
    for distance in (0, 1, 5):
        diagonal = scores.diagonal(-distance, -2, -1)
        spread = diagonal.max(-1).values - diagonal.min(-1).values
        assert spread.max() < 1e-4 * scores.abs().max()


@pytest.mark.numeric
@pytest.mark.parametrize("noisy", [False, True])
def test_probes_show_what_attention_reads(noisy: bool) -> None:
    config = replace(config_of(**PARTS["qwen3"], n_kv_head=2), dropout=0.2 if noisy else 0.0)
    model = random_model(config)
    seen: list[tuple[str, int]] = []
    shapes: dict[str, tuple[int, ...]] = {}

    def probe(what: str, layer: int, x: torch.Tensor) -> None:
        seen.append((what, layer))
        shapes[what] = tuple(x.shape)

    idx = torch.zeros(3, 16, dtype=torch.int64)
    noise = [Noise(range(3)) if noisy else None for _ in range(2)]
    logits = model(idx, probe=probe, noise=noise[0])[0]
    assert torch.equal(logits, model(idx, noise=noise[1])[0])
    each = ("q", "k", "v", "attn", "preact", "hidden", "mlp", "resid")
    assert seen == [("embed", -1), *((what, layer) for layer in range(2) for what in each)]
    assert shapes["q"] == shapes["k"] == shapes["v"] == (3, 4, 16, 6)
    assert shapes["preact"] == shapes["hidden"] == (3, 16, 64)


def test_initial_values_depend_on_seed_and_name_alone() -> None:
    config = config_of(**PARTS["qwen2"], n_kv_head=2)
    scheme = schemes.get("gpt2")
    model = drawing.build(config, scheme, seed=5)
    for name, parameter in model.named_parameters():
        assert torch.equal(drawing.init_tensor(name, config, scheme, 5), parameter)
    custom = schemes.parse_custom({"fc": "normal(0.5)", "gate": "normal(0.1)", "k": "normal(0.3)"})
    block = drawing.build(config, custom, seed=5).model.layers[1]
    for matrix, std in (
        (block.mlp.gate_proj, 0.1), (block.mlp.up_proj, 0.5), (block.self_attn.k_proj, 0.3),
    ):  # fmt: skip
        assert 0.8 * std < float(matrix.weight.detach().std()) < 1.2 * std
    follows = schemes.parse_custom({"fc": "normal(0.5)"})
    assert str(follows.rules["gate"]) == str(follows.rules["fc"])
