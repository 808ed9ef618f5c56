"""Stored weights of a Hugging Face folder, read part by part through the library's own conversion.

A checkpoint's names are not always the model's: ``transformers`` renames them, splits and merges
tensors (experts, fused projections) with ``convert_and_load_state_dict_in_model``. That function
works on whatever it is given, so each part of the model is loaded from those tensors that it needs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanogpt_cli import foreign_files
from nanogpt_cli.errors import UserError, in_words
from nanogpt_cli.modules.starts.meta import Slots
from nanogpt_cli.printable import printable

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What torch.compile and DataParallel put before the names of the parameters.
PREFIXES = ("_orig_mod.", "module.")
_PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.pt", "pytorch_model.pt")


def bare(name: str) -> str:
    """A parameter's name without the prefixes of wrappers."""
    while found := next((p for p in PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(found)
    return name


def files_of(folder: Path) -> list[Path]:
    """The safetensors files of a folder, shards in order; none if it has only a configuration.

    Raises:
        UserError: the index is malformed, or the weights are pickles.
    """
    if foreign_files.present(folder / INDEX):
        listed = foreign_files.read_object(folder / INDEX, foreign_files.LARGEST_VOCABULARY)
        names = listed.get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(n, str) for n in names.values()):
            raise UserError(f"{folder / INDEX}: 'weight_map' must give a file for every tensor")
        shards = sorted(set(names.values()))
        if strange := [name for name in shards if Path(name).name != name]:
            raise UserError(f"{folder / INDEX} names a file outside its folder: {strange[0]!r}")
        return [folder / name for name in shards]
    if foreign_files.present(folder / SINGLE):
        return [folder / SINGLE]
    if pickled := [name for name in _PICKLES if foreign_files.present(folder / name)]:
        raise UserError(
            f"{folder / pickled[0]} is a pickle, which can run code when it is read",
            "load it where you trust it and call save_pretrained, which writes safetensors",
        )
    return []


class StoredWeights:
    """Gives a model on meta its stored weights, part by part.

    Args:
        model: a ``PreTrainedModel`` on meta, with values in its buffers.
        files: safetensors files that together hold the weights.

    Raises:
        UserError: a file is unreadable, or a parameter of the model is in none of them.
    """

    def __init__(self, model: Any, files: list[Path]) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping

        self.model, self.files = model, files
        self.mapping: Any = get_model_conversion_mapping(model)
        # Stored names that the model has no place for, and names of buffers that were loaded.
        self.unused: list[str] = []
        # Full name of a parameter -> the stored tensors it is made of, as (file, name).
        self._sources: dict[str, list[tuple[Path, str]]] = defaultdict(list)
        self._map_names()
        self.slots = Slots(model)
        self._untie_where_stored_apart()
        self._check_complete()
        # Buffers that are stored, such as the balance of experts, are small and loaded at once.
        buffers = [name for name, _ in model.named_buffers() if name in self._sources]
        self._load(buffers)
        self.loaded = frozenset(buffers)

    def fill(self, _path: str, submodule: nn.Module, /, *, recurse: bool = True) -> None:
        """Give stored values to every parameter below ``submodule`` that has none.

        Raises:
            UserError: a stored tensor does not fit.
        """
        new = [slot for slot in self.slots.below(submodule, recurse=recurse) if not slot.filled]
        self._load([name for slot in new for _, _, name in slot.places])
        for slot in new:
            loaded = [m._parameters[a] for m, a, _ in slot.places]
            found = next((p for p in loaded if p is not None and not p.is_meta), None)
            if found is None or found.shape != slot.empty.shape:
                name = printable(slot.places[0][2])
                raise UserError(
                    f"{self.files[0].parent}: the stored values of {name} do not fit the "
                    f"configuration, which makes it {tuple(slot.empty.shape)}"
                )
            slot.set(found)

    def _load(self, names: list[str]) -> None:
        from transformers.core_model_loading import convert_and_load_state_dict_in_model
        from transformers.modeling_utils import LoadStateDictConfig

        wanted: dict[Path, set[str]] = defaultdict(set)
        for file, stored in (s for name in names for s in self._sources.get(name, ())):
            wanted[file].add(stored)
        settings = LoadStateDictConfig(
            dtype=torch.float32, weight_mapping=self.mapping, ignore_mismatched_sizes=True
        )
        with quiet_library(), ExitStack() as opened:
            state: dict[str, Any] = {}
            for file, stored_names in wanted.items():
                archive = opened.enter_context(_archive(file))
                state |= {bare(s): archive.get_slice(s) for s in stored_names}
            # Files are closed at once: pages of a mapped file count as this process's memory.
            try:
                convert_and_load_state_dict_in_model(self.model, state, settings)
            except Exception as error:
                where = self.files[0].parent
                raise UserError(
                    f"{where}: transformers cannot convert it: {in_words(error)}"
                ) from error

    def _map_names(self) -> None:
        """Find for every parameter which stored tensors it is made of."""
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            rename_source_key,
        )

        renamings = [m for m in self.mapping if isinstance(m, WeightRenaming)]
        converters = [m for m in self.mapping if isinstance(m, WeightConverter)]
        by_pattern = {p: c for c in converters for p in c.source_patterns}
        known, prefix = self.model.state_dict(), self.model.base_model_prefix
        for file in self.files:
            with _archive(file) as archive:
                names = list(archive.keys())
            for stored in names:
                key = bare(stored)
                target, pattern = rename_source_key(key, renamings, converters, prefix, known)
                if target not in known and key in known:
                    target, pattern = rename_source_key(key, [], [], prefix, known)
                targets = [target]
                if pattern is not None:  # a converter may make several parameters of one tensor
                    first, *_ = patterns = by_pattern[pattern].target_patterns
                    targets = [target.replace(first, p) for p in patterns]
                if not any(t in known for t in targets):
                    self.unused.append(stored)
                for name in targets:
                    self._sources[name].append((file, stored))

    def _untie_where_stored_apart(self) -> None:
        """Untie parameters that are stored twice with different values, as the library does."""
        for slot in self.slots.all:
            stored = [place for place in slot.places if place[2] in self._sources]
            if len(stored) < 2:
                continue
            first, *others = [self._only(name) for _, _, name in stored]
            for (module, attribute, _), other in zip(stored[1:], others, strict=True):
                if first is None or other is None or not torch.equal(first, other):
                    module._parameters[attribute] = nn.Parameter(slot.empty.detach().clone())
        self.slots = Slots(self.model)

    def _only(self, name: str) -> torch.Tensor | None:
        """The one stored tensor that a parameter is; ``None`` if it is made of several."""
        if len(self._sources[name]) != 1:
            return None
        file, stored = self._sources[name][0]
        with _archive(file) as archive:
            found: torch.Tensor = archive.get_tensor(stored)
            return found

    def _check_complete(self) -> None:
        missing = [
            slot.places[0][2]
            for slot in self.slots.all
            if not any(name in self._sources for _, _, name in slot.places)
        ]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(
                f"{self.files[0].parent} has no values for {missing[0]}{more}",
                "its config.json describes another model than its weights; is a shard missing?",
            )


@contextmanager
def _archive(file: Path) -> Iterator[Any]:
    """An open safetensors file."""
    from safetensors import SafetensorError, safe_open

    foreign_files.check(file)
    try:
        with safe_open(file, framework="pt") as archive:
            yield archive
    except SafetensorError as error:
        raise UserError(f"{file} is not a readable safetensors file: {in_words(error)}") from None
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from None


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep ``transformers`` from logging and from drawing progress bars."""
    import transformers

    logging: Any = transformers.utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
