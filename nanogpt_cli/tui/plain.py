"""A run without terminal graphics: one line of text, or a mapping for JSON."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

from nanogpt_cli import units
from nanogpt_cli.run import events, notes
from nanogpt_cli.tui.header import header
from nanogpt_cli.tui.state.session import RunSession
from nanogpt_cli.tui.state.view import RunView


def line(session: RunSession) -> str:
    """The header of the dashboard as one plain line."""
    pieces = header(session.view, session.state(), 200, ascii_only=True)
    return "".join(text for text, _ in pieces).strip()


def summary(session: RunSession) -> dict[str, Any]:
    """The dashboard's content as data, with non-finite numbers as strings."""
    view, state = session.view, session.state()
    said = notes.read(session.folder)
    step, evaluation = view.last_step, view.last_eval
    return {
        "run": view.name,
        "folder": str(session.folder.path),
        "state": state.word,
        "detail": state.detail,
        "time": view.last_time,
        "parameters": view.parameters,
        "begun_from": view.started.begun_from if view.started else "",
        "step": view.step,
        "max_steps": view.max_steps,
        "tokens": step.tokens if step else 0,
        "loss": _plain(step.loss if step else None),
        "lr": _plain(step.lr if step else None),
        "grad_norm": _plain(step.grad_norm if step else None),
        "clip_share": view.steps.clip_share(),
        "tokens_per_s": _plain(view.steps.recent("tokens_per_s"))
        if step and step.tokens_per_s is not None
        else None,
        "mfu": view.mfu,
        "eta_s": view.eta,
        "val_loss": _plain(evaluation.val_loss if evaluation else None),
        "best_val_loss": view.best_val_loss,
        "bits_per_byte": _plain(evaluation.bits_per_byte if evaluation else None),
        "alarms": [
            {"step": a.step, "kind": a.kind, "layer": a.layer, "message": a.message,
             "advice": a.advice}
            for a in view.active_alarms
        ],
        "system": _system(view),
        "non_finite_steps": view.non_finite,
        "problems": session.problems(),
        "note": said.note,
        "tags": list(said.tags),
    }  # fmt: skip


def _system(view: RunView) -> dict[str, Any] | None:
    """The newest sample of the machine, and where the time of the whole run went."""
    last = view.machine.last
    if last is None:
        return None
    found = {item.name: events.plain(getattr(last, item.name)) for item in fields(last)}
    return found | {"run_times": {k: v for k, v in view.machine.spent().items() if v > 0}}


def _plain(value: float | None) -> float | str | None:
    if value is None or math.isfinite(value):
        return value
    return {"+inf": "Infinity", "-inf": "-Infinity"}.get(units.number(value), "NaN")
