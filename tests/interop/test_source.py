"""Folding multipliers, keeping every row, and reading a checkpoint tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import char_tokenizer, exportable, logits, make_model, quiet, same_tensors

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import exporting, source
from nanogpt_cli.model.gpt import Multipliers
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.training.checkpoints.checkpoint import CheckpointError

FACTORS = Multipliers(embedding=3.0, residual=0.4, attention=0.07, output=0.25)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_folded_model_computes_the_same(tied: bool, bias: bool) -> None:
    tokenizer = char_tokenizer()
    size = tokenizer.vocab_size
    model = make_model(tied=tied, bias=bias, vocab_size=size, multipliers=FACTORS)
    plain = source.from_model(model, tokenizer).model()
    assert plain.config.multipliers == Multipliers()
    ids = torch.randint(0, size, (3, 24))
    expected = logits(model, ids)
    assert (logits(plain, ids) - expected).abs().max() < 2e-6 * expected.abs().max()


def test_factors_of_two_fold_without_any_rounding() -> None:
    factors = Multipliers(embedding=4.0, residual=0.5, output=2.0)
    model = make_model(multipliers=factors)
    plain = source.from_model(model, None).model()
    ids = torch.randint(0, 65, (2, 24))
    assert torch.equal(logits(plain, ids), logits(model, ids))


def test_zero_embedding_factor_is_refused() -> None:
    with pytest.raises(UserError, match="multipliers"):
        source.from_model(make_model(multipliers=Multipliers(embedding=0.0)), None)


@pytest.mark.parametrize("target", ["hf", "nanogpt", "gguf", "onnx"])
def test_rows_beyond_the_tokenizer_are_never_cut(tmp_path: Path, target: str) -> None:
    for package in exporting.TARGETS[target].packages:
        pytest.importorskip(package)
    padded = exportable(vocab_size=64, n_layer=1)
    assert padded.require_tokenizer("x").vocab_size < 64
    (made,) = exporting.export(padded, target, tmp_path, quiet, quantizations=["f32"])
    rows = padded.weights.get("transformer.wte.weight").numpy()
    file = made.path / "onnx" / "model.onnx" if target == "onnx" else made.path
    files = [file] if file.is_file() else sorted(file.iterdir())
    assert any(rows.tobytes() in path.read_bytes() for path in files)


def test_tokenizer_larger_than_the_model_is_refused() -> None:
    with pytest.raises(UserError, match="rows for them"):
        exportable(vocab_size=5)


def test_run_gives_the_model_that_was_saved(run: RunFolder) -> None:
    found = source.from_run(run)
    size = char_tokenizer().vocab_size
    assert same_tensors(found.model(), make_model(vocab_size=size, bias=False))
    assert found.step == 7
    assert found.tokenizer is not None
    assert found.tokenizer.fingerprint() == char_tokenizer().fingerprint()


def test_damaged_checkpoint_is_refused(run: RunFolder) -> None:
    path = run.checkpoints / "step-000007" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        source.from_run(run)
