"""Estimates for GPUs that are not there: what is counted, and how it becomes time."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from toy_run import recipe

from nanogpt_cli.errors import UserError
from nanogpt_cli.machine import gpus, shapes
from nanogpt_cli.model import accounting, loss
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.recipe import Optim
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.training import spec
from nanogpt_cli.training.forecasts import roofline, traffic
from nanogpt_cli.training.forecasts.activations import activation_bytes

H200 = gpus.find("H200")
GPT2 = GPTConfig(12, 12, 768, 1024, 50304, 0.0, False, "gelu")
SEQUENCES = 32
POSITIONS = SEQUENCES * 1024
LOGITS = POSITIONS * 50304


def kept_logits(forward: roofline.Forward = roofline._loss) -> list[torch.dtype]:
    """Of what a forward pass at GPT-2's shapes leaves for the backward pass, that of all logits."""
    one_block = replace(GPT2, n_layer=1)
    passes, _ = roofline.trace(one_block, Optim(), H200.device(), SEQUENCES, forward)
    return [dtype for shape, dtype in passes.crossing() if math.prod(shape) == LOGITS]


def test_no_logits_wait_for_the_backward_pass_at_gpt2s_shapes() -> None:
    assert kept_logits() == []


def test_the_plain_head_would_keep_them_in_both_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail."""
    monkeypatch.setattr(loss, "mean", loss.plain)
    assert torch.float32 in kept_logits()


@pytest.fixture(scope="module")
def passes() -> roofline.Parts:
    """Of one micro-batch of GPT-2 on an H200."""
    return roofline.step_parts(GPT2, Optim(), H200, SEQUENCES)[0]


def test_the_flops_of_products_are_those_of_the_account(passes: roofline.Parts) -> None:
    attention = 2 * GPT2.n_layer * GPT2.n_embd * (GPT2.block_size + 1)
    forward = accounting.account(GPT2).flops_forward - attention
    found = sum(part.flops for name, part in passes.items() if name != traffic.ATTENTION)
    assert found == pytest.approx(3 * POSITIONS * forward, rel=0.01)


def test_attention_computes_two_products_forward_and_five_backward(passes: roofline.Parts) -> None:
    each = GPT2.n_layer * GPT2.n_embd * (GPT2.block_size + 1) * POSITIONS  # its causal half
    assert passes[traffic.ATTENTION].flops == pytest.approx(7 * each, rel=1e-9)


def test_elementwise_chains_read_and_write_once() -> None:
    """A chain of three writes one result; what a product lies between is not fused."""
    model = GPT(replace(GPT2, n_layer=1, vocab_size=64))
    with shapes.alone(H200.device()):
        x, square = torch.zeros(128, 128), torch.zeros(128, 128)
        recorder = traffic.Recorder(model)
        with recorder:
            y = ((x + 1).exp() * x) @ square
            z = y.relu().square()
        recorder.keep(z)
    size = 4 * 128 * 128
    found = [(k.kind, k.bytes // size) for k in recorder.kernels()]
    assert found == [("memory", 2), ("product", 3), ("memory", 2)]


def test_what_follows_a_long_sum_reads_again() -> None:
    model = GPT(replace(GPT2, n_layer=1, vocab_size=64))
    for width, times in ((512, 2), (4096, 3)):
        with shapes.alone(H200.device()):
            x = torch.zeros(256, width)
            recorder = traffic.Recorder(model)
            with recorder:
                y = (x - x.logsumexp(-1, keepdim=True)).exp()
            recorder.keep(y)
        moved = sum(kernel.bytes for kernel in recorder.kernels())
        assert moved == pytest.approx(times * 4 * 256 * width, rel=0.01)


def test_blocks_beyond_the_second_cost_what_the_second_does() -> None:
    config = replace(spec.model_config(recipe(), 50), n_layer=2, dropout=0.1, bias=True)
    for optim in (Optim(), Optim(name="muon", ema=0.9)):
        two, four = (
            roofline.step_parts(replace(config, n_layer=n), optim, H200, 4) for n in (2, 4)
        )
        recorders = roofline.trace(replace(config, n_layer=4), optim, H200.device(), 4)
        for extended, smaller, recorder in zip(four, two, recorders, strict=True):
            whole = roofline._timed(recorder.kernels(), H200)
            assert extended.keys() == whole.keys() == smaller.keys()
            for name, part in whole.items():
                assert extended[name].bytes == pytest.approx(part.bytes), name
                assert extended[name].flops == pytest.approx(part.flops), name


def test_adamw_moves_28_bytes_a_parameter_and_muon_less_memory_but_computes() -> None:
    config = replace(GPT2, n_layer=2)
    with torch.device("meta"):
        count = GPT(config).n_parameters()
    adamw, muon = (
        roofline.step_parts(config, Optim(name=name), H200, 1)[1] for name in ("adamw", "muon")
    )
    assert adamw[traffic.OPTIMIZER].bytes == pytest.approx(28 * count, rel=1e-3)
    assert adamw[traffic.OPTIMIZER].flops == 0
    assert adamw[traffic.GRADIENT_NORM].bytes == pytest.approx(4 * count, rel=1e-3)
    # Of a matrix (r, c), r ≤ c, an iteration multiplies r·r·c twice and r·r·r once.
    C = config.n_embd
    square, wide = 3 * C**3, 9 * C**3
    iteration = 2 * config.n_layer * (4 * square + 2 * wide)
    assert muon[traffic.OPTIMIZER].flops == pytest.approx(5 * iteration, rel=1e-6)


def test_an_estimate_adds_up() -> None:
    found = recipe_files.load("gpt2-124m").recipe
    config = spec.model_config(found, 50257)
    one = roofline.estimate(found, config, H200)
    assert sum(part.seconds for part in one.parts.values()) == pytest.approx(one.step_seconds)
    assert one.tokens_per_s == pytest.approx(found.tokens_per_step / one.step_seconds)
    assert one.mfu == pytest.approx(
        one.tokens_per_s * accounting.training_flops(config) / H200.peak_flops
    )
    assert one.gpu_hours == pytest.approx(one.step_seconds * found.train.max_steps / 3600)
    eight = roofline.estimate(found, config, H200, processes=8)
    sent = eight.parts[roofline.ALL_REDUCE].bytes
    with torch.device("meta"):
        assert sent == 8 * GPT(config).n_parameters() * 7 / 8
    assert one.tokens_per_s < eight.tokens_per_s < 8 * one.tokens_per_s
    assert roofline.ALL_REDUCE not in one.parts


def test_llm_c_on_h100_and_a100_comes_out() -> None:
    """The shares are assumed so; 10 B tokens took it 45 minutes on eight H100, 90 on A100."""
    found = recipe_files.load("gpt2-124m", ["optim.name=adamw"]).recipe
    config = spec.model_config(found, 50257)
    for name, minutes in (("H100", 45), ("A100", 90)):
        rate = roofline.estimate(found, config, gpus.find(name), processes=8).tokens_per_s
        assert 10e9 / rate / 60 == pytest.approx(minutes, rel=0.1)


def test_what_there_are_no_figures_for_is_refused() -> None:
    with pytest.raises(UserError, match="bf16 and fp16") as caught:
        roofline.estimate(recipe(train={"precision": "fp32"}), GPT2, H200)
    assert caught.value.hint == "give --set train.precision=bf16"
    with pytest.raises(UserError, match="did you mean 'H100'") as caught:
        gpus.find("H110")
    assert "--gpus" in str(caught.value.hint)
    for part_of_a_name in ("0", "00", ""):
        with pytest.raises(UserError):
            gpus.find(part_of_a_name)
    assert gpus.find("NVIDIA GeForce RTX-4090") is gpus.find("4090") is gpus.GPUS["RTX 4090"]


def test_memory_of_a_gpu_is_counted_without_one() -> None:
    """Of a block in bf16: 36 bytes a value, what the norms and softmax keep, and cast weights."""
    three, four = (
        activation_bytes(replace(GPT2, n_layer=n), SEQUENCES, H200.device()) for n in (3, 4)
    )
    C, H = GPT2.n_embd, GPT2.n_head
    noise = 24  # seed and offset of attention's dropout
    assert four - three == POSITIONS * (36 * C + 2 * 8 + 4 * H) + 2 * 12 * C * C + noise


def test_activations_follow_the_heads_pieces() -> None:
    """A head in pieces keeps no logits, so memory falls where the pieces begin."""
    device = H200.device()
    begin = loss._AT_ONCE["cuda"] // (GPT2.block_size * GPT2.vocab_size)
    whole, pieces = (activation_bytes(GPT2, begin + n, device) for n in (0, 1))
    assert pieces < whole
