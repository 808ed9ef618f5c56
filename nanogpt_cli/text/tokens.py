"""Opening a prepared data set: the manifest and the two token files, with checks of both."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.text import manifest_values
from nanogpt_cli.text.tokenizers import factory
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer, Tokens

FORMAT: Final = "nanogpt-cli data"
VERSION: Final = 1
MANIFEST: Final = "manifest.json"
TOKENIZER: Final = "tokenizer.json"
SPLITS: Final = ("train", "val")
_CHECKSUM: Final = "checksum"
# Hashing this much takes a fraction of a second; larger sets are hashed only if a file changed.
ALWAYS_HASHED_BYTES: Final = 1 << 28


class NewerVersionError(UserError):
    """A set was written by a newer version: it may be whole, but cannot be read here."""


@dataclass(frozen=True)
class SplitInfo:
    """One split as the manifest describes it.

    Attributes:
        tokens: length of the token file, in tokens (end-of-text tokens included).
        bytes: UTF-8 bytes of the text that these tokens encode, without end-of-text tokens.
        characters: Unicode characters of that text.
        documents: documents that begin in this split.
        sha256: hex digest of the token file.
        mtime_ns: modification time of the token file when it was written.
    """

    tokens: int
    bytes: int
    characters: int
    documents: int
    sha256: str
    mtime_ns: int

    @property
    def bytes_per_token(self) -> float:
        """Mean UTF-8 bytes of text per token; nats per token / ln 2 / this = bits per byte."""
        return self.bytes / max(1, self.tokens)


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``. ``raw`` is the whole JSON object, with sources, options and receipt."""

    name: str
    kind: str
    vocab_size: int
    eot: int | None
    fingerprint: str
    dtype: str
    split: str
    val_fraction: float
    train: SplitInfo
    val: SplitInfo
    tool: str
    raw: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class TokenData:
    """A prepared data set. ``train`` and ``val`` are read-only memory maps, shape (tokens,)."""

    folder: Path
    manifest: Manifest
    train: Tokens
    val: Tokens

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of these tokens, checked against the manifest's fingerprint."""
        path = self.folder / TOKENIZER
        found = factory.load(path)
        same_size = found.vocab_size == self.manifest.vocab_size
        if not same_size or found.fingerprint() != self.manifest.fingerprint:
            raise UserError(f"{path} is not the tokenizer this data was made with", _again(self))
        return found

    @property
    def vocab_size(self) -> int:
        """Number of token ids of the tokenizer."""
        return self.manifest.vocab_size


def _again(data: TokenData | Path) -> str:
    folder = data if isinstance(data, Path) else data.folder
    return f"prepare its text again with --force, or remove {folder}"


def is_prepared(folder: Path) -> bool:
    """True when ``folder`` holds a manifest: the last file that ``prepare`` writes."""
    return foreign_files.present(folder / MANIFEST)


def has_lost_manifest(folder: Path) -> bool:
    """Whether ``folder`` holds everything that ``prepare`` writes but the manifest."""
    names = (TOKENIZER, *(f"{split}.bin" for split in SPLITS))
    return not is_prepared(folder) and all(foreign_files.present(folder / n) for n in names)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write ``manifest.json`` with a checksum of its values, the last file of a data set."""
    files.write_json(folder / MANIFEST, manifest | {_CHECKSUM: files.checksum(manifest)})


def read_manifest(folder: Path) -> Manifest:
    """Read and check ``manifest.json``.

    Raises:
        UserError: it is missing, broken, changed since it was written, or of a newer version.
    """
    path = folder / MANIFEST
    try:
        raw = foreign_files.read_object(path)
    except foreign_files.MissingFileError as error:
        raise UserError(
            f"{folder} is not a prepared data set: it has no {MANIFEST}",
            "`nanogpt prepare --help` says how to make one",
        ) from error
    except UserError as error:
        raise UserError(error.message, _again(folder)) from error
    sealed, expected = _CHECKSUM in raw, raw.pop(_CHECKSUM, None)  # earlier versions wrote none
    try:
        manifest = parse_manifest(raw)
    except ValueError as error:
        raise UserError(f"{path} is damaged: {error}", _again(folder)) from error
    except UserError as error:
        raise type(error)(f"{path}: {error.message}", error.hint) from error
    if sealed and expected != files.checksum(raw):
        raise UserError(f"{path} was changed after it was written", _again(folder))
    return manifest


def parse_manifest(raw: dict[str, Any]) -> Manifest:
    """The typed view of a manifest's JSON object.

    Raises:
        UserError: it is of another kind or a newer version.
        ValueError: a value is missing or of another type.
    """
    if raw.get("format") != FORMAT:
        raise UserError("not a manifest of a prepared data set", f'"format" must be "{FORMAT}"')
    if not isinstance(version := raw.get("version"), int):
        raise ValueError("version: a whole number is needed")
    if version > VERSION:
        tool = str(raw.get("tool"))
        raise NewerVersionError(f"written by a newer version ({tool:.80})", "upgrade nanogpt-cli")
    manifest_values.check(raw)
    about = raw["tokenizer"]
    return Manifest(
        name=raw["name"],
        kind=about["kind"],
        vocab_size=about["vocab_size"],
        eot=about["eot"],
        fingerprint=about["fingerprint"],
        dtype=raw["dtype"],
        split=raw["split"]["rule"],
        val_fraction=raw["split"]["val_fraction"],
        train=SplitInfo(**raw["train"]),
        val=SplitInfo(**raw["val"]),
        tool=raw["tool"],
        raw=raw,
    )


def open_data(folder: Path, *, verify: bool | None = None) -> TokenData:
    """Open a prepared data set and refuse one that is incomplete or changed.

    Args:
        folder: the folder that ``prepare`` wrote.
        verify: also compare each token file's sha256. None (the default) does so for sets under
            256 MiB and for files modified since they were written; sizes are always compared.

    Raises:
        UserError: a file is missing, truncated or changed; the message names it.
    """
    manifest = read_manifest(folder)
    loose = verify is None and _file_bytes(manifest) >= ALWAYS_HASHED_BYTES
    arrays = {}
    for split in SPLITS:
        path, info = folder / f"{split}.bin", getattr(manifest, split)
        _check_size(path, info, np.dtype(manifest.dtype).itemsize)
        touched = path.stat().st_mtime_ns != info.mtime_ns
        if verify or (verify is None and (not loose or touched)):
            _check_hash(path, info)
            _check_ids(path, _map(path, info, manifest.dtype), manifest.vocab_size)
        arrays[split] = _map(path, info, manifest.dtype)
    return TokenData(folder, manifest, arrays["train"], arrays["val"])


def _file_bytes(manifest: Manifest) -> int:
    return (manifest.train.tokens + manifest.val.tokens) * np.dtype(manifest.dtype).itemsize


def _check_size(path: Path, info: SplitInfo, itemsize: int) -> None:
    try:
        size = foreign_files.check(path).st_size
    except UserError as error:
        raise UserError(error.message, _again(path.parent)) from error
    if size != info.tokens * itemsize:
        raise UserError(
            f"{path} has {size:,} bytes, the manifest says {info.tokens * itemsize:,}: "
            + ("it was truncated" if size < info.tokens * itemsize else "something was added"),
            _again(path.parent),
        )


def _check_hash(path: Path, info: SplitInfo) -> None:
    if files.sha256_file(path) != info.sha256:
        raise UserError(
            f"{path} was changed after it was written: its sha256 is not the manifest's",
            _again(path.parent),
        )


def _check_ids(path: Path, ids: Tokens, vocab_size: int) -> None:
    """Refuse ids for which a model of this vocabulary has no row."""
    largest = int(ids.max(initial=0))
    if largest >= vocab_size:
        raise UserError(
            f"{path} holds the id {largest}; the vocabulary has {vocab_size:,} ids",
            _again(path.parent),
        )


def _map(path: Path, info: SplitInfo, dtype: str) -> Tokens:
    little = np.dtype(dtype).newbyteorder("<")
    if info.tokens == 0:  # an empty file cannot be mapped
        return np.empty(0, dtype=little)
    return np.memmap(path, dtype=little, mode="r", shape=(info.tokens,))
