"""``init-inspect --from`` on modules of other architectures, through the command."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import programs
import pytest
import torch

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 300, "hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64, "intermediate_size": 160,
}  # fmt: skip


def llama_config() -> Any:
    return transformers.LlamaConfig(**SIZES, num_key_value_heads=2)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama that nobody trained, in a Hugging Face folder."""
    folder = tmp_path_factory.mktemp("away") / "llama"
    torch.manual_seed(5)
    transformers.LlamaForCausalLM(llama_config()).save_pretrained(folder)
    return folder


@dataclass
class Program:
    """``nanogpt init-inspect`` in this process, with what it writes."""

    capsys: pytest.CaptureFixture[str]

    def __call__(self, *arguments: object) -> tuple[int, str, str]:
        code = programs.nanogpt("init-inspect", *map(str, arguments))
        out, err = self.capsys.readouterr()
        return code, out, err

    def json(self, *arguments: object) -> dict[str, Any]:
        code, out, err = self(*arguments, "--tokens", 32, "--json")
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    def refused(self, *arguments: object) -> str:
        code, out, err = self(*arguments, "--tokens", 16)
        assert code == 2, out + err
        assert out == ""
        assert "Traceback" not in err
        return err


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Program:
    return Program(capsys)


def alarms(found: dict[str, Any]) -> list[str]:
    return [v["text"] for v in found["verdicts"] if v["severity"] in ("warn", "fail")]


@pytest.mark.numeric
def test_a_stored_model_has_the_stream_that_the_library_says(run: Program, llama: Path) -> None:
    found = run.json("--from", llama, "--batch", "2")
    model = transformers.LlamaForCausalLM.from_pretrained(llama).eval()
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(300, (2, 33), generator=rng)
    with torch.no_grad():
        states = model(ids[:, :-1], labels=None, output_hidden_states=True)
        logits = states.logits
    # The library's last state is behind the final norm.
    sizes = [x.square().mean().sqrt().item() for x in states.hidden_states[:-1]]
    assert found["measured"]["stream_rms"][:-1] == pytest.approx(sizes, rel=1e-5)
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    assert found["measured"]["loss"] == pytest.approx(loss.item(), rel=1e-5)


@pytest.mark.numeric
def test_a_configuration_is_drawn_and_predicted(run: Program, tmp_path: Path) -> None:
    llama_config().save_pretrained(tmp_path)
    found = run.json("--from", tmp_path / "config.json", "--batch", "2")
    assert alarms(found) == []
    assert found["unclaimed"] == ""
    # One draw of 64 channels: the stream scatters by about 1/√64.
    pairs = zip(found["measured"]["stream_rms"], found["expected"]["stream_rms"], strict=True)
    assert all(abs(a / b - 1) < 0.3 for a, b in pairs)
    assert found["measured"]["loss_any"] == pytest.approx(found["expected"]["loss_any"], abs=0.05)
    assert len(found["measured"]["grad_rms"]) == 4
    roles = {part["role"] for part in found["structure"]["parts"]}
    assert roles == {"wte", "q", "k", "v", "attn_proj", "gate", "fc", "mlp_proj", "norm", "lm_head"}
    assert found["structure"]["blocks"] == [f"model.layers.{n}" for n in range(3)]
    again = run.json("--from", tmp_path / "config.json", "--batch", "2")
    assert again == found  # a start is a function of the seed


def test_a_fault_in_the_weights_is_named_and_fails_the_lint(
    run: Program, llama: Path, tmp_path: Path
) -> None:
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[80:] = 0
    model.save_pretrained(tmp_path / "holed")
    found = run.json("--from", tmp_path / "holed")
    assert any("layers.1.mlp.up_proj" in text for text in alarms(found))
    for level, code in (("--lint=warn", 1), ("--lint", 0)):
        fatal = any(v["severity"] == "fail" for v in found["verdicts"])
        where = ("--from", tmp_path / "holed", "--tokens", 16, level)
        assert run(*where)[0] == (1 if fatal else code)


def test_the_page_fits_eighty_columns(run: Program, llama: Path) -> None:
    code, out, err = run("--from", llama, "--tokens", 16, "--details")
    assert code == 0, err
    assert all(len(line) <= 80 for line in out.splitlines())
    for word in ("3 × [norm → attn (q, k, v, attn_proj) → +", "Over depth", "Inside the blocks"):
        assert word in " ".join(out.split()), out


def test_the_first_page_answers_before_its_tables(run: Program, llama: Path) -> None:
    code, out, err = run("--from", llama, "--tokens", 16)
    assert code == 0, err
    assert len(out.splitlines()) < 40
    at = [out.index(part) for part in ("module", "looks fine", "Over depth", "Weights by class")]
    assert at == sorted(at)
    assert "Inside the blocks" not in out
    assert err.splitlines()[-1] == f"next: nanogpt init-inspect --from {llama} --details"


def test_many_findings_leave_room_for_the_chart(run: Program, llama: Path, tmp_path: Path) -> None:
    """The gravest stand on the page with where to look, and the rest are counted."""
    model = transformers.LlamaForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        model.model.layers[0].mlp.up_proj.weight[80:] = 0
        model.model.layers[1].self_attn.q_proj.weight.mul_(7)
        model.model.layers[2].mlp.down_proj.weight.add_(0.01)
        model.lm_head.weight.add_(0.01)
        model.model.embed_tokens.weight[5] = 9
    model.save_pretrained(tmp_path / "bad")
    n = len(alarms(run.json("--from", tmp_path / "bad")))
    assert n > 3
    _, out, _ = run("--from", tmp_path / "bad", "--tokens", 32)
    assert len(out.splitlines()) < 45
    assert "usual cause: " in out
    assert f"and {n - 3} more: add --details" in out
    _, out, _ = run("--from", tmp_path / "bad", "--tokens", 32, "--details")
    assert len(re.findall(r"^ [✗!] ", out, re.M)) == n


def test_a_file_corrects_the_structure(run: Program, llama: Path, tmp_path: Path) -> None:
    file = tmp_path / "structure.toml"
    file.write_text('[roles]\n"*.up_proj.weight" = "other"\n')
    found = run.json("--from", llama, "--structure", file)
    roles = {p["role"] for p in found["structure"]["parts"] if "up_proj" in p["parameter"]}
    assert roles == {"other"}
    file.write_text('[roles]\n"*.upproj.weight" = "fc"\n')
    assert "upproj" in run.refused("--from", llama, "--structure", file)
    file.write_text('[roles]\n"*.up_proj.weight" = "mlp"\n')
    assert "structure.toml" in run.refused("--from", llama, "--structure", file)


def test_the_depth_table_is_written(run: Program, llama: Path, tmp_path: Path) -> None:
    run.json("--from", llama, "--csv", tmp_path / "depth.csv")
    with (tmp_path / "depth.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert float(rows[3]["stream_rms_measured"]) > float(rows[0]["stream_rms_measured"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--compare", "gpt2"), "--compare needs a GPT"),
        (("--scan", "depth"), "--scan needs a GPT"),
        (("--coord-check",), "--coord-check needs a GPT"),
        (("--theory",), "--theory is for a GPT"),
        (("--hist",), "--hist is for a GPT"),
        (("--tui",), "--tui opens no dashboard"),
        (("--init", "gpt2"), "--init names a scheme for GPT-2"),
        (("--n-layer", "3"), "--from defines the model itself"),
        (("--input", "nowhere"), "nowhere"),
    ],
)
def test_what_does_not_apply_is_refused(
    run: Program, llama: Path, options: tuple[str, ...], said: str
) -> None:
    assert said in run.refused("--from", llama, *options)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "config.json"),
        ('{"model_type": "lama"}', "nearest: 'llama'"),
        ('{"model_type": "llama", "hidden_size": -4}', "config.json"),
        ('{"model_type": "vit"}', "no causal language model"),
        ("[]", "config.json"),
    ],
)
def test_a_broken_configuration_is_one_line(
    run: Program, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(text)
    lines = run.refused("--from", tmp_path / "config.json").strip().splitlines()
    assert said in lines[0] + lines[-1]
    assert len(lines) <= 2


FACTORIES = """
import os
from dataclasses import dataclass
import torch
from few_positions import Decoder


@dataclass
class Result:
    prediction: torch.Tensor


class KeywordOnly(Decoder):
    def forward(self, *, input_ids):
        return Result(super().forward(input_ids))


class WithoutGradients(Decoder):
    @torch.no_grad()
    def forward(self, ids):
        return super().forward(ids)


class Inference(Decoder):
    @torch.inference_mode()
    def forward(self, ids):
        return super().forward(ids)


class Noisy(Decoder):
    def embed(self, ids):
        x = super().embed(ids)
        return x + 0.01 * torch.randn_like(x)


class Clipped(Decoder):
    def __init__(self):
        super().__init__()
        self.wte.max_norm = 1.0


def settings():
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    model = Decoder()
    torch.set_grad_enabled(False)
    os.chdir("/")
    return model.to_empty(device="cpu").apply(start)


def start(module):
    for parameter in module.parameters(recurse=False):
        torch.nn.init.normal_(parameter, std=0.02)


def exported():
    ids = torch.zeros(1, 8, dtype=torch.int64)
    return torch.export.export(Decoder().eval(), (ids,)).module()
"""
DECODER = """
import torch
from torch import nn


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(11, 32), nn.Embedding(20, 32)
        self.layers, self.head = nn.ModuleList(Layer() for _ in range(3)), nn.Linear(32, 11)

    def embed(self, ids):
        return self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file of factories of a decoder with fewer tokens than positions, and few positions."""
    (tmp_path / "few_positions.py").write_text(DECODER)
    path = tmp_path / "factories.py"
    path.write_text(FACTORIES)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "few_positions", raising=False)
    yield path
    sys.modules.pop("few_positions", None)


@pytest.mark.parametrize("name", ["Decoder", "KeywordOnly", "WithoutGradients", "Noisy", "Clipped"])
def test_what_no_configuration_states_is_found(run: Program, code: Path, name: str) -> None:
    before = torch.random.get_rng_state()
    found = run.json("--from", f"{code}:{name}")  # 32 tokens are asked for, and 20 fit
    assert found["module"]["vocab_size"] == 11
    assert len(found["structure"]["blocks"]) == 3
    assert bool(found["measured"]["grad_rms"]) == (name != "WithoutGradients")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "20 random tokens" in " ".join(run("--from", f"{code}:{name}")[1].split())


def test_settings_of_the_users_code_end_with_it(run: Program, code: Path) -> None:
    folder = Path.cwd()
    run.json("--from", f"{code}:settings")
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device().type == "cpu"
    assert torch.is_grad_enabled()
    assert Path.cwd() == folder


@pytest.mark.parametrize(
    ("name", "said"), [("Inference", "inference_mode"), ("exported", "eval() is not supported")]
)
def test_what_cannot_be_seen_is_refused(run: Program, code: Path, name: str, said: str) -> None:
    assert said in run.refused("--from", f"{code}:{name}")


def test_post_norm_is_no_fault(run: Program, tmp_path: Path) -> None:
    config = transformers.OpenAIGPTConfig(vocab_size=300, n_embd=64, n_layer=3, n_head=4)
    config.save_pretrained(tmp_path)
    assert not alarms(run.json("--from", tmp_path / "config.json"))


def test_buffers_that_a_pass_moves_are_given_back(run: Program, tmp_path: Path) -> None:
    config = transformers.CTRLConfig(vocab_size=300, n_embd=64, n_layer=3, n_head=4, dff=128)
    config.save_pretrained(tmp_path)
    found = run.json("--from", tmp_path / "config.json")
    assert len(found["structure"]["blocks"]) == 3


@pytest.mark.parametrize("fault", ["nan", "shape"])
def test_one_damaged_matrix_is_said_once(
    run: Program, llama: Path, tmp_path: Path, fault: str
) -> None:
    from safetensors.torch import load_file, save_file

    weights, name = load_file(llama / "model.safetensors"), "model.layers.1.mlp.up_proj.weight"
    if fault == "nan":
        weights[name][2, 3] = torch.nan
    else:
        weights[name] = torch.zeros(5, 64)
    (tmp_path / "config.json").write_bytes((llama / "config.json").read_bytes())
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    if fault == "nan":
        assert not [text for text in alarms(run.json("--from", tmp_path)) if "own logits" in text]
    else:
        code, out, err = run("--from", tmp_path, "--tokens", 16, "--json")
        assert (code, out) == (2, "")
        assert err.count(str(tmp_path)) == 1
        assert name in err
