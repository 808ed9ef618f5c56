"""Every layout of a checkpoint that is accepted computes what transformers computes from it.

Each is written by transformers, safetensors or torch, read by the command ``import``, and the
model of the run is compared with the one that transformers loads; or it is refused by name.
"""

from __future__ import annotations

import json
import re
import shlex
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file, save_model
from tiny import exportable, logits, quiet, write_llmc
from torch import Tensor
from typer.testing import CliRunner

from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import exporting, huggingface, importing, opening
from nanogpt_cli.model.gpt import GPT, GPTConfig, Multipliers

transformers = pytest.importorskip("transformers")
Folder = Path
Theirs = Any
SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 40, "n_positions": 12}
HEAD, EMBEDDING = "lm_head.weight", "transformer.wte.weight"


def their_model(kind: str = "GPT2LMHeadModel", **config: Any) -> Theirs:
    """A model of transformers in which every weight matters."""
    torch.manual_seed(0)
    model = getattr(transformers, kind)(transformers.GPT2Config(**{**SIZES, **config})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.2 + (parameter.dim() == 1) * 0.3)
    return model


def tensors_of(model: Theirs) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name != HEAD}


def save(folder: Folder, model: Theirs, tensors: Mapping[str, Tensor], **options: Any) -> None:
    """The configuration and one file of weights: pickled if there are options for that."""
    model.config.save_pretrained(folder)
    if options:
        torch.save(dict(tensors), folder / "pytorch_model.bin", **options)
    else:
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})


PICKLED = {"pickle_protocol": 2}
OLD = {"_use_new_zipfile_serialization": False}


def renamed(prefix: str, **options: Any) -> Callable[[Folder], None]:
    def write(folder: Folder) -> None:
        model = their_model()
        save(folder, model, {prefix + k: v for k, v in tensors_of(model).items()}, **options)

    return write


def stored(change: Callable[[Tensor], Tensor], **options: Any) -> Callable[[Folder], None]:
    def write(folder: Folder) -> None:
        model = their_model()
        save(folder, model, {k: change(v) for k, v in tensors_of(model).items()}, **options)

    return write


def added(extra: Callable[[dict[str, Tensor]], dict[str, Tensor]], **options: Any) -> Any:
    def write(folder: Folder) -> None:
        model = their_model()
        tensors = tensors_of(model)
        save(folder, model, {**tensors, **extra(tensors)}, **options)

    return write


def by_transformers(shard: str = "1GB", **config: Any) -> Callable[[Folder], None]:
    return lambda folder: their_model(**config).save_pretrained(folder, max_shard_size=shard)


def without_head(folder: Folder) -> None:
    their_model("GPT2Model").save_pretrained(folder)


def by_safetensors_save_model(folder: Folder) -> None:
    model = their_model()
    save_model(model, str(folder / "model.safetensors"), metadata={"format": "pt"})
    assert HEAD in load_file(folder / "model.safetensors")
    assert EMBEDDING not in load_file(folder / "model.safetensors")
    model.config.save_pretrained(folder)


def only_head(folder: Folder) -> None:
    model = their_model()
    tensors = tensors_of(model)
    tensors[HEAD] = tensors.pop(EMBEDDING)
    save(folder, model, tensors, **PICKLED)


def sharded_pickles(folder: Folder) -> None:
    model = their_model()
    model.config.save_pretrained(folder)
    names = sorted(tensors := tensors_of(model))
    weight_map = {}
    for number in range(3):
        file = f"pytorch_model-0000{number + 1}-of-00003.bin"
        torch.save({name: tensors[name] for name in names[number::3]}, folder / file)
        weight_map |= dict.fromkeys(names[number::3], file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def one_flat_storage(folder: Folder) -> None:
    model = their_model()
    tensors = tensors_of(model)
    flat = torch.cat([tensor.flatten() for tensor in tensors.values()])
    parts = flat.split([tensor.numel() for tensor in tensors.values()])
    views = {k: part.view(v.shape) for (k, v), part in zip(tensors.items(), parts, strict=True)}
    save(folder, model, views, **PICKLED)


def one_block_twice(folder: Folder) -> None:
    """Two blocks that share their tensors."""
    model = their_model()
    tensors = tensors_of(model)
    for name in tensors:
        tensors[name] = tensors[name.replace(".h.1.", ".h.0.")]
    save(folder, model, tensors, **PICKLED)


def transposed_in_memory(tensor: Tensor) -> Tensor:
    return tensor.t().contiguous().t()


def rows_of_more(tensor: Tensor) -> Tensor:
    return torch.cat([tensor, tensor + 1])[: len(tensor)]


def mixed(tensor: Tensor) -> Tensor:
    return tensor.bfloat16() if tensor.dim() == 2 else tensor


def masks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    lower = torch.ones(12, 12).tril().view(1, 1, 12, 12)
    found = {f"transformer.h.{i}.attn.bias": lower.clone() for i in range(2)}
    return found | {f"transformer.h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}


def endless_mask(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {"transformer.h.0.attn.bias": torch.tensor([True]).expand(1, 1, 12, 12)}


def configured(
    remove: tuple[str, ...] = (), add: Mapping[str, Any] | None = None
) -> Callable[[Folder], None]:
    """A folder whose config.json was edited."""

    def write(folder: Folder) -> None:
        by_transformers()(folder)
        path = folder / "config.json"
        values = {**json.loads(path.read_text()), **(add or {})}
        path.write_text(json.dumps({k: v for k, v in values.items() if k not in remove}))

    return write


OTHER_NAMES = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16}

# Folders that transformers reads itself.
FOLDERS: dict[str, Callable[[Folder], None]] = {
    "safetensors": by_transformers(),
    "safetensors in shards": by_transformers("4KB"),
    "safetensors of bfloat16 in shards": lambda f: their_model().bfloat16().save_pretrained(
        f, max_shard_size="4KB"),
    "safetensors with both tied names": added(lambda t: {HEAD: t[EMBEDDING].clone()}),
    "safetensors by save_model": by_safetensors_save_model,
    "safetensors, untied": by_transformers(tie_word_embeddings=False),
    "safetensors without prefix": without_head,
    "safetensors of float16": stored(Tensor.half),
    "safetensors of bfloat16": stored(Tensor.bfloat16),
    "safetensors of float64": stored(Tensor.double),
    "safetensors of mixed types": stored(mixed),
    "safetensors with masks": added(masks),
    "bin": renamed("", **PICKLED),
    "bin in shards": sharded_pickles,
    "bin with both tied names in one storage": added(lambda t: {HEAD: t[EMBEDDING]}, **PICKLED),
    "bin with the head's name only": only_head,
    "bin of float16": stored(Tensor.half, **PICKLED),
    "bin of bfloat16": stored(Tensor.bfloat16, **PICKLED),
    "bin of float64": stored(Tensor.double, **PICKLED),
    "bin of parameters": stored(torch.nn.Parameter, **PICKLED),
    "bin, not contiguous": stored(transposed_in_memory, **PICKLED),
    "bin, every other value": stored(lambda t: t.repeat_interleave(2, -1)[..., ::2], **PICKLED),
    "bin, rows of larger storages": stored(rows_of_more, **PICKLED),
    "bin, views of one storage": one_flat_storage,
    "bin, two blocks sharing tensors": one_block_twice,
    "bin with masks": added(masks, **PICKLED),
    "bin with a mask of one value": added(endless_mask, **PICKLED),
    "bin from before archives": renamed("", **OLD),
    "bin from before archives, not contiguous": stored(transposed_in_memory, **OLD),
    "bin from before archives, float16": stored(Tensor.half, **OLD),
    "no width of the MLP": by_transformers(n_inner=64),
    "attention in float32": by_transformers(reorder_and_upcast_attn=True),
    "attention scaled by layer": by_transformers(scale_attn_by_inverse_layer_idx=True),
    "attention not scaled": by_transformers(scale_attn_weights=False),
    "attention scaled by layer alone": by_transformers(
        scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True),
    "padded vocabulary": by_transformers(vocab_size=64),
    "sizes under other names": configured(("n_layer", "n_head", "n_embd"), OTHER_NAMES),
    "no model_type": configured(("model_type",)),
    **{f"activation {name}": by_transformers(activation_function=name) for name in (
        "gelu", "gelu_python", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh",
        "gelu_python_tanh", "relu", "relu2", "silu", "swish")},
}  # fmt: skip


def imported(source: Path) -> GPT:
    """The model of the run that ``nanogpt import`` makes, in the current folder."""
    found = CliRunner().invoke(app, ["import", str(source), "--name", "x", "--json"])
    if found.exception is not None:
        raise found.exception
    return opening.resolve(json.loads(found.stdout)["run"]).model


def difference(ours: GPT, theirs: Theirs) -> float:
    ids = torch.randint(0, ours.config.vocab_size, (3, 12))
    with torch.no_grad():
        expected = theirs(ids).logits
    assert expected.std() > 0.1
    return float((logits(ours, ids) - expected).abs().max())


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "made").mkdir()
    return tmp_path / "made"


def nanogpt_tensors(theirs: Theirs) -> dict[str, Tensor]:
    """Under nanoGPT's names, which are those of transformers, with the matrices transposed."""
    turned = (".c_attn.weight", ".c_proj.weight", ".c_fc.weight")
    tensors = tensors_of(theirs)
    found = {k: v.T.contiguous() if k.endswith(turned) else v for k, v in tensors.items()}
    return {**found, HEAD: found[EMBEDDING]}


def checkpoint(
    prefix: str = "",
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict,
    arguments: Mapping[str, Any] | None = None,
    **options: Any,
) -> Callable[[Folder], Theirs]:
    """nanoGPT's ``ckpt.pt`` and the same model in transformers."""

    def write(folder: Folder) -> Theirs:
        theirs = their_model(activation_function="gelu")
        sizes = {k: v for k, v in SIZES.items() if k != "n_positions"}
        model = {prefix + k: v for k, v in change(nanogpt_tensors(theirs)).items()}
        value = {
            "model": model, "optimizer": {}, "iter_num": 7, "best_val_loss": torch.tensor(1.0),
            "model_args": {**sizes, "block_size": 12, "bias": True, "dropout": 0.0,
                           **(arguments or {})},
            "config": {"dataset": "x"},
        }  # fmt: skip
        torch.save(value, folder / "ckpt.pt", **options)
        return theirs

    return write


def without_biases(folder: Folder) -> Theirs:
    def strip(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in tensors.items() if not name.endswith(".bias")}

    theirs = checkpoint("_orig_mod.", strip, {"bias": False})(folder)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
    return theirs


def llmc(version: int, padded: int) -> Callable[[Folder], Theirs]:
    def write(folder: Folder) -> Theirs:
        config = GPTConfig(2, 2, 16, 12, 40, 0.0, bias=True, activation="gelu_tanh")
        theirs = their_model()
        if version == 5:
            theirs = theirs.bfloat16().float()
        model = GPT(config)
        model.load_state_dict(nanogpt_tensors(theirs))
        write_llmc(folder / "model.bin", model, version=version, padded=padded)
        return theirs

    return write


def own(target: str, **changes: Any) -> Callable[[Folder], Theirs]:
    """An export of ours, and the same model in a folder for transformers."""

    def write(folder: Folder) -> Theirs:
        source = exportable(**{"n_embd": 16, "block_size": 12, **changes})
        exporting.export(source, target, folder, quiet)
        exporting.export(source, "hf", folder.parent / "theirs", quiet)
        return transformers.AutoModelForCausalLM.from_pretrained(folder.parent / "theirs" / "hf")

    return write


def wrapped(prefix: str, **options: Any) -> Callable[[Folder], Theirs]:
    """Names that transformers does not know, but torch.compile and DDP write."""

    def write(folder: Folder) -> Theirs:
        renamed(prefix, **options)(folder)
        return their_model()

    return write


def only_n_ctx(folder: Folder) -> Theirs:
    configured(("n_positions",), {"n_ctx": 12})(folder)
    return their_model()


def cut_head(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name != EMBEDDING}


def with_masks(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "transformer.h.0.attn.bias": torch.ones(1, 1, 12, 12).tril()}


def turned(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: transposed_in_memory(tensor) for name, tensor in tensors.items()}


# What transformers does not read: the part to name, and a writer that returns the same model.
OTHERS: dict[str, tuple[str, Callable[[Folder], Theirs]]] = {
    "compiled": ("", wrapped("_orig_mod.")),
    "distributed": ("", wrapped("module.", **PICKLED)),
    "compiled and distributed": ("", wrapped("module._orig_mod.", **PICKLED)),
    "named by its file": ("model.safetensors", wrapped("")),
    "named by its pickle": ("pytorch_model.bin", wrapped("", **PICKLED)),
    "n_ctx alone": ("", only_n_ctx),
    "nanoGPT": ("ckpt.pt", checkpoint()),
    "nanoGPT's folder": ("", checkpoint()),
    "nanoGPT compiled": ("ckpt.pt", checkpoint("_orig_mod.")),
    "nanoGPT compiled and distributed": ("ckpt.pt", checkpoint("module._orig_mod.")),
    "nanoGPT without biases": ("ckpt.pt", without_biases),
    "nanoGPT with masks": ("ckpt.pt", checkpoint("", with_masks)),
    "nanoGPT, the head's name only": ("ckpt.pt", checkpoint("", cut_head)),
    "nanoGPT, not contiguous": ("ckpt.pt", checkpoint("", turned)),
    "nanoGPT from before archives": ("ckpt.pt", checkpoint(**OLD)),
    "llm.c": ("model.bin", llmc(3, 40)),
    "llm.c, padded": ("model.bin", llmc(3, 64)),
    "llm.c in bfloat16": ("model.bin", llmc(5, 64)),
    "our hf": ("hf", own("hf", bias=False)),
    "our hf, untied": ("hf", own("hf", tied=False)),
    "our hf, multipliers": ("hf", own("hf", multipliers=Multipliers(3.0, 0.4, 0.07, 0.25))),
    "our hf, more rows than tokens": ("hf", own("hf", vocab_size=64)),
    "our nanogpt": ("nanogpt", own("nanogpt", bias=False)),
    "our nanogpt, more rows than tokens": ("nanogpt", own("nanogpt", vocab_size=64)),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_computes_what_transformers_computes(folder: Path, name: str) -> None:
    FOLDERS[name](folder)
    # Not AutoModelForCausalLM, which cannot do without model_type.
    theirs = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32).eval()
    assert difference(imported(folder), theirs) < 1e-5


@pytest.mark.parametrize("name", OTHERS)
def test_other_layouts_compute_what_transformers_computes(folder: Path, name: str) -> None:
    part, write = OTHERS[name]
    theirs = write(folder)
    assert difference(imported(folder / part), theirs.eval()) < 1e-5


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(["safetensors", "pickled", "old"]),
    shards=st.integers(1, 3),
    prefix=st.sampled_from(["", "module.", "_orig_mod.", "module._orig_mod."]),
    base=st.booleans(),
    head=st.sampled_from(["none", "both", "only"]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64]),
    change=st.sampled_from([torch.clone, transposed_in_memory, rows_of_more]),
    buffers=st.booleans(),
)
def test_any_combination_is_the_same_model(**drawn: Any) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        theirs = write_combination(folder, **drawn)
        assert difference(importing.read(folder).model, theirs) < 1e-5


def write_combination(
    folder: Folder, kind: str, shards: int, prefix: str, base: bool, head: str,
    dtype: torch.dtype, change: Callable[[Tensor], Tensor], buffers: bool,
) -> Theirs:  # fmt: skip
    """One model in any layout, and what transformers makes of its rounded weights."""
    theirs = their_model()
    tensors = {name: change(tensor.to(dtype)) for name, tensor in tensors_of(theirs).items()}
    tensors |= masks(tensors) if buffers else {}
    if head != "none":
        tensors[HEAD] = tensors[EMBEDDING].clone()
    if head == "only":
        del tensors[EMBEDDING]
    if base:
        tensors = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    tensors = {prefix + name: tensor for name, tensor in tensors.items()}
    theirs.config.save_pretrained(folder)
    stem, ending = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    weight_map = {}
    for number in range(shards):
        file = f"{stem}-{number}.{ending}" if shards > 1 else f"{stem}.{ending}"
        part = {name: tensors[name] for name in sorted(tensors)[number::shards]}
        weight_map |= dict.fromkeys(part, file)
        if kind == "safetensors":
            save_file({name: tensor.contiguous() for name, tensor in part.items()}, folder / file)
        else:
            torch.save(part, folder / file, **(OLD if kind == "old" else {}))
    if shards > 1:
        index = json.dumps({"weight_map": weight_map})
        (folder / f"{stem}.{ending}.index.json").write_text(index)
    return theirs.to(dtype).float()


def changed(**config: Any) -> Callable[[Folder], None]:
    return configured(add=config)


def broken(change: Callable[[dict[str, Tensor]], object], **options: Any) -> Any:
    def write(folder: Folder) -> None:
        model = their_model()
        tensors = tensors_of(model)
        change(tensors)
        save(folder, model, tensors, **options)

    return write


def poisoned(tensors: dict[str, Tensor]) -> None:
    tensors["transformer.h.1.mlp.c_fc.weight"][3, 5] = torch.nan


def overflowed(tensors: dict[str, Tensor]) -> None:
    tensors["transformer.wpe.weight"][0, :2] = torch.inf


def repeated(tensors: dict[str, Tensor]) -> None:
    tensors["transformer.h.0.attn.bias"] = torch.ones(1).expand(10**9)


def adapter(folder: Folder) -> None:
    (folder / "adapter_config.json").write_text("{}")


NAMED = "transformer.h.0.ln_1.weight"
REFUSED: dict[str, tuple[str, Callable[[Folder], Any]]] = {
    **{f"activation {name}": (f"activation_function '{name}'", changed(activation_function=name))
       for name in ("quick_gelu", "gelu_10", "mish", "tanh", "relu6", "sigmoid", "linear")},
    "no word on the scale": ("scale_attn_weights = None", changed(scale_attn_weights=None)),
    "cross-attention": ("add_cross_attention", changed(add_cross_attention=True)),
    "epsilon": ("layer_norm_epsilon 0.01", changed(layer_norm_epsilon=1e-2)),
    "a narrow MLP": ("n_inner 32", by_transformers(n_inner=32)),
    "quantised": ("quantization_config", changed(quantization_config={"bits": 4})),
    "pruned": ("pruned_heads", changed(pruned_heads={"0": [1]})),
    "two names for two sizes": ("num_attention_heads", changed(num_attention_heads=4)),
    "another architecture": ("'mistral'", changed(model_type="mistral")),
    "wrong heads": ("n_embd 16 is not a multiple of n_head 3", changed(n_head=3)),
    "an adapter": ("adapter", adapter),
    "no weights": ("no weights", lambda folder: their_model().config.save_pretrained(folder)),
    "NaN": (r"mlp\.c_fc\.weight holds NaN or infinite values \(1 of 1,024\)", broken(poisoned)),
    "infinity": (
        r"wpe\.weight holds NaN or infinite values \(2 of 192\)",
        broken(overflowed, **PICKLED),
    ),
    "another head": ("differs from", broken(lambda t: t.update({HEAD: t[EMBEDDING] + 1}))),
    "no head": ("lack lm_head", changed(tie_word_embeddings=False)),
    "a tensor missing": (f"lacks {NAMED}", broken(lambda t: t.pop(NAMED))),
    "a tensor too many": ("score", broken(lambda t: t.update(score=torch.ones(1)))),
    "the same name twice": ("twice", broken(lambda t: t.update({f"module.{NAMED}": t[NAMED] + 1}))),
    "integers": ("int8", broken(lambda t: t.update({NAMED: t[NAMED].to(torch.int8)}))),
    "values repeated": ("claim", broken(repeated, **PICKLED)),
    "a changed nanoGPT": ("n_kv_head", checkpoint(arguments={"n_kv_head": 1})),
}  # fmt: skip


def test_model_with_another_head_is_imported_as_the_hint_says(folder: Folder) -> None:
    ours = exportable(n_embd=16, block_size=12, bias=True, vocab_size=65, activation="gelu_tanh")
    huggingface.write_json_files(ours, folder)
    theirs = their_model("GPT2ForSequenceClassification", vocab_size=65)
    theirs.save_pretrained(folder)
    with pytest.raises(UserError, match=r"score\.weight', which no GPT-2 has") as refused:
        imported(folder)
    hint = re.fullmatch(r".*transformers: (GPT2.*), then `nanogpt ([^`]*)`", refused.value.hint)
    assert hint
    eval(hint[1], {"GPT2LMHeadModel": transformers.GPT2LMHeadModel})
    done = CliRunner().invoke(app, [*shlex.split(hint[2]), "--json"])
    assert done.exit_code == 0, done.exception
    found = opening.resolve(json.loads(done.stdout)["run"])
    assert found.tokenizer is not None
    body = theirs.transformer.wte.weight
    assert torch.equal(found.model.get_parameter("transformer.wte.weight"), body)


# Refusals of a key of config.json; the others have a remedy only where there is one.
WITH_A_REMEDY = {
    "no word on the scale", "cross-attention", "epsilon", "a narrow MLP", "quantised", "pruned",
    "two names for two sizes", "another architecture", "another head", "no head",
    "a tensor too many", "an adapter", "no weights",
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_another_model_is_refused_by_name(folder: Path, name: str) -> None:
    reason, write = REFUSED[name]
    write(folder)
    with pytest.raises(UserError, match=reason) as refused:
        imported(folder)
    assert "\n" not in refused.value.message
    assert not Path("runs").exists()
    if name.startswith("activation") or name in WITH_A_REMEDY:
        assert refused.value.hint
