"""Shell completion of values: runs, recipes, prepared data, and fixed words.

A shell waits for this at every press of Tab, so nothing here may import torch or the like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

from nanogpt_cli import places
from nanogpt_cli.printable import printable

Words = Callable[[Any], Iterable[str]]


def attach(command: Any) -> Any:
    """Give the parameters of a command and its subcommands completions; returns the command."""
    for parameter in command.params:
        words = next((BY_NAME[n] for n in _names(parameter, command) if n in BY_NAME), None)
        if words is not None:
            parameter.shell_complete = _completer(words)
    for child in getattr(command, "commands", {}).values():
        attach(child)
    return command


def _names(parameter: Any, command: Any) -> list[str]:
    """Keys under which ``BY_NAME`` may list a parameter; those with the command come first."""
    names = list(parameter.opts)
    if parameter.param_type_name == "argument":
        names = [(parameter.metavar or parameter.name.upper()).strip("[].")]
    return [*(f"{command.name} {name}" for name in names), *names]


def _completer(words: Words) -> Callable[[Any, str], list[Any]]:
    def complete(ctx: Any, incomplete: str) -> list[Any]:
        try:
            found = [word for word in words(ctx) if word.startswith(incomplete) and _plain(word)]
        except Exception:  # an error message would garble the shell's line
            return []
        items = dict.fromkeys(found)
        return [SimpleNamespace(value=word, help=None, type="plain") for word in items]

    return complete


def _plain(word: str) -> bool:
    """Whether a word can be completed; one with control characters would be escaped, and wrong."""
    return printable(word, keep="") == word


def runs(ctx: Any) -> Iterator[str]:
    """Names of the runs in ``--out``, newest first."""
    from nanogpt_cli.run.folder import list_runs

    for run in list_runs(ctx.params.get("out") or places.RUNS):
        yield run.name


def recipes(_: Any) -> Iterator[str]:
    """Shipped recipes by name, then recipe files in the current folder."""
    yield from sorted(path.stem for path in places.shipped_recipes().glob("*.toml"))
    yield from sorted(path.name for path in Path.cwd().glob("*.toml"))


def recipes_or_runs(ctx: Any) -> Iterator[str]:
    """Recipes, or with ``--resume`` the runs that can be resumed."""
    either = "resume" not in ctx.params  # `recipe diff` compares both kinds
    if either or not ctx.params["resume"]:
        yield from recipes(ctx)
    if either or ctx.params["resume"]:
        yield from runs(ctx)


def prepared(_: Any) -> Iterator[str]:
    """Prepared sets in ``./data`` and the cache, by folder name."""
    for shelf in (places.DATA, places.cache_home() / "data"):
        yield from sorted(path.parent.name for path in shelf.glob("*/manifest.json"))


def named_sets(_: Any) -> Iterable[str]:
    """The data sets that ``prepare`` knows."""
    from nanogpt_cli.text import catalogue

    return catalogue.SETS


def data(ctx: Any) -> Iterator[str]:
    """Prepared sets and named ones: anything that can be trained on."""
    yield from prepared(ctx)
    yield from named_sets(ctx)


def cached(_: Any) -> Iterator[str]:
    """Kinds and names of cache entries, which can be cleared."""
    from nanogpt_cli import caches

    yield from caches.KINDS
    yield from (entry.name for entry in caches.entries())


def keys(_: Any) -> Iterator[str]:
    """``section.key=`` of recipes."""
    from nanogpt_cli.recipe import problems

    for section, names in problems.keys().items():
        yield from (f"{section}.{name}=" for name in names)


def schemes(_: Any) -> Iterable[str]:
    """Initialisation schemes."""
    from nanogpt_cli import schemes as known

    return known.names()


def topics(_: Any) -> Iterator[str]:
    """Pages of the manual."""
    yield from sorted(path.stem for path in places.docs_folder().glob("*.md"))


def explained(_: Any) -> Iterable[str]:
    """Concepts, alarms and findings."""
    from nanogpt_cli.explain import registry

    return registry.names()


def _words(*words: str) -> Words:
    return lambda _: words


METRICS: Final = (
    "val_loss", "bits_per_byte", "loss", "lr", "grad_norm", "tokens_per_s", "step_s", "resid_rms",
    "resid_kurtosis", "attn_rms", "mlp_rms", "preact_std", "layers/grad_norm", "update_ratio",
    "weight_rms", "dead", "attn_entropy", "attn_entropy_min", "attn_first", "attn_logit_max",
    "attn_score_std",
)  # fmt: skip
BY_NAME: Final[dict[str, Words]] = {
    "RUN": runs, "--run": runs, "RUNS": runs, "SOURCE": runs, "--from": runs,
    "A": recipes_or_runs, "B": recipes_or_runs, "RECIPE": recipes, "--extends": recipes,
    "train RECIPE": recipes_or_runs,
    "NAME|PATH": prepared, "prepare NAME|PATH": named_sets, "--data": data,
    "clear NAME": cached, "TOPIC": topics, "explain TOPIC": explained,
    "--metric": _words(*METRICS), "--x": _words("step", "tokens", "time"),
    "--band": _words("range", "sd", "none"),
    "--set": keys, "--init": schemes,
    "--device": _words("auto", "cpu", "cuda", "mps"),
    "--checkpoint": _words("best", "last"),
    "--tokenizer": _words("char", "byte", "gpt2", "cl100k_base", "o200k_base", "bpe:4096"),
    "--to": _words("hf", "gguf", "onnx", "pt2", "nanogpt"),
}  # fmt: skip
