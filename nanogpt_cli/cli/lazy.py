"""A command group that lists its commands by name and imports one only when it is run.

``nanogpt --help`` lists twenty commands; importing and inspecting all their modules took a third of
its time limit. A test compares ``TABLE`` with what the modules define.
"""

from __future__ import annotations

import importlib
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from nanogpt_cli.cli import complete, help_page

# Section -> command -> (module, help line), in the order of a first hour.
SECTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "Make a model": {
        "prepare": ("prepare", "Turn text into token files: named sets, files, folders, stdin."),
        "train": ("train.command", "Train a model as a recipe says."),
        "watch": ("watch.command", "Watch runs in the dashboard: live, finished, one or several."),
        "sample": ("sample.command", "Let a model write."),
    },
    "Understand it": {
        "init-inspect": (
            "init_inspect.command",
            "How a GPT starts, and why it trains: theory and measurement.",
        ),
        "explain": ("explain.command", "How a GPT works; what an alarm or a finding means."),
        "eval": ("evaluate", "Loss, perplexity and bits per byte over a whole split."),
        "runs": ("runs.command", "List runs, compare two, draw several."),
        "why": (
            "why.command",
            "Why the loss jumped: when it began, which change cures it, what to type.",
        ),
        "replay": ("replay", "Run a bad step again and find the first tensor that broke."),
    },
    "Carry it elsewhere": {
        "export": (
            "export",
            "Write Hugging Face, llama.cpp, ONNX, … and prove each by running it.",
        ),
        "import": ("import_", "Turn another program's checkpoint into a run."),
    },
    "Plan and check": {
        "recipes": ("recipes", "List the shipped recipes."),
        "recipe": ("recipe", "Show, check, compare and write recipes."),
        "plan": ("plan", "Forecast memory, time and disk of a recipe."),
        "data": ("data", "List prepared data sets, or inspect one."),
        "verify-resume": ("verify_resume", "Prove that stop and resume change nothing."),
        "bench": ("bench", "Measure speed, also beside other programs."),
        "doctor": ("doctor", "What works on this machine, how fast, and what is missing."),
        "cache": ("cache", "List and clear fetched files, prepared data, copies of remote runs."),
        "docs": ("docs", "Read the manual: initialisation, recipes, benchmarks, and more."),
    },
}
TABLE = {name: entry for section in SECTIONS.values() for name, entry in section.items()}


def load(name: str) -> Any:
    """Import a command's module and return the command."""
    app = typer.Typer()
    importlib.import_module(f"nanogpt_cli.cli.{TABLE[name][0]}").register(app)
    return complete.attach(help_page.attach(typer.main.get_group(app).commands[name]))


class LazyGroup(TyperGroup):
    """A group that lists ``TABLE`` and loads a command when it is used."""

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Every command, whether loaded or not."""
        return list(TABLE)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """A placeholder with name and help line, which is enough for a list."""
        if cmd_name not in TABLE:
            return None
        if cmd_name not in self.commands:
            help_line = TABLE[cmd_name][1]
            self.commands[cmd_name] = TyperCommand(cmd_name, help=help_line)
        return self.commands[cmd_name]

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Load the command that is about to run; an unknown name is refused with the nearest."""
        for name in TABLE:
            self.get_command(ctx, name)
        if args and args[0] in TABLE:
            self.commands[args[0]] = load(args[0])
        return super().resolve_command(ctx, args)

    def get_help_option(self, ctx: Any) -> Any:
        """The option ``--help``, which prints the front page in our own layout."""
        return help_page.answering(super().get_help_option(ctx))

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write the front page as plain text; importing a library for it would double its time."""
        heading, width = help_page.heading, help_page.terminal_width()
        lines = [f"{heading('Usage:')} nanogpt COMMAND [OPTIONS]", ""]
        lines += help_page.prose(self.help or "", width)
        pages = {
            title: [(f"{name:<13}", help_line) for name, (_, help_line) in commands.items()]
            for title, commands in SECTIONS.items()
        }
        pages["Options"] = [
            ("-h, --help", "This page, or a command's own: nanogpt train --help"),
            ("--version", "Print the version."),
            ("--install-completion", "Complete commands in your shell."),
        ]
        for title, rows in pages.items():
            lines += ["", heading(title), *help_page.columns(rows, width)]
        lines += ["", "Begin with: nanogpt train small"]
        formatter.write("\n".join(lines) + "\n")
