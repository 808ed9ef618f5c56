"""Configurations and models of ``transformers``, an optional library; its faults become ours."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch

from nanogpt_cli import extras, foreign_files, host
from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.modules.starts.stored import quiet_library

_MOST_LAYERS = 100_000  # a configuration with more would keep Python busy for hours


def read_config(path: Path) -> Any:
    """The library's configuration in a file; code that a repository brings along is never run."""
    values = foreign_files.read_object(path)
    try:
        from transformers import initialization  # noqa: F401 (version 5 has it)
    except ImportError:
        command = extras.install_command("verify")
        raise UserError(
            f"{path}: reading it needs transformers 5", f"install it: {command}"
        ) from None
    with quiet_library():
        from transformers import CONFIG_MAPPING
        from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

        kind = values.get("model_type")
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            hint = nearest(kind, CONFIG_MAPPING.keys()) if isinstance(kind, str) else ""
            raise UserError(
                f"{path}: transformers {_version()} does not know the model_type {kind!r:.60}",
                (f"nearest: {hint!r}; " if hint else "")
                + "for a model with code of its own use --from path.py:factory",
            )
        if values.get("quantization_config"):
            raise UserError(
                f"{path}: quantised weights are not read", "use the weights before quantisation"
            )
        for name in ("num_hidden_layers", "n_layer", "n_layers", "num_layers"):
            if isinstance(values.get(name), int) and values[name] > _MOST_LAYERS:
                raise UserError(f"{path}: {name} is {values[name]:,}, more than {_MOST_LAYERS:,}")
        try:
            config = CONFIG_MAPPING[kind].from_json_file(path)  # it has numbers JSON has not
        except Exception as error:  # each class checks its values in its own way
            raise UserError(f"{path}: transformers refuses it: {in_one_line(error)}") from error
        if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
            raise UserError(
                f"{path}: transformers {_version()} has no causal language model of the "
                f"model_type {kind!r:.60}",
                "only decoders are inspected",
            )
    return config


def _version() -> str:
    import transformers

    return str(transformers.__version__)


def made(config: Any, where: str) -> Any:
    """The library's model, in float32, on the device that is current."""
    import transformers

    library: Any = transformers.AutoModelForCausalLM

    config = copy.deepcopy(config)  # building writes into it
    for part in (config, config.get_text_config()):
        part.use_cache = False  # one pass needs no cache, and a cache would tie blocks together
    # Eager attention forms scores and softmax as tensors, and eager experts are plain products: an
    # observer can see them. Fused kernels give the same output. A few classes have nothing eager.
    chosen = [{"attn_implementation": "eager", "experts_implementation": "eager"}, {}]
    with quiet_library():
        for options in chosen:
            try:
                model = library.from_config(config, dtype=torch.float32, **options)
            except Exception as error:
                if options is chosen[-1] or not isinstance(error, ValueError):
                    raise UserError(
                        f"{where}: transformers cannot build it: {in_one_line(error)}"
                    ) from error
            else:
                return model.eval()
    raise AssertionError


def check_memory(config: Any, label: str) -> None:
    """Refuse a model that has to be built whole, but is larger than the memory that is left."""
    try:
        with torch.device("meta"):
            size = sum(4 * p.numel() for p in made(config, label).parameters())
    except Exception:
        return  # its size is unknown, or building it reports what is wrong
    if size > host.available_bytes():
        raise UserError(
            f"{label} has to be built whole and takes {size / 2**30:.1f} GiB, but "
            f"{host.available_bytes() / 2**30:.1f} are free",
            "use a smaller configuration of the same class",
        )


def read_whole(config: Any, folder: Path, label: str) -> Any:
    """Stored weights read by the library itself, for classes that cannot be made on meta."""
    import transformers

    check_memory(config, label)
    library: Any = transformers.AutoModelForCausalLM
    with quiet_library():
        try:
            model = library.from_pretrained(
                folder, config=config, dtype=torch.float32, local_files_only=True,
                trust_remote_code=False, use_safetensors=True, attn_implementation="eager",
            )  # fmt: skip
        except Exception as error:
            raise UserError(
                f"{label}: transformers cannot read it: {in_one_line(error)}"
            ) from error
    return model.eval()


def in_one_line(error: Exception) -> str:
    """The kind of an error and what it says."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
