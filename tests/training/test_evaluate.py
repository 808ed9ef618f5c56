from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_run
from torch.nn import functional as F

from nanogpt_cli import recipe, schemes
from nanogpt_cli.init import drawing
from nanogpt_cli.machine import device
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.training import evaluate

CPU = device.choose(recipe.Train(device="cpu", precision="fp32"))
CONFIG = GPTConfig(
    n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=13, dropout=0.3, bias=False,
    activation="gelu",
)  # fmt: skip


def model() -> GPT:
    return drawing.build(CONFIG, schemes.get("normal"), 0).train()


def tokens(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 13, count).astype(np.uint16)


def naive(gpt: GPT, ids: np.ndarray) -> tuple[float, int]:
    """One window after the other, in float64."""
    gpt = copy.deepcopy(gpt).eval().double().requires_grad_(False)
    total, count = 0.0, 0
    data = torch.from_numpy(ids.astype(np.int64))
    for start in range(0, len(data) - 1, 16):
        piece = data[start : start + 17]
        logits, _ = gpt(piece[None, :-1])
        total += float(F.cross_entropy(logits[0], piece[1:], reduction="sum"))
        count += len(piece) - 1
    return total / count, count


@pytest.mark.parametrize("count", [2, 16, 17, 18, 33, 1000, 1025])
def test_equals_a_naive_loop_for_any_batch_size(count: int) -> None:
    gpt, ids = model(), tokens(count)
    found = [evaluate.evaluate(gpt, ids, CPU, batch=b) for b in (1, 3, 64)]
    loss, predicted = naive(gpt, ids)
    for result in found:
        assert result.tokens == predicted == count - 1
        assert result.loss == pytest.approx(loss, abs=1e-6)
    assert gpt.training


def test_positions_average_to_the_loss() -> None:
    result = evaluate.evaluate(model(), tokens(1025), CPU)
    assert result.by_position.shape == (16,)
    assert result.by_position.mean() == pytest.approx(result.loss, abs=1e-9)


def test_perplexity_and_bits_per_byte(tmp_path: Path) -> None:
    data = toy_run.data(tmp_path)
    uniform = evaluate.Result(math.log(32), 10, np.zeros(1))
    assert uniform.perplexity == pytest.approx(32)
    assert data.manifest.val.bytes_per_token == 1.0
    assert uniform.bits_per_byte(1.0) == pytest.approx(5)
    assert uniform.bits_per_byte(4.0) == pytest.approx(1.25)  # a token stands for four bytes
    assert evaluate.Result(1e5, 1, np.zeros(1)).perplexity == math.inf


def test_every_token_but_the_first_is_a_target_once() -> None:
    for count in (2, 16, 17, 18, 200, 257):
        spans = evaluate.spans(count, 16, 3)
        ids = np.arange(count)
        targets = [evaluate.windows(ids, span, 16)[1].flatten() for span in spans]
        assert torch.cat(targets).tolist() == list(range(1, count))
