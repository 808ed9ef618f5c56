"""Looking at a pickle without running it.

A pickle is a program. ``scan`` reads its instructions as data: every name it would import must be
on a list, and no instruction may ask for memory that the file does not back. nanoGPT's
``meta.pkl`` imports nothing, so ``load_plain`` allows nothing.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Collection
from pathlib import Path
from typing import Any, Final

from nanogpt_cli.errors import UserError

LARGEST: Final = 1 << 26
# Instructions that bring in code by ways other than a plain name, or read beyond the file.
_FORBIDDEN: Final = frozenset(
    {"STACK_GLOBAL", "INST", "OBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4", "PERSID",
     "NEXT_BUFFER", "READONLY_BUFFER"}
)  # fmt: skip
_MEMO: Final = frozenset({"LONG_BINPUT", "PUT", "BINPUT"})


def scan(data: bytes, source: str, allowed: Collection[str] = ()) -> None:
    """Check every instruction of a pickle.

    Args:
        data: the pickle.
        source: its file, for messages.
        allowed: names it may import, as "module name".

    Raises:
        UserError: it imports something else, is damaged, or is larger than ``LARGEST``.
    """
    if len(data) > LARGEST:
        raise UserError(
            f"{source}: a pickle of {len(data):,} bytes is not a description of weights"
        )
    try:
        for opcode, argument, position in pickletools.genops(io.BytesIO(data)):
            if opcode.name == "GLOBAL" and argument not in allowed:
                raise _refused(source, f"imports {argument!r:.80}", position)
            if opcode.name in _FORBIDDEN:
                raise _refused(source, f"uses the instruction {opcode.name}", position)
            if opcode.name in _MEMO and not 0 <= int(argument or 0) <= len(data):
                raise _refused(source, "asks for a memo larger than itself", position)
    except UserError:
        raise
    except Exception as error:  # genops raises whatever decoding raises
        raise UserError(f"{source} is not a readable pickle: {str(error)[:120]}") from None


def _refused(source: str, what: str, position: int | None) -> UserError:
    return UserError(
        f"{source} is refused: its pickle {what} at byte {position}",
        "neither weights nor a vocabulary need code; nothing of it was executed",
    )


class _NoImports(pickle._Unpickler):
    """Python's own unpickler, written in Python, without the right to import."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"{module}.{name} may not be imported")


def load_plain(path: Path) -> Any:
    """The numbers, strings, lists and dicts of a pickle that imports nothing.

    Raises:
        UserError: it is missing, damaged, or imports something; nothing is executed.
    """
    try:
        if path.stat().st_size > LARGEST:
            raise UserError(f"{path} has more than {LARGEST:,} bytes: not a vocabulary")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    scan(data, str(path))
    try:
        return _NoImports(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle raises anything
        raise UserError(f"{path} is not a readable pickle: {str(error)[:120]}") from None
