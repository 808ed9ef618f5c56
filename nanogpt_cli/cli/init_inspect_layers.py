"""The Layers view of the dashboard on an inspection: step 0 of a run that was never trained."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nanogpt_cli.cli.init_inspect_input import Subject
    from nanogpt_cli.init.signals import Signals

# Names of ``layers`` events for what an inspection knows.
_NAMES = {
    "attn_rms": "attn_rms",
    "mlp_rms": "mlp_rms",
    "preact_std": "preact_std",
    "dead": "near_zero",
    "attn_entropy": "attn_entropy",
    "attn_score_std": "score_std",
}


def show(subject: Subject, measured: Signals | None, expected: Signals | None) -> None:
    """Open the dashboard on one ``layers`` event; it lives in a temporary run folder."""
    from nanogpt_cli.tui.app import Dashboard
    from nanogpt_cli.tui.session import RunSession

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "init-inspect"
        write_run(run, subject, measured, expected)
        Dashboard([RunSession(run)], readonly=True, page="layers").run()


def write_run(
    folder: Path, subject: Subject, measured: Signals | None, expected: Signals | None
) -> None:
    """A run folder whose log holds the inspection as step 0."""
    from nanogpt_cli.model.accounting import account
    from nanogpt_cli.run import events
    from nanogpt_cli.run.folder import RunFolder
    from nanogpt_cli.run.log import EventWriter

    shown = measured or expected
    assert shown is not None
    folder.mkdir(parents=True)
    writer = EventWriter(RunFolder(folder).events)
    writer(
        events.RunStarted(
            name=subject.label,
            parameters=account(subject.config).parameters,
            vocab_size=subject.config.vocab_size,
            n_layer=subject.config.n_layer,
            expected=statistics(expected) if expected else {},
        )
    )
    writer(events.Layers(step=0, stats=statistics(shown)))
    writer(events.RunEnded(step=0, reason="finished"))
    writer.close()


def statistics(signals: Signals) -> dict[str, list[float]]:
    """Signals under the names of ``layers`` events, one value a block."""
    found = {name: list(getattr(signals, own)) for name, own in _NAMES.items()}
    return {"resid_rms": signals.stream_rms[1:], **found}
