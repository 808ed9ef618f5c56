"""Weights in eight bits give what the same weights in float32 give, to bfloat16's rounding."""

from __future__ import annotations

import pytest
import torch

from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.sampling import int8
from nanogpt_cli.sampling.decode import Decoder
from nanogpt_cli.sampling.int8 import Int8Matrix, rounded
from nanogpt_cli.sampling.sampler import GenerationConfig, generate
from nanogpt_cli.sampling.settings import Sampling
from nanogpt_cli.sampling.tuning import tune
from nanogpt_cli.sampling.weights import Weights

V = 61
HALF_STEP = 2.0**-9  # relative rounding of a bfloat16; the kernel rounds sum and product
MODERN: dict[str, object] = {
    "norm": "rms", "position": "rope", "qk_norm": True, "n_kv_head": 2, "activation": "swiglu",
    "bias": False, "tied": False,
}  # fmt: skip


def make(**changes: object) -> GPT:
    values: dict[str, object] = {
        "n_layer": 2, "n_head": 4, "n_embd": 32, "block_size": 24, "vocab_size": V,
        "dropout": 0.0, "bias": True, "activation": "gelu",
    }  # fmt: skip
    model = GPT(GPTConfig(**(values | changes)))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.15
            parameter.copy_(noise + (parameter if parameter.dim() == 1 else 0))
    return model.eval()


@pytest.mark.parametrize("shape", [(64, 32), (61, 48), (7, 31), (1, 1), (40, 344)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("native", [True, False])
def test_a_product_is_that_of_the_integers_times_their_scales(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, int], bias: bool, native: bool
) -> None:
    """Inputs of any width: the kernel reads beyond the end of rows that are not padded."""
    monkeypatch.setattr(int8, "cpu_multiplies_bf16", lambda: native)
    torch.manual_seed(0)
    weight, offset = torch.randn(shape), torch.randn(shape[0]) if bias else None
    matrix = rounded(weight, offset)
    assert matrix.weight.dtype == torch.int8
    step = matrix.scales.float()[:, None]
    assert ((matrix.dequantised() - weight).abs() <= step / 2 * (1 + 1e-6)).all()
    for rows in (1, 2, 3, int8._FEW_ROWS, int8._FEW_ROWS + 1):
        x = torch.randn(rows, shape[1])
        given = x.bfloat16().float() if native or rows <= int8._FEW_ROWS else x
        plain = given @ matrix.dequantised().T
        largest = plain.abs() + (given.abs() @ matrix.dequantised().abs().T) * 1e-5
        exact = plain if offset is None else plain + offset
        assert ((matrix(x) - exact).abs() <= 2.2 * HALF_STEP * largest).all()
        if rows > 1:
            continue
        out, stream = matrix.buffer(), torch.ones(1, shape[0])
        matrix.scaled(x, 0.5, out)
        expected = 0.5 * plain + (0.0 if offset is None else offset)
        assert ((out - expected).abs() <= 2.2 * HALF_STEP * largest).all()
        matrix.join(x, 0.5, stream)
        assert ((stream - 1 - 0.5 * plain).abs() <= 2.2 * HALF_STEP * largest + 1e-6).all()


def test_a_row_of_zeros_stays_one() -> None:
    weight = torch.zeros(3, 16)
    weight[1, 2] = 1e-30
    matrix = rounded(weight, None)
    assert matrix.dequantised()[0].abs().max() == 0
    assert matrix(torch.ones(1, 16)).isfinite().all()
    torch.testing.assert_close(matrix.dequantised()[1], weight[1], rtol=2.0**-7, atol=0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"bias": False, "tied": False},
        MODERN,
        MODERN | {"n_embd": 24, "hidden": 31, "bias": "qkv", "qk_norm": False},
    ],
)
def test_rounded_weights_decode_as_their_float_twin(changes: dict[str, object]) -> None:
    """A prompt, steps of one text and of several: to the rounding of bfloat16."""
    weights = Weights.of(make(**changes)).in_int8()
    assert all(isinstance(matrix, Int8Matrix) for matrix in weights.matrices)
    twin = Decoder(weights.dequantised(), 2)
    one, two = Decoder(weights, 1), Decoder(weights, 2)
    ids = torch.randint(0, V, (24,), generator=torch.Generator().manual_seed(1)).tolist()
    expected = twin.prefill([0, 1], [ids[:17]] * 2)
    far = 24 * HALF_STEP * float(expected.abs().max())  # some forty roundings on the way
    assert float((one.prefill([0], [ids[:17]]) - expected[:1]).abs().max()) < far
    two.prefill([0, 1], [ids[:17]] * 2)
    differ = 0.0
    for n in range(17, 24):
        expected = twin.step([0, 1], [ids[n]] * 2, [n, n])
        far = 24 * HALF_STEP * float(expected.abs().max())
        single = one.step([0], [ids[n]], [n])
        assert float((single - expected[:1]).abs().max()) < far
        assert float((two.step([0, 1], [ids[n]] * 2, [n, n]) - expected).abs().max()) < far
        differ = max(differ, float((single - expected[:1]).abs().max()))
    assert differ > 0  # it is another way of computing


def test_texts_are_drawn_and_tuned_in_eight_bits() -> None:
    model = make()
    weights = Weights.of(model).in_int8()
    assert not weights.can_pack()
    assert tune(weights, [1]).threads == 1
    settings = GenerationConfig(
        30, sampling=Sampling(temperature=1.0), weights=weights, exact=False, vocab_size=57
    )
    tokens = [token.id for token in generate(model, [[1, 2]], settings)]
    assert tokens == [token.id for token in generate(model, [[1, 2]], settings)]
    assert len(tokens) == 30
    assert max(tokens) < 57
    floats = sum(matrix.nbytes for matrix in Weights.of(model).matrices)
    assert weights.packed_bytes == floats / 4
