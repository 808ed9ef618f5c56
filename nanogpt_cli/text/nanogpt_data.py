"""Reading the folders that nanoGPT's scripts write: ``train.bin``, ``val.bin``, ``meta.pkl``."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any, Final

from nanogpt_cli.errors import UserError
from nanogpt_cli.text import tokens
from nanogpt_cli.text.sources import FileSource

META: Final = "meta.pkl"
_LARGEST_META: Final = 1 << 25


def looks_like(folder: Path) -> bool:
    """True for a folder with both token files and no manifest of ours."""
    both = all((folder / f"{split}.bin").is_file() for split in tokens.SPLITS)
    return both and not tokens.is_prepared(folder)


def sources(folder: Path) -> list[FileSource]:
    """The files of such a folder, to be compared later."""
    names = (*(f"{split}.bin" for split in tokens.SPLITS), META)
    return [FileSource(folder / name) for name in names if (folder / name).is_file()]


class _PlainUnpickler(pickle.Unpickler):
    """An unpickler that can build dictionaries, integers and strings, and call nothing."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, _: Any) -> Any:
        raise pickle.UnpicklingError("it refers to outside objects")


def read_plain_pickle(path: Path) -> Any:
    """The value in a pickle made of plain dicts, ints and strings only.

    Raises:
        UserError: it holds anything else; nothing of it was run.
    """
    hint = "a pickle can run code; only dictionaries, integers and strings are read from one"
    try:
        if path.stat().st_size > _LARGEST_META:
            raise UserError(f"{path} is too large for a vocabulary", hint)
        value = _PlainUnpickler(io.BytesIO(path.read_bytes())).load()
        _check_plain(value)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:  # a broken pickle raises nearly anything
        raise UserError(f"{path} is refused: {error}", hint) from error
    return value


def _check_plain(value: object, depth: int = 0) -> None:
    if depth > 8:
        raise pickle.UnpicklingError("it is nested too deeply")
    if type(value) is dict:
        for key, item in value.items():
            _check_plain(key, depth + 1)
            _check_plain(item, depth + 1)
    elif type(value) not in (int, str):
        raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")


def read_vocabulary(folder: Path) -> list[str] | None:
    """The characters by id of ``meta.pkl``; None without that file (GPT-2 tokens, by convention).

    Raises:
        UserError: the file is not nanoGPT's.
    """
    path = folder / META
    if not os.path.lexists(path):
        return None
    meta = read_plain_pickle(path)
    itos = meta.get("itos") if isinstance(meta, dict) else None
    good = isinstance(itos, dict) and all(
        isinstance(itos.get(i), str) and len(itos[i]) == 1 for i in range(len(itos))
    )
    if not good:
        raise UserError(
            f"{path} has no 'itos' from 0, 1, 2 ... to characters", "see nanoGPT's data"
        )
    assert isinstance(itos, dict)
    return [itos[i] for i in range(len(itos))]
