"""What is wrong with a recipe, in the words of its files and with the key that was meant."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import BaseModel

from nanogpt_cli.errors import nearest
from nanogpt_cli.recipe.sections import Recipe

# Names that other training programs use -> the key here.
_FOREIGN_NAMES = {
    "steps": "train.max_steps", "iters": "train.max_steps", "max_iters": "train.max_steps",
    "num_iterations": "train.max_steps", "epochs": "train.max_steps",
    "learning_rate": "optim.lr", "batch": "train.batch_size",
    "device_batch_size": "train.batch_size", "depth": "model.n_layer", "layers": "model.n_layer",
    "heads": "model.n_head", "dim": "model.n_embd", "context": "model.block_size",
    "max_seq_len": "model.block_size", "dtype": "train.precision",
    "eval_interval": "train.eval_every", "warmup_iters": "optim.warmup_steps",
    "dataset": "data.name", "optimizer": "optim.name",
}  # fmt: skip

_SECRET = "log.notify"  # the key whose value is never shown


def keys() -> dict[str, list[str]]:
    """Section name -> its keys."""
    return {
        name: list(info.annotation.model_fields)
        for name, info in Recipe.model_fields.items()
        if isinstance(info.annotation, type) and issubclass(info.annotation, BaseModel)
    }


def nearest_key(name: str) -> str:
    """The valid ``section.key`` that ``name`` most likely means; empty when nothing is near."""
    known = [f"{section}.{key}" for section, names in keys().items() for key in names]
    last = name.rpartition(".")[2]
    if same := [key for key in known if key.endswith(f".{last}")]:
        return same[0]
    bare = {key.rpartition(".")[2]: key for key in known}
    return _FOREIGN_NAMES.get(last) or nearest(name, known) or bare.get(nearest(last, bare), "")


def suggest(path: str) -> str:
    """The nearest valid ``section.key`` in words."""
    close = nearest_key(path)
    return f"did you mean {close}?" if close else ""


def joined(errors: Iterable[Any]) -> list[dict[str, Any]]:
    """pydantic's errors, with one for each value: it reports every type that a key may have."""
    found: list[dict[str, Any]] = []
    for item in errors:
        *_, before = found or [{"loc": ()}]
        kinds = [error["loc"][2:3] for error in (before, item)]
        one_of_several = all(kind and isinstance(kind[0], str) for kind in kinds)
        if one_of_several and before["loc"][:2] == item["loc"][:2]:
            other = item["msg"].removeprefix("Input should be ")
            if other not in before["msg"]:
                before["msg"] += f" or {other}"
        else:
            found.append(dict(item))
    return found


def describe(item: Any, origins: Mapping[str, str], source: str) -> list[str]:
    """One of pydantic's errors as lines ``WHERE KEY: what is wrong``.

    Args:
        item: the error.
        origins: ``"section.key"`` -> ``FILE:LINE`` or ``--set``.
        source: the recipe's file, whose lines are named without it.
    """
    key = ".".join(str(part) for part in item["loc"][:2])
    kind, value = item["type"], item.get("input")
    if kind == "extra_forbidden":
        section, _, name = key.partition(".")
        if name in Recipe.model_fields and isinstance(value, dict) and value:
            inner = f"{next(iter(value)):.80}"
            text = (
                f"{name}.{inner} stands in [{section}]; a dotted key belongs above the "
                f"first table, or write {inner} below [{name}]"
            )
        else:
            text = f"unknown key {key:.80}; {suggest(key)}" if name else _unknown_section(key)
        return [_place(key, origins, source) + text.rstrip("; ")]
    if kind == "value_error":
        sentences = str(item["ctx"]["error"]).split("\n")
        return [_place(_blamed_key(s, key, origins), origins, source) + s for s in sentences]
    if kind in ("model_type", "dict_type") and "." not in key:
        text = f"{key} = {_shown(value)}: it must be a table, [{key}] with its keys below"
        return [_place(key, origins, source) + text]
    expected = item["msg"][0].lower() + item["msg"][1:]
    shown = "…" if key == _SECRET else _shown(value)
    return [f"{_place(key, origins, source)}{key} = {shown}: {expected}"]


def _blamed_key(sentence: str, section: str, origins: Mapping[str, str]) -> str:
    """The key that a sentence is about: one given by ``--set``, else the first that it names."""
    word = re.split(r"[\s:]", sentence, maxsplit=1)[0]
    first = word if "." in word else f"{section}.{word}"
    named = re.findall(r"\b[a-z]+\.[a-z_]+\b", sentence)
    given = [key for key in named if origins.get(key) == "--set"]
    return next(iter(given), first)


def _unknown_section(name: str) -> str:
    home = next((section for section, names in keys().items() if name in names), "")
    if home:
        return f"unknown section [{name}]; the key {name} belongs in [{home}]"
    close = nearest(name, [*keys(), "init"])
    sections = ", ".join(f"[{section}]" for section in keys())
    hint = f"did you mean [{close}]?" if close else f"sections are {sections}"
    return f"unknown section [{name:.80}]; {hint}"


def _place(key: str, origins: Mapping[str, str], source: str) -> str:
    """``line 7: `` or ``base.toml:7: `` or ``--set: ``; empty when the value is a default."""
    origin = origins.get(key) or next(
        (where for name, where in origins.items() if name.startswith(f"{key}.")), ""
    )
    file, _, line = origin.rpartition(":")
    if file == source:
        return f"line {line}: "
    return f"{origin}: " if origin else ""


def _shown(value: Any) -> str:
    text = repr(value) if not isinstance(value, bool) else str(value).lower()
    return text if len(text) <= 60 else text[:57] + "..."
