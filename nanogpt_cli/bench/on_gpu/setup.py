"""Data, models and timing that several items use. Nothing is downloaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli.bench.on_gpu.report import Part, Setting

if TYPE_CHECKING:
    import torch

    from nanogpt_cli.training.stepper import Stepper

# As many different characters as GPT-2 has tokens, so that the tokenizer ``char`` makes its
# vocabulary: the CJK ideographs from the first extension beyond 16 bits on.
_FIRST_CHARACTER, _VOCABULARY = 0x20000, 50257
_LETTERS = "abcdefghijklmnopqrstuvwxyz \n"

# What of a model is changed for ``Setting.tiny``.
TINY = (
    "model.n_layer=2", "model.n_head=2", "model.n_embd=32", "model.block_size=32",
    "model.vocab_size=64",
)  # fmt: skip


def text(setting: Setting, *, vocabulary: int, length: int) -> Path:
    """A text of ``length`` random characters, of ``vocabulary`` different ones."""
    import numpy as np

    alphabet = _LETTERS if vocabulary <= len(_LETTERS) else ""
    alphabet = alphabet[:vocabulary] or "".join(
        chr(_FIRST_CHARACTER + i) for i in range(vocabulary)
    )
    drawn = np.random.default_rng(0).integers(len(alphabet), size=length)
    path = setting.folder / f"random-{vocabulary}.txt"
    path.write_text("".join(np.array(list(alphabet))[drawn]), encoding="utf-8")
    return path


def letters(setting: Setting) -> list[str]:
    """Settings of a recipe that is to train on a short text of random letters."""
    path = text(setting, vocabulary=len(_LETTERS), length=20_000)
    return [*_data(path), f'train.device="{setting.device}"']


def gpt2(setting: Setting, *more: str) -> list[str]:
    """Settings of the recipe gpt2-124m-nanogpt for random tokens of GPT-2's vocabulary.

    The validation split is too short for a full batch, so evaluations are not compiled.
    """
    if setting.tiny:
        data = _data(text(setting, vocabulary=60, length=20_000))
    else:
        data = _data(text(setting, vocabulary=_VOCABULARY, length=2_000_000))
    return [*data, f'train.device="{setting.device}"', *(TINY if setting.tiny else ()), *more]


def _data(path: Path) -> list[str]:
    return [f"data.name={path}", 'data.tokenizer="char"', "data.val_fraction=0.002"]


def stepper(recipe: str, sets: Iterable[str]) -> Stepper:
    """The steps of a recipe, as a run makes them; everything stays in memory."""
    from nanogpt_cli.recipe import files as recipe_files
    from nanogpt_cli.text import prepare
    from nanogpt_cli.text.tokens import open_data
    from nanogpt_cli.training import spec
    from nanogpt_cli.training.setup import assemble

    loaded = recipe_files.load(recipe, list(sets)).recipe
    data = open_data(prepare.ensure(loaded.data.model_dump(), report=lambda _: None))
    return assemble(spec.resolve(loaded, data))


def synchronize(device: torch.device) -> None:
    """Wait for queued work, so that a clock read afterwards includes it."""
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(work: Callable[[], Any], device: torch.device, *, repeats: int, warm: int = 3) -> float:
    """Mean seconds of ``work``, queued ``repeats`` times without waiting in between."""
    for _ in range(warm):
        work()
    synchronize(device)
    started = time.perf_counter()
    for _ in range(repeats):
        work()
    synchronize(device)
    return (time.perf_counter() - started) / repeats


def compare(
    part: Part, found: Sequence[float], expected: Sequence[float], precision: str, terms: int
) -> None:
    """Check the losses of some steps, computed in two ways.

    Before the first update only rounding differs. Afterwards its differences have grown: AdamW
    divides a gradient by its own size, so that where it is nearly zero its noise becomes a whole
    update. Losses are then compared as bf16 ones.

    Args:
        part: where to note them.
        found: of each step.
        expected: the same computed in the other way.
        precision: of the products.
        terms: that the longest sums have which every loss goes through.
    """
    gaps = [abs(a - b) / abs(b) for a, b in zip(found, expected, strict=True)]
    first, later = rounding(precision, terms), rounding("bf16", terms)
    part.facts |= {"losses": found, "expected_losses": expected, "differences": gaps}
    part.check(gaps[0] <= first, f"the first losses differ by {gaps[0]:.2g}, above {first:.2g}")
    worst = max(gaps)
    part.check(worst <= later, f"losses differ by {worst:.2g}, above {later:.2g}")


def rounding(precision: str, terms: int) -> float:
    """The relative difference of a loss that rounding may make between two ways to compute it.

    Half-precision products have exact factors of 8 bits (bf16); sums of ``terms`` float32 numbers
    err by at most that many units in the last place (Higham 2002, section 4.2).
    """
    import torch

    if precision == "bf16":
        return torch.finfo(torch.bfloat16).eps
    return terms * torch.finfo(torch.float32).eps
