"""``export --push`` with the hub's own client, against an imitation of the hub on loopback."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tiny import make_run
from typer.testing import CliRunner

from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError

constants = pytest.importorskip("huggingface_hub.constants")


@dataclass
class Hub:
    """What the server was told, and whether it lets anyone in."""

    address: str = ""
    token: str = "hf_right"
    created: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)


class Handler(http.server.BaseHTTPRequestHandler):
    """The parts of the hub's API an upload uses: large files go to a store, small ones along."""

    hub: Hub

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            return self.reply({"error": "Invalid username or password."}, 401)
        if self.path.endswith("/commit/main"):
            return self.commit([json.loads(line) for line in body.splitlines()])
        asked = json.loads(body)
        if self.path == "/api/repos/create":
            self.hub.created.append(asked)
            return self.reply({"url": f"{self.hub.address}/me/tiny"})
        if "/preupload/" in self.path:
            return self.reply({"files": [
                {"path": f["path"], "shouldIgnore": False,
                 "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in asked["files"]
            ]})  # fmt: skip
        if self.path.endswith("/info/lfs/objects/batch"):
            return self.reply({"transfer": "basic", "objects": [
                {**o, "actions": {"upload": {"href": f"{self.hub.address}/store/{o['oid']}"}}}
                for o in asked["objects"]
            ]})  # fmt: skip
        return self.reply({"errors": [], "warnings": []})

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.stored[self.path.rsplit("/", 1)[1]] = body
        self.reply({})

    def do_GET(self) -> None:
        self.reply({"id": "me/tiny", "sha": "0" * 40, "siblings": []})

    def commit(self, lines: list[dict[str, Any]]) -> None:
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                self.hub.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.files[value["path"]] = self.hub.stored[value["oid"]]
        self.reply({"commitUrl": f"{self.hub.address}/me/tiny/commit/1", "commitOid": "1",
                    "success": True})  # fmt: skip

    def reply(self, value: Any, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Bound", (Handler,), {"hub": hub})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    make_run(tmp_path / "runs" / "tiny")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_PROXY", "*")
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with serving() as found:
        for name, value in {
            "ENDPOINT": found.address, "HF_TOKEN_PATH": str(tmp_path / "token"),
            "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": False,
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        yield found


def push(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["export", "tiny", "--no-verify", "--push", *arguments])


def test_the_whole_folder_arrives(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", hub.token)
    done = push("me/tiny")
    assert done.exit_code == 0, done.exception
    folder = Path("runs/tiny/exports/hf")
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hashlib.sha256(hub.files["model.safetensors"]).hexdigest() in hub.stored
    assert (hub.created[0]["name"], hub.created[0]["organization"]) == ("tiny", "me")
    assert f"uploaded: {hub.address}/me/tiny" in done.stderr.replace("\n", "")


def test_nothing_is_written_without_a_token_or_a_name(hub: Hub) -> None:
    for repository, said in (("me/tiny", "no token"), ("not a name", "not a name")):
        done = push(repository)
        assert isinstance(done.exception, UserError)
        assert said in done.exception.message
        assert not Path("runs/tiny/exports").exists()
    assert not hub.created


def test_refusal_of_the_hub_keeps_the_folder(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    done = push("me/tiny")
    assert isinstance(done.exception, UserError)
    assert "cannot upload to me/tiny" in done.exception.message
    assert "401" in done.exception.message
    assert "\n" not in done.exception.message
    assert Path("runs/tiny/exports/hf/model.safetensors").is_file()
    assert not hub.files


def test_a_missing_package_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    done = push("me/tiny")
    assert isinstance(done.exception, UserError)
    assert "huggingface_hub" in done.exception.message
    assert "[hub]" in done.exception.hint
