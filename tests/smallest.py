"""The smallest recipe that trains, for tests of what happens around the training."""

from __future__ import annotations

from typing import Any

import tomli_w

_TABLES: dict[str, dict[str, Any]] = {
    "data": {"name": "toy.txt"},
    "model": {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8},
    "train": {
        "max_steps": 2, "batch_size": 4, "eval_every": 0, "checkpoint_every": 0,
        "precision": "fp32", "device": "cpu",
    },
    "optim": {"warmup_steps": 1},
    "sample": {"max_new_tokens": 0},
}  # fmt: skip


def recipe(**changes: dict[str, Any]) -> str:
    """It as TOML; keyword arguments add to its tables or change them."""
    names = dict.fromkeys([*_TABLES, *changes])
    return tomli_w.dumps({name: _TABLES.get(name, {}) | changes.get(name, {}) for name in names})
