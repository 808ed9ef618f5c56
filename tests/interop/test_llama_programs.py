"""Llama, Qwen2 and Qwen3 as programs: ONNX and torch.export."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny import HOMES, exportable, quiet

from nanogpt_cli.interop import exporting


@pytest.mark.numeric
@pytest.mark.usefixtures("runtimes_here")
@pytest.mark.parametrize(
    ("home", "target"), [("llama", "onnx"), ("qwen3", "onnx"), ("qwen2", "pt2")]
)
def test_programs_compute_the_same(tmp_path: Path, home: str, target: str) -> None:
    for package in ("onnxruntime", *exporting.TARGETS[target].packages):
        pytest.importorskip(package)
    heads = {"head_dim": 20} if home == "qwen3" else {}
    made = exportable(n_layer=1, vocab_size=40, **HOMES[home], **heads)
    (check,) = exporting.verify_all(made, exporting.export(made, target, tmp_path, quiet), quiet)
    assert check.problems == []
    assert check.facts["positions"] >= 1000
    assert check.facts["argmax_agreement"] == 1.0
    assert check.facts["greedy_equal"] == check.facts["greedy_texts"] == 4
    assert check.facts["max_abs_diff"] <= 1e-5
    if target == "onnx":
        assert check.facts["max_abs_diff_left_padded"] <= 1e-5
