"""Matrices of one module that are not independent: copies, and the same random numbers twice."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from nanogpt_cli.init.lint import WARN, Verdict
from nanogpt_cli.modules.faults import chance
from nanogpt_cli.modules.faults.finding import blocks
from nanogpt_cli.modules.faults.sketch import PREFIX, Sketch


@dataclass(frozen=True)
class Link:
    """Two matrices that share values.

    Attributes:
        a, b: the matrices, in the module's order.
        r: correlation of their leading values.
        rows: how many rows of the smaller one occur in the other, as they are or negated.
    """

    a: Sketch
    b: Sketch
    r: float
    rows: int

    @property
    def equal(self) -> bool:
        """Whether they have all rows of the smaller one in common."""
        return self.rows >= 0.99 * min(self.a.shape[0], self.b.shape[0])

    @property
    def means(self) -> str:
        """In what way they agree, for a sentence."""
        if not self.rows:
            return f"correlate by {self.r:.2f}"
        n = min(self.a.shape[0], self.b.shape[0])
        sign = " up to the sign" if self.r < -0.5 else ""
        return f"are equal{sign}" if self.equal else f"have {self.rows:,} of {n:,} rows in common"


def on_pairs(sketches: list[Sketch], *, tied: bool, start: bool) -> list[Verdict]:
    """Judge every pair of matrices.

    Args:
        sketches: those of the module.
        tied: whether head and token embedding are one tensor, whose pair is then not judged.
        start: whether the weights are a start, whose matrices are independent; trained ones may
            correlate, but not be copies.
    """
    live = [s for s in sketches if not s.vector and not s.broken and s.std > 0 and not _flat(s)]
    if tied:
        live = [s for s in live if s.part.role != "lm_head"]
    found = {(x.a.key, x.b.key): x for x in _correlated(live, start=start)}
    rows = _common_rows(live)
    for (i, j), n in rows.items():
        a, b = live[i], live[j]
        r = found[a.key, b.key].r if (a.key, b.key) in found else 0.0
        found[a.key, b.key] = Link(a, b, r, n)
    return list(_worded(list(found.values()))) + list(_turned(live))


def _flat(s: Sketch) -> bool:
    """Whether rows of one value make its row keys meaningless."""
    return s.constant_rows > s.shape[0] // 2


def _correlated(live: list[Sketch], *, start: bool) -> Iterator[Link]:
    """Pairs whose leading values correlate, in the order of rows, of columns, or of one column."""
    pairs = max(1, 3 * len(live) * (len(live) - 1) // 2)
    seen = set()
    for order in range(3):
        x, mask = torch.zeros(2, len(live), PREFIX)
        for i, s in enumerate(live):
            values = s.prefix[order]
            there = (values != 0).float()  # two heads of zeros are not copies of each other
            x[i, : len(values)] = (values - s.mean) / s.std * there
            mask[i, : len(values)] = there
        shared, square = mask @ mask.T, x.square() @ mask.T
        r = (x @ x.T) / (square * square.T).sqrt().clamp_min(1e-30)
        rate = chance.of_correlation(r.clamp(-1, 1), shared)
        hit = (rate > chance.limit(pairs)) & (r.abs() > (0.0 if start else 0.95))
        for i, j in torch.nonzero(hit.triu(1)).tolist():
            if live[i].grown and live[j].grown:
                continue  # they began as the same comparison
            if (i, j) not in seen:
                seen.add((i, j))
                yield Link(live[i], live[j], float(r[i, j]), 0)


def _told(s: Sketch, keys: Tensor, length: int) -> Tensor:
    """The different keys of lines that are not zero, if lines of this length can be told apart."""
    # Lines of few levels are alike by chance in the values that are compared.
    return torch.unique(keys[keys != 0]) if length >= 4 and s.grid != "int8" else keys[:0]


def _turned(live: list[Sketch]) -> Iterator[Verdict]:
    """Matrices of the blocks whose rows are the columns of another one."""
    group = [s for s in live if s.part.layer >= 0]
    if not group:
        return
    rows = [_told(s, s.row_key, s.shape[1]) for s in group]
    columns = [_told(s, s.column_key, s.shape[0]) for s in group]
    # A line that is both a row and a column is rare: a sound model has no pair to be compared.
    common = torch.cat(rows)
    common = common[torch.isin(common, torch.cat(columns))]
    first, second = (
        [i for i, keys in enumerate(lines) if bool(torch.isin(keys, common).any())]
        for lines in (rows, columns)
    )
    found = [
        (group[i], group[j])
        for i, j in product(first, second)
        if group[i].shape[1] == group[j].shape[0]
        and group[i].part.parameter != group[j].part.parameter
        and _are_same(rows[i], columns[j])
    ]
    if found:
        a, b = found[0]
        layers = {s.part.layer for pair in found for s in pair}
        text = (
            f"{a.key} and {b.key} are equal but for a transposition, in {blocks(layers)}: share "
            "one parameter if that is meant, or draw each on its own"
        )
        yield Verdict(WARN, "transposed-copy", text, float(len(found)))


def _are_same(rows: Tensor, columns: Tensor) -> bool:
    common = int(torch.isin(rows, columns).sum())
    return common > 1 and common >= 0.99 * min(len(rows), len(columns))


def _common_rows(live: list[Sketch]) -> dict[tuple[int, int], int]:
    """How many different rows occur in both of two matrices, by their indices."""
    distinct = [_told(s, s.row_key, s.shape[1]) for s in live]
    if not distinct:
        return {}
    owner = torch.cat([torch.full((len(k),), i) for i, k in enumerate(distinct)])
    keys, order = torch.cat(distinct).sort(stable=True)
    owner = owner[order]
    found: dict[tuple[int, int], int] = {}
    for gap in range(1, len(live)):
        same = keys[gap:] == keys[:-gap]
        if not bool(same.any()):
            break
        pairs = torch.stack([owner[:-gap][same], owner[gap:][same]], 1)
        kinds, counts = torch.unique(pairs, dim=0, return_counts=True)
        for (i, j), n in zip(kinds.tolist(), counts.tolist(), strict=True):
            found[i, j] = found.get((i, j), 0) + n
    return {pair: n for pair, n in found.items() if n > 1 or len(distinct[pair[0]]) == 1}


def _worded(links: list[Link]) -> Iterator[Verdict]:
    """One verdict for each kind of pair, named by what the pairs have in common."""
    kinds: dict[str, list[Link]] = {}
    for link in links:
        kinds.setdefault(_kind(link), []).append(link)
    seeds = kinds.get("one-seed", [])
    if len({s.part.role for x in seeds for s in (x.a, x.b)}) > 3:
        kinds = {"one-seed": links, "untied-copy": kinds.get("untied-copy", [])}
        kinds["one-seed"] = [x for x in links if _kind(x) != "untied-copy"]
    for kind, group in kinds.items():
        if group:
            yield _WORDING[kind](group)


def _kind(link: Link) -> str:
    a, b = link.a.part, link.b.part
    roles = {a.role, b.role}
    if roles == {"wte", "lm_head"}:
        return "untied-copy" if link.rows else "one-seed"
    if roles == {"wte", "wpe"}:
        return "wpe-copy"
    if a.layer != b.layer and a.role == b.role and a.layer >= 0 <= b.layer:
        return "block-copies"
    if a.layer == b.layer and a.role == b.role:
        return "expert-copies"
    if a.layer == b.layer and roles <= {"q", "k", "v"}:
        return "qkv-copies"
    return "one-seed"


def _strongest(group: list[Link]) -> Link:
    return max(group, key=lambda link: (link.rows, abs(link.r)))


def _pair(group: list[Link], topic: str, advice: str) -> Verdict:
    link = _strongest(group)
    layers = {s.part.layer for x in group for s in (x.a, x.b) if s.part.layer >= 0}
    place = f", as in {blocks(layers)}" if len(layers) > 1 else ""
    text = f"{link.a.key} and {link.b.key} {link.means}{place}: {advice}"
    return Verdict(WARN, topic, text, float(link.rows or link.r))


def _untied(group: list[Link]) -> Verdict:
    advice = "two tensors where one was meant (copied, or resized apart)? tie them again"
    return _pair(group, "untied-copy", advice)


def _positions(group: list[Link]) -> Verdict:
    return _pair(group, "wpe-copy", "positions look like tokens; draw them on their own")


def _experts(group: list[Link]) -> Verdict:
    advice = "copies get the same gradients while routing is even; draw each, or add noise"
    return _pair(group, "expert-copies", advice)


def _attention(group: list[Link]) -> Verdict:
    advice = "one was copied from the other, or both drawn from one seed; draw each on its own"
    return _pair(group, "qkv-copies", advice)


def _blocks(group: list[Link]) -> Verdict:
    layers = {s.part.layer for x in group for s in (x.a, x.b)}
    roles = list(dict.fromkeys(x.a.part.role for x in group))
    link = _strongest(group)
    text = (
        f"{blocks(layers)} {link.means} in {', '.join(roles)} ({link.a.key}, {link.b.key}): "
        "one block was deep-copied, loaded twice, or drawn from one seed; draw each on its own"
    )
    return Verdict(WARN, "block-copies", text, float(link.rows or link.r))


def _seeds(group: list[Link]) -> Verdict:
    members: Iterable[str] = dict.fromkeys(s.key for x in group for s in (x.a, x.b))
    advice = "the seed was set again before each; set it once"
    link = _strongest(group)
    text = (
        f"{link.a.key} and {link.b.key} {link.means}; {len(list(members))} matrices share random "
        f"numbers: {advice}"
    )
    return Verdict(WARN, "one-seed", text, link.r)


_WORDING = {
    "untied-copy": _untied,
    "wpe-copy": _positions,
    "block-copies": _blocks,
    "expert-copies": _experts,
    "qkv-copies": _attention,
    "one-seed": _seeds,
}


def fused_orthogonal(sketches: list[Sketch]) -> Iterator[Verdict]:
    """q, k and v that are orthogonal together, so that none of them is by itself.

    The columns of a tall orthogonal matrix of gain g have norm g exactly; those of a part do not.
    """
    layers: dict[int, dict[str, Sketch]] = {}
    for s in sketches:
        if s.part.role in ("q", "k", "v") and not s.broken and s.std > 0:
            layers.setdefault(s.part.layer, {})[s.part.role] = s
    hit = [i for i, parts in layers.items() if len(parts) == 3 and _jointly(list(parts.values()))]
    if hit:
        text = (
            f"q, k and v are one orthogonal matrix in {blocks(hit)}: orthogonal_ was applied to "
            "the fused weight; each is 0.58 times as large as by itself, and q·k is not random"
        )
        yield Verdict(WARN, "fused-orthogonal", text)


def _jointly(parts: list[Sketch]) -> bool:
    def even(norms: Tensor) -> bool:
        return float(norms.std() / norms.mean()) < 1e-4

    norms = [s.column_square * s.shape[0] for s in parts]
    if len({len(n) for n in norms}) > 1 or len(norms[0]) < 2:
        return False
    return even(torch.stack(norms).sum(0)) and not any(even(n) for n in norms)
