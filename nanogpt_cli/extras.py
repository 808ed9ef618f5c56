"""The optional extras: what each brings, and whether it is installed."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Extra:
    """One extra of the package.

    Attributes:
        brings: what it makes possible.
        modules: the modules it installs; all must be importable.
    """

    brings: str
    modules: tuple[str, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """The modules that are not installed; finding one does not import it."""
        return tuple(name for name in self.modules if not _installed(name))


EXTRAS: Mapping[str, Extra] = {
    "formats": Extra("prepare .parquet and .zst files", ("pyarrow", "zstandard")),
    "hub": Extra("data sets and models of the Hugging Face hub", ("datasets", "huggingface_hub")),
    "gguf": Extra("export and import for llama.cpp", ("gguf",)),
    "onnx": Extra("export to ONNX", ("onnx", "onnxscript")),
    "verify": Extra(
        "check an export in its own runtime",
        ("gguf", "onnx", "onnxscript", "transformers", "onnxruntime", "xllamacpp"),
    ),
    "gpu": Extra("utilisation, power and clocks of NVIDIA GPUs", ("pynvml",)),
    "plot": Extra("pictures as .png and .pdf; .svg needs nothing", ("matplotlib",)),
    "web": Extra("watch --serve: the dashboard in a browser", ("textual_serve",)),
    "tensorboard": Extra('log.sinks = ["tensorboard"], and watching event files', ("tensorboard",)),
    "wandb": Extra('log.sinks = ["wandb"]', ("wandb",)),
    "trackio": Extra('log.sinks = ["trackio"]', ("trackio",)),
}


def install_command(name: str) -> str:
    """The pip command that installs an extra."""
    return f'pip install "nanogpt-cli[{name}]"'


def _installed(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # a broken package counts as not installed
        return False
