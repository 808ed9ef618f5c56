"""Which operations are one kernel, and what kernels read and write.

What a compiler makes one kernel of is counted as one:

- A product of matrices or an attention is a kernel of its own. It reads its operands and writes its
  results once.
- All other operations that follow from each other without a product between them are one kernel. It
  reads once what comes from outside and writes once what is needed outside.
- A sum over more than ``LONG`` values ends a kernel, since it must be complete before what is made
  of it begins; that reads again.
- Views cost nothing; a number made wider is read as the narrow one it was.
- Optimizers are not compiled, so there each operation is a kernel.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import torch

# Values of a row that a kernel can keep; Inductor's limit for rows.
LONG: Final = 1024


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Attributes:
        part: of the step, a name of ``traffic.py``.
        kind: "product", "attention" or "memory".
        flops: of products; those of other operations never count.
        bytes: read and written.
    """

    part: str
    kind: str
    flops: float
    bytes: int


@dataclass
class Value:
    """A tensor's content between two writes to it.

    Attributes:
        level: the largest number of kernels that must be complete before it can be read.
        maker: number of the operation that wrote it; -1 for what was there before.
        backward: whether the backward pass, or what follows it, wrote it.
        wider_than: the value with fewer bytes that has the same numbers.
        readers: numbers of the operations that read it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    bytes: int
    level: int = 0
    maker: int = -1
    backward: bool = False
    wider_than: Value | None = None
    readers: set[int] = field(default_factory=set)


@dataclass
class Node:
    """One operation.

    Attributes:
        fused: whether it may share a kernel.
        level: the highest of what it reads.
        reads: each distinct view (value, offset, size) with its bytes.
    """

    part: str
    kind: str
    fused: bool
    backward: bool
    level: int
    flops: float
    reads: dict[tuple[int, int, int], tuple[Value, int]]
    writes: list[Value]


def fuse(operations: Sequence[Node], kept: set[int]) -> list[Kernel]:
    """The kernels of operations in their order; what leaves no result is left out.

    Where operations of several parts are one kernel, each part has a kernel of its own traffic.

    Args:
        operations: in their order.
        kept: ``id`` of the values that are results.
    """
    group = _groups(operations)
    members: dict[int, list[Node]] = defaultdict(list)
    for index, node in enumerate(operations):
        members[group[index]].append(node)
    found = []
    for number, nodes in members.items():
        read: dict[tuple[int, int, int], tuple[str, int]] = {}
        written: list[tuple[str, int]] = []
        own = {id(value) for node in nodes for value in node.writes}
        for node in nodes:
            for key, (value, size) in node.reads.items():
                if id(value) not in own or not node.fused:
                    read.setdefault(key, (node.part, size))
            for value in node.writes:
                needed = any(group[reader] != number for reader in value.readers)
                if not node.fused or id(value) in kept or needed:
                    written.append((node.part, value.bytes))
        moved: dict[str, int] = defaultdict(int)
        for part, size in [*read.values(), *written] if written else ():
            moved[part] += size
        flops = sum(node.flops for node in nodes)  # of one node, if any
        found += [Kernel(part, nodes[0].kind, flops, size) for part, size in moved.items()]
    return found


def _groups(operations: Sequence[Node]) -> list[int]:
    """The group of each operation, named by one of its members.

    Operations of one level that follow from each other share a kernel, so no kernel waits for
    itself.
    """
    group = list(range(len(operations)))

    def root(index: int) -> int:
        while group[index] != index:
            group[index] = group[group[index]]
            index = group[index]
        return index

    for index, node in enumerate(operations):
        for value, _ in node.reads.values():
            if value.maker < 0 or not node.fused:
                continue
            maker = operations[value.maker]
            if (maker.fused, maker.backward, maker.level) == (True, node.backward, node.level):
                group[root(index)] = root(value.maker)
    return [root(index) for index in range(len(operations))]
