"""``nanogpt bench gpu`` on a CPU: its items at the smallest sizes, limits, failures, its file."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import programs
import pytest
import torch
from typer.testing import CliRunner

from nanogpt_cli.bench.on_gpu import profile, report, setup
from nanogpt_cli.bench.on_gpu.items import ITEMS
from nanogpt_cli.bench.on_gpu.report import Part, Report, Setting
from nanogpt_cli.cli import app, shapes
from nanogpt_cli.errors import UserError
from nanogpt_cli.sampling import decode_graph
from nanogpt_cli.training.optimizers.adamw import AdamW
from nanogpt_cli.training.stepper import Stepper

pytestmark = pytest.mark.skipif(not hasattr(os, "killpg"), reason="ends groups of processes")

WORDS = ("bench", "gpu", "--device", "cpu")
PROGRAM = [sys.executable, "-m", "nanogpt_cli", *WORDS]
FAILING = "raise SystemExit('no such thing')"
# Says which process it is, and never makes a step.
HANGING = """
import os, pathlib, time
pathlib.Path("begun.tmp").write_text(str(os.getpid()))
pathlib.Path("begun.tmp").rename("begun")
while True:
    time.sleep(1)
"""


def checkout(folder: Path, script: str) -> Path:
    folder.mkdir()
    (folder / "train.py").write_text(script)
    return folder


def carried_out(name: str, folder: Path) -> list[dict[str, Any]]:
    """The parts of an item, carried out in this process."""
    parts = folder / "parts.jsonl"
    ITEMS[name].work(Report(parts), Setting("cpu", tiny=True, folder=folder))
    return report.read(parts)


@pytest.fixture
def quick_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dynamo traces as always, and nothing is made of its graphs."""
    compiler = functools.partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", compiler)


@pytest.mark.usefixtures("quick_compiler")
@pytest.mark.parametrize(
    "name", ["reference", "optimizers", "compile", "syncs", "decoding", "profile"]
)
def test_an_item_passes_on_a_cpu(name: str, tmp_path: Path) -> None:
    parts = carried_out(name, tmp_path)
    assert [(part["status"], part["error"]) for part in parts] == [("passed", "")] * len(parts)
    assert all(part["facts"] for part in parts)


def test_another_update_than_pytorchs_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = AdamW._update

    def longer(self: AdamW, params: list[torch.Tensor], group: Any, mine: range) -> None:
        plain(self, params, {**group, "lr": group["lr"] * 1.001}, mine)

    monkeypatch.setattr(AdamW, "_update", longer)
    adamw, *muon = carried_out("optimizers", tmp_path)
    assert adamw["status"] == "failed"
    assert "weights differ" in adamw["error"]
    assert {part["status"] for part in muon} == {"passed"}, "one part does not end the others"


def test_a_second_transfer_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Stepper.measure

    def curious(self: Stepper, *arguments: Any, **options: Any) -> Any:
        self._norms.tolist()
        return plain(self, *arguments, **options)

    monkeypatch.setattr(Stepper, "measure", curious)
    monkeypatch.setattr("nanogpt_cli.bench.on_gpu.compiled._WAYS", {"eager": []})
    (part,) = carried_out("syncs", tmp_path)
    assert part["error"] == "6 transfers in 3 steps"


def test_other_tokens_of_replayed_steps_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = decode_graph.Replay.__call__

    def stale(self: decode_graph.Replay, *arguments: Any) -> torch.Tensor:
        logits = plain(self, *arguments)
        return logits if self._eager_left == float("inf") else logits.roll(1, -1)

    def replayed(*arguments: Any) -> None:
        made(*arguments)
        arguments[0]._eager_left = 1e9

    made = decode_graph.Replay.__init__
    monkeypatch.setattr(decode_graph.Replay, "__init__", replayed)
    monkeypatch.setattr(decode_graph.Replay, "__call__", stale)
    parts = carried_out("decoding", tmp_path)
    assert all("eager steps give different tokens" in part["error"] for part in parts)


def test_losses_may_differ_by_rounding_first_and_by_more_later() -> None:
    close, later, first = Part(), Part(), Part()
    setup.compare(close, [4.0, 3.001], [4.0000001, 3.0], "fp32", 32)
    setup.compare(later, [4.0, 3.1], [4.0, 3.0], "fp32", 32)
    setup.compare(first, [4.001, 3.0], [4.0, 3.0], "fp32", 32)
    assert close.failed == []
    assert later.failed == ["losses differ by 0.033, above 0.0078"]
    assert first.failed == ["the first losses differ by 0.00025, above 3.8e-06"]


def test_an_error_in_a_part_is_one_line_and_a_traceback(tmp_path: Path) -> None:
    found = Report(tmp_path / "parts")
    with found.part("bad") as part:
        part.facts["first"] = float("nan")
        part.check(False, "no such luck")
        raise RuntimeError("CUDA error: out of luck\nFor debugging consider this and that")
    with found.part("good"):
        pass
    with (tmp_path / "parts").open("a") as file:
        file.write('{"name": "half wri')
    bad, good = report.read(tmp_path / "parts")
    assert bad["error"] == "no such luck; RuntimeError: CUDA error: out of luck"
    assert bad["trace"][-1] == "For debugging consider this and that"
    assert bad["facts"] == {"first": "NaN"}
    assert good["status"] == "passed"


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT", "matmul"),
        ("sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64", "matmul"),
        ("aten::addmm", "matmul"),
        ("triton_tem_fused_mm_3", "matmul"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<64>>", "attention"),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob", "attention"),
        ("fmha_cutlassF_bf16_aligned_64x64_rf_sm80", "attention"),
        ("triton_per_fused_add_native_layer_norm_2", "norm"),
        ("triton_red_fused__log_softmax__to_copy_nll_loss_forward_9", "loss"),
        ("triton_poi_fused__to_copy_eq_exp_mul_sub_where_4", "loss"),
        ("triton_poi_fused_expand_view_1", "other"),
        ("triton_poi_fused__to_copy_mm_t_12", "other"),
        ("triton_poi_fused_gelu_7", "other"),
        ("void at::native::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>", "optimizer"),
        ("Memcpy HtoD (Pinned -> Device)", "other"),
    ],
)  # fmt: skip
def test_kernels_are_grouped_by_name(name: str, group: str) -> None:
    assert profile.group_of(name) == group


def test_what_kernels_leave_of_a_step_is_idle() -> None:
    kernels = [profile.Kernel("gemm", 3.0, 2.0), profile.Kernel("flash", 1.0, 1.0)]
    found = profile.grouped(kernels, 5.5)
    assert (found["groups_ms"]["matmul"], found["groups_ms"]["idle"]) == (3.0, 1.5)
    assert [kernel["name"] for kernel in found["kernels"]] == ["gemm", "flash"]
    assert profile.grouped(kernels, 3.5)["groups_ms"]["idle"] == 0


def test_kernels_of_a_trace_are_added_up() -> None:
    events = [
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 0, "dur": 1500},
        {"ph": "X", "cat": "kernel", "name": "gemm", "ts": 2000, "dur": 1500},
        {"ph": "X", "cat": "gpu_memcpy", "name": "Memcpy", "ts": 4000, "dur": 300},
        {"ph": "X", "cat": "gpu_user_annotation", "name": "step", "ts": 0, "dur": 9000},
        {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 9000},
        {"ph": "M", "name": "process_name"},
    ]
    assert profile.on_gpu(events, steps=2) == [
        profile.Kernel("gemm", 1.5, 1.0), profile.Kernel("Memcpy", 0.15, 0.5),
    ]  # fmt: skip


def test_random_texts_have_the_vocabulary_asked_for(tmp_path: Path) -> None:
    setting = Setting("cpu", tiny=True, folder=tmp_path)
    for vocabulary in (5, 28, 60, 3000):
        made = setup.text(setting, vocabulary=vocabulary, length=100_000)
        text = made.read_text(encoding="utf-8")
        assert (len(text), len(set(text))) == (100_000, vocabulary)


def test_an_item_that_fails_ends_with_its_error_and_the_others_go_on(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    against = checkout(tmp_path / "checkout", FAILING)
    out = tmp_path / "results" / "gpu.json"
    items = ["--only", "against", "--only", "decoding"]
    code = programs.nanogpt(*WORDS, *items, "--against", str(against), "--out", str(out), "--json")
    printed, said = capfd.readouterr()
    assert code == 1, said
    found = json.loads(out.read_text())
    assert json.loads(printed) == found
    assert set(found) == set(shapes.SHAPES["bench gpu"])
    assert (found["device"], found["tiny"], found["passed"]) == ("cpu", True, False)
    decoding, failed = found["items"]
    assert (decoding["name"], decoding["status"], decoding["error"]) == ("decoding", "passed", "")
    assert failed["error"].startswith("bench train: RuntimeError: nanogpt bench ended with exit")
    assert "nanoGPT ended before its first steps" in failed["error"]
    assert failed["parts"][0]["trace"]
    assert said.splitlines()[-1] == "next: nanogpt docs benchmarks"


def test_an_item_that_takes_too_long_is_ended_and_the_next_not_begun(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A second is less than Python needs for PyTorch four times."""
    out = tmp_path / "gpu.json"
    items = ["--only", "training", "--only", "resume", "--minutes", "0.017"]
    assert programs.nanogpt(*WORDS, *items, "--out", str(out)) == 1
    printed = capfd.readouterr().out
    training, resume = json.loads(out.read_text())["items"]
    assert training["status"] == resume["status"] == "failed"
    assert training["error"] == "not done after 1 s"
    assert resume["error"] == "not begun: the time for all items was over"
    assert "training: not done after 1 s" in printed


def test_whoever_is_killed_leaves_what_is_finished_and_nothing_that_runs(tmp_path: Path) -> None:
    against = checkout(tmp_path / "checkout", HANGING)
    out = tmp_path / "gpu.json"
    items = ["--only", "against", "--only", "decoding"]
    process = programs.start([*PROGRAM, *items, "--against", str(against), "--out", str(out)])
    programs.until((against / "begun").exists, process)
    process.kill()
    programs.finish(process)
    found = json.loads(out.read_text())
    assert found["passed"] is None
    assert [(item["name"], item["status"]) for item in found["items"]] == [
        ("decoding", "passed"), ("against", "running"),
    ]  # fmt: skip
    assert len(found["items"][0]["parts"]) == 4
    hanging = int((against / "begun").read_text())
    waiting = programs.start(
        [sys.executable, "-c",
         "import os, sys, time\n"
         "try:\n"
         "    while True:\n"
         "        os.kill(int(sys.argv[1]), 0)\n"
         "        time.sleep(0.02)\n"
         "except ProcessLookupError:\n"
         "    pass\n", str(hanging)],
    )  # fmt: skip
    programs.finish(waiting)
    assert waiting.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "speed"], "--only speed is not an item"),
        (["--device", "mps"], "--device mps is not cuda or cpu"),
        (["--out", "here"], "here exists"),
        (["--device", "cpu", "--against", "nowhere"], r"nowhere/train\.py does not exist"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here").write_text("precious")
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, ["bench", "gpu", *arguments], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["here"]
    assert Path("here").read_text() == "precious"


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_machine_without_a_gpu_is_told_how_to_try(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert programs.nanogpt("bench", "gpu", "--out", str(out)) == 2
    said = capfd.readouterr().err
    assert "error: PyTorch sees no GPU here" in said
    assert "nanogpt bench gpu --device cpu" in said
    assert not out.exists()


def test_ctrl_c_ends_the_item(tmp_path: Path) -> None:
    against = checkout(tmp_path / "checkout", HANGING)
    out = tmp_path / "gpu.json"
    process = programs.start(
        [*PROGRAM, "--only", "against", "--against", str(against), "--out", str(out)], text=True
    )
    programs.until((against / "begun").exists, process)
    process.send_signal(signal.SIGINT)
    programs.finish(process)
    assert process.returncode == 130
    with pytest.raises(ProcessLookupError):
        os.kill(int((against / "begun").read_text()), 0)
