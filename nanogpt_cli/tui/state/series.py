"""Growing columns of numbers, and smoothing that does not depend on the zoom."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
# Rows that are appended at once, as they are while a long log is read. What is derived from them
# then follows at once, lest a page that was not drawn meanwhile has to catch up when it is opened.
MANY = 512


class Columns:
    """Columns of equal length that grow at the end; indexing gives a view, not a copy."""

    def __init__(self, **dtypes: str) -> None:
        # They grow by half, but never all at once, which would take 40 ms with a million rows.
        part = 1 / max(1, len(dtypes))
        self._store = {
            name: np.empty(round(256 * 1.5 ** (place * part)), dtype)
            for place, (name, dtype) in enumerate(dtypes.items())
        }
        self._length = 0
        self._extremes: dict[str, Extremes] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, name: str) -> Floats:
        return self._store[name][: self._length]

    def extend(self, rows: Mapping[str, NDArray[Any]]) -> None:
        """Append the values in ``rows`` to every column."""
        added = len(next(iter(rows.values())))
        end = self._length + added
        for name, store in self._store.items():
            if end > (size := len(store)):
                while size < end:
                    size = size * 3 // 2
                grown = np.empty(size, store.dtype)
                grown[: self._length] = store[: self._length]
                self._store[name] = store = grown
            store[self._length : end] = rows[name]
        self._length = end
        if added >= MANY:
            for name in self._extremes:
                self.extremes(name)

    def truncate(self, length: int) -> None:
        """Drop all rows from ``length`` on."""
        self._length = min(self._length, max(0, length))
        for extremes in self._extremes.values():
            extremes.truncate(self._length)

    def keep(self, index: NDArray[np.intp]) -> None:
        """Keep only the rows at ``index`` (ascending)."""
        for store in self._store.values():
            store[: len(index)] = store[index]
        self._length = len(index)
        self._extremes.clear()

    def extremes(self, name: str) -> Extremes:
        """The extremes of a column, of which only the new part is made."""
        found = self._extremes.setdefault(name, Extremes())
        found.update(self[name])
        return found


class Extremes:
    """Smallest and largest finite value of each ``BLOCK`` rows of a growing column.

    They let a chart of a million points be drawn without looking at most of them. Rows that do not
    fill a block yet are left out; a block without a finite value has NaN.
    """

    BLOCK = 64

    def __init__(self) -> None:
        self._blocks = Columns(low="f8", high="f8", broken="?", endless="?")

    def __len__(self) -> int:
        return len(self._blocks)

    def __getitem__(self, name: str) -> Floats:
        """``low``, ``high``, whether a value is not finite (``broken``) or -inf (``endless``)."""
        return self._blocks[name]

    def update(self, column: Floats) -> None:
        """Take in what is new in the column."""
        old, new = len(self), len(column) // self.BLOCK
        if new <= old:
            return
        part = column[old * self.BLOCK : new * self.BLOCK].reshape(-1, self.BLOCK)
        finite = np.isfinite(part)
        sound = np.asarray(finite.all(1))
        part = part if sound.all() else np.where(finite, part, np.nan)
        endless = np.isneginf(column[old * self.BLOCK : new * self.BLOCK].reshape(part.shape))
        self._blocks.extend({
            "low": np.fmin.reduce(part, 1), "high": np.fmax.reduce(part, 1),
            "broken": ~sound, "endless": np.asarray(endless.any(1)),
        })  # fmt: skip

    def truncate(self, length: int) -> None:
        """Follow a ``Columns.truncate`` of the column."""
        self._blocks.truncate(length // self.BLOCK)


class Smoothed:
    """Debiased exponential moving average of a growing column, with O(1) work per new point.

    ``ema_t = n_t / d_t`` with ``n_t = beta n_{t-1} + (1 - beta) x_t`` over the finite ``x`` and
    ``d_t`` the same recursion over ones, which corrects the bias of starting at zero exactly (as in
    Adam, arXiv 1412.6980, section 3). A non-finite point does not change the average.
    """

    BLOCK = 64

    def __init__(self, beta: float) -> None:
        self.beta = beta
        self.values = Columns(ema="f4")
        self._carry = (0.0, 0.0)
        power = np.arange(self.BLOCK)
        lag = power[:, None] - power[None, :]
        # Within a block the recursion is one triangular matrix product.
        self._kernel = np.where(lag >= 0, (1 - beta) * beta ** np.maximum(lag, 0.0), 0.0)
        self._decay = beta ** (power + 1.0)

    def update(self, column: Floats) -> Floats:
        """The average over ``column``, of which only the new part is processed."""
        if len(column) < len(self.values):
            self.values.truncate(0)
            self._carry = (0.0, 0.0)
        new = np.asarray(column[len(self.values) :], np.float64)
        if len(new):
            self.values.extend({"ema": self._filter(new)})
        return self.values["ema"]

    def _filter(self, new: Floats) -> Floats:
        finite = np.isfinite(new)
        pair = np.stack([np.where(finite, new, 0.0), finite.astype(np.float64)])
        blocks = -(-len(new) // self.BLOCK)
        padded = np.zeros((2, blocks * self.BLOCK))
        padded[:, : len(new)] = pair
        flat = padded.reshape(2 * blocks, self.BLOCK) @ self._kernel.T  # one BLAS call
        inside = flat.reshape(2, blocks, self.BLOCK)
        numerator, denominator = self._carry
        carries = np.empty((2, blocks))
        last = self._decay[-1]
        for index, (ends_n, ends_d) in enumerate(zip(*inside[:, :, -1].tolist(), strict=True)):
            carries[:, index] = numerator, denominator
            numerator = numerator * last + ends_n
            denominator = denominator * last + ends_d
        full = (inside + carries[:, :, None] * self._decay).reshape(2, -1)[:, : len(new)]
        self._carry = (float(full[0, -1]), float(full[1, -1]))
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.asarray(full[0] / full[1])

    def keep(self, index: NDArray[np.intp]) -> None:
        """Follow a ``Columns.keep`` of the smoothed column without disturbing the average."""
        if len(self.values):
            self.values.keep(index)


class Table(Protocol):
    """Columns of equal length."""

    def __len__(self) -> int: ...

    def __getitem__(self, name: str) -> Floats: ...


def thin(columns: Table, by: tuple[str, ...], group: int = 16) -> NDArray[np.intp]:
    """Indices of the rows to keep, about half of them, such that every group keeps its extremes.

    Of ``group`` neighbours, those with the smallest and largest value in each column of ``by`` are
    kept (real rows, no averages). Both ends and rows with non-finite values are always kept.
    """
    count = len(columns) // group * group
    keep = np.zeros(len(columns), bool)
    keep[count:] = True
    keep[:1] = keep[-1:] = True
    rows = np.arange(count // group) * group
    for name in by:
        values = columns[name][:count].reshape(-1, group)
        finite = np.isfinite(values)
        keep[rows + np.where(finite, values, np.inf).argmin(1)] = True
        keep[rows + np.where(finite, values, -np.inf).argmax(1)] = True
        keep[:count] |= ~finite.reshape(-1)
    return np.flatnonzero(keep)


def robust_range(parts: list[Floats]) -> tuple[float, float] | None:
    """The 2 to 98 percent range of all finite values, ``None`` when there are none."""
    values = np.concatenate([p[np.isfinite(p)] for p in parts]) if parts else np.empty(0)
    if not len(values):
        return None
    low, high = np.quantile(values, [0.02, 0.98])
    return float(low), float(high)
