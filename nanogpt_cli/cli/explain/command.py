"""``nanogpt explain``: how a GPT works, what an alarm or a finding means, and what to do."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from nanogpt_cli.cli import console, help_page, options
from nanogpt_cli.cli.explain import concept_pages
from nanogpt_cli.errors import UserError

if TYPE_CHECKING:
    from nanogpt_cli.explain.page import Page

_GROUPS = {
    "concept": "How a GPT works",
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
        typer.Argument(
            metavar="[TOPIC]", help="A concept, an alarm or a finding; without it, a list of all."
        ),
    ] = "",
    recipe: Annotated[
        str, typer.Argument(metavar="[RECIPE]", help="The model: a recipe's name or file.")
    ] = "",
    n_layer: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Blocks; 12 by default.")
    ] = None,
    n_embd: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Channels; 768 by default.")
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(metavar="TEXT", help="Scheme; gpt2 by default, init-inspect --list has all."),
    ] = None,
    sets: options.Sets = None,
    origin: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="RUN|FOLDER",
            help="The model of a run, or of a Hugging Face folder (its config.json alone).",
        ),
    ] = "",
    lang: Annotated[
        str, typer.Option(metavar="en|de", help="de: German, for the topic init.")
    ] = "en",
    as_json: options.AsJson = False,
) -> None:
    """Explain how a GPT works, or what an alarm or a finding means, on one screen.

    Numbers are computed now, for GPT-2 or the model that you name; limits are read from the code
    that judges.

    Examples:
      nanogpt explain init --n-layer 48
      nanogpt explain activation small
      nanogpt explain dead-units
    """
    from nanogpt_cli.cli.explain import subject
    from nanogpt_cli.explain import registry
    from nanogpt_cli.explain.concept import ConceptPage

    if lang not in registry.LANGUAGES:
        known = f"known: {', '.join(registry.LANGUAGES)}"
        raise UserError(f"--lang: there is no page in {lang!r}", known)
    if not topic:
        _list(as_json=as_json)
        console.next_command("nanogpt explain init")
        return
    given = {"n_layer": n_layer, "n_embd": n_embd, "init": init}
    page = registry.page(topic, subject.shape(recipe, origin, sets or [], given), lang)
    concept = isinstance(page, ConceptPage)
    if lang != (page.language if isinstance(page, ConceptPage) else "en"):
        console.say(f"the topic {page.name} exists in English only")
    if as_json:
        console.emit_json(asdict(page))
    elif isinstance(page, ConceptPage):
        concept_pages.show(page)
    else:
        typer.echo("\n".join(lines(page, min(100, help_page.terminal_width()))))
    console.next_command(page.actions[0].command if concept else _NEXT[page.kind])


def _list(*, as_json: bool) -> None:
    from nanogpt_cli.explain import registry

    concepts = {name: registry.concept_of(name).question for name in registry.CONCEPTS}
    titles = {"concept": concepts} | {
        kind: {name: topic.title for name, topic in topics.items()}
        for kind, topics in registry.KINDS.items()
    }
    if as_json:
        console.emit_json(
            {"topics": [{"name": name, "kind": kind, "title": title}
                        for kind, topics in titles.items() for name, title in topics.items()]}
        )  # fmt: skip
        return
    said: list[str] = []
    width = help_page.terminal_width()
    for kind, topics in titles.items():
        said += [*([""] if said else []), help_page.heading(_GROUPS[kind])]
        if kind in ("signal", "weights"):  # many: their names tell what they are about
            said += textwrap.wrap(
                ", ".join(topics), width, initial_indent="  ", subsequent_indent="  ",
                break_on_hyphens=False,
            )  # fmt: skip
        else:
            said += help_page.columns(list(topics.items()), width)
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
