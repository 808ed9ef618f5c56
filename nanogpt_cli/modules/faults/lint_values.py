"""Faults inside one matrix: values that are no numbers, lines that are empty, copied or odd."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nanogpt_cli.init.lint import FAIL, NOTE, WARN, Verdict
from nanogpt_cli.modules.anatomy import MATRICES
from nanogpt_cli.modules.faults import chance
from nanogpt_cli.modules.faults.finding import Finding, spans
from nanogpt_cli.modules.faults.sketch import Sketch

TABLES = ("wte", "wpe", "lm_head")
# A normal law has 3.7, a uniform one 3.2, float32 of random bytes about 200.
MAX_SPREAD = 16.0
# Of values; a normal law in float32 has none, one in bf16 about 1e-5.
MAX_ZEROS = 0.005
# bf16 rounds up to 0.4 % of a uniform law's values to either bound, and 0.1 % of a cut normal's.
MAX_AT_BOUND = 0.01
# Topics of faults that change a matrix's std, whatever its law.
CHANGES_STD = ("zero-lines", "odd-lines", "sparse", "clipped", "underflow", "mean", "rank")
_SEGMENTS = (2, 3, 4, 8, 16)


def broken(s: Sketch) -> Iterator[Finding]:
    """NaN, infinity, bytes that are no float32 and numbers too small or large for weights."""
    if s.broken:
        what = f"{s.broken:,} of {s.size:,} values are NaN or infinite, the first in row "
        what += str(s.first_broken)
        advice = "the file or the step that wrote it is damaged; load or draw it again"
        if s.spread > MAX_SPREAD:
            advice = "read with the wrong byte order or number format; convert it first"
        elif s.infinite == s.broken:
            advice = "beyond 65,504 in float16? cast to bfloat16 or float32 instead"
        yield Finding(FAIL, "not-finite", s.part, what, advice, float(s.broken))
    elif s.part.role not in (*MATRICES, *TABLES):
        return  # a key's bias has no gradient, and trains on the noise of rounding
    elif s.spread > MAX_SPREAD:
        what = f"its values range over a factor of 2^{s.spread:.0f}"
        advice = "bytes in the wrong order or number format, or memory never written"
        yield Finding(FAIL, "garbage", s.part, what, advice, s.spread)
    elif s.reach > 1e4:
        what = f"its largest value is {s.reach:.2g}"
        yield Finding(FAIL, "uninitialised", s.part, what, "memory never written?", s.reach)
    elif s.subnormal > 1e-3 or (s.std > 0 and s.reach < 1e-30):
        what = f"{s.subnormal:.0%} of its values are below 1.2e-38 but not zero"
        advice = "memory never written, or a scale that underflowed"
        yield Finding(FAIL, "subnormal", s.part, what, advice, s.subnormal)


def damage(s: Sketch) -> Iterator[Finding]:
    """Faults that neither a start nor training explains: empty and copied lines, lost precision."""
    yield from _empty(s)
    yield from _quantised(s)
    yield from _copies(s)
    if s.constant_rows and not s.constant:
        what = f"{s.constant_rows:,} of {s.shape[0]:,} rows have one value throughout"
        advice = "filled or broadcast from a vector; draw or load the matrix itself"
        yield Finding(WARN, "constant-rows", s.part, what, advice, float(s.constant_rows))
    elif s.sampled > 4 and s.rank < s.sampled * 0.75 and not _repeats(s):
        what = f"it has rank {s.rank} where {s.sampled} rows were looked at"
        advice = "a product of thin factors (LoRA?) or rows computed from others"
        yield Finding(WARN, "rank", s.part, what, advice, float(s.rank))


def _empty(s: Sketch) -> Iterator[Finding]:
    """Rows, columns and scattered values that are zero; a table may have one row for padding."""
    if s.constant and s.low != 0:
        advice = "filled with one value: all its outputs are alike; draw or load it"
        yield Finding(FAIL, "constant", s.part, f"it is {s.low:.3g} throughout", advice, s.low)
    if s.constant:
        return
    for name, square in (("row", s.row_square), ("column", s.column_square)):
        empty = torch.nonzero(square == 0).flatten()
        if len(empty) <= (1 if s.part.role in TABLES and name == "row" else 0):
            continue
        if name == "row" and s.grown:
            what = (
                f"{len(empty):,} of {len(square):,} rows are zero, as scheme lookback leaves them"
            )
            advice = "zero in queries and keys, they get no gradient: a head compares 8 channels"
            yield Finding(NOTE, "positions", s.part, what, advice, float(len(empty)))
            continue
        are = f"{name} {spans(empty.tolist())} is" if len(empty) == 1 else (
            f"{len(empty):,} of {len(square):,} {name}s are")  # fmt: skip
        where = "" if len(empty) == 1 else f" ({spans(empty.tolist())})"
        advice = "never written, a missing shard, or pruned"
        if s.part.role in ("wte", "lm_head") and name == "row":
            advice = "ids that no data used, or padding of the vocabulary: draw them like the rest"
        elif s.part.role in ("q", "k", "v") and name == "row":
            advice = "a head or part of one was never written"
        yield Finding(WARN, "zero-lines", s.part, f"{are} zero{where}", advice, float(len(empty)))
    if s.zeros > MAX_ZEROS:
        if s.grid and s.reach < 2**-14:
            what = f"{s.zeros:.0%} of its values are zero and the others at most {s.reach:.2g}"
            advice = "underflow in float16; scale in float32 and keep bfloat16 or float32"
            yield Finding(FAIL, "underflow", s.part, what, advice, s.zeros)
            return
        what = f"{s.zeros:.0%} of its values are zero, scattered"
        advice = "pruned or masked; dense training should start from dense weights"
        yield Finding(WARN, "sparse", s.part, what, advice, s.zeros)


def _quantised(s: Sketch) -> Iterator[Finding]:
    if s.grid == "int8" and s.std > 0:
        advice = "an int8 checkpoint without its precision; load the original weights"
        what = "every row's values are whole multiples of one step, at most 127 of them"
        yield Finding(WARN, "quantised", s.part, what, advice)


def _repeats(s: Sketch) -> bool:
    return any(_repeated(key)[0] for key in (s.row_key, s.column_key))


def _repeated(key: Tensor) -> tuple[int, int]:
    """How many lines repeat an earlier one, and the commonest distance to it."""
    order = torch.argsort(key, stable=True)
    ranked = key[order]
    same = (ranked[1:] == ranked[:-1]) & (ranked[1:] != 0)
    if not bool(same.any()):
        return 0, 0
    distance = (order[1:] - order[:-1])[same]
    return int(same.sum()), int(distance.mode().values)


def _copies(s: Sketch) -> Iterator[Finding]:
    """Rows or columns that repeat others, or their negatives."""
    if s.constant or s.constant_rows or s.grid == "int8":
        return  # lines of few levels are alike by chance
    for name, key in (("row", s.row_key), ("column", s.column_key)):
        n, distance = _repeated(key)
        if not n or (s.part.role in TABLES and n == 1):
            continue
        what = f"{n:,} of {len(key):,} {name}s repeat another, mostly the one {distance:,} before"
        what += " (or its negative)"
        advice = "a shard, head or expert was copied in place of its own values"
        if s.part.role in ("wte", "lm_head") and name == "row":
            advice = "tokens with equal rows start alike and learn alike only where data are alike"
        yield Finding(WARN, "copied-lines", s.part, what, advice, float(n))


def odd(s: Sketch, tests: int) -> Iterator[Finding]:
    """What independent values of one law do not do: odd lines, means, bounds, correlations.

    Args:
        s: a matrix that is neither constant nor broken.
        tests: rows and columns of the whole module, which are all tested.
    """
    limit = chance.limit(tests)
    odd_lines = _odd_lines(s, limit)
    yield from odd_lines
    yield from _clipped(s)
    if odd_lines:
        return  # what else is odd follows from them
    shifted = list(_shifted(s, limit))
    yield from shifted
    r, pairs = s.pairs
    rate = float(chance.of_correlation(torch.tensor(r), s.shape[1]))
    known = shifted or _repeats(s) or s.rank < s.sampled * 0.75
    if rate > chance.limit(pairs * tests) and not known:
        what = f"two of its rows correlate by {r:.2f}"
        advice = "rows were made from one another and start alike; draw each on its own"
        yield Finding(WARN, "correlated-rows", s.part, what, advice, r)


def _odd_lines(s: Sketch, limit: float) -> list[Finding]:
    """Rows or columns, whichever stand out more, of another size than the rest."""
    lines = {
        "row": (s.row_square - s.row_mean.square(), s.shape[1] - 1),
        "column": (s.column_square - s.column_mean.square(), s.shape[0] - 1),
    }
    found = [single for name, line in lines.items() if (single := _single(s, name, *line, limit))]
    if found:
        return [max(found, key=lambda pair: pair[0])[1]]
    return [f for name, line in lines.items() if (f := _piece(s, name, *line, limit))][:1]


def _single(
    s: Sketch, name: str, square: Tensor, n: int, limit: float
) -> tuple[float, Finding] | None:
    """Rows (or columns) that are each of another size, with the largest rate."""
    live = torch.nonzero(square > 0).flatten()
    if len(live) < 8 or n < 8:
        return None
    kept = square[live]
    # The median of χ²_n/n is (1 − 2/9n)³ (Wilson & Hilferty).
    ratio = kept / (kept.median() / (1 - 2 / (9 * n)) ** 3)
    rate = chance.of_variance(ratio, n)
    out = rate > limit
    count = int(out.sum())
    if not 0 < count <= len(live) // 2:
        return None
    factor = float(ratio[out].median().sqrt())
    where = spans(live[out].tolist())
    are = (
        f"{name} {where} is"
        if count == 1
        else f"{count:,} of {len(square):,} {name}s ({where}) are"
    )
    what = f"{are} {factor:.3g} times as large as the others"
    advice = "padding, a head or a stray value that was not drawn like the rest"
    return float(rate.max()), Finding(WARN, "odd-lines", s.part, what, advice, factor)


def _piece(s: Sketch, name: str, square: Tensor, n: int, limit: float) -> Finding | None:
    """A half, third, … or sixteenth of the rows (or columns) of another size than the whole."""
    kept = square[square > 0]
    for pieces in _SEGMENTS:
        if len(kept) < 2 * pieces:
            return None
        ratio = torch.stack([piece.mean() for piece in kept.tensor_split(pieces)]) / kept.mean()
        rate = chance.of_variance(ratio, n * (len(kept) // pieces))
        worst = int(rate.argmax())
        if float(rate[worst]) > limit:
            factor = float(ratio[worst].sqrt())
            what = f"piece {worst + 1} of {pieces} of its {name}s is {factor:.3g} times as large"
            what += " as the whole"
            advice = "a piece drawn by another law; draw all of it by one"
            return Finding(WARN, "odd-lines", s.part, what, advice, factor)
    return None


def _shifted(s: Sketch, limit: float) -> Iterator[Finding]:
    """A mean other than zero, of all values or along every row or column."""
    z = s.mean / s.std * s.size**0.5
    advice = "random weights have mean zero; look for an offset added after drawing"
    if chance.of_mean(z) > limit:
        what = f"its mean {s.mean:.3g} is {abs(z):.0f} standard errors from zero"
        yield Finding(WARN, "mean", s.part, what, advice, s.mean)
        return
    for name, mean, n in (
        ("column", s.column_mean, s.shape[0]),
        ("row", s.row_mean, s.shape[1]),
    ):
        # n·Σ mean² / σ² is χ² of as many degrees as there are means.
        ratio = (mean.square().mean() * n / s.std**2).double()
        if ratio > 1 and float(chance.of_variance(ratio, len(mean))) > limit and len(mean) > 7:
            what = f"the means of its {name}s scatter {float(ratio.sqrt()):.3g} times as much as "
            what += "those of independent values"
            shared = "its rows share a component" if name == "column" else "its rows are shifted"
            advice = f"{shared}: they start alike; draw each on its own"
            yield Finding(WARN, "correlated-rows", s.part, what, advice, float(ratio))
            return


def _clipped(s: Sketch) -> Iterator[Finding]:
    if s.at_bounds > MAX_AT_BOUND and s.grid != "int8":
        what = f"{s.at_bounds:.1%} of its values are {s.low:.3g} and as many {s.high:.3g}"
        advice = "clamped after drawing; to cut a normal law, redraw what lies beyond"
        yield Finding(WARN, "clipped", s.part, what, advice, s.at_bounds)


def stored_in(sketches: list[Sketch]) -> Iterator[Verdict]:
    """The 16-bit format of a module whose matrices all have it."""
    live = _told_formats(sketches)
    grids = sorted({s.grid for s in live})
    if live and set(grids) <= _FORMAT.keys():
        text = (
            f"every value of its {len(live)} matrices is exactly representable in "
            f"{' or '.join(_FORMAT[grid] for grid in grids)}: drawn or stored in it; keep master "
            "weights in float32 to train on from them"
        )
        yield Verdict(NOTE, "precision", text)


def cast(sketches: list[Sketch]) -> Iterator[Finding]:
    """Matrices whose values are all bf16 or float16 beside others that are not."""
    live = _told_formats(sketches)
    rounded = [s for s in live if s.grid in _FORMAT]
    for s in rounded if len(rounded) < len(live) else ():
        what = f"every value is exactly representable in {_FORMAT[s.grid]}"
        if s.part.role in TABLES:
            advice = "drawn or stored in it; keep master weights in float32 to train on from them"
            yield Finding(NOTE, "precision", s.part, what, advice)
        else:
            advice = "other matrices are not: it was cast and cast back; draw it in float32"
            yield Finding(WARN, "rounded", s.part, what, advice)


def _told_formats(sketches: list[Sketch]) -> list[Sketch]:
    """Matrices with values enough to tell the format that they were rounded to."""
    return [s for s in sketches if not s.vector and not s.broken and s.std > 0 and s.size >= 64]


_FORMAT = {"bf16": "bfloat16", "fp16": "float16"}
