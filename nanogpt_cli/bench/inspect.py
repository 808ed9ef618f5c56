"""``nanogpt bench inspect``: compare the streamed inspection with building the whole model.

Each contender runs in a separate process, so that peak memory is measured for it alone.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from nanogpt_cli import shell
from nanogpt_cli.cli import console, options
from nanogpt_cli.errors import UserError

_PRELUDE = """
import json, sys, time
import torch
from nanogpt_cli import host
L, H, d, V, T = map(int, sys.argv[1:6])
ids = torch.randint(V, (1, T), generator=torch.Generator().manual_seed(0))
start, cpu = time.perf_counter(), time.process_time()
def report(**more):
    print(json.dumps(dict(cpu_s=time.process_time() - cpu, wall_s=time.perf_counter() - start,
                          peak_mib=host.peak_bytes() / 2**20, **more)))
"""
_OURS = """
from nanogpt_cli import schemes
from nanogpt_cli.model.gpt import GPTConfig
config, scheme = GPTConfig(L, H, d, max(T, 1024), V, 0.0, False, "gelu"), schemes.get("gpt2")
"""
_STREAMED = """
from nanogpt_cli.init.inspect import measure
from nanogpt_cli.init.sources import Drawn
measure(Drawn(config, scheme, 0), ids, torch.roll(ids, -1, 1), backward={backward})
report()
"""
_WHOLE = """
from nanogpt_cli.init.drawing import build
model = build(config, scheme, 0).eval()
built = time.process_time() - cpu
with torch.no_grad():
    model(ids)
report(build_cpu_s=built)
"""
_NANOGPT = """
import contextlib, importlib.util, io
spec = importlib.util.spec_from_file_location("nanogpt_model", sys.argv[6])
module = importlib.util.module_from_spec(spec)
sys.modules["nanogpt_model"] = module
spec.loader.exec_module(module)
shape = dict(n_layer=L, n_head=H, n_embd=d, vocab_size=V, block_size=max(T, 1024))
with contextlib.redirect_stdout(io.StringIO()):
    model = module.GPT(module.GPTConfig(dropout=0.0, bias=False, **shape)).eval()
built = time.process_time() - cpu
with torch.no_grad():
    model(ids)
report(build_cpu_s=built)
"""


def register(group: typer.Typer) -> None:
    """Add ``inspect`` to the group."""
    group.command("inspect")(bench_inspect)


def bench_inspect(
    n_layer: Annotated[int, typer.Option(min=1, help="Blocks.")] = 48,
    n_embd: Annotated[int, typer.Option(min=1, help="Channels, heads of 64.")] = 768,
    vocab_size: Annotated[int, typer.Option(min=2, help="Embedding rows.")] = 50304,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens per sequence.")] = 256,
    backward: Annotated[bool, typer.Option(help="Gradient statistics as well.")] = False,
    nanogpt: options.NanoGPT = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare time and peak memory of init-inspect with building the whole model, in one run."""
    if n_embd % 64:
        raise UserError(f"--n-embd {n_embd} is not a multiple of 64", "heads have 64 channels")
    shape = [n_layer, n_embd // 64, n_embd, vocab_size, tokens]
    contenders = {
        "streamed inspection": _PRELUDE + _OURS + _STREAMED.format(backward=backward),
        "whole model, build + forward": _PRELUDE + _OURS + _WHOLE,
    }
    if nanogpt is not None:
        nanogpt = nanogpt / "model.py" if nanogpt.is_dir() else nanogpt
        if not nanogpt.is_file():
            raise UserError(f"{nanogpt} does not exist", "give the folder of nanoGPT's checkout")
        contenders["nanoGPT, build + forward"] = _PRELUDE + _NANOGPT
    rows = {name: _run(name, code, shape, nanogpt) for name, code in contenders.items()}
    if as_json:
        console.emit_json({"shape": shape, "rows": rows})
    else:
        _show(rows, f"{n_layer} layers × {n_embd} channels, {tokens} tokens")
    words = ("init-inspect", "--n-layer", n_layer, "--n-embd", n_embd)
    console.next_command(shell.command(*words))


def _run(name: str, code: str, shape: list[int], extra: Path | None) -> dict[str, float]:
    console.say(f"running: {name}")
    arguments = [*map(str, shape), *([str(extra)] if extra else [])]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise UserError(f"{name} failed: {reason}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _show(rows: dict[str, dict[str, float]], title: str) -> None:
    table = console.simple_table(title, ("", "CPU s", "of which build", "wall s", "peak MiB"))
    for name, row in rows.items():
        values: list[Any] = [row["cpu_s"], row.get("build_cpu_s"), row["wall_s"]]
        cells = ["–" if value is None else f"{value:.1f}" for value in values]
        table.add_row(name, *cells, f"{row['peak_mib']:.0f}")
    console.stdout().print(table)
