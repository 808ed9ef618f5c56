"""The stream, its writers and blocks are found in modules that do things in unusual ways."""

from __future__ import annotations

import pytest
import torch
from architectures import FAMILIES, model, tokens
from small_models import Banks, Base, C, Carried, Factorised, Flat, Looped, Named, T, V
from torch import Tensor, nn

from nanogpt_cli.errors import UserError
from nanogpt_cli.modules.graph.blocks import likely_blocks
from nanogpt_cli.modules.graph.describe import describe
from nanogpt_cli.modules.graph.stream import Watched, watch

IDS = torch.arange(2 * T).view(2, T) % V
PAIR = ["attn", "mlp"]


def kinds(anatomy: Watched) -> list[str]:
    return [write.kind for write in anatomy.writes]


@pytest.mark.parametrize(
    "module, blocks",
    [
        (Looped, ("layer",) * 3),
        (Named, ("bottom", "top")),
        (Banks, ("",) * 3),
        (Factorised, ("layer",) * 3),
    ],
)
def test_blocks_need_not_be_a_list(module: type[Base], blocks: tuple[str, ...]) -> None:
    found = watch(module(), IDS)
    assert found.width == C
    assert found.blocks == blocks
    assert kinds(found) == ["embed", *PAIR * len(blocks)]
    assert [write.layer for write in found.writes][1:] == [
        layer for layer in range(len(blocks)) for _ in PAIR
    ]


def test_a_carry_of_the_embedding_is_a_sum_of_its_own() -> None:
    found = watch(Carried(), IDS)
    assert found.blocks == ("layers.0", "layers.1", "layers.2")
    assert kinds(found) == ["embed"] + ["embed", *PAIR] * 3


def test_sums_in_place_over_flattened_positions_in_another_number_format() -> None:
    found = watch(Flat(), IDS)
    assert found.width == C
    assert kinds(found) == ["embed", *PAIR * 2]
    assert [write.module for write in found.writes][1:] == [
        "mixers.0", "layers.0", "mixers.1", "layers.1",
    ]  # fmt: skip


@pytest.mark.parametrize("family", ["gptj", "gpt_neox", "phi", "falcon"])
def test_parallel_branches_are_one_addition(family: str) -> None:
    assert kinds(watch(model(family), tokens()[0])) == ["embed", *["both"] * 3]


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "falcon", "gpt2", "bloom"])
def test_nothing_changes_on_the_device_meta(family: str) -> None:
    ids, _ = tokens()
    real, without_values = watch(model(family), ids), watch(model(family, "meta"), ids)
    assert real == without_values
    for a, b in zip(real.parts, without_values.parts, strict=True):
        assert (a.rows is None) == (b.rows is None)
        assert a.rows is None or torch.equal(a.rows, b.rows)  # type: ignore[arg-type]
    assert real.spots == without_values.spots


def test_blocks_can_be_guessed_before_anything_runs() -> None:
    assert likely_blocks(model("mixtral")) == watch(model("mixtral"), tokens()[0]).blocks
    assert likely_blocks(Looped()) == ()


def test_wrappers_are_taken_off() -> None:
    class Parallel(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def forward(self, ids: Tensor) -> Tensor:
            out: Tensor = self.module(ids)
            return out

    plain = watch(Looped(), IDS)
    wrapped = watch(torch.compile(Parallel(Looped())), IDS)  # type: ignore[arg-type]
    assert wrapped == plain


def test_training_mode_and_hooks_are_as_before() -> None:
    module = model("gpt2").train()
    module.get_submodule("transformer.h.1").eval()
    watch(module, tokens()[0])
    assert module.training
    assert not module.get_submodule("transformer.h.1").training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


class NoStream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Embedding(V, C), nn.Linear(C, C), nn.GELU(), nn.Linear(C, V))

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.net(ids)
        return out


class OnlyTables(Looped):
    """Adds a table of former tokens to that of tokens, and no more."""

    def body(self, x: Tensor) -> Tensor:
        return x

    def forward(self, ids: Tensor) -> Tensor:
        former = self.w(ids.roll(1, -1).clone())
        logits: Tensor = self.h(self.w(ids) + former)
        return logits


class LastOnly(Looped):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids)[:, -1]


class Broken(Looped):
    def forward(self, ids: Tensor) -> Tensor:
        raise ZeroDivisionError("no\nluck")


@pytest.mark.parametrize(
    "module, message",
    [
        (NoStream(), "no residual stream"),
        (OnlyTables(), "only embeddings are added"),
        (LastOnly(), "no vector for each token id"),
        (Broken(), "forward pass failed: ZeroDivisionError: no luck"),
    ],
)
def test_modules_without_a_stream_are_refused_in_one_line(module: nn.Module, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        watch(module, IDS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "family, body",
    [
        ("gpt2", "norm → attn (q, k, v, attn_proj) → + → norm → mlp (fc, mlp_proj) → +"),
        ("llama", "norm → attn (q, k, v, attn_proj) → + → norm → mlp (gate, fc, mlp_proj) → +"),
        ("phi", "norm → attn (q, k, v, attn_proj) and mlp (fc, mlp_proj) → +"),
        ("cohere", "norm → attn (q, k, v, attn_proj) and mlp (gate, fc, mlp_proj) → +"),
        (
            "olmo2",
            "attn (q, k, v, qk_norm, attn_proj) → norm → + → mlp (gate, fc, mlp_proj) → norm → +",
        ),
    ],
)
def test_equal_blocks_are_described_once(family: str, body: str) -> None:
    lines = describe(watch(model(family), tokens()[0]))
    blocks = f"{FAMILIES[family].blocks}.0 … {FAMILIES[family].blocks}.2"
    assert lines[1] == f"3 × [{body}]  ({blocks})"
    assert lines[-1] == ("norm → head (tied)" if family in ("gpt2", "cohere") else "norm → head")
