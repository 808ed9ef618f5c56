"""The request to ``prepare``, as a value that the manifest keeps and a later run compares."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from nanogpt_cli import shell
from nanogpt_cli.errors import UserError
from nanogpt_cli.printable import storable
from nanogpt_cli.text import catalogue, tokens
from nanogpt_cli.text.sources.inputs import FileSource, StandardInput, TextSource
from nanogpt_cli.text.tokenizers import factory
from nanogpt_cli.user_input import expanded

SPLIT_RULES: Final = ("auto", "tail", "hash")
ERROR_POLICIES: Final = ("strict", "replace", "skip")
NEWLINES: Final = ("keep", "lf")
VAL_FRACTION: Final = 0.1
# With this many files, splitting by whole files gives nearly the validation share asked for.
_MANY_FILES: Final = 100
STDIN: Final = "-"

Reporter = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """The options that decide the bytes of a prepared set.

    Attributes:
        inputs: names of sets, paths of files and folders, ``-`` for standard input.
        tokenizer: a kind as in ``text.tokenizers.tokenizer``, or where a tokenizer lies (see
            ``factory.file_of``); if empty, the named set's own, else ``gpt2``.
        split: ``tail`` (the last part of the text, as in nanoGPT), ``hash`` (each document by its
            hash) or ``auto``: hash for records and for 100 files or more, else tail; tail also
            where the hashes of a few documents leave one side empty.
        val_fraction: share of the characters (tail) or of the documents (hash) for validation.
        glob: take only the files of a folder that match.
        text_field: the field of a record (JSONL, CSV, Parquet) that holds the text or the messages
            of a chat, or the path to it; see ``text.sources.fields``.
        errors: how to treat what cannot be read: ``strict``, ``replace`` or ``skip``.
        encoding: encoding of text files; a byte-order mark in a file takes precedence.
        newlines: ``keep``, or ``lf`` to turn CRLF and CR into LF.
        eot: give ``char`` and ``byte`` an end-of-text token as well.
        limit: stop after this many documents; None reads all.
    """

    inputs: tuple[str, ...]
    tokenizer: str = ""
    split: str = "auto"
    val_fraction: float = VAL_FRACTION
    glob: str | None = None
    text_field: str = "text"
    errors: str = "strict"
    encoding: str = "utf-8"
    newlines: str = "keep"
    eot: bool = False
    limit: int | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON value, equal for requests that ask for the same set."""
        strings = {k: storable(v) for k, v in asdict(self).items() if isinstance(v, str)}
        return {**asdict(self), **strings, "inputs": [storable(text) for text in self.inputs]}


def of_recipe(data: Mapping[str, Any]) -> Request:
    """The request in a recipe's table ``[data]``, whose keys are those of a request.

    Args:
        data: as validated. ``name`` is one input or a list of them; an empty ``glob`` and the
            ``limit`` 0 mean none; ``order`` is no matter of preparing.
    """
    names = data["name"]
    asked = {f.name: data[f.name] for f in fields(Request) if f.name in data}
    absent = {key: None for key in ("glob", "limit") if not asked.get(key)}
    return Request(
        **asked | absent | {"inputs": (names,) if isinstance(names, str) else tuple(names)}
    )


def checked(request: Request) -> Request:
    """The request with its defaults resolved and its paths absolute.

    Raises:
        UserError: an option has an invalid value or an input is missing.
    """
    _check_options(request)
    named = catalogue.find(request.inputs[0]) if len(request.inputs) == 1 else None
    kind = request.tokenizer or (named.tokenizer if named else "gpt2")
    factory.check_kind(kind)
    split = request.split
    if split == "auto" and named:
        split = named.split
    changes = {
        "inputs": tuple(_absolute(i) for i in request.inputs),
        "tokenizer": _absolute(kind) if factory.is_path(kind) else kind,
        "split": split,
    }
    return Request(**{**asdict(request), **changes})


def _check_options(request: Request) -> None:
    if not request.inputs:
        raise UserError(
            "nothing to prepare", "name a set, files or folders; see `nanogpt prepare --list`"
        )
    for text in request.inputs:
        folder = expanded(text)
        if tokens.is_prepared(folder):
            raise UserError(
                f"{text} is a prepared data set already",
                f"train on it: {shell.hint('train', 'small', *shell.setting('data.name', text))}; "
                f"or see {shell.hint('data', 'inspect', text)}",
            )
        if tokens.has_lost_manifest(folder):
            raise UserError(
                f"{text} is a prepared data set without its {tokens.MANIFEST}",
                "prepare its text again, or copy the whole folder again",
            )
    if not 0 <= request.val_fraction < 1:
        raise UserError(f"val_fraction is {request.val_fraction}", "it must lie in 0 <= f < 1")
    for option, value, known in (
        ("split", request.split, SPLIT_RULES),
        ("errors", request.errors, ERROR_POLICIES),
        ("newlines", request.newlines, NEWLINES),
    ):
        if value not in known:
            raise UserError(f"{option} is {value!r}", f"known: {', '.join(known)}")
    _check_encoding(request.encoding)


def _check_encoding(name: str) -> None:
    """Refuse a codec that is not a text encoding or cannot decode in steps, such as ``punycode``.

    A line is encoded and decoded byte by byte, because a read may end within a character.
    """
    line = "A line of plain text 0123456789 (for the encoding to be tried on), long and undotted\n"
    hint = "e.g. utf-8, latin-1, utf-16"
    try:
        codecs.lookup(name)
    except (LookupError, ValueError) as error:
        raise UserError(f"unknown encoding {name!r}", hint) from error
    try:
        data = line.encode(name)
        decoder = codecs.getincrementaldecoder(name)()
        pieces = (decoder.decode(data[i : i + 1], i == len(data) - 1) for i in range(len(data)))
        sound = "".join(pieces) == line
    except (LookupError, ValueError):  # it is no text encoding, or refuses plain text
        sound = False
    if not sound:
        raise UserError(f"{name!r} is not an encoding of text files", hint)


def _absolute(text: str) -> str:
    if text == STDIN or catalogue.find(text):
        return text
    path = expanded(text)
    # Not resolved: a link that is pointed to other data must count as a changed input.
    return str(path.absolute()) if path.exists() or path.is_symlink() else text


def default_name(request: Request) -> str:
    """The name of the set if the user gave none: that of the first input, without suffixes."""
    first = request.inputs[0]
    if first == STDIN:
        return "stdin"
    if catalogue.find(first):
        return first
    path = Path(first)
    name = path.name if path.is_dir() else path.name.split(".")[0] or path.name
    return storable(name) or "data"


def tokenizer_label(request: Request) -> str:
    """The part of the folder's name that names the tokenizer."""
    path = Path(request.tokenizer)
    if not path.is_absolute():
        return request.tokenizer
    if path.name == "tokenizer.json":
        path = path.parent
    if path.parent.name == "checkpoints":
        path = path.parent.parent
    is_run = (path / "checkpoints").is_dir()
    return f"run-{path.name}" if is_run else f"hf-{path.stem}"


def split_rule(request: Request, sources: list[TextSource]) -> str:
    """``tail`` or ``hash``: what ``auto`` means for these sources."""
    if request.split != "auto":
        return request.split
    if any(isinstance(s, StandardInput) for s in sources):
        return "hash" if len(sources) >= _MANY_FILES else "tail"
    records = any(not isinstance(s, FileSource) or s.holds_records for s in sources)
    return "hash" if records or len(sources) >= _MANY_FILES else "tail"
