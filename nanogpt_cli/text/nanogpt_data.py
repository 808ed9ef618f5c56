"""The data folders that nanoGPT's scripts write: ``train.bin``, ``val.bin`` and ``meta.pkl``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np

from nanogpt_cli import foreign_files, safe_pickle
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import build, receipt, tokens
from nanogpt_cli.text.request import Request
from nanogpt_cli.text.sources.inputs import FileSource, TextSource
from nanogpt_cli.text.sources.reading import Meter, SourceFile, open_file
from nanogpt_cli.text.tokenizers import factory
from nanogpt_cli.text.tokenizers.tokenizer import CharTokenizer, Tokenizer, Tokens

META: Final = "meta.pkl"
_BLOCK: Final = 1 << 20  # tokens at a time


def looks_like(folder: Path) -> bool:
    """Whether ``folder`` has both token files and no manifest of this program."""
    both = all(foreign_files.present(folder / f"{split}.bin") for split in tokens.SPLITS)
    return both and not tokens.is_prepared(folder)


def sources(folder: Path) -> list[TextSource]:
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


def import_folder(old: Path, fresh: Path, name: str, request: Request) -> dict[str, Any]:
    """Copy nanoGPT's token files into ``fresh`` and add a tokenizer and a manifest.

    Args:
        old: holds ``train.bin`` and ``val.bin`` (uint16) and, for characters, ``meta.pkl``;
            without ``meta.pkl`` the tokens are GPT-2's, by nanoGPT's own convention.
        fresh: an empty folder.

    Raises:
        UserError: a file is damaged or holds ids that the vocabulary lacks.
    """
    vocabulary = read_vocabulary(old)
    tokenizer = factory.get("gpt2") if vocabulary is None else _of_characters(vocabulary, old)
    splits, counts, read = {}, np.zeros(tokenizer.vocab_size, dtype=np.int64), []
    for split in tokens.SPLITS:
        splits[split], part, source = _copy(old / f"{split}.bin", fresh, tokenizer)
        counts += part
        read.append(source)
    if vocabulary is not None:
        with open_file(old / META, Meter()) as meta:
            read.append(meta.finished())
    factory.save(tokenizer, fresh / tokens.TOKENIZER)
    total = sum(splits[s]["tokens"] for s in tokens.SPLITS)
    manifest = build.manifest_json(
        name=name,
        tokenizer=tokenizer,
        split={
            "rule": "nanogpt",
            "val_fraction": splits["val"]["tokens"] / max(1, total),
        },
        splits=splits,
        sources=build.write_sources(fresh, read),
        request=request.to_json(),
        receipt=_receipt(splits, counts, tokenizer),
    )
    tokens.write_manifest(fresh, manifest)
    return manifest


def _of_characters(vocabulary: list[str], old: Path) -> Tokenizer:
    try:
        return CharTokenizer(vocabulary)
    except UserError as error:
        raise UserError(f"{old / META}: {error.message}", error.hint) from None


def _copy(
    path: Path, fresh: Path, tokenizer: Tokenizer
) -> tuple[dict[str, Any], Tokens, SourceFile]:
    about = foreign_files.check(path)
    if about.st_size % 2:
        raise UserError(f"{path} has an odd number of bytes", "nanoGPT's tokens are 2 bytes each")
    lengths = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    target = fresh / path.name
    with open_file(path, Meter()) as source, target.open("wb") as out:
        while block := source.buffered.read(2 * _BLOCK):
            found = np.bincount(np.frombuffer(block, dtype="<u2"), minlength=len(counts))
            if len(found) > len(counts):
                raise UserError(
                    f"{path} holds the id {len(found) - 1}; the vocabulary has {len(counts)} ids",
                    "check whether meta.pkl is missing or belongs to another data set",
                )
            counts += found
            out.write(block)
        read = source.finished()
    if tokenizer.eot is not None:
        lengths[tokenizer.eot] = 0
    size, held = int(counts @ lengths), read.size // 2
    info = {
        "tokens": held,
        "bytes": size,
        "characters": held if tokenizer.kind == "char" else size,
        "documents": 1 if tokenizer.eot is None else int(counts[tokenizer.eot]) or 1,
        "sha256": read.sha256,
        "mtime_ns": target.stat().st_mtime_ns,
    }
    return info, counts, read


def _receipt(splits: dict[str, Any], counts: Tokens, tokenizer: Tokenizer) -> dict[str, Any]:
    sums = {k: sum(splits[s][k] for s in tokens.SPLITS) for k in ("documents", "bytes", "tokens")}
    return {
        **sums,
        "bytes_per_token": round(sums["bytes"] / max(1, sums["tokens"]), 4),
        "unique_tokens": int(np.count_nonzero(counts)),
        "vocab_size": tokenizer.vocab_size,
        "most_frequent": receipt.most_frequent(counts, tokenizer),
    }
