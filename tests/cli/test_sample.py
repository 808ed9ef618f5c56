"""``nanogpt sample`` as a person uses it: texts, files, pipes, mistakes, a terminal."""

from __future__ import annotations

import http.server
import itertools
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file
from typer.testing import CliRunner

from nanogpt_cli.cli import app, sources
from nanogpt_cli.cli.sample import interactive, sampling_session
from nanogpt_cli.cli.sample.printed import SEPARATOR
from nanogpt_cli.errors import UserError
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.sampling import tuning
from nanogpt_cli.sampling.continuation import generate_text
from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer, CharTokenizer, Tokenizer
from nanogpt_cli.training.checkpoints import checkpoint

CHARACTERS = "\n !',.ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def make_model(vocab_size: int, block_size: int = 32) -> GPT:
    torch.manual_seed(1)
    model = GPT(GPTConfig(2, 2, 16, block_size, vocab_size, 0.0, True, "gelu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3)
    return model.eval()


def make_run(folder: Path, tokenizer: Tokenizer, **options: Any) -> RunFolder:
    run = RunFolder(folder)
    folder.mkdir(parents=True)
    run.recipe.write_text("")
    # Padded like a vocabulary rounded up for speed.
    model = make_model(tokenizer.vocab_size + 7, **options)
    checkpoint.save(run, model, {"step": 500}, tokenizer=tokenizer.to_json())
    return run


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with one run, ``runs/small``."""
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "runs" / "small", CharTokenizer(CHARACTERS))
    return tmp_path


def nanogpt(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, ["sample", "--threads", "1", *arguments], input=input)


def stdout(*arguments: str, input: str | None = None) -> str:
    result = nanogpt(*arguments, input=input)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def refusal(*arguments: str, input: str | None = None) -> UserError:
    error = nanogpt(*arguments, input=input).exception
    assert isinstance(error, UserError), error
    assert "\n" not in error.message
    return error


def test_the_text_is_that_of_the_core_and_commentary_stays_on_stderr(here: Path) -> None:
    result = nanogpt("--prompt", "ROMEO", "-n", "40", "--seed", "5")
    found = sources.resolve("small")
    expected = generate_text(
        found.model, found.require_tokenizer(), "ROMEO", max_new_tokens=40, seed=5
    )
    assert result.stdout.rstrip("\n") == expected.rstrip("\n")
    assert "run small, step 500" in result.stderr
    assert "seed 5" in result.stderr
    assert "tokens/s" in result.stderr


def test_samples_come_in_order_and_keep_their_text(here: Path) -> None:
    common = ("-p", "A", "-n", "20", "--seed", "9")
    four = stdout(*common, "--num-samples", "4").split(SEPARATOR)
    two = stdout(*common, "--num-samples", "2").split(SEPARATOR)
    assert len(set(four)) == len(four) == 4
    assert [text.rstrip("\n") for text in two] == [text.rstrip("\n") for text in four[:2]]


def test_json_holds_what_the_text_is_made_of(here: Path) -> None:
    lines = stdout("-p", "AB", "-n", "12", "--num-samples", "2", "--seed", "1", "--json")
    facts = json.loads(lines.splitlines()[-1])
    assert (facts["seed"], facts["step"], facts["new_tokens"]) == (1, 500, 24)
    tokenizer = CharTokenizer(CHARACTERS)
    for number, one in enumerate(facts["samples"]):
        assert one["sample"] == number
        assert (one["prompt"], one["ending"]) == ("AB", "length")
        assert tokenizer.decode(one["tokens"]) == one["text"]
        assert len(one["logprobs"]) == len(one["runners_up"]) == 12
        assert all(p <= 0 for p in one["logprobs"])
        best = [pairs[0][1] for pairs in one["runners_up"]]
        assert all(p <= b for p, b in zip(one["logprobs"], best, strict=True))


def test_logprobs_list_every_token_with_runners_up(here: Path) -> None:
    text = stdout("-p", "AB", "-n", "5", "--seed", "1", "--logprobs")
    rows = [line for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert [int(row.split()[0]) for row in rows] == [0, 1, 2, 3, 4]
    assert all(row.count("%") == 4 for row in rows)
    plain = stdout("-p", "AB", "-n", "5", "--seed", "1")
    assert text.startswith(plain)
    stop = plain[4:6]
    cut = stdout("-p", "AB", "-n", "5", "--seed", "1", "--logprobs", "--stop", stop)
    assert cut.startswith(plain[:4] + "\n" + "    0")
    both = stdout("-p", "AB", "-n", "5", "--seed", "1", "--logprobs", "--num-samples", "2")
    first, second = both.split(SEPARATOR)
    assert first == text
    assert second.startswith("AB")


def test_stop_strings_end_a_text_and_are_left_out(here: Path) -> None:
    full = stdout("-p", "A", "-n", "60", "--seed", "2")[1:]
    stop = full[20:22]
    cut = json.loads(stdout("-p", "A", "-n", "60", "--seed", "2", "--stop", stop, "--json"))
    assert cut["samples"][0]["text"] == full[: full.index(stop)]
    assert cut["samples"][0]["ending"] == "stop_string"


def test_end_of_text_ends_a_sample_unless_ignored(here: Path) -> None:
    make_run(here / "runs" / "bytes", ByteTokenizer(eot=True))
    common = ("bytes", "-p", "A", "-n", "100", "--num-samples", "8", "--seed", "0", "--json",
              "--temperature", "50", "--top-k", "0")  # fmt: skip
    found = json.loads(stdout(*common))["samples"]
    ended = [one for one in found if one["ending"] == "end_of_text"]
    assert ended
    assert all(one["tokens"].index(256) == len(one["tokens"]) - 1 for one in ended)
    ignored = json.loads(stdout(*common, "--ignore-eot"))["samples"]
    assert all(len(one["tokens"]) == 100 for one in ignored)


def test_prompts_come_from_files_and_standard_input(here: Path) -> None:
    Path("one.txt").write_text("Line A\nLine B")
    Path("many.txt").write_text("First\n\nSecond\n")
    Path("many.jsonl").write_text('"Fir\\nst"\n{"prompt": "Second"}\n')
    common = ("-n", "3", "--json")
    assert json.loads(stdout("--prompt-file", "one.txt", *common))["samples"][0]["prompt"] == (
        "Line A\nLine B"
    )
    for name, expected in (("many.txt", "First"), ("many.jsonl", "Fir\nst")):
        samples = json.loads(stdout("--prompts", name, *common))["samples"]
        assert [one["prompt"] for one in samples] == [expected, "Second"]
    piped = json.loads(stdout("--prompt", "-", *common, input="Piped"))
    assert piped["samples"][0]["prompt"] == "Piped"


def test_prompts_of_different_lengths_are_continued_as_if_alone(here: Path) -> None:
    """Beyond the context as well; only the first prompt has the same random numbers alone."""
    Path("many.txt").write_text("ABCDEFGH\nX\n")
    both = json.loads(stdout("--prompts", "many.txt", "-n", "40", "--seed", "3", "--json"))
    alone = json.loads(stdout("-p", "ABCDEFGH", "-n", "40", "--seed", "3", "--json"))
    assert both["samples"][0]["tokens"] == alone["samples"][0]["tokens"]
    rolled = json.loads(
        stdout("-p", "ABCDEFGH", "-n", "40", "--seed", "3", "--json", "--context", "roll")
    )
    before, after = alone["samples"][0]["tokens"], rolled["samples"][0]["tokens"]
    assert before[:25] == after[:25]
    assert before != after


def test_unknown_characters_are_named_or_handled_as_asked(here: Path) -> None:
    error = refusal("-p", "Ré–x ✓ é")
    for part in ("'é' (U+00E9) at position 1, 7 (nearest: 'e')", "'✓'", "nothing similar"):
        assert part in error.message
    assert "--on-unknown" in error.hint
    for policy, seen in (("skip", "Rx  "), ("replace", "Rex  e")):
        result = nanogpt("-p", "Ré–x ✓ é", "-n", "8", "--on-unknown", policy, "--seed", "1")
        assert result.exit_code == 0
        same = stdout("-p", seen, "-n", "8", "--seed", "1")
        assert result.stdout.removeprefix("Ré–x ✓ é") == same.removeprefix(seen)
        assert "'✓' (U+2713) at position 5: left out" in result.stderr


def test_messages_about_one_of_several_prompts_name_its_line(here: Path) -> None:
    """Remarks and errors alike; a file with a single prompt needs no line."""
    (here / "p.txt").write_text("Re\n\nR✓\n✓\n")
    error = refusal("--prompts", "p.txt")
    assert error.message.startswith("p.txt, line 3: the prompt holds characters")
    result = nanogpt("--prompts", "p.txt", "--on-unknown", "skip")
    assert "p.txt, line 3: '✓' (U+2713) at position 1: left out" in result.stderr
    assert isinstance(result.exception, UserError)
    assert result.exception.message.startswith("p.txt, line 4: the prompt is empty")
    (here / "long.jsonl").write_text(f'"R"\n"{"R" * 300}"\n')
    assert refusal("--prompts", "long.jsonl").message.startswith(
        "long.jsonl, line 2: the prompt has"
    )
    result = nanogpt("--prompts", "long.jsonl", "--crop", "-n", "2")
    assert "long.jsonl, line 2: only the last " in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("nosuch",), "no run 'nosuch'", "small"),
        (("--checkpoint", "7"), "no checkpoint '7'", "500"),
        (("--prompt", ""), "--prompt is empty", ""),
        (("--prompt", "A" * 33), "33 tokens, but the model's context is only 32", "--crop"),
        (("--prompt", "é", "--on-unknown", "skip"), "is empty without its unknown characters", ""),
        (("--prompt-file", "nosuch.txt"), "nosuch.txt: No such file", ""),
        (("--prompts", "bad.jsonl"), "bad.jsonl, line 2", ""),
        (("--prompts", "empty.txt"), "empty.txt contains no prompt", ""),
        (("--prompt-file", "binary"), "not UTF-8 text (byte 1)", ""),
        (("--prompt", "A", "--prompt-file", "x"), "exclude each other", ""),
        (("--temperature", "-1"), "temperature is -1", "greedy"),
        (("--top-p", "0"), "top-p is 0", "above 0"),
        (("--max-new-tokens", "0"), "--max-new-tokens is 0", "at least 1"),
        (("--num-samples", "-2"), "--num-samples is -2", "at least 1"),
        (("--device", "toaster"), "no device 'toaster'", "auto"),
        (("small", "--run", "small"), "name the model twice", "one"),
        (("empty.txt",), "empty.txt is not a", "Hugging Face"),
        (("--num-samples", "9000000000"), "9000000000 texts at once takes", "fewer"),
        (("--temperature", "1e-320"), "temperature is", "greedy"),
        (("--json", "-i"), "--interactive and --json exclude each other", "one"),
    ],
)
def test_mistakes_are_one_line(
    here: Path, arguments: tuple[str, ...], message: str, hint: str
) -> None:
    Path("bad.jsonl").write_text('"fine"\n{"text": 1}\n')
    Path("empty.txt").write_text("\n")
    Path("binary").write_bytes(b"a\xff\xfe")
    error = refusal(*arguments)
    assert message in error.message
    assert hint in error.hint


def test_a_long_prompt_can_be_cropped(here: Path) -> None:
    cropped = nanogpt("-p", "B" + "A" * 32, "-n", "5", "--seed", "1", "--crop")
    assert "last 32 of the prompt's 33 tokens" in cropped.stderr
    whole = stdout("-p", "A" * 32, "-n", "5", "--seed", "1")
    assert cropped.stdout[33:] == whole[32:]


def test_a_damaged_checkpoint_is_not_sampled_from(here: Path) -> None:
    path = here / "runs/small/checkpoints/step-000500/model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    assert "damaged" in refusal().message


def test_foreign_forms_of_a_model_give_its_text(here: Path) -> None:
    from nanogpt_cli.interop import huggingface
    from nanogpt_cli.interop import nanogpt as nanogpt_format
    from nanogpt_cli.interop.source import from_run

    source = from_run(RunFolder(here / "runs/small"))
    for writer, name in ((huggingface.write, "hf"), (nanogpt_format.write, "theirs")):
        (here / name).mkdir()
        writer(source, here / name, lambda _: None)
    common = ("-p", "ROMEO", "-n", "20", "--seed", "4")
    expected = stdout(*common)
    checkpoint_folder = "runs/small/checkpoints/step-000500"
    for where in ("runs/small", checkpoint_folder, "hf", "theirs", "theirs/ckpt.pt"):
        assert stdout(where, *common) == expected


class _Hub(http.server.SimpleHTTPRequestHandler):
    """As much of the hub's protocol as a download needs, on loopback."""

    sha = "0123456789abcdef0123456789abcdef01234567"

    def send_head(self) -> Any:
        if self.path.startswith("/api/models/some/model/"):
            names = sorted(path.name for path in Path(self.directory).iterdir())
            if "/tree/" in self.path:
                files = [{"type": "file", "path": n, "size": 1, "oid": n} for n in names]
                return self._answer(json.dumps(files).encode(), "application/json")
            body = {"id": "some/model", "sha": self.sha, "private": False,
                    "siblings": [{"rfilename": name} for name in names]}  # fmt: skip
            return self._answer(json.dumps(body).encode(), "application/json")
        prefix = f"/some/model/resolve/{self.sha}/"
        path = Path(self.directory) / self.path.removeprefix(prefix)
        if not self.path.startswith(prefix) or not path.is_file():
            return self.send_error(404)
        return self._answer(path.read_bytes(), "application/octet-stream", path.name)

    def _answer(self, body: bytes, kind: str, etag: str = "") -> Any:
        import io

        self.send_response(200)
        headers = {
            "Content-Type": kind, "Content-Length": str(len(body)),
            "X-Repo-Commit": self.sha, "ETag": f'"{etag or "none"}"',
        }  # fmt: skip
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        return io.BytesIO(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("pickled", [False, True])
def test_hub_ids_are_fetched_once(
    here: Path, monkeypatch: pytest.MonkeyPatch, pickled: bool
) -> None:
    from huggingface_hub import constants

    from nanogpt_cli.interop import huggingface
    from nanogpt_cli.interop.source import from_run

    (here / "hf").mkdir()
    huggingface.write(from_run(RunFolder(here / "runs/small")), here / "hf", lambda _: None)
    if pickled:
        weights = load_file(here / "hf" / "model.safetensors")
        torch.save(weights, here / "hf" / "pytorch_model.bin")
        (here / "hf" / "model.safetensors").unlink()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: _Hub(*a, directory=str(here / "hf"))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NO_PROXY", "*")
    hub = f"http://127.0.0.1:{server.server_port}"
    for name, value in {
        "ENDPOINT": hub,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_CACHE": str(here / "cache"), "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True,
    }.items():  # fmt: skip
        monkeypatch.setattr(constants, name, value)
    common = ("-p", "ROMEO", "-n", "20", "--seed", "4")
    try:
        first = nanogpt("some/model", *common)
    finally:
        server.shutdown()
        server.server_close()
    again = nanogpt("some/model", *common)
    assert first.exit_code == 0, first.exception
    assert first.stdout == again.stdout == stdout(*common)
    assert "fetching some/model" in first.stderr
    assert "fetching" not in again.stderr


def test_a_hub_that_cannot_be_reached_is_one_line(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def fetch(hub_id: str, *, local_files_only: bool = False, **_: object) -> str:
        if local_files_only:
            raise huggingface_hub.errors.LocalEntryNotFoundError("not there")
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert refusal("some/model").message == "cannot fetch some/model from the hub: no route"
    assert "openai-community/gpt2" in refusal("gpt2").message


def start(*arguments: str) -> subprocess.Popen[bytes]:
    return programs.start(
        [sys.executable, "-m", "nanogpt_cli", "sample", *arguments],
        stdin=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_program_reads_a_pipe_and_a_closed_one_ends_it_quietly(here: Path) -> None:
    process = start("-n", "100000")
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdin.write(b"Piped")
    process.stdin.close()
    assert process.stdout.read(5) == b"Piped"
    process.stdout.close()
    comments = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=60) == 0
    assert "reading the prompt from standard input" in comments
    assert "rror" not in comments


def test_the_way_to_the_first_token_does_without_what_it_does_not_need() -> None:
    """The recipe's models take longer to import than a small checkpoint to load and to sample."""
    code = (
        "import sys, nanogpt_cli.interop.opening, nanogpt_cli.sampling.continuation\n"
        "print([name for name in ('nanogpt_cli.recipe', 'typer') if name in sys.modules])"
    )
    process = programs.start([sys.executable, "-c", code], stdout=subprocess.PIPE)
    out, _ = programs.finish(process)
    assert (out.decode().strip(), process.returncode) == ("[]", 0)


def test_what_was_loaded_is_not_swept_again_and_the_collector_is_on(here: Path) -> None:
    import gc

    kept = gc.get_freeze_count()
    sampling_session.open_session(
        "small", "last", Path("runs"), device="cpu", precision="fp32", threads=1
    )
    assert gc.isenabled()
    assert gc.get_freeze_count() > kept


@pytest.mark.parametrize(("capability", "native"), [((9, 0), True), ((7, 5), False)])
def test_a_gpu_without_bf16_samples_in_float32(
    here: Path, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], native: bool
) -> None:
    """PyTorch would emulate bf16 there; the model itself stays on the CPU."""
    monkeypatch.setattr(sampling_session, "_device", torch.device)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, _: model)
    session = sampling_session.open_session(
        "small", "last", Path("runs"), device="cuda:1", precision="auto", threads=0
    )
    assert session.weights.wte.dtype == (torch.bfloat16 if native else torch.float32)
    assert session.generation.exact is not native


def test_the_program_exits_with_two_on_bad_input(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code = programs.nanogpt("sample", "--run", "nosuch", "--prompt", "A")
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert err.splitlines()[0] == "error: no run 'nosuch'"
    assert "Traceback" not in err


def test_the_first_token_does_not_wait_for_the_thread_probe(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A short text does without one; a long text and a long prompt ask once."""
    probed: list[int] = []
    found = tuning.Tuning(1, False, False, {})
    monkeypatch.setattr(tuning, "tune", lambda *_: (probed.append(1), found)[1])
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    try:
        session = sampling_session.open_session(
            "small", "last", Path("runs"), device="cpu", precision="fp32", threads=0
        )
        session.generation.max_new_tokens = 5
        assert len(list(session.pieces([[1]]))) == 5
        session.generation.max_new_tokens = 60
        pieces = session.pieces([[1]])
        next(pieces)
        assert not probed
        assert "cpu" in sampling_session.describe(session)
        next(pieces)
        assert len(probed) == 1
        assert len(list(pieces)) == 58
        assert len(probed) == 1
        assert "1 thread" in sampling_session.describe(session)
        session.tuned, session.threads_open = False, True
        next(session.pieces([[1] * 300]))
        assert len(probed) == 2
    finally:
        torch.set_num_threads(before)


def test_an_endless_line_ends_the_loop(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interactive, "LARGEST", 100)
    assert "over 100 characters" in refusal("--interactive", input="x" * 1000).message


def test_interactive_settings_last_and_mistakes_do_not_end_the_loop(here: Path) -> None:
    script = "\n".join([
        "/temp 0", "/tokens 6", "ABC", "/foo", "/tokens x", "/topp 7", "é", "ABC", "/more",
        "/show", "never ends with\\nthis", "/topp", "/unknown skip", "é!", "/quit", "not reached",
    ])  # fmt: skip
    result = nanogpt("--interactive", input=script)
    assert result.exit_code == 0
    first, second, more = result.stdout.split("ABC")[1:]
    assert first == second
    assert more.startswith(first.rstrip("\n"))
    assert "never ends with\nthis" in result.stdout
    assert "not reached" not in result.stdout
    for part in ("no command /foo", "/tokens does not take the value 'x'", "top-p is 7", "'é'",
                 "temp 0 · ", "topp 1\n", "'é' (U+00E9) at position 0: left out"):  # fmt: skip
        assert part in result.stderr


def test_tab_completes_commands() -> None:
    complete = interactive._complete
    assert [complete("/to", n) for n in range(4)] == ["/topk ", "/topp ", "/tokens ", None]
    assert complete("to", 0) is None
    assert complete("", 0) is None


@pytest.mark.parametrize("options", [(), ("--logprobs",), ("--json",)])
def test_a_text_that_is_stopped_says_how_far_it_came(
    here: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    pieces = sampling_session.Session.pieces

    def stopped(session: sampling_session.Session, ids: list[list[int]]) -> Iterator[Any]:
        yield from itertools.islice(pieces(session, ids), 3)
        raise KeyboardInterrupt

    monkeypatch.setattr(sampling_session.Session, "pieces", stopped)
    result = nanogpt("-p", "AB", "-n", "9", "--seed", "1", *options)
    assert result.exit_code == 130
    assert "stopped · 3 tokens in" in result.stderr
    assert result.stdout == "" if "--json" in options else result.stdout.endswith("\n")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_ctrl_c_stops_the_text_not_the_program(here: Path) -> None:
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["OMP_NUM_THREADS"] = "1"
        command = [sys.executable, "-m", "nanogpt_cli", "sample", "-i", "-n", "100000000"]
        os.execv(sys.executable, command)

    def read_until(*wanted: bytes) -> bytes:
        seen = b""
        while not all(part in seen for part in wanted):
            assert select.select([terminal], [], [], programs.LIMIT)[0], seen
            seen += os.read(terminal, 4096)
        return seen

    try:
        read_until(b"> ")
        os.write(terminal, b"ABC\n")
        read_until(b"ABC\r\n", b"\x1b[2mABC\x1b[0m", b"\r\n")
        os.write(terminal, b"\x03")
        assert b"tokens/s" in read_until(b"stopped", b"tokens/s", b"> ")
        os.write(terminal, b"/tokens 4\n")
        read_until(b"tokens 4", b"> ")
        os.write(terminal, b"/quit\n")
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        _, status = os.waitpid(pid, 0)
        os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == 0
