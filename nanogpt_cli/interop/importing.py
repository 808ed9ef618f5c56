"""Importing a checkpoint of another tool into a run folder."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from nanogpt_cli import files, foreign_files, recipe, shell
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import LoadedModel, huggingface, llmc, nanogpt
from nanogpt_cli.interop.foreign import not_finite
from nanogpt_cli.interop.source import check_vocabulary
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder, fresh_run
from nanogpt_cli.run.log import EventWriter
from nanogpt_cli.text import tokens
from nanogpt_cli.text.tokenizers import factory
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer
from nanogpt_cli.training import starting
from nanogpt_cli.training.checkpoints import checkpoint
from nanogpt_cli.version import __version__

# Names of folders and files that do not identify a model.
_GENERIC_NAMES = ("ckpt.pt", "hf", "nanogpt", "exports", "runs")
# Learning rates for training from scratch would damage trained weights; these are nanoGPT's for
# fine-tuning (config/finetune_shakespeare.py).
_FINE_TUNING = recipe.Optim(lr=3e-5, schedule="constant")
_USELESS = "nothing that the model computes with them is a number"
_UNSAFE = re.compile(r"[^\w. -]+")


def read(
    path: Path, meta: Path | None = None, *, tokenizer: Tokenizer | None = None
) -> LoadedModel:
    """Recognise and read a checkpoint of another tool.

    Args:
        path: a Hugging Face folder, nanoGPT's ``ckpt.pt`` or its folder, llm.c's ``.bin``.
        meta: nanoGPT's ``meta.pkl``, if it is elsewhere.
        tokenizer: replaces the checkpoint's own, which is then not read.

    Raises:
        UserError: it is none of these, or it is damaged or hostile.
    """
    if not foreign_files.present(path):
        raise UserError(f"{path} does not exist", "name a folder, a file, or a hub id such as gpt2")
    if RunFolder(path).is_run():
        raise UserError(
            f"{path} is a run already", f"use it as it is: {shell.hint('sample', path)}"
        )
    found = _read(path, meta, tokenizer)
    bad = not_finite(found.model)
    return replace(found, notes=(*found.notes, f"{bad}: {_USELESS}")) if bad else found


def _read(path: Path, meta: Path | None, tokenizer: Tokenizer | None) -> LoadedModel:
    if (folder := huggingface.folder_of(path)) is not None:
        return huggingface.read(folder, tokenizer)
    if not path.is_dir() and llmc.is_file(path):
        return llmc.read(path)
    if foreign_files.present(path / nanogpt.CHECKPOINT) or path.suffix in (".pt", ".pth"):
        return nanogpt.read(path, meta, tokenizer=tokenizer)
    if foreign_files.present(path / huggingface.CONFIG):
        raise UserError(
            f"{path} holds a config.json, but no weights",
            "model.safetensors or pytorch_model.bin belongs beside it, or the index of several",
        )
    if foreign_files.present(path / "adapter_config.json"):
        raise UserError(
            f"{path} holds an adapter (adapter_config.json), not a whole model",
            "merge it into its model first (peft: merge_and_unload, then save_pretrained)",
        )
    raise UserError(
        f"{path} is not a checkpoint of a known format",
        "name a Hugging Face folder (config.json beside model.safetensors or "
        "pytorch_model.bin), nanoGPT's ckpt.pt or llm.c's .bin",
    )


def run_name(source: str) -> str:
    """A folder name for an imported model, from its path or hub id."""
    path = Path(source)
    while path.name in _GENERIC_NAMES and path.parent.name:
        path = path.parent
    name = path.stem if path.suffix in (".pt", ".bin") else path.name
    return _UNSAFE.sub("-", name).strip("-._ ") or "imported"


def make_run(
    found: LoadedModel,
    *,
    name: str,
    out: Path,
    source: str,
    data: Mapping[str, Any],
    tokenizer: Tokenizer | None,
) -> RunFolder:
    """Create a run folder with one checkpoint.

    Args:
        found: the imported model.
        name: name of the run; a number is appended if it exists.
        out: the folder of runs.
        source: where the model came from, for the record.
        data: the data for ``eval`` and further training: ``name`` and other keys of ``[data]``,
            of which ``tokenizer`` gives way to that of the model.
        tokenizer: replaces the one found.

    Raises:
        UserError: a weight is NaN or infinite, the tokenizer has more ids than the model, or the
            run cannot be written.
    """
    tokenizer = tokenizer or found.tokenizer
    if bad := not_finite(found.model):
        raise UserError(f"{source}: {bad}", f"{_USELESS}; import an earlier checkpoint of it")
    check_vocabulary(source, tokenizer, found.model.config)
    if tokenizer is not None and tokens.is_prepared(Path(data["name"])):
        starting.check_tokenizer(tokenizer, tokens.open_data(Path(data["name"])), source, "")
    with files.readable_os_errors("create a run folder", out):
        run = fresh_run(name, out)
    try:
        with files.readable_os_errors("write the run", run.path):
            _fill(run, found, source, data, tokenizer)
    except BaseException:
        shutil.rmtree(run.path, ignore_errors=True)
        raise
    return run


def _fill(
    run: RunFolder,
    found: LoadedModel,
    source: str,
    data: Mapping[str, Any],
    tokenizer: Tokenizer | None,
) -> None:
    resolved = _recipe(run, found.model.config, data, tokenizer)
    state: dict[str, Any] = {
        "step": found.step, "tokens": 0, "recipe": resolved.model_dump(mode="json"),
        "imported": {"from": source, "notes": list(found.notes), "by": __version__},
    }  # fmt: skip
    vocabulary = {} if tokenizer is None else tokenizer.to_json()
    checkpoint.save(run, found.model, state, tokenizer=vocabulary)
    files.write_text(run.recipe, recipe_files.to_toml(resolved))
    with EventWriter(run.events) as write:
        write(
            events.RunImported(
                time=time.time(),
                step=found.step,
                source=source,
                parameters=found.model.n_parameters(),
            )
        )


def _recipe(
    run: RunFolder, config: GPTConfig, data: Mapping[str, Any], tokenizer: Tokenizer | None
) -> recipe.Recipe:
    kind = "gpt2" if tokenizer is None else tokenizer.kind
    if tokenizer is not None and kind not in factory.NAMED:
        # For any other vocabulary, data is prepared with the tokenizer's file.
        path = run.path / "tokenizer.json"
        factory.save(tokenizer, path)
        kind = str(path.resolve())
    names = recipe.Model.model_fields.keys() - {"init"}
    values = {name: getattr(config, name) for name in names}
    return recipe.Recipe(
        run=recipe.Run(name=run.name),
        data=recipe.Data.model_validate({**data, "tokenizer": kind}),
        model=recipe.Model.model_validate({**values, "init": "gpt2"}),
        optim=_FINE_TUNING,
    )
