"""``nanogpt sample --interactive``: a prompt loop whose settings can change between texts.

Line editing and history come from the standard library's readline, which every Unix has, imports at
once, and suits prompts of one line.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanogpt_cli.cli.sample import sampling_session
from nanogpt_cli.cli.sample.printed import Clock, InOrder
from nanogpt_cli.cli.sample.prompts import LARGEST, Prompt
from nanogpt_cli.cli.sample.sampling_session import Session, note
from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.places import cache_home
from nanogpt_cli.printable import checked

HELP = """\
Type a prompt; the model continues it. \\n in it is a line break, Ctrl-C stops the text.
  /temp 0.7      temperature, 0 is greedy        /tokens 200   length of a text
  /topk 50       keep the best tokens, 0 is off  /samples 3    texts per prompt
  /topp 0.9      keep this much mass, 1 is off   /seed 42      repeat a text; /seed new
  /minp 0.05     relative threshold, 0 is off    /stop TEXT    end before it; /stop clears
  /penalty 1.1   repetition, 1 is off            /context roll beyond the context; or slide
  /unknown skip  characters the model lacks:     /more         continue the last text
                 skip, replace or error          /again        the last prompt, another seed
  /show          show the settings               /quit         or Ctrl-D"""


def loop(session: Session, given: list[Prompt] | None) -> None:
    """Read and answer prompts until the input ends, beginning with those given."""
    note(sampling_session.describe(session))
    note("type a prompt, /help for settings, /quit to leave")
    chat = _Loop(session)
    with _history():
        for prompt in given or []:
            chat.answer(prompt.text)
        while True:
            try:
                line = checked(_read_line(), "the line")
            except (UnicodeDecodeError, UserError) as error:
                note(f"{error}" if isinstance(error, UserError) else "the line is not UTF-8 text")
                continue
            except EOFError:
                if sys.stdin.isatty():
                    sys.stdout.write("\n")
                return
            except KeyboardInterrupt:
                sys.stdout.write("\n")
                note("/quit or Ctrl-D leaves")
                continue
            if len(line) > LARGEST:
                raise UserError(f"a line has over {LARGEST:,} characters, too many for a prompt")
            if not chat.obey(line):
                return


def _read_line() -> str:
    """The next line without its end; ``EOFError`` at the end of the input."""
    if sys.stdin.isatty():
        return input("> ")
    line = sys.stdin.readline(LARGEST + 1)  # of an endless line, no more than tells that it is one
    if not line:
        raise EOFError
    return line.removesuffix("\n")


class _Loop:
    """State of the loop: the session, the last prompt and its text."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.prompt: str | None = None
        self.last = ""

    def obey(self, line: str) -> bool:
        """Execute a line; False ends the loop. Errors of the user are printed, not raised."""
        try:
            if line.startswith("/"):
                return self._command(*_split(line))
            if line:
                self.answer(line.replace("\\n", "\n"))
        except UserError as error:
            note(str(error))
        return True

    def answer(self, prompt: str) -> None:
        """Continue a prompt, streaming; Ctrl-C ends the text only."""
        session = self.session
        _, ids = session.encode([Prompt(prompt)])
        self.prompt, clock = prompt, Clock()
        show, ended = None, "stopped · "
        new = ""
        try:
            show = InOrder([prompt], session.generation.samples)  # writes the prompt
            for piece in session.pieces(ids):
                clock.tick()
                show(piece)
                new += piece.text if piece.of.sample == 0 else ""
            ended = ""
        except KeyboardInterrupt:
            pass
        if show:
            show.finish()
        self.last = prompt + new
        note(f"{ended}seed {session.generation.seed} · {clock.summary()}")
        session.generation = replace(session.generation, seed=sampling_session.fresh_seed())

    def _command(self, name: str, value: str) -> bool:
        if name in ("quit", "exit", "q"):
            return False
        if name in _SETTINGS:
            self._set(name, value)
        elif name == "help":
            note(HELP)
        elif name == "show":
            note(" · ".join(f"{key} {now}" for key, now in _settings(self.session).items()))
        elif name in ("more", "again"):
            self._repeat(more=name == "more")
        else:
            near = nearest(name, _COMMANDS)
            raise UserError(f"no command /{name}", f"did you mean /{near}?" if near else "/help")
        return True

    def _set(self, name: str, value: str) -> None:
        convert, change = _SETTINGS[name]
        try:
            if value or name in _CLEARED:
                change(self.session, convert(value))
        except ValueError:
            raise UserError(f"/{name} does not take the value {value!r}", "/help") from None
        note(f"{name} {_settings(self.session)[name]}")

    def _repeat(self, *, more: bool) -> None:
        if self.prompt is None:
            raise UserError("there is no text yet", "type a prompt first")
        if not more:
            self.answer(self.prompt)
            return
        was, self.session.crop = self.session.crop, True
        try:
            self.answer(self.last)
        finally:
            self.session.crop = was


def _split(line: str) -> tuple[str, str]:
    name, _, value = line[1:].partition(" ")
    return name.strip().lower(), value.strip()


def _sampling(key: str) -> Callable[[Session, Any], None]:
    def change(session: Session, value: Any) -> None:
        sampling = replace(session.generation.sampling, **{key: value})
        session.generation = replace(session.generation, sampling=sampling)

    return change


def _plan(key: str) -> Callable[[Session, Any], None]:
    def change(session: Session, value: Any) -> None:
        session.generation = replace(session.generation, **{key: value})

    return change


def _set_stop(session: Session, value: str) -> None:
    session.stop = (value.replace("\\n", "\n"),) if value else ()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _seed(text: str) -> int:
    return sampling_session.fresh_seed() if text in ("", "new") else int(text)


def _one_of(*words: str) -> Callable[[str], str]:
    def convert(text: str) -> str:
        if text not in words:
            raise ValueError(text)
        return text

    return convert


def _set_unknown(session: Session, value: Any) -> None:
    session.on_unknown = value


_SETTINGS: dict[str, tuple[Callable[[str], Any], Callable[[Session, Any], None]]] = {
    "temp": (float, _sampling("temperature")),
    "topk": (int, _sampling("top_k")),
    "topp": (float, _sampling("top_p")),
    "minp": (float, _sampling("min_p")),
    "penalty": (float, _sampling("repetition_penalty")),
    "tokens": (_positive, _plan("max_new_tokens")),
    "samples": (_positive, _plan("samples")),
    "seed": (_seed, _plan("seed")),
    "context": (_one_of("slide", "roll"), _plan("context")),
    "unknown": (_one_of("error", "skip", "replace"), _set_unknown),
    "stop": (str, _set_stop),
}
# Settings that mean something without a value; the others then print their value.
_CLEARED = ("seed", "stop")


_COMMANDS = [*_SETTINGS, "help", "show", "more", "again", "quit"]


def _settings(session: Session) -> dict[str, Any]:
    """Current value of each setting, by command."""
    generation, sampling = session.generation, session.generation.sampling
    return {
        "temp": f"{sampling.temperature:g}", "topk": sampling.top_k, "topp": f"{sampling.top_p:g}",
        "minp": f"{sampling.min_p:g}", "penalty": f"{sampling.repetition_penalty:g}",
        "tokens": generation.max_new_tokens, "samples": generation.samples, "seed": generation.seed,
        "context": generation.context, "unknown": session.on_unknown,
        "stop": repr(session.stop[0]) if session.stop else "none",
    }  # fmt: skip


def _complete(text: str, state: int) -> str | None:
    """The state-th command that begins with ``text``; readline calls it for the Tab key."""
    found = [f"/{name} " for name in _COMMANDS if text and f"/{name}".startswith(text)]
    return found[state] if state < len(found) else None


@contextlib.contextmanager
def _history() -> Iterator[None]:
    """Enable line editing and a persistent history if there is a readline."""
    try:
        import readline
    except ImportError:  # Windows
        yield
        return
    readline.set_completer_delims("")
    readline.set_completer(_complete)
    readline.parse_and_bind("tab: complete")
    path: Path = cache_home() / "sample_history"
    with contextlib.suppress(OSError):
        readline.read_history_file(path)
    readline.set_history_length(1000)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            readline.write_history_file(path)
