"""The model is GPT-2: compared with code nobody here wrote, on random weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from nanogpt_cli import schemes
from nanogpt_cli.init import drawing
from nanogpt_cli.model.attention import _attend
from nanogpt_cli.model.gpt import GPT, GPTConfig

pytestmark = pytest.mark.numeric

transformers = pytest.importorskip("transformers")

CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "mlp.c_fc.weight", "mlp.c_proj.weight")
HF_ACTIVATION = {"gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu", "silu": "silu"}


def config_of(**changes: object) -> GPTConfig:
    plain = {
        "n_layer": 2, "n_head": 3, "n_embd": 24, "block_size": 16, "vocab_size": 61,
        "dropout": 0.0, "bias": True, "activation": "gelu",
    }  # fmt: skip
    return GPTConfig(**{**plain, **changes})  # type: ignore[arg-type]


def random_model(config: GPTConfig) -> GPT:
    """Weights far from any symmetry: biases and LayerNorms are random too."""
    model = drawing.build(config, schemes.get("gpt2"), seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


def to_transformers(model: GPT) -> torch.nn.Module:
    """The same weights in Hugging Face's GPT-2."""
    c = model.config
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=c.vocab_size, n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer,
            n_head=c.n_head, activation_function=HF_ACTIVATION[c.activation],
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        )
    )  # fmt: skip
    ours = model.state_dict()
    state = {}
    for name, tensor in theirs.state_dict().items():
        value = ours.get(name, torch.zeros_like(tensor))
        state[name] = value.t().contiguous() if name.endswith(CONV1D) else value
    theirs.load_state_dict(state)
    return theirs.eval()


def same_layout(name: str, tensor: Tensor) -> Tensor:
    return tensor.t() if name.endswith(CONV1D) else tensor


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False},
        {"vocab_size": 1},
        {"vocab_size": 97, "block_size": 7, "n_head": 1},
        {"activation": "gelu_tanh"},
        {"activation": "relu"},
        {"activation": "silu", "n_layer": 1},
    ],
)
def test_logits_and_gradients_equal_transformers(changes: dict[str, object]) -> None:
    config = config_of(**changes)
    model = random_model(config)
    theirs = to_transformers(model)
    generator = torch.Generator().manual_seed(2)
    T = config.block_size
    idx = torch.randint(config.vocab_size, (3, T + 1), generator=generator)
    logits, loss = model(idx[:, :-1], idx[:, 1:])
    assert loss is not None
    expected = theirs(idx[:, :-1]).logits
    expected_loss = torch.nn.functional.cross_entropy(expected.flatten(0, 1), idx[:, 1:].flatten())
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected_loss.backward()
    grads = {name: p.grad for name, p in theirs.named_parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert grads[name] is not None
        torch.testing.assert_close(
            parameter.grad, same_layout(name, grads[name]), rtol=1e-5, atol=1e-5
        )


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd", "published"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_parameter_counts_are_the_published_ones(
    n_layer: int, n_head: int, n_embd: int, published: int
) -> None:
    config = config_of(
        n_layer=n_layer, n_head=n_head, n_embd=n_embd, block_size=1024, vocab_size=50257
    )
    with torch.device("meta"):
        model = GPT(config)
    assert model.n_parameters() == published
    tables = 50257 * n_embd + 1024 * n_embd
    assert model.n_parameters(embedding=False) == published - tables


def test_positions_see_only_their_past() -> None:
    config = config_of()
    model = random_model(config).eval()
    idx = torch.randint(config.vocab_size, (1, config.block_size))
    changed = idx.clone()
    changed[0, 9] = (changed[0, 9] + 1) % config.vocab_size
    before, after = model(idx)[0], model(changed)[0]
    torch.testing.assert_close(before[:, :9], after[:, :9], rtol=0, atol=0)
    assert not torch.equal(before[:, 9:], after[:, 9:])


def test_dropout_is_off_in_evaluation_and_on_in_training() -> None:
    model = random_model(config_of(dropout=0.5))
    idx = torch.zeros(1, 8, dtype=torch.long)
    model.eval()
    assert torch.equal(model(idx)[0], model(idx)[0])
    model.train()
    assert not torch.equal(model(idx)[0], model(idx)[0])


def test_context_longer_than_the_block_is_refused() -> None:
    model = random_model(config_of())
    with pytest.raises(ValueError, match="block_size is 16"):
        model(torch.zeros(1, 17, dtype=torch.long))


def test_swiglu_has_about_the_parameters_of_the_plain_mlp() -> None:
    plain, gated = (
        GPT(config_of(n_embd=96, activation=activation)) for activation in ("gelu", "swiglu")
    )
    sizes = [sum(p.numel() for p in m.transformer.h.parameters()) for m in (plain, gated)]
    assert abs(sizes[0] - sizes[1]) / sizes[0] < 0.02


def test_config_survives_json_and_names_what_is_wrong() -> None:
    config = config_of(bias=False)
    assert GPTConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ValueError, match="n_heads"):
        GPTConfig.from_dict({**config.to_dict(), "n_heads": 3})
    with pytest.raises(ValueError, match="not a multiple"):
        config_of(n_head=5)


def test_short_attention_in_bfloat16_is_computed_in_float32() -> None:
    """A CPU's fused kernel is many times slower in bfloat16 there; the rounding is at the ends."""
    model = random_model(config_of()).requires_grad_()
    attn = model.transformer.h[0].attn
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 16, 8).bfloat16().requires_grad_() for _ in range(3))
    wide = [t.detach().float().requires_grad_() for t in (q, k, v)]
    exact = torch.nn.functional.scaled_dot_product_attention(*wide, is_causal=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours = _attend(q, k, v, scale=attn.scale, p=0.0)
    assert torch.equal(ours, exact.bfloat16())
    upstream = torch.randn_like(exact).bfloat16()
    found = torch.autograd.grad(ours, (q, k, v), upstream)
    expected = torch.autograd.grad(exact, wide, upstream.float())
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b.bfloat16())


def test_autocast_stays_close_to_float32() -> None:
    model = random_model(config_of())
    idx = torch.arange(32).view(2, 16) % 61
    exact, _ = model(idx)
    with torch.autocast("cpu", torch.bfloat16):
        rounded, _ = model(idx)
    assert rounded.dtype == torch.bfloat16
    assert (rounded - exact).norm() / exact.norm() < 0.02
