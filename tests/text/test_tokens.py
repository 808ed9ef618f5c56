"""A data set that is not whole is refused with the reason; nanoGPT's folders are taken over."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from nanogpt_cli.errors import UserError
from nanogpt_cli.text import look, nanogpt_data, prepare, tokens
from nanogpt_cli.text.prepare import Request

TEXT = "To be, or not to be: that is the question.\n" * 30


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    return prepare.prepare(Request((str(path),), tokenizer="char"), out=tmp_path / "o").folder


@pytest.mark.parametrize("split", tokens.SPLITS)
def test_every_truncation_is_refused(folder: Path, split: str) -> None:
    path = folder / f"{split}.bin"
    whole = path.read_bytes()
    for size in (0, 1, 2, len(whole) // 2, len(whole) - 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(UserError, match=rf"{split}\.bin has .* it was truncated"):
            tokens.open_data(folder, verify=False)
    path.write_bytes(whole + b"\0\0")
    with pytest.raises(UserError, match="something was added"):
        tokens.open_data(folder, verify=False)
    path.unlink()
    with pytest.raises(UserError, match=rf"cannot read .*{split}\.bin"):
        tokens.open_data(folder)


@pytest.mark.parametrize("split", tokens.SPLITS)
def test_every_flipped_byte_is_refused(folder: Path, split: str) -> None:
    path = folder / f"{split}.bin"
    whole, about = path.read_bytes(), path.stat()
    for place in (0, 1, len(whole) // 3, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))
        with pytest.raises(UserError, match=rf"{split}\.bin was changed"):
            tokens.open_data(folder)


def test_large_sets_are_hashed_when_touched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "ALWAYS_HASHED_BYTES", 1)
    hashed: list[str] = []
    monkeypatch.setattr(tokens, "_check_hash", lambda path, _: hashed.append(path.name))
    tokens.open_data(folder)
    assert hashed == []
    (folder / "val.bin").touch()
    tokens.open_data(folder)
    assert hashed == ["val.bin"]
    tokens.open_data(folder, verify=True)
    assert hashed == ["val.bin", "train.bin", "val.bin"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no manifest.json"),
        ("{", "not readable JSON"),
        ("{}", "not a manifest"),
        ('{"format": "nanogpt-cli data", "version": 99, "tool": "new 9"}', "newer version"),
        ('{"format": "nanogpt-cli data", "version": 1}', "is damaged"),
    ],
)
def test_broken_manifests(folder: Path, content: str | None, reason: str) -> None:
    path = folder / "manifest.json"
    path.unlink()
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=reason):
        tokens.open_data(folder)


@pytest.mark.parametrize(
    "change",
    [{"name": "other"}, {"version": -1}, {"checksum": ""}, {"checksum": None}, {"more": 1}],
    ids=str,
)
def test_a_manifest_that_was_changed_is_refused(folder: Path, change: dict[str, object]) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps(values))  # laid out in another way
    tokens.open_data(folder)
    path.write_text(json.dumps(values | change))
    with pytest.raises(UserError, match="was changed after it was written"):
        tokens.open_data(folder)
    del values["checksum"]  # as earlier versions wrote it
    path.write_text(json.dumps(values))
    tokens.open_data(folder)


@pytest.mark.parametrize(
    "change", [{"inputs": 5}, {"inputs": [None]}, {"limit": "all"}, {"val_fraction": 2}], ids=str
)
def test_a_request_of_other_types_is_refused(folder: Path, change: dict[str, object]) -> None:
    path = folder / "manifest.json"
    values = json.loads(path.read_text())
    del values["checksum"]  # as earlier versions wrote it
    path.write_text(json.dumps(values | {"request": values["request"] | change}))
    with pytest.raises(UserError, match=rf"damaged: request\.{next(iter(change))}"):
        tokens.open_data(folder)


def test_a_set_that_lost_its_manifest_is_no_text(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    for make in (
        lambda: prepare.prepare(Request((str(folder),), tokenizer="gpt2"), out=folder.parent / "p"),
        lambda: prepare.ensure({"name": str(folder), "tokenizer": "char"}, report=print),
    ):
        with pytest.raises(UserError, match=r"a prepared data set without its manifest\.json"):
            make()
    assert not (folder.parent / "p").exists()


def test_another_tokenizer_is_refused(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(path.read_text().replace('"q"', '"Q"'))
    with pytest.raises(UserError, match="not the tokenizer this data was made with"):
        _ = tokens.open_data(folder).tokenizer


def test_windows_and_histogram(folder: Path) -> None:
    data = tokens.open_data(folder)
    for window in look.windows(data, count=3, length=20):
        ids = getattr(data, window.split)[window.start : window.start + 20]
        assert window.text == data.tokenizer.decode(ids.tolist())
    counts = look.histogram(data.train, data.vocab_size)
    assert counts.tolist() == np.bincount(data.train, minlength=data.vocab_size).tolist()
    p = counts[counts > 0] / counts.sum()
    assert look.entropy_bits(counts) == pytest.approx(-sum(p * np.log2(p)))
    with pytest.raises(UserError, match="vocabulary has 2 ids"):
        look.histogram(data.train, 2)


def nanogpt_folder(folder: Path, meta: object, ids: list[int] | None = None) -> Path:
    """A data folder as nanoGPT's scripts write it."""
    folder.mkdir()
    characters = sorted(set(TEXT))
    stoi = {c: i for i, c in enumerate(characters)}
    found = ids or [stoi[c] for c in TEXT]
    np.array(found[:-100], dtype=np.uint16).tofile(folder / "train.bin")
    np.array(found[-100:], dtype=np.uint16).tofile(folder / "val.bin")
    if isinstance(meta, str):
        meta = {
            "vocab_size": len(characters), "stoi": stoi, "itos": dict(enumerate(characters)),
        }  # fmt: skip
    if meta is not None:
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
    return folder


def test_nanogpt_character_folder_is_taken_over(tmp_path: Path) -> None:
    old = nanogpt_folder(tmp_path / "shakespeare_char", "good")
    request = Request((str(old),))
    made = prepare.prepare(request)
    data = tokens.open_data(made.folder, verify=True)
    assert data.tokenizer.decode([*data.train.tolist(), *data.val.tolist()]) == TEXT
    assert (made.folder / "train.bin").read_bytes() == (old / "train.bin").read_bytes()
    assert not (made.folder / "meta.pkl").exists()
    assert not prepare.prepare(request).fresh
    assert prepare.ensure({"name": str(old), "tokenizer": "char"}, report=print)


def test_nanogpt_folder_without_meta_holds_gpt2_tokens(tmp_path: Path, asset_cache) -> None:
    asset_cache("gpt2-vocab.bpe")
    old = nanogpt_folder(tmp_path / "openwebtext", None, [15496, 995, 50256] * 50)
    data = tokens.open_data(prepare.prepare(Request((str(old),))).folder)
    assert data.manifest.kind == "gpt2"
    assert data.manifest.train.bytes + data.manifest.val.bytes == 50 * len("Hello world")


def test_nanogpt_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    old = nanogpt_folder(tmp_path / "d", "good", [60_000] * 200)
    with pytest.raises(UserError, match=r"train\.bin holds the id 60000"):
        prepare.prepare(Request((str(old),)))


class Malicious:
    """Unpickled with ``pickle.load`` this would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, ...]:
        return (os.system, (f"touch {self.target}",))


@pytest.mark.parametrize(
    "value",
    [
        {"itos": [1, 2]}, {"itos": {0: "ab"}}, {"itos": {1: "a"}}, {"x": 1.5}, {"x": b"a"},
        {"x": (1,)}, {"x": None}, {"x": True}, {"x": {1, 2}}, np.arange(3), range(3), [1], 3,
    ],
)  # fmt: skip
def test_pickles_of_anything_else_are_refused(tmp_path: Path, value: object) -> None:
    old = nanogpt_folder(tmp_path / "d", value)
    with pytest.raises(UserError, match=r"meta\.pkl"):
        nanogpt_data.read_vocabulary(old)


def test_code_in_a_pickle_never_runs(tmp_path: Path) -> None:
    target = tmp_path / "was-run"
    old = nanogpt_folder(tmp_path / "d", {"itos": {0: Malicious(target)}})
    with pytest.raises(UserError, match="refused: its pickle uses the instruction STACK_GLOBAL"):
        prepare.prepare(Request((str(old),)))
    assert not target.exists()
    (old / "meta.pkl").write_bytes(b"\x80\x04garbage")
    with pytest.raises(UserError, match="not a readable pickle"):
        prepare.prepare(Request((str(old),)))


def test_no_damage_of_a_pickle_is_told_in_pythons_words(tmp_path: Path) -> None:
    """Every bit of a small meta.pkl flipped in turn: it is read, or refused in plain words."""
    from nanogpt_cli import safe_pickle

    good = pickle.dumps({"vocab_size": 2, "itos": {0: "a", 1: "b"}}, protocol=4)
    path = tmp_path / "meta.pkl"
    messages = []
    for bit in range(8 * len(good)):
        data = bytearray(good)
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            safe_pickle.load_plain(path)
        except UserError as error:
            messages.append(error.message)
    assert messages
    for words in ("index out of range", "object is not", "unhashable", "has no attribute",
                  "codec", "invalid literal"):  # fmt: skip
        assert not any(words in message for message in messages), words
