"""What a lint keeps of a matrix: norms and means of its rows and columns, and short samples.

A sketch takes a few hundred kilobytes whatever the matrix, but for three numbers a row, so that a
model's matrices can pass one at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nanogpt_cli.init.tensor_stats import kurtosis
from nanogpt_cli.modules.anatomy import Part
from nanogpt_cli.modules.faults import chance
from nanogpt_cli.modules.faults.placed import is_grown, is_placed

PREFIX = 4096  # leading values that are compared between matrices
_CHUNK = 1 << 22  # values that are read at once
_SAMPLE_ROWS = 256
_SAMPLE = 1 << 18
_KEY_VALUES = 16  # of a row, that tell it from others
_GRID_ROWS = 8
_SMALLEST_NORMAL = 2.0**-126
_EVEN_LINES = 8  # whose norms are not alike by chance
# The 90 % quantile of χ²_1: a tenth of independent rows exceed it.
_TENTH = 2.706
# −ln of the chance that a matrix of independent values is called structured.
_STRUCTURED = 40.0


@dataclass
class Sketch:
    """One part of a module, measured.

    Attributes:
        part: which one.
        shape: (rows, columns); a vector is one row.
        broken: how many values are NaN or infinite. If any, only ``spread`` has a value of those
            below ``first_broken``.
        infinite: how many of them are infinite.
        first_broken: row of the first of them; -1 if there is none.
        mean, std, low, high: over all values.
        kurtosis: of the sample: 3 normal, 1.8 uniform.
        row_mean, column_mean: means of rows and columns, float64.
        row_square, column_square: mean squares, float64.
        row_key, column_key: equal for equal rows, and for rows of opposite sign; 0 for zero rows.
        zeros: share of values that are zero in rows and columns that are not zero throughout.
        subnormal: share of values that are not zero and below 2⁻¹²⁶.
        spread: log₂|x| from its 10 % to its 90 % quantile, of a sample; 3.7 for a normal law.
        grid: ``bf16``, ``fp16`` or ``int8`` if every sampled value is one; else empty.
        at_bounds: share of values equal to the minimum or to the maximum, the smaller of the two.
        rank: numerical rank of the sampled rows; ``sampled`` without deficiency.
        sampled: the largest rank that the sample can have.
        pairs: largest |correlation| between two sampled rows, and how many pairs there are.
        constant_rows: how many rows have one value throughout that is not zero.
        structured: whether rows, columns or directions differ more than independent values do.
        placed: whether they hold or compare positions by design (``placed``).
        grown: whether they have the empty rows of such queries or keys, and were trained since.
        prefix: the first values by rows, by columns, and of the first column alone, float32.
    """

    part: Part
    shape: tuple[int, int]
    broken: int = 0
    infinite: int = 0
    first_broken: int = -1
    mean: float = math.nan
    std: float = math.nan
    low: float = math.nan
    high: float = math.nan
    kurtosis: float = math.nan
    row_mean: Tensor = field(default_factory=lambda: torch.zeros(0))
    column_mean: Tensor = field(default_factory=lambda: torch.zeros(0))
    row_square: Tensor = field(default_factory=lambda: torch.zeros(0))
    column_square: Tensor = field(default_factory=lambda: torch.zeros(0))
    row_key: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    column_key: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    zeros: float = 0.0
    subnormal: float = 0.0
    spread: float = math.nan
    grid: str = ""
    at_bounds: float = 0.0
    rank: int = 0
    sampled: int = 0
    pairs: tuple[float, int] = (0.0, 0)
    constant_rows: int = 0
    structured: bool = False
    placed: bool = False
    grown: bool = False
    prefix: tuple[Tensor, ...] = ()

    @property
    def key(self) -> str:
        """The part's unique name."""
        return self.part.key

    @property
    def size(self) -> int:
        """Number of values."""
        return self.shape[0] * self.shape[1]

    @property
    def vector(self) -> bool:
        """Whether it is a gain, a bias or a scalar, and no matrix."""
        return self.shape[0] == 1

    @property
    def constant(self) -> bool:
        """Whether all values are the same finite number."""
        return not self.broken and self.low == self.high

    @property
    def zero(self) -> bool:
        """Whether all values are zero."""
        return self.constant and self.low == 0

    @property
    def reach(self) -> float:
        """The largest magnitude."""
        return max(-self.low, self.high)

    @property
    def uniform(self) -> bool:
        """Whether the values look uniform: kurtosis 1.8 ± its scatter, largest value √3 σ."""
        scatter = 0.05 + 6 / math.sqrt(min(self.size, _SAMPLE))
        return abs(self.kurtosis - 1.8) < scatter and self.reach < 1.8 * self.std

    @property
    def orthogonal(self) -> bool:
        """Whether it looks (semi-)orthogonal: the columns, or rows if fewer, have equal norms.

        Mean squares of n independent values scatter by √(2/n) for a normal law and by √(0.8/n) for
        a uniform one; those of an orthogonal matrix do so by rounding alone, also of bfloat16.
        """
        R, C = self.shape
        square, n = (self.column_square, R) if R >= C else (self.row_square, C)
        if self.std == 0 or self.grid == "int8" or len(square) < _EVEN_LINES:
            return False
        return float(square.std() / square.mean()) < 0.1 * math.sqrt(2 / n)

    @property
    def samples(self) -> int:
        """Number of values that ``kurtosis`` is of."""
        return sampled_rows(*self.shape) * self.shape[1]

    def live_rows(self) -> Tensor:
        """Indices of the rows that are not zero throughout."""
        return torch.nonzero(self.row_square > 0).flatten()


def sketch(part: Part, values: Tensor) -> Sketch:
    """Measure a part's values, (out, in) or (size,) float32 on the CPU, without keeping them."""
    values = values.detach().float()
    x = values.reshape(1, -1) if values.dim() < 2 else values
    found = Sketch(part, (x.shape[0], x.shape[1]))
    if not x.numel():
        return found
    _moments(found, x)
    if found.broken:
        found.spread = _spread(x[torch.isfinite(x)])
        return found
    if values.dim() < 2:
        _bits(found, x.flatten())
        return found
    found.row_key, found.column_key = keys(x), keys(x.T)
    found.prefix = _prefixes(x)
    found.placed = is_placed(part.role, x)
    empty = (found.row_square == 0).nonzero().flatten()
    found.grown = not found.placed and is_grown(part.role, empty, len(x))
    _sample(found, x)
    return found


def _moments(found: Sketch, x: Tensor) -> None:
    """Moments of rows and columns; float32 along a row or a chunk, float64 beyond."""
    R, C = x.shape
    step = max(1, _CHUNK // C)
    column_sum, column_square = torch.zeros(2, C, dtype=torch.float64)
    column_zeros = torch.zeros(C, dtype=torch.int64)
    # Made before the loop: small results between large temporary ones would leave holes in memory.
    row_sum, row_square = torch.zeros(2, R, dtype=torch.float64)
    by_row = torch.zeros(R, dtype=torch.int64)
    low, high = math.inf, -math.inf
    scratch = torch.empty(min(step, R), C)
    for start in range(0, R, step):
        chunk = x[start : start + step]
        rows = slice(start, start + len(chunk))
        smallest, largest = (float(bound) for bound in torch.aminmax(chunk))
        if not math.isfinite(smallest + largest):
            bad = ~torch.isfinite(chunk)
            if found.first_broken < 0:
                found.first_broken = start + int(bad.any(1).int().argmax())
            found.broken += int(bad.sum())
            found.infinite += int(torch.isinf(chunk).sum())
            continue
        low, high = min(low, smallest), max(high, largest)
        square = torch.square(chunk, out=scratch[: len(chunk)])
        row_sum[rows] = chunk.sum(1).double()
        row_square[rows] = square.sum(1).double()
        column_sum += chunk.sum(0).double()
        column_square += square.sum(0).double()
        empty = chunk == 0
        by_row[rows] = empty.sum(1)
        column_zeros += empty.sum(0)
    if found.broken:
        return
    found.low, found.high = low, high
    found.row_mean, found.row_square = row_sum / C, row_square / C
    found.column_mean, found.column_square = column_sum / R, column_square / R
    found.mean = float(found.row_mean.mean())
    found.std = math.sqrt(max(0.0, float(found.row_square.mean()) - found.mean**2))
    if found.low == found.high:
        found.mean, found.std = found.low, 0.0
    live = (int((by_row < C).sum()), int((column_zeros < R).sum()))
    dead = R * C - live[0] * live[1]
    found.zeros = max(0, int(by_row.sum()) - dead) / max(1, live[0] * live[1])


def keys(x: Tensor) -> Tensor:
    """A number for each row, equal for equal rows and for negated ones; 0 for rows of zeros.

    It is a hash of the bits of 16 of a row's values, times the sign of the first that is not zero.
    Narrow rows have too few values to tell them apart, and get numbers of their own.
    """
    R, C = x.shape
    if C < 4:
        return torch.arange(1, R + 1)
    step = max(1, C // _KEY_VALUES)
    few = x[:, ::step][:, :_KEY_VALUES].contiguous()
    first = few.gather(1, (few != 0).int().argmax(1, keepdim=True))
    few = few * torch.where(first < 0, -1.0, 1.0) + 0.0  # +0.0 makes −0 zero
    bits = few.view(torch.int32).long()
    odd = torch.randint(1 << 60, (few.shape[1],), generator=torch.Generator().manual_seed(1)) * 2
    return (bits * (odd + 1)).sum(1)


def _prefixes(x: Tensor) -> tuple[Tensor, ...]:
    """The first values in the order of rows, of columns, and of the first column alone."""
    rows = -(-PREFIX // x.shape[1])
    columns = -(-PREFIX // x.shape[0])
    by_row = x[:rows].reshape(-1)[:PREFIX]
    by_column = x[:, :columns].T.reshape(-1)[:PREFIX]
    return by_row.clone(), by_column.clone(), x[:PREFIX, 0].clone()


def sampled_rows(rows: int, columns: int) -> int:
    """How many rows of a matrix are looked at in detail."""
    return max(2, min(_SAMPLE_ROWS, _SAMPLE // columns, rows))


def _sample(found: Sketch, x: Tensor) -> None:
    """Figures that need a matrix of some rows."""
    R, C = x.shape
    n = sampled_rows(R, C)
    half = R // 2
    chosen = torch.arange(R) if n >= R else torch.arange(n // 2) * (half // (n // 2))
    if n < R:  # a row and its counterpart in the other half, where a shard is repeated
        chosen = torch.cat([chosen, chosen + half])
    rows = x[chosen]
    _bits(found, rows.flatten())
    found.kurtosis = kurtosis(rows.flatten()) if found.std > 0 else math.nan
    spans = rows.amax(1) - rows.amin(1)
    share = float(((spans == 0) & (rows[:, 0] != 0)).double().mean())
    found.constant_rows = round(share * R) if found.std > 0 and C > 1 else 0
    live = rows[spans > 0]
    if C >= 32 and len(live) and all(_on_integers(row) for row in live[:_GRID_ROWS]):
        found.grid = "int8"
    if len(live) > 1:
        _directions(found, live.double())
    found.structured = found.structured or _uneven(found)


def _bits(found: Sketch, values: Tensor) -> None:
    """Which formats could hold all values, and whether bits are those of numbers at all."""
    size = values.abs()
    live = size[size > 0]
    if not len(live) or found.constant:
        return
    found.subnormal = float((live < _SMALLEST_NORMAL).double().sum()) / len(values)
    found.spread = _spread(live)
    at = [int((values == end).sum()) - 1 for end in (found.low, found.high)]
    found.at_bounds = min(at) / len(values)  # the bound itself is one value, not a heap
    if bool((values.contiguous().view(torch.int32) & 0xFFFF == 0).all()):
        found.grid = "bf16"
    elif bool((values.half().float() == values).all()):
        found.grid = "fp16"


def _spread(values: Tensor) -> float:
    few = values[:: max(1, len(values) // PREFIX)].double().abs()
    few = few[few > 0].log2()
    if not len(few):
        return 0.0
    low, high = torch.quantile(few, torch.tensor([0.1, 0.9], dtype=torch.float64)).tolist()
    return float(high - low)


def _on_integers(row: Tensor) -> bool:
    """Whether a row's values are at most 127 steps of one size from zero, as of int8.

    The smallest gap between 32 or more independent values is below 1/127 of the largest.
    """
    levels = torch.unique(torch.cat([torch.zeros(1), row])).double()
    if len(levels) < 2:
        return True
    gap = float((levels[1:] - levels[:-1]).min())
    steps = row.double() / gap
    return float(steps.abs().max()) <= 127.5 and bool(((steps - steps.round()).abs() < 0.01).all())


def _directions(found: Sketch, rows: Tensor) -> None:
    """Rank, correlations and largest singular value of some rows (N, C), float64."""
    N, C = rows.shape
    found.sampled = min(N, C)
    gram = rows @ rows.T
    values = torch.linalg.eigvalsh(gram)
    # Rounding to float32 leaves singular values of 1e-7 of the largest; their squares are compared.
    found.rank = int((values > 1e-11 * values[-1]).sum())
    norms = gram.diagonal().sqrt()
    cosine = (gram / torch.outer(norms, norms)).fill_diagonal_(0)
    found.pairs = (float(cosine.abs().max()), N * (N - 1) // 2)
    # Davidson & Szarek 2001: P(s > σ(√N + √C + t)) ≤ exp(−t²/2) for independent normal values.
    sigma = float(gram.diagonal().median() / C) ** 0.5
    edge = math.sqrt(N) + math.sqrt(C) + math.sqrt(2 * _STRUCTURED)
    found.structured = float(values[-1]) ** 0.5 > sigma * edge


def _uneven(found: Sketch) -> bool:
    """Whether too many rows or columns differ in size or mean; a few odd ones do not count.

    n·(r − 1 − ln r) of a mean square r over n values, and z² of a mean, are close to χ²_1.
    """
    R, C = found.shape
    if found.std == 0 or min(R, C) < 8:
        return False
    variance = float(found.row_square[found.live_rows()].median())
    figures = []
    for n, square, mean in (
        (C, found.row_square, found.row_mean),
        (R, found.column_square, found.column_mean),
    ):
        figures.append(2 * chance.of_variance(square / square.median(), n))
        figures.append((mean - found.mean).square() * n / variance)
    return any(
        # 0.13 instead of 0.1: for few values the tail is heavier than that of χ²_1.
        chance.of_share(float((f > _TENTH).double().mean()), 0.13, len(f)) > _STRUCTURED
        for f in figures
    )
