"""Importing a data folder that nanoGPT's scripts wrote."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import storable
from nanogpt_cli.text import build, nanogpt_data, receipt, tokenizers, tokens
from nanogpt_cli.text.reading import SourceFile
from nanogpt_cli.text.request import Request
from nanogpt_cli.text.tokenizer import CharTokenizer, Tokenizer, Tokens

_BLOCK: Final = 1 << 20  # tokens at a time


def import_folder(old: Path, fresh: Path, name: str, request: Request) -> dict[str, Any]:
    """Copy nanoGPT's token files into ``fresh`` and add a tokenizer and a manifest.

    Args:
        old: holds ``train.bin`` and ``val.bin`` (uint16) and, for characters, ``meta.pkl``;
            without ``meta.pkl`` the tokens are GPT-2's, by nanoGPT's own convention.
        fresh: an empty folder.

    Raises:
        UserError: a file is damaged or holds ids that the vocabulary lacks.
    """
    vocabulary = nanogpt_data.read_vocabulary(old)
    tokenizer = tokenizers.get("gpt2") if vocabulary is None else _of_characters(vocabulary, old)
    splits, counts, read = {}, np.zeros(tokenizer.vocab_size, dtype=np.int64), []
    for split in tokens.SPLITS:
        splits[split], part, source = _copy(old / f"{split}.bin", fresh, tokenizer)
        counts += part
        read.append(source)
    if vocabulary is not None:
        read.append(_described(old / nanogpt_data.META))
    tokenizers.save(tokenizer, fresh / tokens.TOKENIZER)
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
        raise UserError(f"{old / nanogpt_data.META}: {error.message}", error.hint) from None


def _copy(
    path: Path, fresh: Path, tokenizer: Tokenizer
) -> tuple[dict[str, Any], Tokens, SourceFile]:
    about = foreign_files.check(path)
    if about.st_size % 2:
        raise UserError(f"{path} has an odd number of bytes", "nanoGPT's tokens are 2 bytes each")
    lengths = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
    counts = np.zeros(tokenizer.vocab_size, dtype=np.int64)
    digest = hashlib.sha256()
    target = fresh / path.name
    with foreign_files.opened(path) as source, target.open("wb") as out:
        while block := source.read(2 * _BLOCK):
            found = np.bincount(np.frombuffer(block, dtype="<u2"), minlength=len(counts))
            if len(found) > len(counts):
                raise UserError(
                    f"{path} holds the id {len(found) - 1}; the vocabulary has {len(counts)} ids",
                    "check whether meta.pkl is missing or belongs to another data set",
                )
            counts += found
            digest.update(block)
            out.write(block)
    if tokenizer.eot is not None:
        lengths[tokenizer.eot] = 0
    size = int(counts @ lengths)
    info = {
        "tokens": about.st_size // 2,
        "bytes": size,
        "characters": about.st_size // 2 if tokenizer.kind == "char" else size,
        "documents": 1 if tokenizer.eot is None else int(counts[tokenizer.eot]) or 1,
        "sha256": digest.hexdigest(),
        "mtime_ns": target.stat().st_mtime_ns,
    }
    source_file = SourceFile(
        storable(str(path.absolute())), about.st_size, about.st_mtime_ns, digest.hexdigest()
    )
    return info, counts, source_file


def _described(path: Path) -> SourceFile:
    about = path.stat()
    return SourceFile(
        storable(str(path.absolute())), about.st_size, about.st_mtime_ns, files.sha256_file(path)
    )


def _receipt(splits: dict[str, Any], counts: Tokens, tokenizer: Tokenizer) -> dict[str, Any]:
    sums = {k: sum(splits[s][k] for s in tokens.SPLITS) for k in ("documents", "bytes", "tokens")}
    return {
        **sums,
        "bytes_per_token": round(sums["bytes"] / max(1, sums["tokens"]), 4),
        "unique_tokens": int(np.count_nonzero(counts)),
        "vocab_size": tokenizer.vocab_size,
        "most_frequent": receipt.most_frequent(counts, tokenizer),
    }
