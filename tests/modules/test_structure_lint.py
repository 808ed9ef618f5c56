"""The lint finds mistakes planted in weights and is silent on clean and on trained models."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import replace

import faults
import named_parts
import pytest
import torch
import transformers
from torch import Tensor, nn

from nanogpt_cli import schemes
from nanogpt_cli.init.drawing import build
from nanogpt_cli.init.lint import FAIL, NOTE, WARN, Verdict, worst
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.modules.anatomy import Part
from nanogpt_cli.modules.faults import chance, lint
from nanogpt_cli.modules.faults.finding import spans
from nanogpt_cli.modules.faults.sketch import Sketch, keys, sketch
from nanogpt_cli.modules.graph import stream
from nanogpt_cli.modules.inspection import judge_weights
from nanogpt_cli.modules.starts.laws import depth_factors, read_laws
from nanogpt_cli.modules.starts.laws_lint import findings

# What leaves no trace in independent weights: every entry has the same law before and after.
INVISIBLE = {"square matrix transposed", "gate and fc swapped"}
# Each mistake in one shape, in turn; `python tests/modules/faults.py` shows all of them in all.
CASES = [
    (kinds[i % len(kinds)], name)
    for i, (name, (_, _, kinds)) in enumerate(faults.PLANTED.items())
    if name not in INVISIBLE
]


def judged(model: nn.Module, *, trained: bool | None = None) -> list[Verdict]:
    found = lint.sketches_of(named_parts.parts_of(model))
    return lint.lint(found, tied=named_parts.is_tied(model), trained=trained)


def alarms(verdicts: Iterable[Verdict]) -> list[str]:
    return [f"{v.topic}: {v.text}" for v in verdicts if v.severity in (WARN, FAIL)]


@pytest.mark.numeric
@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_planted_mistake_is_named(kind: str, name: str) -> None:
    found = judged(faults.patient(kind, name).model)
    pattern = faults.PLANTED[name][1]
    assert any(re.search(pattern, v.text) for v in found), [v.text for v in found]


@pytest.mark.numeric
@pytest.mark.parametrize("kind", [*faults.EVERY, "mixtral", "gemma", "opt"])
def test_a_clean_decoder_of_transformers_raises_no_alarm(kind: str) -> None:
    found = judged(faults.decoder(kind, 1))
    assert not alarms(found)
    assert any(v.topic == "nearest" and "no scheme" not in v.text for v in found)


SHAPES = (
    GPTConfig(5, 2, 64, 32, 300, 0.0, True, "gelu", tied=False),
    GPTConfig(1, 1, 16, 32, 65, 0.0, False, "gelu"),
)


@pytest.mark.numeric
@pytest.mark.parametrize("name", schemes.names())
def test_a_start_of_every_scheme_raises_no_alarm(name: str) -> None:
    expected = {"fused-xavier"} if name == "xavier-fused" else set()
    for seed, config in enumerate(SHAPES):
        found = judged(build(config, schemes.get(name), seed))
        assert {v.topic for v in found if v.severity in (WARN, FAIL)} == expected


def test_a_multiple_of_a_scheme_is_named_as_one() -> None:
    model = faults.decoder("gpt2")
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(0.5)
    assert any("gpt2 × 0.5" in v.text for v in judged(model))


def test_a_model_in_bfloat16_gets_a_note() -> None:
    (found,) = [v for v in judged(faults.decoder("llama").bfloat16()) if v.topic == "precision"]
    assert found.severity == NOTE
    assert "its 44 matrices is exactly representable in bfloat16" in found.text


@pytest.mark.parametrize("kind", faults.EVERY)
def test_a_matrix_that_is_the_transpose_of_another_one_is_named(kind: str) -> None:
    patient = faults.Patient(kind, faults.decoder(kind))
    pairs = zip(patient.parts("fc"), patient.parts("mlp_proj"), strict=True)
    for fc, projection in pairs:
        patient.put(fc, patient.get(projection).T)
    (text,) = [t for t in alarms(judged(patient.model)) if t.startswith("transposed-copy")]
    assert fc.key.replace("5", "0", 1) in text
    assert "transposition, in blocks 0-5" in text


@pytest.mark.parametrize("kind", faults.EVERY)
def test_a_transpose_is_named_in_another_block_too(kind: str) -> None:
    patient = faults.Patient(kind, faults.decoder(kind))
    first, *_, last = zip(patient.parts("fc"), patient.parts("mlp_proj"), strict=True)
    patient.put(last[0], patient.get(first[1]).T)
    (text,) = [t for t in alarms(judged(patient.model)) if t.startswith("transposed-copy")]
    assert last[0].key in text
    assert first[1].key in text


def test_a_stray_channel_of_a_gain_is_named() -> None:
    patient = faults.Patient("llama", faults.decoder("llama"))
    part = patient.parts("norm")[3]
    gain = patient.get(part)
    gain[7] = 50.0
    patient.put(part, gain)
    (text,) = alarms(judged(patient.model))
    assert text.startswith(f"gain: {part.key}: 1 of 128 channels (7)")
    assert "the furthest 50" in text


class Layer(nn.Module):
    """A pre-norm block with an MLP of its own or one that it is given."""

    def __init__(self, mlp: nn.Module | None = None) -> None:
        super().__init__()
        self.heads = nn.ModuleList(nn.Linear(64, 64, bias=False) for _ in range(4))
        self.norms = nn.ModuleList(nn.LayerNorm(64) for _ in range(2))
        self.mlp = mlp or two_matrices()

    def forward(self, x: Tensor) -> Tensor:
        y = self.norms[0](x)
        q, k, v = (head(y).unflatten(-1, (2, 32)).transpose(1, 2) for head in self.heads[:3])
        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.heads[3](y.transpose(1, 2).flatten(2))
        out: Tensor = x + self.mlp(self.norms[1](x))
        return out


def two_matrices() -> nn.Module:
    up, down = nn.Linear(64, 256, bias=False), nn.Linear(256, 64, bias=False)
    return nn.Sequential(up, nn.GELU(), down)


class Decoder(nn.Module):
    """A decoder that runs each of its blocks ``times`` times, drawn by GPT-2's law."""

    def __init__(self, layers: list[Layer], times: int = 1) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(256, 64), nn.Embedding(32, 64)
        self.layers, self.times = nn.ModuleList(layers), times
        self.norm, self.head = nn.LayerNorm(64), nn.Linear(64, 256, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                writes = name.endswith(("3.weight", "mlp.2.weight"))
                nn.init.normal_(p, 0, 0.02 / math.sqrt(2 * len(layers) * times if writes else 1))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[-1]))
        for layer in list(self.layers) * self.times:
            x = layer(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


def one_mlp(seed: int) -> Decoder:
    torch.manual_seed(seed)
    mlp = two_matrices()
    return Decoder([Layer(mlp) for _ in range(4)])


@pytest.mark.numeric
def test_a_block_that_runs_several_times_counts_so_often() -> None:
    torch.manual_seed(0)
    decoder = Decoder([Layer()], times=4).eval()
    found, _ = judge_weights(decoder, trained=False)
    assert not alarms(found)
    assert any(v.text.startswith("nearest scheme: gpt2 (") for v in found)
    with torch.no_grad():
        decoder.layers[0].get_parameter("heads.3.weight").mul_(math.sqrt(8))
    (text,) = alarms(judge_weights(decoder, trained=False)[0])
    assert text.startswith("half-scaled: attn_proj")


@pytest.mark.numeric
def test_an_mlp_that_all_blocks_share_has_no_depth_factor_to_miss() -> None:
    laws = read_laws(one_mlp)
    roles = {p.parameter: p.role for p in stream.watch(one_mlp(0), torch.arange(8)[None]).parts}
    assert {roles[law.name] for law in laws} >= {"attn_proj", "mlp_proj"}
    assert not alarms(findings(laws, roles))
    # Of four MLPs of their own, one law without the factor is a finding.
    assert depth_factors(laws).keys() == {"layers.*.heads.3.weight"}


@pytest.mark.numeric
@pytest.mark.parametrize(("table", "gain"), [(0.5, 0.5), (0.01, 1.0)])
def test_orthogonal_matrices_are_told_from_others_by_their_norms(table: float, gain: float) -> None:
    """Gain 0.5 throughout beside tables of any std, and one role of another gain."""
    torch.manual_seed(0)
    decoder = Decoder([Layer() for _ in range(4)]).eval()
    for name, p in decoder.named_parameters():
        if p.dim() > 1:
            if name.startswith("layers"):
                nn.init.orthogonal_(p, gain if name.endswith("mlp.0.weight") else 0.5)
            else:
                nn.init.normal_(p, 0, table)
    for module in (decoder, decoder.bfloat16()):
        found, _ = judge_weights(module, trained=False)
        assert any(v.text.startswith("nearest scheme: orthogonal × 0.5") for v in found)
        assert ["fc: std" in text for text in alarms(found)] == [True] * (gain != 0.5)


@pytest.mark.numeric
def test_recurrent_blocks_are_not_compared_with_those_that_have_an_mlp_alone() -> None:
    config = transformers.AutoConfig.for_model(
        "recurrent_gemma", hidden_size=64, num_hidden_layers=9, num_attention_heads=4,
        num_key_value_heads=1, vocab_size=256, intermediate_size=192, lru_width=64,
        attention_window_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    assert not alarms(judge_weights(model, trained=False)[0])
    with torch.no_grad():
        model.get_parameter("model.layers.5.mlp_block.up_proj.weight").mul_(2)
    (text,) = alarms(judge_weights(model, trained=False)[0])
    assert "block 5" in text
    assert "up_proj" in text


def trained(kind: str, steps: int) -> nn.Module:
    """A decoder after some steps of AdamW on a text whose words repeat."""
    model = faults.decoder(kind).requires_grad_(True)
    ids = torch.arange(0, 1024).remainder(37).square().remainder(faults.WORDS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for step in range(steps):
        batch = ids[step : step + 64].view(2, 32)
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.requires_grad_(False)


@pytest.mark.parametrize("kind", faults.EVERY)
def test_trained_weights_are_known_and_judged_for_damage_alone(kind: str) -> None:
    model = trained(kind, 12)
    found = judged(model)
    assert not alarms(found)
    assert any("these weights are trained" in v.text for v in found)
    damaged = faults.Patient(kind, model)
    faults.same_blocks(damaged)
    faults.one_nan(damaged)
    topics = {v.topic for v in judged(model) if v.severity in (WARN, FAIL)}
    assert topics == {"block-copies", "not-finite"}


def test_what_is_known_to_be_trained_needs_no_guess() -> None:
    model = faults.patient("gpt2", "biases 0.1").model
    assert alarms(judged(model))
    assert not alarms(judged(model, trained=True))


def test_a_nan_has_no_neighbours() -> None:
    """One value that is no number is one finding, on the matrix that holds it."""
    (text,) = alarms(judged(faults.patient("llama", "one NaN").model))
    assert "layers.3.self_attn.o_proj" in text


def test_a_mismatch_of_the_forward_is_a_failure_with_its_reason() -> None:
    found = lint.forward_mismatch(0.31, "the activation is relu, not gelu")
    assert found.severity == FAIL
    assert "0.31 of the largest" in found.text
    assert "relu, not gelu" in found.text
    assert "another activation" in lint.forward_mismatch(math.inf).text
    assert worst([found]) == FAIL


def whole(values: Tensor) -> Sketch:
    return sketch(Part("w", "fc", 0), values)


@pytest.mark.numeric
def test_moments_of_lines_are_those_of_numpy() -> None:
    torch.manual_seed(0)
    values = torch.randn(3000, 1500) * 0.02  # read in two chunks
    found, exact = whole(values), values.double().numpy()
    assert found.mean == pytest.approx(exact.mean(), abs=1e-9)
    assert found.std == pytest.approx(exact.std(), rel=1e-6)
    torch.testing.assert_close(
        found.row_square, torch.from_numpy((exact**2).mean(1)), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(
        found.column_mean, torch.from_numpy(exact.mean(0)), rtol=0, atol=1e-8
    )


def test_a_line_and_its_negative_have_one_key() -> None:
    torch.manual_seed(0)
    rows = torch.randn(5, 40)
    rows[3], rows[4] = -rows[0], 0.0
    found = keys(rows)
    assert found[3] == found[0]
    assert found[4] == 0
    assert len(set(found.tolist())) == 4


def test_bounds_on_chance_hold_for_exact_tails() -> None:
    """Chernoff's rate is below −ln of the exact tail: χ²_2 and a binomial with one outcome."""
    ratio = 9.0
    exact = math.exp(-ratio)  # P(χ²_2 ≥ 2·9)
    assert math.exp(-float(chance.of_variance(torch.tensor(ratio), 2))) >= exact
    assert chance.of_share(1.0, 0.1, 7) == pytest.approx(-math.log(0.1**7))
    assert chance.limit(1000) > chance.limit(10)


def test_numbers_are_listed_as_spans() -> None:
    assert spans([7, 3, 8, 9, 3]) == "3, 7-9"
    assert spans(range(0, 20, 2)) == "0, 2, 4, 6, …"


def test_the_largest_shapes_are_not_needed_for_a_scale() -> None:
    """A decoder without tables, as a part of one, is judged as well."""
    shape = replace(SHAPES[0])
    model = build(shape, schemes.get("gpt2"), 0)
    inner = [(p, x) for p, x in named_parts.parts_of(model) if p.layer >= 0]
    assert not alarms(lint.lint(lint.sketches_of(inner), tied=False))


def test_orthogonal_matrices_among_normal_ones_are_not_called_transposed() -> None:
    patient = faults.Patient("gpt2", faults.decoder("gpt2"))
    for part in patient.parts("fc"):
        patient.put(part, torch.nn.init.orthogonal_(torch.empty_like(patient.get(part))))
    found = [t for t in alarms(judged(patient.model)) if "fc" in t]
    assert any("orthogonal with gain 1," in text for text in found)
    assert not any("transposed" in text for text in found)
