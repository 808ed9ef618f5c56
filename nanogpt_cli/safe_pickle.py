"""Checking a pickle without executing it.

A pickle is a program. ``scan`` simulates its instructions on the sizes of values instead of the
values: every name it would import must be on an allow-list, and what it would build must not be far
larger than the file. nanoGPT's ``meta.pkl`` imports nothing, so ``load_plain`` allows no import.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from nanogpt_cli import foreign_files, parsing
from nanogpt_cli.errors import UserError, in_words

# The largest vocabulary of characters takes 2 MB and 330,000 instructions, the description of GPT-2
# XL's weights and their optimizer 0.3 MB and 50,000.
LARGEST: Final = 1 << 23
_MOST_INSTRUCTIONS: Final = 1 << 19
# The size of a string is its length, that of anything else 1 plus the sizes of what it holds.
_LARGEST_VALUE: Final = 1 << 24
# Instructions that import code other than by a plain name, read beyond the file, or alias a value
# in a way that the simulation would not notice.
_FORBIDDEN: Final = frozenset(
    {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID",
     "NEXT_BUFFER", "READONLY_BUFFER", "DUP"}
)  # fmt: skip
_PUT: Final = frozenset({"LONG_BINPUT", "PUT", "BINPUT", "MEMOIZE"})
_GET: Final = frozenset({"LONG_BINGET", "GET", "BINGET"})
# These add what lies above a container on the stack to that container.
_GROW: Final = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
_LACKING: Final = "an instruction lacks the values it works on"


def scan(data: bytes, source: str, allowed: Collection[str] = ()) -> int:
    """Check every instruction of a pickle; returns its length, which may be less than the data's.

    Args:
        data: the pickle.
        source: its file, for messages.
        allowed: names it may import, as "module name".

    Raises:
        UserError: it imports another name, is damaged, is larger than ``LARGEST``, or would build
            something far larger than itself.
    """
    if len(data) > LARGEST:
        raise UserError(
            f"{source}: a pickle of {len(data):,} bytes is larger than any that is read"
        )
    simulation, stream = _Simulation(), io.BytesIO(data)
    try:
        for count, found in enumerate(pickletools.genops(stream)):
            opcode, argument, position = found
            if opcode.name == "GLOBAL" and argument not in allowed:
                raise _refused(source, f"imports {argument!r:.80}", position)
            if opcode.name in _FORBIDDEN:
                raise _refused(source, f"uses the instruction {opcode.name}", position)
            if opcode.name in _PUT and not 0 <= int(argument or 0) <= len(data):
                raise _refused(source, "asks for a memo larger than itself", position)
            if problem := simulation.step(opcode, argument):
                raise _refused(source, problem, position)
            if count >= _MOST_INSTRUCTIONS:
                raise _refused(source, f"goes on after {count:,} instructions", position)
    except UserError:
        raise
    except (LookupError, TypeError):
        raise UserError(f"{source} is not a readable pickle: {_LACKING}") from None
    except Exception as error:  # genops raises whatever decoding raises
        raise UserError(f"{source} is not a readable pickle: {in_words(error)}") from None
    return stream.tell()


class _Value:
    """Stands for a value: its size, its depth, and whether it was fetched from the memo."""

    __slots__ = ("depth", "fetched", "size")

    def __init__(self, size: int = 1, depth: int = 0) -> None:
        self.size = size
        self.depth = depth
        self.fetched = False

    def hold(self, others: list[_Value]) -> None:
        for other in others:
            self.size += other.size
            self.depth = max(self.depth, other.depth + 1)


class _Simulation:
    """The unpickler's stack and memo, with sizes instead of values."""

    def __init__(self) -> None:
        self._mark = _Value()
        self._stack: list[_Value] = []
        self._memo: dict[int, _Value] = {}

    def step(self, opcode: pickletools.OpcodeInfo, argument: Any) -> str:
        """Simulate one instruction; returns what is wrong with it, or an empty string."""
        if opcode.name in _PUT:
            key = len(self._memo) if opcode.name == "MEMOIZE" else int(argument)
            self._memo[key] = self._stack[-1]
            return ""
        if opcode.name in _GET:
            value = self._memo[int(argument)]
            value.fetched = True
            self._stack.append(value)
            return ""
        if opcode.name == "MARK":
            self._stack.append(self._mark)
            return ""
        taken = self._take(opcode)
        if opcode.name in _GROW:
            made = taken.pop(0)
            if made.fetched:
                return "changes a value that it has used elsewhere"
        else:
            made = _Value(1 + len(argument) if isinstance(argument, str | bytes) else 1)
        if isinstance(argument, int) and not -(1 << 63) <= argument < 1 << 64:
            return "holds a whole number of more than 64 bits"
        made.hold(taken)
        if opcode.stack_after:
            self._stack.append(made)
        if made.size > _LARGEST_VALUE:
            return "builds far more than it holds, by using the same values again and again"
        if made.depth > parsing.DEEPEST:
            return f"builds something nested more than {parsing.DEEPEST} deep"
        return ""

    def _take(self, opcode: pickletools.OpcodeInfo) -> list[_Value]:
        """The values that an instruction takes from the stack."""
        before = opcode.stack_before
        taken: list[_Value] = []
        if pickletools.markobject in before:
            while (value := self._stack.pop()) is not self._mark:
                taken.append(value)
            before = before[: before.index(pickletools.markobject)]
        for _ in before:
            taken.append(self._stack.pop())
        return taken[::-1]


def _refused(source: str, what: str, position: int | None) -> UserError:
    return UserError(
        f"{source} is refused: its pickle {what} at byte {position}",
        "weights and vocabularies need no code; nothing was executed",
    )


class _NoImports(pickle._Unpickler):
    """Python's unpickler in its pure Python form, with every import refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} may not be imported")


def load_plain(path: Path) -> Any:
    """The numbers, strings, lists and dicts of a pickle that imports nothing.

    Raises:
        UserError: it is missing, damaged, imports something, or would build something far larger
            than itself; nothing is executed.
    """
    data = foreign_files.read_bytes(path, LARGEST)
    scan(data, str(path))
    try:
        return _NoImports(io.BytesIO(data)).load()
    except (LookupError, TypeError, AttributeError):  # Python's own words, such as "list index"
        raise UserError(f"{path} is not a readable pickle: {_LACKING}") from None
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{path} is not a readable pickle: {in_words(error)}") from None
