"""Reading and writing nanoGPT's ``ckpt.pt`` and ``meta.pkl``.

Source: nanoGPT's ``train.py`` (what it saves), ``model.py`` (names, ``model_args``) and
``data/shakespeare_char/prepare.py`` (the vocabulary's pickle). These two files are pickles because
nanoGPT reads nothing else; the ones written here hold dicts, numbers and tensors only.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch

from nanogpt_cli import files, foreign_files, safe_pickle
from nanogpt_cli.errors import UserError, naming
from nanogpt_cli.interop import LoadedModel, safe_torch, torchfile
from nanogpt_cli.interop.foreign import GPT2_ROWS, build, config_of, native_names
from nanogpt_cli.interop.source import Exportable, check_vocabulary
from nanogpt_cli.model.gpt import GPTConfig
from nanogpt_cli.text.tokenizers import factory
from nanogpt_cli.text.tokenizers.tokenizer import END_OF_TEXT, CharTokenizer, Tokenizer
from nanogpt_cli.training.checkpoints.tensor_files import LazyTensor

CHECKPOINT: Final = "ckpt.pt"
META: Final = "meta.pkl"
_ARGUMENTS: Final = ("n_layer", "n_head", "n_embd", "block_size", "bias", "vocab_size", "dropout")


def check(source: Exportable) -> None:
    """Raise ``UserError`` if nanoGPT's model cannot represent this one."""
    if source.config.naming != "gpt2":
        raise UserError("nanoGPT has only GPT-2's parts; this model has others", "--to hf has them")
    if source.config.activation != "gelu":
        raise UserError(
            f"nanoGPT computes GELU by erf; this model was trained with "
            f"{source.config.activation!r}",
            "--to hf keeps the activation",
        )
    if not source.config.tied:
        raise UserError(
            "nanoGPT ties the head to the embedding; this model does not", "--to hf keeps both"
        )


def write(source: Exportable, folder: Path, report: Callable[[str], None]) -> None:
    """Write ``ckpt.pt`` and, for a character vocabulary, ``data/NAME/meta.pkl``.

    nanoGPT's ``sample.py --out_dir=FOLDER`` looks for the vocabulary in ``data/NAME/`` below the
    current directory: link or copy this folder's ``data`` there.

    Raises:
        UserError: see ``check``.
    """
    check(source)
    report(f"writing {CHECKPOINT}")
    weights = source.weights
    model = {name: LazyTensor(shape, partial(weights.get, name))
             for name, shape in weights.shapes.items()}  # fmt: skip
    model["lm_head.weight"] = model["transformer.wte.weight"]
    dataset = _dataset(source)
    value = {
        "model": model,
        "optimizer": _fresh_adamw(source),
        "model_args": {name: getattr(weights.config, name) for name in _ARGUMENTS},
        "iter_num": source.step,
        "best_val_loss": float(source.state.get("val_loss") or 1e9),
        "config": {"dataset": dataset},
    }
    torchfile.save(value, folder / CHECKPOINT)
    if source.tokenizer is not None and source.tokenizer.kind == "char":
        meta = folder / "data" / dataset / META
        meta.parent.mkdir(parents=True)
        meta.write_bytes(_meta(source.tokenizer))
    files.write_json(
        folder / "tokenizer.json", source.tokenizer.to_json() if source.tokenizer else {}
    )


def _dataset(source: Exportable) -> str:
    recipe = source.state.get("recipe")
    data = recipe.get("data", {}) if isinstance(recipe, dict) else {}
    kind = source.tokenizer.kind if source.tokenizer else "none"
    name = Path(str(data.get("name", source.name))).name
    return f"{name}_{kind}".replace(":", "-")


def _fresh_adamw(source: Exportable) -> dict[str, Any]:
    """The state of a new AdamW, so that nanoGPT can resume from the weights.

    Like nanoGPT's, its first group holds all matrices and its second all vectors.
    """
    dims = [len(shape) for shape in source.weights.shapes.values()]
    matrices = sum(n >= 2 for n in dims)
    like = torch.optim.AdamW([torch.zeros(1)], lr=1e-3, betas=(0.9, 0.95)).state_dict()
    options = {key: value for key, value in like["param_groups"][0].items() if key != "params"}
    groups = [
        {**options, "weight_decay": 0.1, "params": list(range(matrices))},
        {**options, "weight_decay": 0.0, "params": list(range(matrices, len(dims)))},
    ]
    return {"state": {}, "param_groups": groups}


def vocabulary_alone(vocab_size: int) -> bytes:
    """A ``meta.pkl`` with the number of embedding rows, which is all that ``train.py`` reads."""
    return pickle.dumps({"vocab_size": vocab_size}, protocol=2)


def _meta(tokenizer: Tokenizer) -> bytes:
    characters = list(tokenizer.to_json()["characters"])
    if tokenizer.eot is not None:  # an entry that decodes to several characters
        characters.append(END_OF_TEXT)
    meta = {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": {character: i for i, character in enumerate(characters)},
    }
    return pickle.dumps(meta, protocol=2)


def read(
    path: Path, meta: Path | None = None, *, tokenizer: Tokenizer | None = None
) -> LoadedModel:
    """The model in a ``ckpt.pt``, or in the folder that holds one.

    Args:
        path: the file or its folder.
        meta: ``meta.pkl`` of a character vocabulary; by default it is looked for beside the
            checkpoint and in nanoGPT's ``data/DATASET/``.
        tokenizer: replaces the checkpoint's own, which is then not read.

    Raises:
        UserError: the file is damaged, hostile, or not a nanoGPT checkpoint.
    """
    if path.is_dir():
        path = path / CHECKPOINT
    value = safe_torch.load(path)
    if not isinstance(value, dict) or not isinstance(value.get("model_args"), dict):
        raise UserError(
            f"{path} is not a nanoGPT checkpoint: it has no model_args",
            "weights alone do not say which model they belong to; for one of transformers, name "
            "the folder that its save_pretrained wrote",
        )
    config = _config(path, value["model_args"])
    tensors = safe_torch.tensors_of(value.get("model"), path)
    model = build(config, tensors, native_names(tensors, config))
    notes: tuple[str, ...] = ()
    if tokenizer is None:
        tokenizer, notes = _tokenizer(path, value.get("config"), meta, config)
    step = value.get("iter_num", 0)
    return LoadedModel(
        model, tokenizer, str(path), step if isinstance(step, int) and step >= 0 else 0, notes=notes
    )


def _config(path: Path, values: dict[str, Any]) -> GPTConfig:
    for key in values.keys() - set(_ARGUMENTS):
        raise UserError(
            f"{path}: model_args has {key!r:.60}, which nanoGPT's model does not know",
            "the file was written by a changed nanoGPT, whose model is another one",
        )
    return config_of(path, {"bias": True, "dropout": 0.0, **values, "activation": "gelu"})


def _tokenizer(
    path: Path, config: object, meta: Path | None, model: GPTConfig
) -> tuple[Tokenizer | None, tuple[str, ...]]:
    tokenizer = None if meta else _native_tokenizer(path.parent / "tokenizer.json")
    found = meta or _find_meta(path, config)
    if tokenizer is None and found is not None:
        tokenizer = read_meta(found)
    notes: tuple[str, ...] = ()
    if tokenizer is None and model.vocab_size in GPT2_ROWS:
        tokenizer = factory.get("gpt2")
        notes = ("no meta.pkl found: the vocabulary is assumed to be GPT-2's, as in nanoGPT",)
    elif tokenizer is None:
        notes = ("no meta.pkl found: text cannot be encoded; name the file with --meta",)
    check_vocabulary(str(path), tokenizer, model)
    return tokenizer, notes


def _native_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer that an export wrote beside the checkpoint; an empty object means none."""
    if not foreign_files.present(path):
        return None
    value = foreign_files.read_object(path, foreign_files.LARGEST_VOCABULARY)
    with naming(path):
        return factory.from_json(value, str(path)) if value else None


def _find_meta(path: Path, config: object) -> Path | None:
    dataset = config.get("dataset") if isinstance(config, dict) else None
    places = [path.parent / META]
    if isinstance(dataset, str) and dataset and Path(dataset).name == dataset:
        places += [root / "data" / dataset / META for root in (path.parent, path.parent.parent)]
    # A dangling link does not mean that there is no vocabulary; reading it gives the error.
    return next((place for place in places if foreign_files.present(place)), None)


def read_meta(path: Path) -> Tokenizer:
    """The vocabulary of a ``meta.pkl``, read without executing it.

    Raises:
        UserError: it is damaged, imports something, or is not a list of characters by id.
    """
    value = safe_pickle.load_plain(path)
    characters = value.get("itos") if isinstance(value, dict) else None
    if isinstance(characters, dict):
        characters = [characters.get(i) for i in range(len(characters))]
    if not isinstance(characters, list) or not characters:
        raise UserError(f"{path} is not a nanoGPT vocabulary: it has no itos")
    if not all(isinstance(c, str) and c for c in characters) or len(set(characters)) < len(
        characters
    ):
        raise UserError(f"{path}: itos must give each id 0, 1, 2, ... a text of its own")
    eot = characters[-1] == END_OF_TEXT
    if not all(len(c) == 1 for c in characters[: len(characters) - eot]):
        raise UserError(f"{path}: the vocabulary does not consist of single characters")
    with naming(path):
        return CharTokenizer(characters[: len(characters) - eot], eot=eot)
