"""A module's graph in a few plain lines."""

from __future__ import annotations

from itertools import groupby

from nanogpt_cli.modules.anatomy import Part
from nanogpt_cli.modules.graph.stream import Watched
from nanogpt_cli.printable import printable

_ATTENTION = ("q", "k", "v", "qk_norm", "attn_proj")
_MLP = ("router", "gate", "fc", "mlp_proj")


def describe(anatomy: Watched) -> list[str]:
    """The graph that was found, with equal blocks in a row folded into one line.

    ::

        embedding (wte, wpe), 768 channels
        12 × [norm → attn (q, k, v, attn_proj) → + → norm → mlp (fc, mlp_proj) → +]  (transformer.h.0 … transformer.h.11)
        norm → head (tied)
    """  # noqa: E501
    tables = [role for role in ("wte", "wpe") if anatomy.of_role(role)]
    first = _chain(_before(anatomy))
    lines = [f"embedding ({', '.join(tables)}){first}, {anatomy.width} channels"]
    bodies = [_body(anatomy, layer) for layer in range(len(anatomy.blocks))]
    layer = 0
    for body, group in groupby(bodies):
        count = len(list(group))
        first, last = anatomy.blocks[layer], anatomy.blocks[layer + count - 1]
        paths = first if first == last else f"{first} … {last}"
        times = f"{count} × " if count > 1 else ""
        lines.append(f"{times}[{body}]" + (f"  ({printable(paths, keep='')})" if paths else ""))
        layer += count
    return [*lines, _end(anatomy)]


def _before(anatomy: Watched) -> list[str]:
    """What happens to the stream before the blocks, other than adding tables."""
    words = []
    for layer, word in anatomy.steps:
        if layer >= 0:
            break
        if word != "embed":
            words.append(word)
    return words


def _chain(words: list[str]) -> str:
    return "".join(f" → {word}" for word in words)


def _body(anatomy: Watched, layer: int) -> str:
    parts = [part for part in anatomy.parts if part.layer == layer]
    words: list[str] = []
    for _, word in (step for step in anatomy.steps if step[0] == layer):
        if word == "norm":
            words.append(word)
            continue
        how, _, kind = word.rpartition(" ")
        if how == "parallel" and len(words) > 1:
            words[-2] += f" and {_branch(kind, parts)}"
        else:
            words += [_branch(kind, parts), *(["norm"] if how == "normed" else []), "+"]
    return " → ".join(words)


def _branch(kind: str, parts: list[Part]) -> str:
    """A branch with the roles of its matrices."""
    if kind == "both":
        return f"{_branch('attn', parts)} and {_branch('mlp', parts)}"
    known = {"attn": _ATTENTION, "mlp": _MLP}.get(kind, ())
    if kind == "embed":
        return "embedding"
    roles = [role for role in known if any(part.role == role for part in parts)]
    return f"{kind} ({', '.join(roles)})" if roles else kind


def _end(anatomy: Watched) -> str:
    """What follows the last block."""
    words: list[str] = []
    for layer, word in reversed(anatomy.steps):
        if layer >= 0:
            break
        words.insert(0, word)
    head = "head (tied)" if anatomy.tied else "head"
    return " → ".join([*words, head if anatomy.head else "no head"])
