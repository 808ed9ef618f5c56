"""The types in a ``manifest.json``, checked once when it is read; later code relies on them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field

from nanogpt_cli import typed_tables
from nanogpt_cli.typed_tables import Count, Table

Share = Annotated[float, Field(ge=0, le=1)]


class _Tokenizer(Table):
    kind: str
    vocab_size: int = Field(ge=1, le=1 << 24)
    eot: Count | None
    fingerprint: str


class _Rule(Table):
    rule: str
    val_fraction: Share


class _Split(Table):
    model_config = ConfigDict(extra="forbid")

    tokens: Count
    bytes: Count
    characters: Count
    documents: Count
    sha256: str
    mtime_ns: int


class _Sources(Table):
    files: Count
    bytes: Count
    first: list[str]


class _Longest(Table):
    tokens: Count
    source: str


class _Frequent(Table):
    text: str
    share: float
    quoted: str = ""


class _Leakage(Table):
    val_documents: Count
    in_train: Count
    share: Share | None


class _RoundTrip(Table):
    samples: Count
    exact: Count


class _Remark(Table):
    remark: str
    files: Count
    first: str


class _Receipt(Table):
    documents: Count
    bytes: Count
    tokens: Count
    bytes_per_token: float
    unique_tokens: Count
    vocab_size: Count
    most_frequent: list[_Frequent]
    longest_document: _Longest | None = None
    duplicates: Count = 0
    leakage: _Leakage = _Leakage(val_documents=0, in_train=0, share=None)
    round_trip: _RoundTrip = _RoundTrip(samples=0, exact=0)
    broken_bytes: Count = 0
    forced_cuts: Count = 0
    skipped_records: Count = 0
    empty_records: Count = 0
    chats: Count = 0
    skipped_files: Count = 0
    carriage_returns: Count = 0
    first_binary: str | None = None
    first_skip: str | None = None
    remarks: list[_Remark] = Field(default_factory=list)


class _Request(Table):
    """The types of a ``request.Request``, whose defaults count: those here are never read."""

    inputs: list[str] = Field(default_factory=list)
    tokenizer: str = ""
    split: str = ""
    val_fraction: Share = 0
    glob: str | None = None
    text_field: str = ""
    errors: str = ""
    encoding: str = ""
    newlines: str = ""
    eot: bool = False
    limit: Count | None = None


class _Manifest(Table):
    tool: str
    name: str
    tokenizer: _Tokenizer
    dtype: Literal["uint16", "uint32"]
    split: _Rule
    train: _Split
    val: _Split
    sources: _Sources
    request: _Request
    receipt: _Receipt


def check(raw: dict[str, Any]) -> None:
    """Check the types and ranges of the keys that are used.

    Raises:
        ValueError: a value is missing, of another type or out of range; the message names its key.
    """
    typed_tables.check(_Manifest, raw)
