"""The items of ``nanogpt bench gpu`` on a GPU, at the smallest sizes; skipped where there is none.

``nanogpt bench gpu`` runs them at full size.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nanogpt_cli.bench.on_gpu.items import ITEMS

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no GPU"),
    pytest.mark.skipif(
        "PYTEST_XDIST_WORKER" in os.environ, reason="needs the GPU to itself: pytest tests/gpu"
    ),
    pytest.mark.timeout(2 * max(item.limit_s for item in ITEMS.values())),
]


@pytest.mark.parametrize("name", sorted(set(ITEMS) - {"against"}))
def test_an_item_passes(name: str, tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    subprocess.run(
        [sys.executable, "-m", "nanogpt_cli", "bench", "gpu", "--tiny", "--only", name,
         "--out", str(out)],
        timeout=ITEMS[name].limit_s + 60, check=False,
    )  # fmt: skip
    (item,) = json.loads(out.read_text())["items"]
    assert (item["status"], item["error"]) == ("passed", ""), item["trace"]
    assert {part["status"] for part in item["parts"]} == {"passed"}
