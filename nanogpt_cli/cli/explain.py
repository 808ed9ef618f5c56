"""``nanogpt explain``: what an alarm or a finding means, and what to do about it."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_cli.cli import console, help_page, options
from nanogpt_cli.errors import UserError, nearest

if TYPE_CHECKING:
    from nanogpt_cli.explain.page import Page
    from nanogpt_cli.explain.values import Shape

_GROUPS = {
    "alarm": "Alarms of a training run",
    "signal": "Findings of init-inspect on a scheme and on a pass through the model",
    "weights": "Findings of init-inspect on weights and on the code that draws them",
}
_NEXT = {
    "alarm": "nanogpt watch --page logs",
    "signal": "nanogpt init-inspect",
    "weights": "nanogpt init-inspect --list",
}
_MARGIN = 9  # columns of the headings beside the text


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(explain)


def explain(
    topic: Annotated[
        str,
        typer.Argument(metavar="TOPIC", help="An alarm or a finding; without it, a list of all."),
    ] = "",
    n_layer: Annotated[
        int, typer.Option(metavar="N", min=1, help="Blocks of the model with healthy values.")
    ] = 12,
    n_embd: Annotated[int, typer.Option(metavar="N", min=1, help="Its channels.")] = 768,
    init: Annotated[str, typer.Option(metavar="TEXT", help="Its scheme.")] = "gpt2",
    as_json: options.AsJson = False,
) -> None:
    """Explain an alarm or a finding: what it means, how it is judged, its causes, what to do.

    Limits are read from the code that judges; healthy values are computed now, for a model of the
    given size.

    Examples:
      nanogpt explain dead-units
      nanogpt explain growth --n-layer 48
    """
    from nanogpt_cli.explain import registry

    if not topic:
        _list(as_json=as_json)
        console.next_command("nanogpt explain dead-units")
        return
    page = registry.page(topic, _shape(n_layer, n_embd, init))
    if as_json:
        console.emit_json(asdict(page))
    else:
        typer.echo("\n".join(lines(page, min(100, help_page.terminal_width()))))
    console.next_command(_NEXT[page.kind])


def _shape(n_layer: int, n_embd: int, init: str) -> Shape:
    from nanogpt_cli import schemes
    from nanogpt_cli.explain.values import Shape

    if init not in schemes.names():
        close = nearest(init, schemes.names())
        hint = f"did you mean {close}?" if close else "nanogpt init-inspect --list shows all"
        raise UserError(f"--init: there is no scheme {init!r}", hint)
    return Shape(n_layer, n_embd, init)


def _list(*, as_json: bool) -> None:
    from nanogpt_cli.explain import registry

    if as_json:
        console.emit_json(
            {"topics": [{"name": name, "kind": kind, "title": topic.title}
                        for kind, topics in registry.KINDS.items()
                        for name, topic in topics.items()]}
        )  # fmt: skip
        return
    said: list[str] = []
    for kind, topics in registry.KINDS.items():
        rows = [(name, topic.title) for name, topic in topics.items()]
        said += (
            ["", help_page.heading(_GROUPS[kind])] if said else [help_page.heading(_GROUPS[kind])]
        )
        said += help_page.columns(rows, help_page.terminal_width())
    typer.echo("\n".join(said))


def lines(page: Page, width: int) -> list[str]:
    """A page as text, its headings beside the paragraphs."""
    found = [f"{help_page.heading(page.name)}: {page.title}", ""]
    found += [*textwrap.wrap(page.says, width), ""]
    found += _beside("Judged", [page.judged], width)
    found += _beside("Causes", [f"- {cause}" for cause in page.causes], width)
    for number, action in enumerate(page.actions):
        found += _beside("" if number else "Do", [action.text], width)
        found += [f"{'':{_MARGIN}}  {action.command}"] if action.command else []
    return found + _beside("Healthy", [page.healthy], width)


def _beside(heading: str, paragraphs: list[str], width: int) -> list[str]:
    found: list[str] = []
    for text in paragraphs:
        hang = "  " if text.startswith("- ") else ""
        found += textwrap.wrap(text, width - _MARGIN, subsequent_indent=hang)
    first = f"{help_page.heading(heading)}{'':{_MARGIN - len(heading)}}"
    return [(first if i == 0 else " " * _MARGIN) + line for i, line in enumerate(found)]
