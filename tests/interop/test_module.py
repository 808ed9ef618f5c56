"""A module is adopted only if its own forward computes what the GPT in its place computes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import logits, make_model, same_tensors
from torch import Tensor, nn

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import huggingface
from nanogpt_cli.interop.module import adopt
from nanogpt_cli.model.gpt import GPT, Block, Multipliers


def hf(**config: Any) -> Any:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 40, "n_positions": 24}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**sizes, **config}))


class Changed(GPT):
    """A GPT whose blocks were replaced."""

    def __init__(self, base: GPT, forward: Any) -> None:
        super().__init__(base.config)
        self.load_state_dict(base.state_dict())
        for block in self.transformer.h:
            block.forward = forward.__get__(block)


def no_residual(self: Block, x: Tensor, *_: Any) -> Tensor:
    x = self.attn(self.ln_1(x))
    return x + self.mlp(self.ln_2(x))


def post_norm(self: Block, x: Tensor, *_: Any) -> Tensor:
    x = self.ln_1(x + self.attn(x))
    return self.ln_2(x + self.mlp(x))


def doubled(self: Block, x: Tensor, *_: Any) -> Tensor:
    x = 2 * x + self.attn(self.ln_1(x))
    return x + self.mlp(self.ln_2(x))


def as_usual(self: Block, x: Tensor, *_: Any) -> Tensor:
    x = x + self.attn(self.ln_1(x))
    return x + self.mlp(self.ln_2(x))


class Attention(nn.Module):
    def __init__(self, inner: nn.Module, heads: int) -> None:
        super().__init__()
        self.n_head, self.scale, self.dropout = heads, inner.scale, 0.0
        self.c_attn, self.c_proj = inner.c_attn, inner.c_proj

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        B, T, C = x.shape
        split = (t.view(B, T, self.n_head, -1).transpose(1, 2) for t in self.c_attn(x).chunk(3, -1))
        q, k, v = split
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


class Last(nn.Module):
    """A model whose configuration has no heads, and which returns what ``shape`` makes of logits.

    As in minGPT, the heads are known to the attention modules alone.
    """

    def __init__(self, base: GPT, shape: Any) -> None:
        super().__init__()
        self.transformer, self.lm_head, self.shape = base.transformer, base.lm_head, shape
        for block in self.transformer.h:
            block.attn = Attention(block.attn, base.config.n_head)
            block.mlp.act = type("NewGELU", (nn.Identity,), {})()

    def forward(self, ids: Tensor) -> Any:
        x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))
        for block in self.transformer.h:
            x = block(x)
        return self.shape(self.lm_head(self.transformer.ln_f(x)))


@pytest.mark.parametrize(
    "config",
    [{}, {"activation_function": "relu"}, {"activation_function": "gelu"},
     {"activation_function": "relu2"}, {"activation_function": "silu"},
     {"activation_function": "gelu_fast"},
     {"tie_word_embeddings": False}],
    ids=str,
)  # fmt: skip
def test_modules_of_transformers_are_read(config: dict[str, Any]) -> None:
    theirs = hf(**config).train()
    ours = adopt(theirs, "theirs")
    assert theirs.training
    ids = torch.randint(0, 40, (2, 24))
    with torch.no_grad():
        assert (theirs.eval()(ids).logits - logits(ours, ids)).abs().max() < 1e-5


@pytest.mark.parametrize(
    "config",
    [{"activation_function": "tanh"}, {"activation_function": "quick_gelu"},
     {"layer_norm_epsilon": 1e-2}, {"scale_attn_weights": False},
     {"scale_attn_by_inverse_layer_idx": True}],
    ids=str,
)  # fmt: skip
def test_another_function_of_transformers_is_refused(config: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="theirs is another model"):
        adopt(hf(**config), "theirs")  # even at its small initial weights


@pytest.mark.parametrize("n_embd", [32, 40])  # 40 is the size of the vocabulary as well
def test_model_without_head_is_read_as_in_files(n_embd: int, tmp_path: Path) -> None:
    whole = hf(n_embd=n_embd)
    whole.transformer.save_pretrained(tmp_path)
    ours = adopt(whole.transformer, "theirs")
    assert same_tensors(ours, huggingface.read(tmp_path).model)
    ids = torch.randint(0, 40, (2, 24))
    with torch.no_grad():
        assert (whole.eval()(ids).logits - logits(ours, ids)).abs().max() < 1e-5


class Bare(nn.Module):
    """A GPT under the bare names of its parts, whose forward returns what ``shape`` makes of it."""

    def __init__(self, base: GPT, shape: Any) -> None:
        super().__init__()
        self.wte, self.wpe = base.transformer.wte, base.transformer.wpe
        self.h, self.ln_f, self.shape = base.transformer.h, base.transformer.ln_f, shape

    def forward(self, ids: Tensor) -> Any:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.shape(self, self.ln_f(x))


def test_own_module_may_return_hidden_states_or_logits() -> None:
    for shape in (lambda _, x: (x, None), lambda module, x: x @ module.wte.weight.T):
        assert same_tensors(adopt(Bare(make_model(n_head=4), shape), "own"), make_model(n_head=4))
    with pytest.raises(UserError, match="other logits"):
        adopt(Bare(make_model(n_head=4), lambda _, x: 2 * x), "own")


def test_untied_model_without_head_is_refused_as_in_files(tmp_path: Path) -> None:
    body = hf(tie_word_embeddings=False).transformer
    body.save_pretrained(tmp_path)
    for read in (lambda: adopt(body, "theirs"), lambda: huggingface.read(tmp_path)):
        with pytest.raises(UserError, match="tie_word_embeddings is false"):
            read()


@pytest.mark.parametrize("forward", [no_residual, post_norm, doubled])
def test_another_block_is_refused(forward: Any) -> None:
    with pytest.raises(UserError, match="other logits"):
        adopt(Changed(make_model(), forward), "theirs")


@pytest.mark.parametrize("shape", [lambda x: (x, None), lambda x: x[:, [-1]], lambda x: x])
def test_heads_and_gelu_of_min_gpt_are_found(shape: Any) -> None:
    base = make_model(n_head=4, activation="gelu_tanh")
    expected = make_model(n_head=4, activation="gelu_tanh")
    found = adopt(Last(base, shape), "theirs")
    assert (found.config.n_head, found.config.activation) == (4, "gelu_tanh")
    assert same_tensors(found, expected)


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (lambda x: None, "NoneType"),
        (lambda x: x[0], "no logits"),
        (lambda x: 1 / 0, "ZeroDivision"),
        (lambda x: x.sum(), "no logits"),
    ],
)
def test_what_returns_no_logits_is_refused(shape: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        adopt(Last(make_model(), shape), "theirs")


def test_our_own_model_and_its_wrappers_are_read() -> None:
    model = make_model(multipliers=Multipliers(2.0, 0.5, 0.1, 0.3))
    assert same_tensors(adopt(model, "ours"), model)
    plain = make_model()
    assert same_tensors(adopt(Changed(plain, as_usual), "subclass"), plain)
    wrapped = nn.Module()
    wrapped.add_module("_orig_mod", model)
    wrapped.forward = model.forward  # type: ignore[method-assign]
    assert same_tensors(adopt(wrapped, "compiled"), model)
