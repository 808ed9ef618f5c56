"""Building a GPT from untrusted tensors; names and shapes are checked before any allocation."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from torch import Tensor

from nanogpt_cli.errors import UserError
from nanogpt_cli.model import homes
from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.model.parameters import shapes, token_embedding
from nanogpt_cli.text.tokenizers.gpt2_bpe import VOCAB_SIZE
from nanogpt_cli.training.checkpoints import checkpoint, tensor_files

# torch.compile and DistributedDataParallel put these before every name.
_PREFIXES = ("_orig_mod.", "module.")
# Causal masks and rotary frequencies, which old releases stored as buffers.
_BUFFERS = re.compile(r"\.attn\.(bias|masked_bias)$|\.rotary_emb\.inv_freq$")
# GPT-2's vocabulary, plain and padded to a multiple of 64; no other has this size by chance.
GPT2_ROWS: Final = (VOCAB_SIZE, 50304)
_BLOCK = re.compile(r"^(?:transformer\.h|model\.layers)\.(\d+)\.")
_FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_HEAD: Final = "lm_head.weight"


@dataclass(frozen=True)
class TensorSource:
    """Tensors by name, from one or several files.

    Attributes:
        name: the file, or the folder of several, for messages.
        shapes: name in the file -> shape, known without reading a tensor.
        get: reads one tensor.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]]
    get: Callable[[str], Tensor]
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> TensorSource:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def open_safetensors(paths: list[Path]) -> TensorSource:
    """One or several safetensors files as one source.

    Raises:
        UserError: a file is missing or malformed, or two hold the same tensor.
    """
    found: dict[str, tuple[int, ...]] = {}
    files = {}
    stack = ExitStack()
    for path in paths:
        file = stack.enter_context(tensor_files.opened(path))
        for name, shape in tensor_files.shapes(file).items():
            if name in found:
                raise UserError(f"{path} holds {name}, which another file holds as well")
            found[name], files[name] = shape, file

    def get(name: str) -> Tensor:
        try:
            tensor: Tensor = files[name].get_tensor(name)
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{name} cannot be read: {str(error)[:200]}") from None
        return tensor

    return TensorSource(label(paths), found, get, stack)


def label(paths: list[Path]) -> str:
    """One file by its own name, several by that of their folder."""
    return str(paths[0] if len(paths) == 1 else paths[0].parent)


def config_of(
    path: Path, values: dict[str, object], names: Mapping[str, str] | None = None
) -> GPTConfig:
    """The configuration that a file describes.

    Args:
        path: the file, for messages.
        values: the values under the names of ``GPTConfig``.
        names: name in ``GPTConfig`` -> name in the file, where they differ.

    Raises:
        UserError: a value is missing, of another type or out of range.
    """
    try:
        return GPTConfig.from_dict(values)
    except ValueError as error:
        said = re.sub(r"\w+", lambda word: (names or {}).get(word[0], word[0]), str(error))
        raise UserError(f"{path}: {said}") from None


def native_names(tensors: TensorSource, config: GPTConfig) -> dict[str, str]:
    """Native name -> name in the file, without buffers and without a head that is the embedding.

    Args:
        tensors: the file's tensors. Names may lack ``transformer.`` or ``model.`` and begin with
            the prefixes of wrappers, in whatever order those were applied.
        config: the configuration that the file claims. If it is tied, head and embedding are one
            tensor, for which either name may stand.

    Raises:
        UserError: a tensor occurs twice, or a tied head differs from the embedding.
    """
    found: dict[str, str] = {}
    for name in tensors.shapes:
        native = native_name(name, config.naming)
        if _BUFFERS.search(native):
            continue
        if native in found:
            raise UserError(f"{tensors.name} holds {native!r:.100} twice")
        found[native] = name
    if config.tied and _HEAD in found:
        head, embedding = found.pop(_HEAD), token_embedding(config)
        if found.setdefault(embedding, head) != head:
            _check_tied(tensors, head, found[embedding])
    return found


def native_name(name: str, naming: str = "gpt2") -> str:
    """The name of a tensor here: behind no wrapper, and within the body unless in the head.

    Args:
        name: the name in a file or module.
        naming: see ``GPTConfig.naming``. The body is ``transformer`` in GPT-2, else ``model``.
    """
    bare, body = without_wrappers(name), "transformer." if naming == "gpt2" else "model."
    return bare if bare.startswith((body, "lm_head.")) else body + bare


def without_wrappers(name: str) -> str:
    """``name`` without the prefixes of wrappers, in whatever order they were applied."""
    while prefix := next((p for p in _PREFIXES if name.startswith(p)), ""):
        name = name.removeprefix(prefix)
    return name


def _check_tied(tensors: TensorSource, head: str, embedding: str) -> None:
    same = tensors.shapes[head] == tensors.shapes[embedding]
    if same:
        one, other = (tensors.get(name).to(torch.float32) for name in (head, embedding))
        # NaN, which differs from itself, is reported later, for what it is.
        same = torch.equal(one, other) or torch.allclose(one, other, 0, 0, equal_nan=True)
    if not same:
        raise UserError(
            f"{tensors.name}: {head} differs from {embedding}, the configuration says they are "
            "tied",
            "in a config.json, tie_word_embeddings = false keeps both",
        )


def build(
    config: GPTConfig,
    tensors: TensorSource,
    named: Mapping[str, str],
    left_out: frozenset[str] = frozenset(),
    *,
    transposed: re.Pattern[str] | None = None,
    remedy: str = "",
) -> GPT:
    """A GPT with the tensors of a source, in float32 and evaluation mode.

    Args:
        config: the configuration that the source claims.
        tensors: the source.
        named: native name -> name in the source.
        left_out: native names to ignore.
        transposed: matches the native names whose tensors the source stores transposed.
        remedy: what to do about tensors that no such model has.

    Raises:
        UserError: a name or shape does not fit the configuration, or a tensor does not hold floats.
    """
    source = tensors.name
    _check_layers(config, named, source)
    wanted = shapes(config)
    # Ignored tensors must fit as well: a file with a wrong tensor is refused as a whole.
    everything = shapes(replace(config, bias=True)) if left_out else wanted
    _check_names(everything, set(named), source, _kind(config), remedy)
    flipped = {name for name in named if transposed is not None and transposed.search(name)}
    for name in named:
        expected, found_shape = everything[name], tensors.shapes[named[name]]
        expected = expected[::-1] if name in flipped else expected
        if found_shape != expected:
            raise UserError(
                f"{source}: {named[name]} has shape {list(found_shape)}, its configuration says "
                f"{list(expected)}"
            )
    found = {}
    for name in wanted:
        tensor = tensors.get(named[name])
        if tensor.dtype not in _FLOATS:
            raise UserError(f"{source}: {named[name]} is of type {tensor.dtype}, not of floats")
        # A copy, because the model must not change with a mapped file.
        plain = (tensor.T if name in flipped else tensor).to(torch.float32, copy=True)
        found[name] = plain.contiguous()
    return checkpoint.from_tensors(config, found, source=source).eval()


def _check_layers(config: GPTConfig, named: Mapping[str, str], source: str) -> None:
    """Refuse a layer count that the file does not have before allocating anything of that size."""
    matches = (_BLOCK.match(name) for name in named)
    there = len({match.group(1) for match in matches if match})
    if there != config.n_layer:
        raise UserError(f"{source} holds {there} blocks, its configuration says {config.n_layer}")


def _kind(config: GPTConfig) -> str:
    """What a model is called whose parameters have these names."""
    home = homes.home(config)
    return homes.TITLES[home] if home else "GPT-2" if config.naming == "gpt2" else "Llama"


def _check_names(
    wanted: Mapping[str, object], there: set[str], source: str, kind: str, remedy: str
) -> None:
    missing = [name for name in wanted if name not in there]
    unknown = sorted(name for name in there if name not in wanted)
    if missing:
        raise UserError(f"{source} lacks {missing[0]}" + _more(missing))
    if unknown:
        more = _more(unknown)
        raise UserError(f"{source} holds {unknown[0]!r:.100}{more}, which no {kind} has", remedy)


def _more(names: list[str]) -> str:
    more = len(names) - 1
    return f" and {more} more tensor{'s' * (more > 1)}" if more else ""


def not_finite(model: GPT) -> str:
    """A clause that names the first tensor with NaN or infinite values; empty if there is none."""
    for name, tensor in checkpoint.model_tensors(model).items():
        # A sum is finite if all values are and it does not overflow; it needs no memory.
        if not tensor.sum().isfinite() and (bad := int((~tensor.isfinite()).sum())):
            return f"{name} holds NaN or infinite values ({bad:,} of {tensor.numel():,})"
    return ""
