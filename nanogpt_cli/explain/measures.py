"""Concepts of what a run yields and keeps: bits per byte, and resuming bit for bit."""

from __future__ import annotations

import lzma
import math
import zlib
from functools import cache
from typing import Final

from nanogpt_cli.explain.concept import Concept, Found, Value, Words
from nanogpt_cli.explain.page import Action
from nanogpt_cli.explain.steps import block_parameters
from nanogpt_cli.explain.values import Model

TOKENIZERS: Final = ("byte", "char", "bpe")
BPE_SIZE: Final = 1024
_BITS: Final = 2.0  # per byte, for which each tokenizer's loss is shown
# Windows that are computed twice: the run's, then each alone.
_STEPS, _BATCH, _TOKENS = 200, 12, 1_000_000


@cache
def sample_text() -> str:
    """A text that every installation has: pages of the manual."""
    from nanogpt_cli import places

    pages = ("first-hour.md", "training.md", "initialisation.md")
    return "".join((places.docs_folder() / page).read_text(encoding="utf-8") for page in pages)


def _bits(_: Model) -> Found:
    from nanogpt_cli.text.tokenizers import bpe
    from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer, CharTokenizer

    text = sample_text()
    data = text.encode()
    made = {"byte": ByteTokenizer(), "char": CharTokenizer.of_text(text),
            "bpe": bpe.train(BPE_SIZE, [text])}  # fmt: skip
    values: dict[str, Value] = {
        "bytes": len(data), "characters": len(text), "ln2": math.log(2), "bits": _BITS,
        "zlib": 8 * len(zlib.compress(data, 9)) / len(data),
        "lzma": 8 * len(lzma.compress(data, preset=9)) / len(data),
        "bpe_vocabulary": BPE_SIZE,
    }  # fmt: skip
    for name, tokenizer in made.items():
        per_token = len(data) / len(tokenizer.encode_array(text))
        values |= {
            f"{name}_words": tokenizer.vocab_size, f"{name}_each": per_token,
            f"{name}_guess": math.log(tokenizer.vocab_size),
            f"{name}_guess_bits": bits_per_byte(math.log(tokenizer.vocab_size), per_token),
            f"{name}_loss": _BITS * math.log(2) * per_token,
        }  # fmt: skip
    return Found(values, units={"bytes": "bytes", "zlib": "bits per byte", "lzma": "bits per byte",
                                **{f"{n}_loss": "nats a token" for n in TOKENIZERS}})  # fmt: skip


def bits_per_byte(loss: float, bytes_per_token: float) -> float:
    """A loss in nats a token as bits a byte of the text."""
    return loss / math.log(2) / bytes_per_token


_BITS_WORDS: Final = Words(
    "Why bits per byte and not the loss?",
    (
        "The loss is in nats a token, and tokens differ in length: a longer token is harder to "
        "guess. Bits per byte divides by what is the same for all, the bytes of the text: loss / "
        "ln 2 / (bytes per token). On {bytes:,} bytes of this manual, tokenised now:",
    ),
    (Action("Of a run's whole validation split:", "nanogpt eval small"),
     Action("With a certificate that the tokens are the text:", "nanogpt train small --certify")),
    table=(
        ("tokens", "vocabulary", "bytes a token", "blind guess: loss", "bits per byte",
         "{bits:g} bits per byte: loss"),
        *(
            (label, f"{{{n}_words:,}}", f"{{{n}_each:.2f}}", f"{{{n}_guess:.2f}}",
             f"{{{n}_guess_bits:.2f}}", f"{{{n}_loss:.2f}}")
            for n, label in (("byte", "byte"), ("char", "char"), ("bpe", "bpe:{bpe_vocabulary}"))
        ),
    ),
    after=(
        "Models of the three that predict this text equally well have the losses of the last "
        "column: a smaller loss means a better model only if the tokens are the same.",
        "It is also the rate of a compressor that codes with the model's probabilities. For "
        "comparison, zlib needs {zlib:.2f} bits per byte of this text and xz {lzma:.2f}; a model "
        "that needs less knows more of the language than they find in the text itself.",
    ),
)  # fmt: skip


def windows_alike(steps: int = _STEPS) -> tuple[int, int]:
    """Windows of a run that come out the same when each step is asked for alone: (same, all)."""
    import numpy as np

    from nanogpt_cli.training.batches import Windows

    windows = Windows(1337, _TOKENS, 256, _BATCH)
    in_turn = windows.at(np.arange(steps * _BATCH, dtype=np.int64)).reshape(steps, _BATCH)
    same = 0
    for step in reversed(range(steps)):
        alone = Windows(1337, _TOKENS, 256, _BATCH).at(
            np.arange(step * _BATCH, (step + 1) * _BATCH, dtype=np.int64)
        )
        same += int((alone == in_turn[step]).sum())
    return same, steps * _BATCH


def _resume(model: Model) -> Found:
    from nanogpt_cli.model.accounting import account
    from nanogpt_cli.recipe.sections import Optim, Train

    sizes, optim = account(model.config), model.optim or Optim()
    same, total = windows_alike()
    mib, moments = 2**20, 8 * sizes.parameters
    if optim.name == "muon":
        moments -= 4 * block_parameters(model.config)
    values: dict[str, Value] = {
        "weights": 4 * sizes.parameters / mib, "moments": moments / mib,
        "checkpoint": (4 * sizes.parameters + moments) / mib, "optimizer": optim.name,
        "same": same, "total": total, "steps": _STEPS,
        "every": Train().checkpoint_every, "keep": Train().keep,
    }  # fmt: skip
    return Found(values, units=dict.fromkeys(("weights", "moments", "checkpoint"), "MiB"))


_RESUME: Final = Words(
    "Why does a resumed run equal an uninterrupted one bit by bit?",
    (
        "Because a step depends on the recipe, the data, its number and the saved tensors, and on "
        "nothing else. Which text a step reads, and which units dropout leaves out, are hashes of "
        "seed, step and place: no generator has a state that could be lost. Checked now: {steps} "
        "steps asked for in reverse order, each alone, read the same windows as in one run in "
        "{same:,} of {total:,} cases.",
    ),
    (Action("Resume a run that was stopped:", "nanogpt train runs/small --resume"),
     Action("Prove it for a recipe:", "nanogpt verify-resume small")),
    table=(
        ("a checkpoint holds", "MiB"),
        ("weights (float32)", "{weights:,.1f}"),
        ("moments of {optimizer}", "{moments:,.1f}"),
        ("in all", "{checkpoint:,.1f}"),
    ),
    after=(
        "It also holds the step, the recipe, the best loss so far and the tokenizer: kilobytes. "
        "Weights alone would not suffice: without moments the optimizer begins anew with large "
        "first steps (nanogpt explain warmup).",
        "By default a checkpoint is written every {every} steps, under a temporary name and "
        "renamed when it is whole; the newest {keep} and the best are kept. Ctrl-C finishes the "
        "step and saves. Two things must stay the same, because sums in another order round "
        "differently: the kind of machine, with its number format, and train.parts, which the run "
        "records.",
    ),
)  # fmt: skip

CONCEPTS: Final = {
    "bits-per-byte": Concept({"en": _BITS_WORDS}, _bits, of_model=False),
    "resume": Concept({"en": _RESUME}, _resume),
}
