"""The types in a ``manifest.json``, checked once when it is read; later code relies on them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Table(BaseModel):
    """Some keys of a table; further keys, which other versions may write, are allowed."""

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)


class _Tokenizer(_Table):
    kind: str
    vocab_size: int = Field(ge=1, le=1 << 24)
    eot: Count | None
    fingerprint: str


class _Rule(_Table):
    rule: str
    val_fraction: Share


class _Split(_Table):
    model_config = ConfigDict(extra="forbid")

    tokens: Count
    bytes: Count
    characters: Count
    documents: Count
    sha256: str
    mtime_ns: int


class _Sources(_Table):
    files: Count
    bytes: Count
    first: list[str]


class _Longest(_Table):
    tokens: Count
    source: str


class _Frequent(_Table):
    text: str
    share: float


class _Leakage(_Table):
    val_documents: Count
    in_train: Count
    share: Share | None


class _RoundTrip(_Table):
    samples: Count
    exact: Count


class _Receipt(_Table):
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
    skipped_files: Count = 0


class _Manifest(_Table):
    tool: str
    name: str
    tokenizer: _Tokenizer
    dtype: Literal["uint16", "uint32"]
    split: _Rule
    train: _Split
    val: _Split
    sources: _Sources
    request: dict[str, Any]
    receipt: _Receipt


def check(raw: dict[str, Any]) -> None:
    """Check the types and ranges of the keys that are used.

    Raises:
        ValueError: a value is missing, of another type or out of range; the message names its key.
    """
    try:
        _Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ValueError(f"{key:.80}: {first['msg'][0].lower()}{first['msg'][1:200]}") from None
