from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from nanogpt_cli import schemes
from nanogpt_cli.init import drawing
from nanogpt_cli.model import parameters
from nanogpt_cli.model.gpt import GPTConfig

SMALL = GPTConfig(3, 2, 32, 24, 5000, 0.0, True, "gelu")


@pytest.mark.parametrize("name", schemes.names())
def test_a_tensor_drawn_alone_has_the_bits_it_has_in_the_model(name: str) -> None:
    scheme = schemes.get(name)
    config = drawing.configure(SMALL, scheme)
    model = drawing.build(config, scheme, seed=7)
    found = dict(model.named_parameters())
    assert found.keys() == parameters.shapes(config).keys()
    for parameter, value in reversed(list(found.items())):
        assert torch.equal(value, drawing.init_tensor(parameter, config, scheme, 7)), parameter


def test_any_chunk_of_rows_can_be_drawn_without_the_others() -> None:
    scheme = schemes.get("mitchell")
    (spec,) = drawing.matrices_of("transformer.wte.weight", SMALL, scheme)
    whole = drawing.init_tensor("transformer.wte.weight", SMALL, scheme, 3)
    tail = drawing.draw(spec, 3, torch.empty(904, 32), start=drawing.CHUNK_ROWS)
    part = drawing.draw(spec, 3, torch.empty(17, 32), start=drawing.CHUNK_ROWS)
    assert torch.equal(tail, whole[drawing.CHUNK_ROWS :])
    assert torch.equal(part, whole[drawing.CHUNK_ROWS : drawing.CHUNK_ROWS + 17])


def test_values_depend_on_seed_and_name_alone() -> None:
    scheme = schemes.get("normal")
    a, b = (drawing.build(SMALL, scheme, seed) for seed in (0, 1))
    assert not torch.equal(a.transformer.wte.weight, b.transformer.wte.weight)
    deeper = drawing.build(replace(SMALL, n_layer=5), scheme, 0)
    assert torch.equal(a.transformer.h[2].mlp.c_fc.weight, deeper.transformer.h[2].mlp.c_fc.weight)
    first, second = a.transformer.h[0].mlp.c_fc.weight, a.transformer.h[1].mlp.c_fc.weight
    assert not torch.equal(first, second)


def test_global_random_state_is_neither_used_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    model = drawing.build(SMALL, schemes.get("gpt2"), 0)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    again = drawing.build(SMALL, schemes.get("gpt2"), 0)
    for (name, p), q in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_the_head_is_tied_to_the_embedding_or_has_a_law_of_its_own() -> None:
    model = drawing.build(SMALL, schemes.get("full-megatron"), 0)
    assert model.lm_head.weight is model.transformer.wte.weight
    untied = drawing.build(replace(SMALL, tied=False), schemes.get("full-megatron"), 0)
    expected = 0.98658 / math.sqrt(32)
    assert untied.lm_head.weight.std().item() == pytest.approx(expected, rel=0.01)
    assert untied.transformer.wte.weight.std().item() == pytest.approx(0.0197316, rel=0.01)


def test_depth_scaling_follows_the_depth_of_the_model() -> None:
    for L in (2, 48):
        spec = drawing.matrices_of("transformer.h.1.mlp.c_proj.weight", replace(SMALL, n_layer=L),
                            schemes.get("gpt2"))[0]  # fmt: skip
        assert spec.std == pytest.approx(0.02 / math.sqrt(2 * L))


def test_q_k_and_v_are_three_matrices() -> None:
    q, k, v = drawing.matrices_of(
        "transformer.h.0.attn.c_attn.weight", SMALL, schemes.get("deepnorm")
    )
    assert q.std == pytest.approx(1 / math.sqrt(32))
    assert q.std == k.std
    assert v.std == pytest.approx(q.std * (8 * 3) ** -0.25)


def test_pytorch_biases_use_the_fan_in_of_their_matrix() -> None:
    scheme = schemes.get("pytorch")
    (spec,) = drawing.matrices_of("transformer.h.0.mlp.c_proj.bias", SMALL, scheme)
    assert spec.std == pytest.approx(1 / math.sqrt(3 * 128))
    (norm,) = drawing.matrices_of("transformer.ln_f.bias", SMALL, scheme)
    assert norm.std == 0


def test_multipliers_of_the_scheme() -> None:
    found = drawing.multipliers(schemes.get("completep"), replace(SMALL, n_embd=512, n_layer=8))
    assert (found.output, found.residual) == (0.5, 0.25)
    assert found.attention == pytest.approx(2 / 512)
    plain = drawing.multipliers(schemes.get("gpt2"), SMALL)
    assert plain.attention is None
    assert plain.residual == plain.output == plain.embedding == 1


def test_swiglu_has_wider_rows_and_its_own_fan_in() -> None:
    config = replace(SMALL, activation="swiglu")
    model = drawing.build(config, schemes.get("lecun"), 0)
    proj = model.transformer.h[0].mlp.c_proj.weight
    assert proj.shape == (32, 88)
    assert proj.std().item() == pytest.approx(1 / math.sqrt(88), rel=0.05)


@pytest.mark.parametrize("text", ["truncated(0.5, 2)", "truncated(0.5, 3)", "uniform(0.5)",
                                  "normal(0.5)"])  # fmt: skip
def test_measured_std_lies_in_the_chi_square_band(text: str) -> None:
    """The pooled std over 20 seeds is within 4 standard errors of the law's true std."""
    scheme = schemes.parse_custom({"wte": text})
    (spec,) = drawing.matrices_of("transformer.wte.weight", SMALL, scheme)
    values = [drawing.draw(spec, seed, torch.empty(512, 32)) for seed in range(20)]
    z = [
        (float(v.double().square().mean().sqrt()) / spec.std - 1)
        / spec.law.relative_error(v.numel())
        for v in values
    ]
    assert abs(sum(z)) / math.sqrt(20) < 4
    assert 4.4 < sum(x * x for x in z) < 52.4  # χ² of 20: one in ten thousand on either side
    if spec.law.kind == "truncated":
        assert max(float(v.abs().max()) for v in values) <= spec.law.cut * 0.5


@pytest.mark.parametrize(
    "parameter", ["mlp.c_fc.weight", "mlp.c_proj.weight", "attn.c_proj.weight"]
)
def test_orthogonal_matrices_are_orthogonal(parameter: str) -> None:
    scheme = schemes.parse_custom({"linear": "orthogonal(3)"})
    name = f"transformer.h.1.{parameter}"
    (spec,) = drawing.matrices_of(name, SMALL, scheme)
    W = drawing.init_tensor(name, SMALL, scheme, 0)
    gram = W @ W.T if W.shape[0] <= W.shape[1] else W.T @ W
    torch.testing.assert_close(gram, 9 * torch.eye(len(gram)), atol=1e-4, rtol=0)
    assert W.std(correction=0).item() == pytest.approx(spec.std, rel=0.01)


def test_half_precision_rounds_the_same_values() -> None:
    full = drawing.build(SMALL, schemes.get("gpt2"), 0)
    half = drawing.build(SMALL, schemes.get("gpt2"), 0, dtype=torch.bfloat16)
    for p, q in zip(full.parameters(), half.parameters(), strict=True):
        assert torch.equal(p.to(torch.bfloat16), q)


def test_transformers_gpt2_has_the_same_laws() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=6, n_embd=64, n_head=2, vocab_size=4000)
    torch.manual_seed(0)
    theirs = dict(transformers.GPT2LMHeadModel(config).named_parameters())
    ours = GPTConfig(6, 2, 64, 1024, 4000, 0.0, True, "gelu_tanh")
    for name in parameters.shapes(ours):
        found = theirs[name].detach()
        for spec in drawing.matrices_of(name, ours, schemes.get("gpt2")):
            columns = found.T if "c_attn.weight" in name else found
            part = columns[spec.start : spec.start + spec.shape[0]]
            assert part.std(correction=0).item() == pytest.approx(spec.std, rel=0.03, abs=1e-9)


@pytest.mark.parametrize("name", ["orthogonal", "scaled-orthogonal"])
def test_the_bits_do_not_depend_on_how_many_threads_torch_has(name: str) -> None:
    before = torch.get_num_threads()
    found = []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        try:
            found.append(drawing.init_tensor("transformer.h.0.mlp.c_proj.weight", SMALL,
                                          schemes.get(name), 7))  # fmt: skip
            assert torch.get_num_threads() == count
        finally:
            torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
