"""Checkpoints: folders that are whole or absent, verified by sha256, without any pickle.

``checkpoints/step-000500/`` holds ``model.safetensors`` (names of ``model/gpt.py``; a tied head is
left out), ``optimizer.safetensors`` (state tensors as ``PARAMETER.NAME``), ``ema.safetensors`` (the
average of the weights, if the run keeps one), ``tokenizer.json`` and ``state.json`` (step, model
configuration, recipe, random state, versions, sha256 of the others and a checksum of its own
values). Which of them a run keeps is the matter of ``training/checkpoints/retention.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError
from nanogpt_cli.foreign_files import MissingFileError
from nanogpt_cli.machine import distributed
from nanogpt_cli.machine.distributed import Group
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokenizers import factory
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer
from nanogpt_cli.training.alarms.system_alarms import SPARE_BYTES
from nanogpt_cli.training.checkpoints import saved_state, tensor_files

FORMAT = 1
MODEL = "model.safetensors"
OPTIMIZER = "optimizer.safetensors"
EMA = "ema.safetensors"
TOKENIZER = "tokenizer.json"
# What a model that is only read needs; the optimizer's file is twice as large.
FOR_READING = (MODEL, EMA, TOKENIZER)
STATE = "state.json"
CHECKSUM = "checksum"
_ANOTHER = "take another checkpoint of the run"


class CheckpointError(UserError):
    """A checkpoint is missing, incomplete or damaged."""


@dataclass(frozen=True)
class Loaded:
    """A model read from a checkpoint.

    Attributes:
        model: in evaluation mode.
        state: the content of ``state.json``.
        folder: where it came from.
    """

    model: GPT
    state: dict[str, Any]
    folder: Path

    @property
    def step(self) -> int:
        """Optimizer steps the model has seen."""
        return int(self.state.get("step", 0))


def folder_of(run: RunFolder, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return run.checkpoints / f"step-{step:06d}"


def model_tensors(model: GPT) -> dict[str, Tensor]:
    """The tensors of a model by name, a tied head left out."""
    tensors = dict(model.state_dict())
    if model.config.tied:
        tensors.pop("lm_head.weight")
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


def save(
    run: RunFolder,
    model: GPT,
    state: Mapping[str, Any],
    *,
    tokenizer: Mapping[str, Any],
    optimizer: Mapping[str, Tensor] | None = None,
    average: Mapping[str, Tensor] | None = None,
    group: Group = Group(),  # noqa: B008 - frozen
) -> Path:
    """Write the checkpoint of ``state["step"]``; returns its folder. Every rank must call it.

    Args:
        run: the run it belongs to.
        model: the raw model (never a compiled wrapper).
        state: strict JSON values; model configuration and checksums are added.
        tokenizer: the tokenizer's JSON.
        optimizer: state tensors by name, for resuming.
        average: moving averages of the weights by the same names.
        group: the processes that share the run; each writes its slices, the first one the rest.

    Raises:
        UserError: the disk is full or read-only; nothing half-written stays.
    """
    target = folder_of(run, int(state["step"]))
    contents = {
        MODEL: model_tensors(model),
        OPTIMIZER: optimizer or {},
        EMA: average or {},
    }
    with files.readable_os_errors("save the checkpoint", target):
        if group.leads:
            _check_space(run.path, sum(map(tensor_files.n_bytes, contents.values())))
        with distributed.new_folder(target, group, replace=True) as folder:
            for name, tensors in contents.items():
                if tensors or name == MODEL:
                    tensor_files.write(folder / name, tensors, group)
            if group.leads:
                files.write_json(folder / TOKENIZER, tokenizer)
                hashes = {path.name: files.sha256_file(path) for path in sorted(folder.iterdir())}
                config = model.config.to_dict()
                record = {"format": FORMAT, **state, "model": config, "sha256": hashes}
                files.write_json(folder / STATE, record | {CHECKSUM: files.checksum(record)})
    return target


def _check_space(folder: Path, need: int) -> None:
    need += SPARE_BYTES
    free = shutil.disk_usage(folder).free
    if free < need:
        raise UserError(
            f"cannot save the checkpoint in {folder}: it needs {need / 1e6:.0f} MB, "
            f"{free / 1e6:.0f} MB are free",
            "free some space; the previous checkpoint is untouched",
        )


def read_state(folder: Path) -> dict[str, Any]:
    """``state.json`` of a checkpoint folder.

    Raises:
        CheckpointError: it is missing, damaged, or not what this version writes.
    """
    path = folder / STATE
    try:
        state = foreign_files.read_object(path)
    except UserError as error:
        if isinstance(error, MissingFileError) and not path.is_symlink():
            error.message = f"{folder} is not a checkpoint: it has no {STATE}"
        raise CheckpointError(error.message, error.hint) from None
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {state.get('format')!r:.80}; this version reads {FORMAT}",
            "another version of nanogpt-cli wrote it; nanogpt --version is the one here",
        )
    try:
        saved_state.check(state)
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}", _ANOTHER) from None
    # Checkpoints of earlier versions have none.
    if CHECKSUM in state and state.pop(CHECKSUM) != files.checksum(state):
        raise CheckpointError(f"{path} is damaged: it was changed after it was saved", _ANOTHER)
    return state


def verify(folder: Path, names: Collection[str] = ()) -> dict[str, Any]:
    """Check files of a checkpoint against their sha256; returns ``state.json``.

    Args:
        folder: the checkpoint.
        names: the files that will be used; all when empty.

    Raises:
        CheckpointError: a file is missing, truncated or changed; it is named.
    """
    state = read_state(folder)
    hashes = state.get("sha256")
    if not isinstance(hashes, dict) or MODEL not in hashes:
        raise CheckpointError(f"{folder / STATE} names no checksums")
    for name, expected in hashes.items():
        if names and name not in names:
            continue
        path = folder / Path(name).name
        try:
            found = files.sha256_file(path)
        except UserError as error:
            raise CheckpointError(error.message, error.hint) from None
        if found != expected:
            raise CheckpointError(
                f"{path} is damaged: its sha256 is not the one that was saved", _ANOTHER
            )
    return state


def weights_file(folder: Path, *, raw: bool = False) -> Path:
    """Where the weights to use lie: their moving average where there is one and not ``raw``."""
    averaged = folder / EMA
    return averaged if foreign_files.present(averaged) and not raw else folder / MODEL


def read_tokenizer(folder: Path) -> Tokenizer | None:
    """The tokenizer of a checkpoint folder; an empty object in its file stands for none."""
    path = folder / TOKENIZER
    if not foreign_files.present(path) or foreign_files.check(path).st_size < 8:
        return None
    return factory.load(path)


def load(
    folder: Path, *, device: str | torch.device = "cpu", check: bool = True, raw: bool = False
) -> Loaded:
    """Read the model of a checkpoint folder.

    Args:
        folder: a checkpoint folder.
        raw: the weights themselves, also where there is a moving average of them.
        device: where the weights go; on the CPU they are mapped from the file, not copied.
        check: verify checksums first (about 2 s per GB).

    Raises:
        CheckpointError: something is missing, damaged or of the wrong shape.
    """
    state = verify(folder) if check else read_state(folder)
    try:
        config = GPTConfig.from_dict(state["model"])
    except (KeyError, ValueError, TypeError) as error:
        raise CheckpointError(f"{folder / STATE}: {error}") from None
    path = weights_file(folder, raw=raw)
    model = from_tensors(config, read_tensors(path, device=device), source=str(path))
    return Loaded(model.eval(), state, folder)


def from_tensors(config: GPTConfig, tensors: Mapping[str, Tensor], *, source: str = "") -> GPT:
    """A model whose parameters are these tensors.

    Raises:
        CheckpointError: see ``check_fit``.
    """
    from nanogpt_cli.init.drawing import undrawn
    from nanogpt_cli.model.parameters import shapes

    _check_shapes(shapes(config), tensors, source)  # a wrong number of layers may be a huge one
    # Drawing on the meta device would load torch's decompositions and sympy: a second.
    with torch.device("meta"), undrawn():
        model = GPT(config)
    load_tensors(model, tensors, source=source)
    return model


def read_tensors(path: Path, *, device: str | torch.device = "cpu") -> dict[str, Tensor]:
    """All tensors of a safetensors file.

    Raises:
        UserError: the file is missing or malformed.
    """
    with tensor_files.opened(path, device) as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a safetensors file, without reading the tensors."""
    with tensor_files.opened(path) as file:
        return tensor_files.shapes(file)


def load_tensors(model: GPT, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Make these tensors the parameters of ``model``, which may lie on the meta device.

    Raises:
        CheckpointError: see ``check_fit``.
    """
    check_fit(model, tensors, source=source)
    model.load_state_dict(dict(tensors), strict=False, assign=True)
    model.tie()
    for parameter in model.parameters():
        parameter.requires_grad_(True)


def check_fit(model: GPT, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Compare names and shapes with those of ``model``.

    Raises:
        CheckpointError: tensors are missing, unknown or of another shape.
    """
    _check_shapes({n: tuple(t.shape) for n, t in model_tensors(model).items()}, tensors, source)


def _check_shapes(
    wanted: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor], source: str
) -> None:
    problems = [f"{name} is missing" for name in wanted if name not in tensors]
    problems += [f"{name} is unknown" for name in tensors if name not in wanted]
    problems += [
        f"{name} is {tuple(tensors[name].shape)} instead of {shape}"
        for name, shape in wanted.items()
        if name in tensors and tensors[name].shape != shape
    ]
    if problems:
        more = f" and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(f"{source} does not fit the model: {'; '.join(problems[:4])}{more}")
