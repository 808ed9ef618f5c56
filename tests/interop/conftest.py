"""Small models with every weight in play, and tokenizers of each kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nanogpt_cli.core import checkpoint
from nanogpt_cli.core.model import GPT, GPTConfig
from nanogpt_cli.interop import source
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.runlog import RunFolder
from nanogpt_cli.text.tokenizer import CharTokenizer, Tokenizer

# Spaces, newlines, tabs and characters of one to four bytes in UTF-8.
TEXT = "To be, or not to be:\n\tthat is the question; naïve café — 你好 🙂é\r\n" * 3


def make_model(seed: int = 0, **changes: Any) -> GPT:
    """A GPT whose biases and LayerNorms are not at their initial values."""
    values: dict[str, Any] = {
        "n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "vocab_size": 65,
        "dropout": 0.0, "bias": True, "activation": "gelu",
    }  # fmt: skip
    torch.manual_seed(seed)
    model = GPT(GPTConfig(**{**values, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1) * 0.3)
    return model


def char_tokenizer(**options: Any) -> CharTokenizer:
    return CharTokenizer.of_text(TEXT, **options)


def exportable(tokenizer: Tokenizer | None = None, **changes: Any) -> Exportable:
    tokenizer = tokenizer or char_tokenizer()
    return source.from_model(
        make_model(**{"vocab_size": tokenizer.vocab_size, **changes}), tokenizer, "tiny"
    )


def logits(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(ids)[0]
    return found


def same_tensors(one: GPT, other: GPT) -> bool:
    ours, theirs = checkpoint.model_tensors(one), checkpoint.model_tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run folder with one checkpoint of a character model without biases."""
    return make_run(tmp_path / "runs" / "tiny")


def make_run(path: Path, **changes: Any) -> RunFolder:
    tokenizer = char_tokenizer()
    run = RunFolder(path)
    run.checkpoints.mkdir(parents=True)
    run.recipe.write_text('[run]\nname = "tiny"\n')
    model = make_model(vocab_size=tokenizer.vocab_size, **{"bias": False, **changes})
    checkpoint.save(run, model, {"step": 7}, tokenizer=tokenizer.to_json())
    return run


def quiet(line: str) -> None:
    """A report that nobody reads."""
