"""One language: an option means the same in every command, in the same words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from nanogpt_cli.cli import lazy, options
from nanogpt_cli.errors import UserError

# Names that several commands share though each means its own thing, because it is the word for it.
OWN = {
    "--batch": "sequences at once, of init-inspect's input or eval's windows",
    "--csv": "a file for numbers: over depth, of curves",
    "--data": "a data set: to evaluate on, to train on",
    "--from": "weights to begin with, or to look at",
    "--list": "the names there are",
    "--name": "of what is made",
    "--png": "the picture's file",
    "--recipe": "shapes to measure with",
    "--seconds": "length of a window or turn",
    "--split": "prepare makes it, eval reads one",
    "--steps": "optimizer steps",
    "--svg": "the picture's file",
    "--tokenizer": "of the text",
    "--tui": "the dashboard",
    "--windows": "stretches of tokens, or of time",
}
# Without --json: what prints a format of its own anyway.
FORMATS = {"runs csv", "recipe schema"}


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", {})
    if not children or getattr(command, "invoke_without_command", False):
        yield name, command
    for child, value in children.items():
        yield from commands(value, f"{name} {child}")


ALL = [pair for name in lazy.TABLE for pair in commands(lazy.load(name), name)]


def shown(command: Any) -> list[Any]:
    found = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    return [p for p in found if "--help" not in p.opts]


def test_shared_options_are_described_in_the_same_words() -> None:
    helps: dict[str, dict[str, str]] = {}
    for name, command in ALL:
        for option in shown(command):
            for word in option.opts:
                helps.setdefault(word, {})[name] = option.help
    for word, texts in helps.items():
        if word in options.WORDS:
            for name, text in texts.items():
                begun = text.startswith(options.WORDS[word])
                assert begun, f"nanogpt {name} {word}: {text!r} ({options.WORDS[word]} …)"
        elif len(texts) > 1 and word not in OWN:
            # Spelt out, or with a condition of the command after the same beginning.
            firsts = {text.split(";")[0].split(":")[0].split(",")[0].rstrip(".") for text in
                      texts.values()}  # fmt: skip
            assert len(firsts) == 1, f"{word} means {texts}"


def test_the_words_are_in_use() -> None:
    used = {word for _, command in ALL for option in shown(command) for word in option.opts}
    assert set(options.WORDS) <= used
    assert set(OWN) <= used


def test_every_command_speaks_json() -> None:
    for name, command in ALL:
        has = any("--json" in option.opts for option in shown(command))
        assert has != (name in FORMATS), name


def test_where_runs_lie_has_one_default() -> None:
    for name, command in ALL:
        for option in shown(command):
            if "--out" in option.opts and option.help == "Where run folders lie.":
                assert str(option.default) == "runs", name


def test_a_model_is_named_once() -> None:
    assert options.either("", "small", "RUN") == options.either("small", "", "RUN") == "small"
    with pytest.raises(UserError, match="twice"):
        options.either("small", "debug", "RUN")
