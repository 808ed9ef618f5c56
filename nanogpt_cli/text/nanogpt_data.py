"""Reading the folders that nanoGPT's scripts write: ``train.bin``, ``val.bin``, ``meta.pkl``."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from nanogpt_cli import foreign_files, safe_pickle
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import tokens
from nanogpt_cli.text.sources import FileSource

META: Final = "meta.pkl"


def looks_like(folder: Path) -> bool:
    """Whether ``folder`` has both token files and no manifest of this program."""
    both = all(foreign_files.present(folder / f"{split}.bin") for split in tokens.SPLITS)
    return both and not tokens.is_prepared(folder)


def sources(folder: Path) -> list[FileSource]:
    """The files of such a folder, which a later run compares."""
    names = (*(f"{split}.bin" for split in tokens.SPLITS), META)
    return [FileSource(folder / name) for name in names if foreign_files.present(folder / name)]


def read_vocabulary(folder: Path) -> list[str] | None:
    """The characters in ``meta.pkl`` by id; None without that file (then tokens are GPT-2's).

    Raises:
        UserError: the file is not nanoGPT's.
    """
    path = folder / META
    if not foreign_files.present(path):
        return None
    meta = safe_pickle.load_plain(path)
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
