"""The actions that ask the trainer for something, once the user has confirmed it."""

from __future__ import annotations

from nanogpt_cli.run import events
from nanogpt_cli.tui import generate
from nanogpt_cli.tui.actions import DashboardActions, DashboardExit
from nanogpt_cli.tui.desk import Desk
from nanogpt_cli.tui.dialogs import Ask, Confirm

_QUESTIONS = {
    "pause": ("Pause training?", "It pauses after the current step; P again resumes it."),
    "resume": ("Resume training?", ""),
    "checkpoint": ("Save a checkpoint now?", "Training continues afterwards."),
    "eval": ("Evaluate now?", "One full pass over the validation split."),
    "sample": ("Write a sample from this prompt", "It appears under 4 Samples."),
    "lr": ("Multiply the learning rate by", "The whole remaining schedule is scaled."),
    "stop": ("Stop training?", "The trainer saves a checkpoint first; it can be resumed."),
}


class TrainerActions(DashboardActions):
    """What the keys do whose action is ``ask``; see ``tui/keys.py``."""

    async def action_ask(self, name: str) -> None:
        """Send a command to the trainer after the user has confirmed it."""
        if name == "stop" and (self.desk.readonly or not self.desk.state().live):
            self.action_detach()
            return
        if self.desk.readonly:
            self.notify("read-only: nothing is sent to the trainer", severity="warning")
            return
        state = self.desk.state()
        if not state.live and (name != "sample" or not generate.can(self.desk.session.folder)):
            self.notify(f"no trainer would answer: the run is {state.word}", severity="warning")
            return
        await self._ask(name)

    async def _ask(self, name: str) -> None:
        if name == "pause" and self.desk.view.paused:
            name = "resume"
        question, detail = _QUESTIONS[name]

        def confirmed(yes: bool | None) -> None:
            if yes:
                self._send(name, "")

        def typed(text: str | None) -> None:
            if text is None:
                return
            if name == "lr" and not _is_factor(text):
                self.notify(f"{text!r} is not a positive number", severity="error")
                return
            if self.desk.state().live:
                self._send(name, text)
            else:
                self._generate(text)

        if name in ("sample", "lr"):
            value = "0.5" if name == "lr" else _last_prompt(self.desk)
            await self.push_screen(Ask(question, value, detail), typed)
        else:
            await self.push_screen(Confirm(question, detail), confirmed)

    def _send(self, name: str, argument: str) -> None:
        try:
            self.desk.session.send(name, argument)
        except OSError as error:
            self.notify(str(error), title="not sent", severity="error")
            return
        if name == "stop":
            self.exit(DashboardExit(stop=True))
        else:
            self.notify("the trainer answers between two steps", title=f"{name} asked for")

    def _generate(self, prompt: str) -> None:
        """Sample from a run that nobody trains, in another process, and show the text."""
        session = self.desk.session
        self.notify("from its checkpoint, in a few seconds", title="sampling", timeout=60)

        def work() -> None:
            found = generate.sample(session.folder, session.view, prompt)
            self.call_from_thread(show, found)

        def show(found: events.Sample | str) -> None:
            if isinstance(found, str):
                self.notify(found, title="no sample", severity="error")
                return
            session.view.fold(found)
            self.notify("the text is under 4 Samples", title="sampled")
            self._redraw()

        self.run_worker(work, thread=True, exclusive=True)


def _is_factor(text: str) -> bool:
    try:
        return 0 < float(text) < float("inf")
    except ValueError:
        return False


def _last_prompt(desk: Desk) -> str:
    samples = desk.view.samples
    return samples[-1].prompt if samples else ""
