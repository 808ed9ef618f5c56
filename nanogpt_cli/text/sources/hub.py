"""Data sets of the Hugging Face hub, streamed; needs the extra ``hub``."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

from nanogpt_cli.errors import UserError
from nanogpt_cli.text.sources.documents import Chunk, Reader, Tally, document
from nanogpt_cli.text.sources.reading import Meter, SourceFile
from nanogpt_cli.text.sources.records import text_of

_BY_HAND = (
    "without the hub, download its .parquet files elsewhere and give them to nanogpt prepare, with "
    "--name"
)


class HubSource:
    """The ``train`` split of a hub data set, read record by record without a copy on disk."""

    size: int | None = None

    def __init__(self, name: str, path: str, configuration: str | None) -> None:
        self.name = name
        self._path = path
        self._configuration = configuration
        self._digest = hashlib.sha256()
        self._size = 0

    def read(self) -> list[SourceFile]:
        """See ``TextSource``; the hash covers the documents' text, in order."""
        return [SourceFile(f"hub:{self._path}", self._size, None, self._digest.hexdigest())]

    def chunks(self, reader: Reader, meter: Meter, tally: Tally) -> Iterator[Chunk]:
        """See ``TextSource``."""
        for number, record in enumerate(self._records(), 1):
            try:
                data = text_of(record, f"{self.name}, record {number:,}", reader, tally)
            except UserError as error:
                tally.skip(error, reader)
                continue
            self._digest.update(data)
            self._size += len(data)
            meter.bytes += len(data)
            yield from document(data, self.name, number, reader, tally)

    def _records(self) -> Iterable[dict[str, Any]]:
        try:
            import datasets
        except ImportError as error:
            raise UserError(
                f"the set {self.name!r} comes from the Hugging Face hub, through the package "
                "datasets, which is not installed",
                f"pip install 'nanogpt-cli[hub]'; {_BY_HAND}",
            ) from error
        try:
            yield from datasets.load_dataset(
                self._path, self._configuration, split="train", streaming=True
            )
        except Exception as error:  # the library raises whatever its HTTP client does
            raise UserError(
                f"cannot stream {self._path} from the Hugging Face hub: "
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                _BY_HAND,
            ) from error
