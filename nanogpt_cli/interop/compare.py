"""Comparing a runtime's results with the native model's, within bounds for each format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

# Positions compared at once.
_ROWS_AT_ONCE: Final = 64


@dataclass(frozen=True)
class Bounds:
    """How far a runtime's results may be from the model's.

    Attributes:
        logits: largest absolute difference for logits of magnitude 10 or less, scaled in
            proportion above; None for no bound.
        argmax: smallest share of positions with the same likeliest token.
        greedy: whether greedy texts must be equal.
    """

    logits: float | None
    argmax: float
    greedy: bool


BOUNDS: Final = {
    "hf": Bounds(1e-5, 0.999, True),
    "onnx": Bounds(1e-4, 0.999, True),
    "pt2": Bounds(1e-5, 0.999, True),
    # llama.cpp looks GELU up in a table of half-precision values of its tanh form.
    "gguf-f32": Bounds(0.02, 0.999, False),
    "gguf-f32-without-gelu": Bounds(1e-4, 0.999, True),
    # With a half-precision cache, as is usual.
    "gguf-f16": Bounds(0.05, 0.995, False),
    "gguf-bf16": Bounds(0.3, 0.99, False),
    "gguf-q8_0": Bounds(1.0, 0.99, False),
    # With few bits the differences are reported, and only gross errors fail.
    "gguf-q5_1": Bounds(None, 0.9, False),
    "gguf-q5_0": Bounds(None, 0.9, False),
    "gguf-q4_1": Bounds(None, 0.8, False),
    "gguf-q4_0": Bounds(None, 0.8, False),
}


@dataclass(frozen=True)
class Reference:
    """The results of the native model.

    Attributes:
        windows: token ids (N, T).
        targets: the next ids (N, T).
        logits: (N, T, V) float32.
        prompts: the token ids that greedy texts begin with.
        greedy: the ids that follow each prompt.
        eot: the id of end of text, at which some runtimes stop.
        text: a text for the tokenizer.
        ids: the token ids of ``text``, None without a tokenizer.
        new_tokens: length of a greedy text.
        origin: a phrase that says where the tokens come from.
        decoded: what the model's tokenizer decodes ``ids`` to; ``text`` unless it loses something.
        decoded_otherwise: what the ``tokenizers`` library decodes them to where it takes added
            tokens for bytes.
        taken_for_bytes: the texts of those tokens.
        gelu: whether the model computes GELU.
    """

    windows: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int64]
    logits: Floats
    prompts: list[list[int]]
    greedy: list[list[int]]
    eot: int | None
    text: str
    ids: npt.NDArray[Any] | None
    new_tokens: int
    origin: str
    decoded: str = ""
    decoded_otherwise: str = ""
    taken_for_bytes: Sequence[str] = ()
    gelu: bool = True


@dataclass(frozen=True)
class Check:
    """The outcome for one artefact; ``passed`` is None if its runtime is not installed."""

    target: str
    variant: str
    artefact: str
    runtime: str
    passed: bool | None
    problems: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Measured differences and those of them that are out of bounds."""

    runtime: str
    facts: dict[str, Any]
    problems: list[str]


def compare(expected: Reference, folder: Path, target: str, variant: str) -> Comparison:
    """Compare the results in ``folder`` (see ``runtimes.py``) with ``expected``."""
    bounds = _bounds(expected, target, variant)
    answer = json.loads((folder / "answer.json").read_text())
    if (folder / "logits.npy").is_file():
        facts = _from_logits(expected, np.load(folder / "logits.npy", mmap_mode="r"))
    else:
        facts = _from_log_probabilities(expected, folder)
    if (folder / "padded.npy").is_file():
        facts["max_abs_diff_left_padded"] = _padded(expected, np.load(folder / "padded.npy"))
    texts = [[_cut(ids, expected.eot) for ids in side]
             for side in (expected.greedy, answer["greedy"])]  # fmt: skip
    equal = sum(ours == theirs for ours, theirs in zip(*texts, strict=True))
    facts |= {"greedy_texts": len(expected.greedy), "greedy_equal": equal}
    magnitude = float(max(expected.logits.max(), -expected.logits.min()))
    problems = _out_of_bounds(bounds, facts, magnitude)
    facts |= _tokenizer(expected, folder, answer, problems)
    facts["bounds"] = {"logits": bounds.logits, "argmax": bounds.argmax, "greedy": bounds.greedy}
    return Comparison(answer["runtime"], facts, problems)


def _bounds(expected: Reference, target: str, variant: str) -> Bounds:
    key = f"{target}-{variant}" if variant else target
    stricter = f"{key}-without-gelu"
    return BOUNDS[key if expected.gelu else stricter if stricter in BOUNDS else key]


def _cut(ids: list[int], eot: int | None) -> list[int]:
    return ids[: ids.index(eot)] if eot in ids else ids


def _out_of_bounds(bounds: Bounds, facts: dict[str, Any], magnitude: float) -> list[str]:
    problems = []
    if bounds.logits is not None:
        limit = bounds.logits * max(1.0, magnitude / 10)
        for key in ("max_abs_diff", "max_abs_diff_left_padded"):
            # "not <=", because NaN must be out of bounds.
            if key in facts and not facts[key] <= limit:
                problems.append(f"{key} {facts[key]:.3g} is above {limit:.3g}")
    if not facts["argmax_agreement"] >= bounds.argmax:
        agreement = facts["argmax_agreement"]
        problems.append(
            f"likeliest tokens agree at {agreement:.2%} of positions, below {bounds.argmax:.1%}"
        )
    if bounds.greedy and facts["greedy_equal"] < facts["greedy_texts"]:
        problems.append(
            f"{facts['greedy_texts'] - facts['greedy_equal']} of {facts['greedy_texts']} greedy "
            "texts differ"
        )
    return problems


def _from_logits(expected: Reference, logits: Floats) -> dict[str, Any]:
    """Differences over every position, a few rows at a time because vocabularies are large."""
    if logits.shape != expected.logits.shape:
        raise ValueError(f"logits {logits.shape} instead of {expected.logits.shape}")
    worst, agree, losses = 0.0, 0, [0.0, 0.0]
    flat = [values.reshape(-1, values.shape[-1]) for values in (expected.logits, logits)]
    targets = expected.targets.reshape(-1)
    for start in range(0, len(targets), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        ours, theirs = (values[rows] for values in flat)
        worst = float(np.maximum(worst, np.abs(ours - theirs).max()))  # NaN stays NaN
        agree += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        for i, values in enumerate((ours, theirs)):
            likely = log_softmax(values)[np.arange(len(values)), targets[rows]]
            losses[i] -= float(likely.sum())
    return _facts(worst, agree, len(targets), losses, len(targets))


def _from_log_probabilities(expected: Reference, folder: Path) -> dict[str, Any]:
    argmax, positions = np.load(folder / "argmax.npy"), np.load(folder / "positions.npy")
    theirs = np.load(folder / "logprobs.npy")
    known = argmax >= 0
    agree = int((expected.logits.argmax(-1) == argmax)[known].sum())
    n, t = positions.T
    ours, targets = log_softmax(expected.logits[n, t]), expected.targets[n, t]
    rows = np.arange(len(targets))
    losses = [-float(values[rows, targets].sum()) for values in (ours, theirs)]
    # A probability below e^-20 is never sampled, and a server may round it off.
    likely = ours > -20
    worst = float(np.abs(ours - theirs)[likely].max())
    facts = _facts(worst, agree, int(known.sum()), losses, len(targets))
    return {**facts, "compared": "log-probabilities", "vectors": len(targets)}


def _facts(
    worst: float, agree: int, positions: int, losses: list[float], count: int
) -> dict[str, Any]:
    native, runtime = (total / count for total in losses)
    return {
        "positions": positions, "max_abs_diff": worst, "argmax_agreement": agree / positions,
        "loss_native": native, "loss_runtime": runtime, "loss_difference": runtime - native,
    }  # fmt: skip


def _padded(expected: Reference, padded: Floats) -> float:
    """Largest difference of ``padded``: the last logits of ever longer prefixes of a window."""
    T = expected.windows.shape[1]
    lengths = sorted({1, max(1, T // 3), max(1, T // 2), T})
    return float(np.abs(expected.logits[0, [n - 1 for n in lengths]] - padded).max())


def _tokenizer(
    expected: Reference, folder: Path, answer: dict[str, Any], problems: list[str]
) -> dict[str, Any]:
    if expected.ids is None or not (folder / "ids.npy").is_file():
        return {}
    same = np.array_equal(np.load(folder / "ids.npy"), expected.ids)
    if not same:
        problems.append("the tokenizer encodes the text to different ids")
    decoded = (folder / "decoded.txt").read_bytes().decode("utf-8")
    equal = decoded == expected.decoded
    otherwise = bool(expected.taken_for_bytes) and decoded == expected.decoded_otherwise
    if not equal and not otherwise:
        problems.append("the tokenizer does not decode its ids to the same text")
    if answer.get("token_type_ids"):
        problems.append("the tokenizer returns token_type_ids, which GPT-2 adds to its input")
    facts: dict[str, Any] = {
        "tokenizer_characters": len(expected.text), "tokenizer_same_ids": same,
        "tokenizer_text_equal": equal, "tokenizer_round_trip": decoded == expected.text,
    }  # fmt: skip
    if otherwise and not equal:
        facts["tokenizer_text_differs_only_in"] = list(expected.taken_for_bytes)
    return facts


def log_softmax(logits: Floats) -> npt.NDArray[np.float64]:
    """Log-probabilities over the last axis, in float64."""
    values = logits.astype(np.float64)
    values = values - values.max(-1, keepdims=True)
    result: npt.NDArray[np.float64] = values - np.log(np.exp(values).sum(-1, keepdims=True))
    return result
