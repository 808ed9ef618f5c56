"""Roles are found by data flow: for every family they are those of the parameters' names."""

from __future__ import annotations

import re

import pytest
import torch
from architectures import FAMILIES, VOCABULARY, WIDTH, Names, model, tokens
from small_models import Banks, C, Carried, Factorised, Layer, Looped, T, V
from torch import nn

from nanogpt_cli.modules.anatomy import MATRICES
from nanogpt_cli.modules.graph.stream import Watched, watch

IDS = torch.arange(2 * T).view(2, T) % V


def roles(anatomy: Watched, name: str) -> dict[str, list[int] | None]:
    return {
        part.role: None if part.rows is None else part.rows.tolist()
        for part in anatomy.parts
        if part.parameter == name
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_of_a_block_has_the_role_of_its_name(family: str) -> None:
    names: Names = FAMILIES[family]
    found = watch(model(family), tokens()[0])
    for layer in range(3):
        prefix = f"{names.blocks}.{layer}."
        separate = len(names.qkv.split()) == 3
        for name, role in zip(names.qkv.split(), "qkv", strict=False):
            expected = {role} if separate else set("qkv")
            assert set(roles(found, prefix + name)) == expected, name
        assert set(roles(found, prefix + names.out)) == {"attn_proj"}
        for name in names.proj.split():
            assert set(roles(found, prefix + name)) == {"mlp_proj"}, name
        gated = [name for name in names.fc.split() if "gate" in name]
        for name in names.fc.split():
            fused = "gate_up" in name
            expected = {"gate", "fc"} if fused else {"gate"} if name in gated else {"fc"}
            assert set(roles(found, prefix + name)) == expected, name
    assert all(part.layer >= 0 for part in found.of_role(*MATRICES))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_role_that_fits_its_name(family: str) -> None:
    module = model(family)
    found = watch(module, tokens()[0])
    assert {part.parameter for part in found.parts} == {n for n, _ in module.named_parameters()}
    assert len({part.key for part in found.parts}) == len(found.parts)
    assert not found.of_role("other")
    for part in found.parts:
        if part.role in ("norm", "qk_norm"):
            assert re.search(r"norm|ln_", part.parameter), part
        if part.role == "bias":
            assert part.parameter.endswith("bias"), part
        if part.role == "router":
            assert re.search(r"\.gate\.|_gate\.", part.parameter), part
    (wte,) = found.of_role("wte")
    assert module.get_parameter(wte.parameter).shape == (VOCABULARY, WIDTH)
    output = module.get_output_embeddings().weight  # type: ignore[operator]
    assert found.tied == (output is module.get_parameter(wte.parameter))


def head_rows(heads: int, size: int, places: int, place: int) -> list[int]:
    """Rows of one of several matrices that take turns in every head."""
    return [(h * places + place) * size + i for h in range(heads) for i in range(size)]


@pytest.mark.parametrize("family", ["gpt_neox", "bloom"])
def test_rows_of_queries_keys_and_values_that_take_turns_by_head(family: str) -> None:
    name = f"{FAMILIES[family].blocks}.1.{FAMILIES[family].qkv}"
    found = roles(watch(model(family), tokens()[0]), name)
    assert found == {role: head_rows(4, 12, 3, i) for i, role in enumerate("qkv")}


@pytest.mark.parametrize(
    "family, sizes",
    [("gpt2", (48, 48, 48)), ("mpt", (48, 48, 48)), ("phi3", (48, 24, 24)),
     ("falcon", (48, 12, 12)), ("gpt_bigcode", (48, 12, 12))],
)  # fmt: skip
def test_rows_of_queries_keys_and_values_side_by_side(
    family: str, sizes: tuple[int, int, int]
) -> None:
    name = f"{FAMILIES[family].blocks}.1.{FAMILIES[family].qkv}"
    found = roles(watch(model(family), tokens()[0]), name)
    rows = torch.split(torch.arange(sum(sizes)), list(sizes))
    assert found == {role: own.tolist() for role, own in zip("qkv", rows, strict=True)}


def test_parts_of_stacked_experts_hold_all_experts() -> None:
    module = model("mixtral")
    found = watch(module, tokens()[0])
    name = "model.layers.0.mlp.experts.gate_up_proj"
    stack = module.get_parameter(name)  # (4, 160, 48)
    for part in found.parts:
        if part.parameter == name:
            half = stack[:, :80] if part.role == "gate" else stack[:, 80:]
            assert torch.equal(part.of(stack), half.flatten(0, 1))


def test_matrices_stored_as_in_times_out() -> None:
    module = model("gpt2")
    found = watch(module, tokens()[0])
    fc = next(p for p in found.of_role("fc") if p.layer == 0)
    assert fc.transposed
    assert fc.of(module.get_parameter(fc.parameter)).shape == (4 * WIDTH, WIDTH)


def test_matrices_with_meaningless_names() -> None:
    found = watch(Looped(), IDS)
    assert roles(found, "layer.m.a.weight") == {
        "v": list(range(C)),
        "q": list(range(C, 2 * C)),
        "k": list(range(2 * C, 3 * C)),
    }
    assert roles(found, "layer.m.b.weight") == {"attn_proj": None}
    assert roles(found, "layer.e.a.weight") == {
        "fc": list(range(2 * C)),
        "gate": list(range(2 * C, 4 * C)),
    }
    assert roles(found, "layer.e.b.weight") == {"mlp_proj": None}
    assert roles(found, "layer.e.a.bias") == {"bias": None}
    assert roles(found, "layer.s") == {"scale": None}
    assert roles(found, "w.weight") == {"wte": None}
    assert roles(found, "h.weight") == {"lm_head": None}


def test_stacks_of_all_blocks_are_divided() -> None:
    module = Banks()
    found = watch(module, IDS)
    for part in found.of_role("q", "attn_proj"):
        first = 0 if part.role == "q" else 3 * C
        expected = module.qkvo[part.layer, first : first + C]
        assert torch.equal(part.of(module.qkvo), expected)
    up = next(p for p in found.of_role("fc") if p.layer == 2)
    assert torch.equal(up.of(module.up), module.up[2])
    assert sorted(p.layer for p in found.of_role("mlp_proj")) == [0, 1, 2]
    down = next(p for p in found.of_role("mlp_proj") if p.layer == 1)
    assert torch.equal(down.of(module.down), module.down[1].T)


def test_factors_of_the_stream_are_scales() -> None:
    found = watch(Carried(), IDS)
    assert roles(found, "keep") == roles(found, "mix") == {"scale": None}


def test_a_factorised_embedding_is_still_the_token_embedding() -> None:
    found = watch(Factorised(), IDS)
    assert roles(found, "w.weight") == {"wte": None}
    assert found.width == C


def test_a_parameter_that_was_not_used_has_the_role_of_its_like() -> None:
    class Skips(Carried):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([*self.layers, Layer()])

        def body(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers[:3]:
                x = layer(x)
            return x

    found = watch(Skips(), IDS)
    assert set(roles(found, "layers.3.m.a.weight")) == set("qkv")
    assert roles(found, "keep") == {"other": None}


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_compiled_blocks_keep_the_names_of_their_parameters(family: str) -> None:
    module = model(family)
    blocks = module.get_submodule(FAMILIES[family].blocks)
    plain = watch(module, tokens()[0])
    blocks[1] = torch.compile(blocks[1])  # type: ignore[index, operator]
    found = watch(module, tokens()[0])
    assert [(p.role, p.layer) for p in found.parts] == [(p.role, p.layer) for p in plain.parts]
