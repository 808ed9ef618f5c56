"""Every file that a command reads, replaced by what it must not be: refused in words, at once."""

from __future__ import annotations

import csv
import gzip
import json
import os
import pickle
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import programs
import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import TEXT, exportable, make_model, make_run, quiet, write_llmc

from nanogpt_cli import files
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import huggingface, nanogpt
from nanogpt_cli.run import events
from nanogpt_cli.run.commands import send_command, take_commands
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.follow import EventReader
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.text import prepare
from nanogpt_cli.training.checkpoints import retention

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes"),
    pytest.mark.timeout(60),
]

SMALL = {"n_layer": 1, "n_embd": 8, "block_size": 8}
CHECKPOINT = "runs/tiny/checkpoints/step-000007"
SAMPLE = ("sample", "--run", "tiny", "-n", "1", "--prompt", "be")
INSPECT = ("data", "inspect", "set")
# File -> the commands that read it.
READERS: dict[str, tuple[tuple[str, ...], ...]] = {
    "r.toml": (("recipe", "check", "r.toml"), ("train", "r.toml"), ("plan", "r.toml")),
    "base.toml": (("recipe", "show", "r.toml"),),
    "runs/tiny/recipe.toml": (("runs", "diff", "tiny", "other"),),
    f"{CHECKPOINT}/state.json": (SAMPLE, ("export", "tiny", "--to", "hf", "--no-verify")),
    f"{CHECKPOINT}/tokenizer.json": (SAMPLE,),
    f"{CHECKPOINT}/model.safetensors": (SAMPLE,),
    "runs/tiny/checkpoints/best.json": (SAMPLE, ("eval", "tiny", "--data", "set")),
    "set/manifest.json": (INSPECT, ("train", "r.toml", "--set", "data.name=set")),
    "set/train.bin": (INSPECT,),
    "set/tokenizer.json": (INSPECT,),
    "hf/config.json": (("import", "hf"),),
    "hf/model.safetensors": (("import", "hf"),),
    "hf/tokenizer.json": (("import", "hf"), ("prepare", "toy.txt", "--tokenizer", "hf")),
    "shards/model.safetensors.index.json": (("import", "shards"),),
    "shards/model-1.safetensors": (("import", "shards"),),
    "pair/vocab.json": (("import", "pair"),),
    "pair/merges.txt": (("import", "pair"),),
    "old/pytorch_model.bin": (("import", "old"),),
    "ng/ckpt.pt": (("import", "ng"), ("init-inspect", "--from", "ng/ckpt.pt")),
    "ng/meta.pkl": (("import", "ng"),),
    "llmc.bin": (("import", "llmc.bin"),),
    "ngdata/meta.pkl": (("prepare", "ngdata", "--out", "o"),),
    "ngdata/train.bin": (("prepare", "ngdata", "--out", "o"),),
    "toy.txt": (("prepare", "toy.txt", "--tokenizer", "char", "--out", "o"),),
    "rec.jsonl": (("prepare", "rec.jsonl", "--tokenizer", "char", "--out", "o"),),
    "rec.csv": (("prepare", "rec.csv", "--tokenizer", "char", "--out", "o"),),
    "rec.parquet": (("prepare", "rec.parquet", "--tokenizer", "char", "--out", "o"),),
    "toy.txt.gz": (("prepare", "toy.txt.gz", "--tokenizer", "char", "--out", "o"),),
    "p.txt": ((*SAMPLE[:5], "--prompts", "p.txt"), (*SAMPLE[:5], "--prompt-file", "p.txt")),
    "p.jsonl": ((*SAMPLE[:5], "--prompts", "p.jsonl"),),
    "config.py": (("recipe", "from-nanogpt", "config.py"),),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("foreign")
    (root / "toy.txt").write_text(TEXT * 9, encoding="utf-8")
    (root / "toy.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    (root / "base.toml").write_text("[model]\nn_layer = 1\n")
    (root / "r.toml").write_text(
        'extends = "base.toml"\n[train]\nmax_steps = 1\n[optim]\nwarmup_steps = 0\n'
    )
    (root / "config.py").write_text("n_layer = 2\n")
    (root / "p.txt").write_text("be\n")
    (root / "p.jsonl").write_text('"be"\n')
    records = [{"text": TEXT, "id": number} for number in range(20)]
    (root / "rec.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    with (root / "rec.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ("id", "text"))
        writer.writeheader()
        writer.writerows(records)
    table = pyarrow.table({"text": [record["text"] for record in records]})
    pyarrow.parquet.write_table(
        table, root / "rec.parquet", compression="none", use_dictionary=False
    )
    request = prepare.Request((str(root / "toy.txt"),), tokenizer="char")
    prepare.prepare(request, out=root / "set")
    run = make_run(root / "runs" / "tiny", **SMALL)
    retention.mark_best(run, 7, 1.0)
    (root / "runs" / "other").mkdir()
    shutil.copy(run.recipe, root / "runs" / "other")
    _models(root)
    return root


def _models(root: Path) -> None:
    """The checkpoints of other tools."""
    for name in ("hf", "ng", "ngdata"):
        (root / name).mkdir()
    huggingface.write(exportable(**SMALL), root / "hf", quiet)
    tensors = load_file(root / "hf" / "model.safetensors")
    for name in ("shards", "pair", "old"):
        shutil.copytree(root / "hf", root / name)
    (root / "shards" / "model.safetensors").rename(root / "shards" / "model-1.safetensors")
    index = {"weight_map": dict.fromkeys(tensors, "model-1.safetensors")}
    files.write_json(root / "shards" / "model.safetensors.index.json", index)
    (root / "old" / "model.safetensors").unlink()
    torch.save(tensors, root / "old" / "pytorch_model.bin")
    vocabulary = json.loads((root / "pair" / "tokenizer.json").read_text())["model"]["vocab"]
    (root / "pair" / "tokenizer.json").unlink()
    files.write_json(root / "pair" / "vocab.json", vocabulary)
    (root / "pair" / "merges.txt").write_text("#version: 0.2\n")
    nanogpt.write(exportable(**SMALL), root / "ng", quiet)
    (root / "ng" / "tokenizer.json").unlink()
    next((root / "ng").glob("data/*/meta.pkl")).rename(root / "ng" / "meta.pkl")
    (root / "ngdata" / "meta.pkl").write_bytes(pickle.dumps({"itos": {0: "a", 1: "b"}}))
    for split in ("train", "val"):
        (root / "ngdata" / f"{split}.bin").write_bytes(b"\0\0\1\0" * 50)
    write_llmc(root / "llmc.bin", make_model(activation="gelu_tanh", **SMALL))


@pytest.fixture
def root(built: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder to work in; whatever a test changes there is as before afterwards."""
    monkeypatch.chdir(built)
    before = content(built)
    yield built
    for name in content(built).keys() - before.keys():
        remove(built / name)
    after = content(built)
    for name, data in before.items():
        if data is not None and after.get(name) != data:
            remove(built / name)
            (built / name).write_bytes(data)


def content(folder: Path) -> dict[str, bytes | None]:
    """What lies below, special files and folders as None."""
    found = sorted(folder.rglob("*"))
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() and not p.is_symlink() else None
        for p in found
    }


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def pipe(path: Path) -> None:
    os.mkfifo(path)


SPECIAL: dict[str, Callable[[Path], None]] = {
    "pipe": pipe,
    "folder": Path.mkdir,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere"),
    "circle": lambda path: path.symlink_to(path.name),
}
if Path("/proc/self/mem").exists():  # reading its first byte fails as on a broken disk
    SPECIAL["failing"] = lambda path: path.symlink_to("/proc/self/mem")


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_refused_by_name(
    root: Path, capsys: pytest.CaptureFixture[str], name: str,
    kind: str,
) -> None:  # fmt: skip
    if (name, kind) == ("toy.txt", "folder"):
        pytest.skip("a folder of texts can be prepared")
    (root / name).unlink()
    SPECIAL[kind](root / name)
    before = content(root)
    for command in READERS[name]:
        code = programs.nanogpt(*command)
        said = capsys.readouterr().err
        assert code == 2 or (code == 1 and command == INSPECT), said
        assert Path(name).name in said
        assert "bug" not in said
        assert len(said.splitlines()) <= 4
    made = {path for path in content(root) if path not in before}
    assert {path for path in made if not path.startswith(("runs/r", ".o.lock"))} == set()
    assert content(root).items() >= before.items()


NESTED, DIGITS, HALF = "[" * 5000 + "]" * 5000, "9" * 5000, '"\\ud800"'


@pytest.mark.parametrize("value", [NESTED, "[" * 80 + "]" * 80, DIGITS, HALF],
                         ids=["nested", "rather nested", "digits", "half a pair"])  # fmt: skip
@pytest.mark.parametrize(
    "name", [name for name in READERS if name.endswith((".toml", ".json", ".jsonl"))]
)
def test_hostile_values_are_refused_by_name(
    root: Path, capsys: pytest.CaptureFixture[str], name: str,
    value: str,
) -> None:  # fmt: skip
    path = root / name
    if path.suffix == ".toml":
        path.write_text(f"[train]\nmax_steps = {value}\n")
    elif path.suffix == ".jsonl":
        path.write_text(f'{{"prompt": {value}, "text": {value}}}\n')
    else:
        path.write_text(f'{{"format": {value}, "step": {value}}}\n')
    for command in READERS[name]:
        code = programs.nanogpt(*command)
        said = capsys.readouterr().err
        assert code == 2 or (code == 1 and command == INSPECT), said
        assert path.name in said
        assert "bug" not in said
        assert len(said) < 1000


@pytest.mark.parametrize("name", READERS)
def test_damage_never_ends_in_a_traceback(
    root: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    path, rng = root / name, random.Random(name)
    good = path.read_bytes()
    for number in range(4):
        data = bytearray(good)
        if number == 0:
            data.clear()
        elif number == 1:
            del data[rng.randrange(len(good)) :]
        else:
            data[rng.randrange(min(len(good), 2000))] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        code = programs.nanogpt(*READERS[name][0])
        assert code in (0, 1, 2)
        assert "bug" not in capsys.readouterr().err
        if name != "set/manifest.json":
            shutil.rmtree(root / "o", ignore_errors=True)


@pytest.mark.parametrize(
    ("pairs", "named"),
    [
        ({"step": "many"}, "step"), ({"step": None}, "step"), ({"model": []}, "model"),
        ({"recipe": {"sample": {"prompt": 7}}}, "recipe.sample.prompt"),
        ({"progress": {"skip": {}}}, "progress.skip"), ({"sha256": {"x": 1}}, "sha256.x"),
        ({"n_layer": 4 * 10**18}, "n_layer"), ({"n_layer": 10**6}, "n_layer"),
        ({"n_layer": 999}, "does not fit"), ({"vocab_size": 1 << 25}, "vocab_size"),
        ({"multipliers": {"output": "x"}}, "multipliers.output"), ({"bias": 1}, "bias"),
    ],
    ids=str,
)  # fmt: skip
def test_state_is_checked_where_it_is_read(
    root: Path, capsys: pytest.CaptureFixture[str],
    pairs: dict[str, object], named: str,
) -> None:  # fmt: skip
    path = root / CHECKPOINT / "state.json"
    state = json.loads(path.read_text())
    del state["checksum"]  # as earlier versions wrote it
    for key, value in pairs.items():
        (state["model"] if key in state["model"] else state)[key] = value
    path.write_text(json.dumps(state))
    assert programs.nanogpt(*SAMPLE) == 2
    said = capsys.readouterr().err
    assert named in said
    assert CHECKPOINT in said


@pytest.mark.parametrize(
    ("where", "value"),
    [("model.activation", "relu"), ("model.n_head", 4), ("step", 8), ("recipe.sample", {}),
     ("checksum", ""), ("checksum", None), ("model.multipliers", {"output": 3.0})],
)  # fmt: skip
def test_state_that_was_changed_since_it_was_saved_is_refused(
    root: Path, capsys: pytest.CaptureFixture[str], where: str,
    value: object, asset_cache: Callable[[str], Path],
) -> None:  # fmt: skip
    asset_cache("tinyshakespeare")  # which the run's recipe names
    (root / "runs/tiny/checkpoints/best.json").unlink()
    path = root / CHECKPOINT / "state.json"
    state = json.loads(path.read_text())
    *sections, key = where.split(".")
    (state.setdefault(sections[0], {}) if sections else state).update({key: value})
    path.write_text(json.dumps(state))
    for command in (SAMPLE, ("export", "tiny", "--no-verify"), ("eval", "tiny", "--data", "set"),
                    ("init-inspect", "--from", "tiny"), ("train", "tiny", "--resume")):  # fmt: skip
        assert programs.nanogpt(*command) == 2
        assert f"{path.name} is damaged: it was changed" in capsys.readouterr().err
    assert not list((root / "runs/tiny/exports").glob("*"))


def test_header_of_weights_is_measured_before_it_is_read(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "hf" / "model.safetensors"
    for length, word in ((9 << 20, "refused"), (1 << 62, "fit")):
        path.write_bytes(length.to_bytes(8, "little") + b" " * (10 << 20))
        assert programs.nanogpt("import", "hf") == 2
        assert word in capsys.readouterr().err


def doubled(levels: int) -> bytes:
    """A pickle of a few hundred bytes whose value has 2**levels parts."""
    steps = (b"]q%c(h%ch%ce" % (i + 1, i, i) for i in range(levels))
    return b"\x80\x02]q\x00" + b"".join(steps) + b"."


@pytest.mark.parametrize(
    "data",
    [
        doubled(60), b"\x80\x02" + b"(" * 4_000_000 + b".", b"\x80\x02" + b"]" * 500_000 + b".",
        b"\x80\x02]r\x00\x00\x00\x10.", b"I" + b"9" * 5000 + b"\n.",
        b"\x80\x02]" + b"]" * 5000 + b"a" * 5000 + b".",
    ],
    ids=["doubled", "marks", "lists", "memo", "digits", "nested"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["ng/meta.pkl", "ngdata/meta.pkl"])
def test_pickles_build_no_more_than_they_hold(
    root: Path, capsys: pytest.CaptureFixture[str], name: str,
    data: bytes,
) -> None:  # fmt: skip
    (root / name).write_bytes(data)
    assert programs.nanogpt(*READERS[name][0]) == 2
    said = capsys.readouterr().err
    assert "meta.pkl" in said
    assert len(said) < 1000


@pytest.mark.parametrize("kind", SPECIAL)
def test_log_that_is_no_regular_file_is_a_problem_in_words(
    root: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    SPECIAL[kind](root / "runs" / "tiny" / "events.jsonl")
    assert programs.nanogpt("runs", "--json") == 0
    rows = {row["run"]: row for row in json.loads(capsys.readouterr().out)["runs"]}
    if kind != "dangling":  # that one is as good as a log that is not there yet
        assert rows["tiny"]["state"] == "unreadable"
        assert "events.jsonl" in rows["tiny"]["problems"]
        assert programs.nanogpt("runs", "csv", "tiny") == 2
        assert "events.jsonl" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"events\.jsonl"):
        EventWriter(root / "runs" / "tiny" / "events.jsonl")


@pytest.mark.parametrize("place", ["tables", "value"])
@pytest.mark.parametrize("file", ["r.toml", "base.toml"])
@pytest.mark.parametrize("section", ["run", "train", "init"])
def test_what_is_no_table_is_blamed_where_it_stands(
    root: Path, capsys: pytest.CaptureFixture[str], section: str,
    file: str, place: str,
) -> None:  # fmt: skip
    line = f"[[{section}]]\nx = 1\n" if place == "tables" else f"{section} = 1\n"
    first = "" if file == "base.toml" else 'extends = "base.toml"'
    (root / file).write_text(f"{first}\n{line}")
    for sets in ([], ["--set", "train.max_steps=3", "--set", "run.name=x"]):
        for command in ("check", "show"):
            assert programs.nanogpt("recipe", command, "r.toml", *sets) == 2
            said = capsys.readouterr().err
            assert f"{'line ' if file == 'r.toml' else 'base.toml:'}2: {section} = " in said
            assert f"it must be a table, [{section}]" in said


@pytest.mark.parametrize("size", [1 << 26, 1 << 33], ids=["64 MiB", "8 GiB"])
def test_log_without_lines_is_given_up_soon_and_kept(
    root: Path, capsys: pytest.CaptureFixture[str], size: int
) -> None:
    path = root / "runs" / "tiny" / "events.jsonl"
    with path.open("wb") as file:
        file.truncate(size)
    try:
        assert programs.nanogpt("watch", "tiny", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["state"] == "unreadable"
        assert "a line of more than" in found["problems"]
        assert programs.nanogpt("runs", "csv", "tiny") == 2
        assert "a line of more than" in capsys.readouterr().err
        with pytest.raises(UserError, match="is not an event log"):
            EventWriter(path)
        assert path.stat().st_size == size
    finally:
        path.unlink()


def test_run_that_nobody_trains_is_not_waited_for(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert programs.nanogpt("import", "hf", "--name", "mine") == 0
    assert programs.nanogpt("watch", "mine", "--json") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["state"] == "imported"
    for name, word in (("mine", "imported"), ("tiny", "idle")):  # the second has no log
        for path in (root / "runs" / name).iterdir():
            os.utime(path, (1, 1))
        assert programs.nanogpt("watch", name, "--plain") == 0
        said = capsys.readouterr()
        assert said.out == f"{name}  o {word}\n"
        assert "nanogpt sample" in said.err
        with files.locked(root / "runs" / name / "lock", lambda: None):
            assert programs.nanogpt("watch", name, "--json") == 0
            assert json.loads(capsys.readouterr().out)["state"] == "waiting"


def test_hostile_lines_of_a_log_are_unreadable_ones(root: Path, tmp_path: Path) -> None:
    line = events.encode(events.Note(message="x"))
    bad = [f'{{"type": "note", "step": {value}}}' for value in (NESTED, DIGITS, HALF, '"x"')]
    (tmp_path / "events.jsonl").write_text("\n".join([line, *bad, line]) + "\n")
    reader = EventReader(tmp_path / "events.jsonl")
    assert len(reader.read_all()) == 2
    assert reader.bad_lines == 4


@pytest.mark.parametrize("kind", ["pipe", "folder", "dangling", "device"])
def test_lock_and_commands_that_are_no_regular_files(tmp_path: Path, kind: str) -> None:
    SPECIAL[kind](tmp_path / "lock")
    with pytest.raises(UserError, match="lock"), files.locked(tmp_path / "lock", lambda: None):
        pass
    folder = RunFolder(tmp_path / "run")
    send_command(folder, "eval")
    SPECIAL[kind](folder.control / "0-x-stop")
    assert take_commands(folder) == [("eval", "")]


def test_column_of_text_that_is_none_is_damage(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = root / "rec.parquet"
    path.write_bytes(path.read_bytes().replace(b"or not", b"or \xff\xff\xff"))
    assert programs.nanogpt(*READERS["rec.parquet"][0]) == 2
    said = capsys.readouterr().err
    assert "damaged Parquet file" in said
    assert "codec" not in said


def test_key_of_any_length_makes_no_message_of_any_length(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "x" * 50_000
    (root / "r.toml").write_text(f"[train]\n{long} = 1\n")
    (root / "rec.csv").write_text(f"id,{long}\n1,a rose\n2,is a rose\n")
    for command in (("recipe", "check", "r.toml"), *READERS["rec.csv"]):
        assert programs.nanogpt(*command) == 2
        assert len(capsys.readouterr().err) < 500


@pytest.mark.parametrize(
    "command",
    [("init-inspect", "r.toml", "--theory", "--csv", "o.x"), ("watch", "tiny", "--svg", "o.x"),
     ("bench", "startup", "--out", "o.x"), ("recipe", "from-nanogpt", "config.py", "--out", "o.x")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "device", "stream"])
def test_result_never_takes_the_place_of_a_device_or_a_pipe(
    root: Path, capsys: pytest.CaptureFixture[str], kind: str,
    command: tuple[str, ...],
) -> None:  # fmt: skip
    path = root / "o.x"
    if kind == "stream":  # what /dev/stdout is
        if "bench" in command:
            pytest.skip("its result is appended, which a stream can take")
        path.symlink_to("/proc/self/fd/1")
    else:
        SPECIAL[kind](path)
    before = path.lstat()
    assert programs.nanogpt(*command) == 2
    assert "o.x" in capsys.readouterr().err
    assert path.lstat().st_ino == before.st_ino


@pytest.mark.parametrize("output", [(), ("--logprobs",), ("--json",)], ids=str)
def test_weights_that_overflowed_end_the_text_in_words(
    root: Path, capsys: pytest.CaptureFixture[str],
    output: tuple[str, ...],
) -> None:  # fmt: skip
    path = root / "hf" / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    # Tied to the head: one of these two ids of no prompt gets an infinite logit.
    name = next(name for name in tensors if name.endswith("wte.weight"))
    tensors[name][-2:, 0] = torch.tensor([torch.inf, -torch.inf])
    save_file(tensors, path, metadata={"format": "pt"})
    assert programs.nanogpt("sample", "hf", "-n", "2", "--prompt", "be", *output) == 2
    assert "logits are not finite" in capsys.readouterr().err


def test_folder_of_ours_that_is_a_file_holds_nothing(
    root: Path, capsys: pytest.CaptureFixture[str],
    nanogpt_home: Path,
) -> None:  # fmt: skip
    (root / "data").write_text("")
    (nanogpt_home / "data").write_text("")
    (nanogpt_home / "assets").mkdir()
    (nanogpt_home / "assets" / "x").write_text("")
    for command in (("data",), ("cache", "list"), ("runs", "--out", "toy.txt"),
                    ("recipe", "new", "mine", "--data", "toy.txt", "--yes")):  # fmt: skip
        assert programs.nanogpt(*command) == 0, capsys.readouterr().err


def test_records_of_hostile_values_are_passed_over_when_asked(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [f'{{"text": "x", "id": {value}}}\n' for value in (NESTED, DIGITS)]
    with (root / "rec.jsonl").open("a") as file:
        file.writelines(bad)
    command = (*READERS["rec.jsonl"][0], "--errors", "skip", "--split", "tail", "--json")
    assert programs.nanogpt(*command) == 0
    # The number of thousands of digits stands in a field that nobody reads.
    assert json.loads(capsys.readouterr().out)["receipt"]["skipped_records"] == 1
