"""``nanogpt doctor``: what works on this machine, how fast, and what is missing."""

from __future__ import annotations

import dataclasses
import importlib
import os
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from nanogpt_cli import caches, extras, places, units
from nanogpt_cli.cli import console, doctor_view, options
from nanogpt_cli.errors import UserError
from nanogpt_cli.user_input import expanded
from nanogpt_cli.version import __version__

# Libraries that every command needs, by their module's name.
ESSENTIAL = ("torch", "numpy", "safetensors", "pydantic", "tiktoken", "tokenizers", "textual")
# A checkpoint of the smallest GPT-2 with its optimizer; most runs fail with less free space.
LEAST_FREE_BYTES = 2e9


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    compile_: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Try torch.compile (up to a minute).")
    ] = True,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show CPU, memory, disk and GPUs until q is pressed.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Report what works on this machine, how fast, and what is missing.

    The exit code is 1 if something that every command needs is broken.

    Examples:
      nanogpt doctor
      nanogpt doctor --watch
    """
    if watch:
        _watch(as_json)
        return
    found: dict[str, Any] = {"versions": _versions()}
    if found["versions"]["torch"]:
        found |= _machine(compile_)
    else:
        found |= {"devices": [], "threads": {}, "compile": {"works": None, "why": "no torch"}}
    found |= {"caches": _caches(), "disk": _disk(), "terminal": _terminal(), "extras": _extras()}
    problems = _problems(found)
    found = {"ok": not problems, "problems": problems, **found}
    if as_json:
        console.emit_json(found)
        console.next_command("nanogpt doctor" if problems else "nanogpt train small")
    else:
        doctor_view.show(found)
    if problems:
        raise typer.Exit(1)


def _watch(as_json: bool) -> None:
    """Show the System page of this machine, without a run and without torch."""
    from nanogpt_cli.tui import terminal

    if as_json:
        raise UserError("--watch shows a page, and --json prints one object", "leave one out")
    if reason := terminal.why_not():
        raise UserError(
            f"--watch needs a terminal: {reason}", "without --watch, doctor reports once"
        )
    from nanogpt_cli.tui.machine_app import run_machine

    run_machine(sys.__stderr__)
    console.next_command("nanogpt doctor")


def _versions() -> dict[str, str]:
    """Versions of the essential libraries; "" for one that cannot be imported."""
    found = {"nanogpt-cli": __version__, "python": platform.python_version()}
    for name in ESSENTIAL:
        try:
            importlib.import_module(name)
            found[name] = metadata.version(name)
        except Exception as error:  # whatever a broken library raises while it is imported
            console.say(f"{name} cannot be imported: {type(error).__name__}: {error}")
            found[name] = ""
    found["platform"] = f"{platform.system()} {platform.release()} {platform.machine()}"
    return found


def _machine(compile_: bool) -> dict[str, Any]:
    import torch

    from nanogpt_cli import host
    from nanogpt_cli.machine import capabilities

    console.say("measuring matrix products")
    units = capabilities.units()
    best = units[1] if len(units) > 1 else units[0]
    compiled: dict[str, Any] = {"device": best.device, "works": None, "seconds": 0.0, "why": ""}
    if compile_:
        console.say(f"compiling a small function for {best.device}")
        tried = capabilities.try_compile(best.device)
        compiled |= {"works": tried.works, "seconds": tried.seconds, "why": tried.why_not}
    else:
        compiled["why"] = "not tried (--no-compile)"
    threads = {
        "cores": os.cpu_count() or 1,
        "usable": host.usable_cores(),
        "torch": torch.get_num_threads(),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", ""),
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", ""),
    }
    devices = [dataclasses.asdict(unit) for unit in units]
    return {"devices": devices, "threads": threads, "compile": compiled}


def _caches() -> list[dict[str, Any]]:
    """Size of every folder that grows: our own, and those of the libraries we use."""
    hub = os.environ.get("HF_HOME", "~/.cache/huggingface")
    folders = {
        "cache": places.cache_home(),
        "runs": places.RUNS,
        "data": places.DATA,
        "Hugging Face": expanded(hub),
        "torch.compile": places.compiled_folder(),
    }
    return [
        {"name": name, "path": str(path), "bytes": caches.size(path)}
        for name, path in folders.items()
    ]


def _disk() -> list[dict[str, Any]]:
    """Free space in the folders we write to, and whether they are writable."""
    temporary = Path(tempfile.gettempdir())
    rows = []
    for name, wanted in (
        ("cache", places.cache_home()), ("here", Path.cwd()), ("temporary", temporary)
    ):  # fmt: skip
        path = places.nearest_existing(wanted)
        free = shutil.disk_usage(path).free
        rows.append(
            {"name": name, "path": str(wanted), "free_bytes": free, "writable": _writable(path)}
        )
    return rows


def _writable(folder: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 65536)
            file.flush()
    except OSError:
        return False
    return True


def _terminal() -> dict[str, Any]:
    from nanogpt_cli.tui import terminal

    out = console.stdout()
    return {
        "TERM": os.environ.get("TERM", ""),
        "tty": sys.stdout.isatty(),
        "width": out.width,
        "height": out.height,
        "colours": out.color_system or "none",
        "encoding": sys.stdout.encoding,
        "NO_COLOR": bool(os.environ.get("NO_COLOR")),
        "dashboard": not terminal.why_not(),
        "why_no_dashboard": terminal.why_not(),
    }


def _extras() -> dict[str, Any]:
    return {
        name: {
            "brings": extra.brings,
            "installed": not extra.missing,
            "missing": list(extra.missing),
        }
        for name, extra in extras.EXTRAS.items()
    }


def _problems(found: dict[str, Any]) -> list[str]:
    """Problems that affect every command, as sentences."""
    versions = found["versions"]
    problems = [
        f"{name} is missing or broken: pip install --force-reinstall {name}"
        for name in ESSENTIAL
        if not versions[name]
    ]
    problems += [f"{unit['device']}: {unit['wrong']}" for unit in found["devices"] if unit["wrong"]]
    for row in found["disk"]:
        if not row["writable"]:
            problems.append(f"{row['path']} cannot be written to")
        elif row["free_bytes"] < LEAST_FREE_BYTES:
            free = units.decimal_size(row["free_bytes"])
            problems.append(f"{row['path']} has only {free} free; see nanogpt cache list")
    return problems
