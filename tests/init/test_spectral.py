from __future__ import annotations

import math

import pytest
import torch

from nanogpt_cli import schemes
from nanogpt_cli.init.drawing import build, configure
from nanogpt_cli.init.lanczos import lanczos
from nanogpt_cli.init.sources import Drawn, Stored
from nanogpt_cli.init.spectral import norm_of, spectral_norms
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.training.optimizers.muon import Muon

CONFIG = GPTConfig(2, 2, 128, 32, 500, 0.0, False, "gelu")


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["gpt2", "orthogonal", "pytorch", "mitchell"])
def test_norms_are_the_largest_singular_values(name: str) -> None:
    scheme = schemes.get(name)
    model = build(CONFIG, scheme, 3)
    found = {n.key: n for n in spectral_norms(Drawn(CONFIG, scheme, 3))}
    assert len(found) == 2 * 6 + 1
    for key, one in found.items():
        parameter, _, part = key.partition("/")
        whole = model.get_parameter(parameter).detach()
        matrix = whole.chunk(3)["qkv".index(part)] if part else whole
        exact = float(torch.linalg.matrix_norm(matrix.double(), 2))
        assert one.shape == tuple(matrix.shape)
        assert one.norm == pytest.approx(exact, rel=0.01)
        assert one.norm <= exact * 1.0001
        # Bai and Yin's limit; the largest of finitely many is a few percent below.
        assert one.norm == pytest.approx(one.expected, rel=0.06)


def test_the_condition_is_one_for_a_matrix_that_keeps_the_size_of_vectors() -> None:
    scheme = schemes.parse_custom({"linear": "orthogonal(1)", "fc": "orthogonal(2)"})
    found = {n.key.split(".")[-2]: n for n in spectral_norms(Drawn(CONFIG, scheme, 0))}
    assert found["c_fc"].condition == pytest.approx(1, rel=1e-4)  # gain 2 = √(512/128)
    assert found["c_attn"].condition == pytest.approx(1, rel=1e-4)


def test_muons_update_is_what_its_optimizer_makes() -> None:
    (first, *_) = spectral_norms(Drawn(CONFIG, schemes.get("gpt2"), 0))
    weight = torch.nn.Parameter(torch.zeros(first.shape[0] * 4, first.shape[1]))
    optimizer = Muon([weight], lr=0.02, momentum=0.95, weight_decay=0.0, ns_steps=8)
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    optimizer.step()
    update = float(torch.linalg.matrix_norm(weight.detach().double(), 2))
    tall = type(first)(first.key, (weight.shape[0], weight.shape[1]), first.norm, first.expected)
    assert tall.muon_update(0.02) * first.norm == pytest.approx(update, rel=0.05)


def test_zeros_and_broken_matrices() -> None:
    norms = spectral_norms(Drawn(CONFIG, schemes.get("zero-proj"), 0))
    zero = next(n for n in norms if n.key.endswith("attn.c_proj.weight"))
    assert (zero.norm, zero.expected, zero.muon_update(0.1)) == (0.0, 0.0, math.inf)
    model = build(configure(CONFIG, schemes.get("gpt2")), schemes.get("gpt2"), 0)
    with torch.no_grad():
        model.get_parameter("transformer.h.1.mlp.c_fc.weight")[3, 4] = math.nan
    tensors = dict(model.named_parameters())
    found = spectral_norms(Stored(CONFIG, tensors.__getitem__))
    broken = [n.key for n in found if math.isnan(n.norm)]
    assert broken == ["transformer.h.1.mlp.c_fc.weight"]
    assert all(math.isnan(n.expected) for n in found)
    assert norm_of(torch.full((3, 5), 2.0)) == pytest.approx(2 * math.sqrt(15), rel=1e-6)


def test_lanczos_ends_when_it_has_seen_all_the_operator_reaches() -> None:
    values = torch.tensor([3.0, 1.0, 1.0, 1.0])
    found = lanczos(lambda v: [values * v[0]], [torch.zeros(4)], 10, seed=0)
    assert len(found) <= 3
    assert found[-1] == pytest.approx(3.0)
