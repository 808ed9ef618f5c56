"""nanoGPT's ckpt.pt and meta.pkl: bit-exact there and back, loadable by its own code's steps."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import Payload, char_tokenizer, exportable, quiet, same_tensors

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import nanogpt
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.text.tokenizers.tokenizer import ByteTokenizer


def written(source: Exportable, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    nanogpt.write(source, folder, quiet)
    return folder


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("vocab_size", [29, 64])
def test_there_and_back_is_bit_exact(tmp_path: Path, bias: bool, vocab_size: int) -> None:
    source = exportable(bias=bias, vocab_size=vocab_size)
    found = nanogpt.read(written(source, tmp_path) / "ckpt.pt")
    assert found.model.config == source.config
    assert same_tensors(found.model, source.model())
    assert found.tokenizer is not None
    assert found.tokenizer.fingerprint() == char_tokenizer().fingerprint()


def test_file_has_what_nanogpt_resumes_from(tmp_path: Path) -> None:
    source = exportable()
    value = torch.load(written(source, tmp_path) / "ckpt.pt", weights_only=True)
    assert set(value) == {
        "model", "optimizer", "model_args", "iter_num", "best_val_loss", "config",
    }  # fmt: skip
    assert value["model"]["lm_head.weight"] is not None
    # nanoGPT's configure_optimizers: matrices decay, vectors do not, tied head once.
    parameters = dict(source.model().named_parameters())
    groups = [
        {"params": [p for p in parameters.values() if p.dim() >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters.values() if p.dim() < 2], "weight_decay": 0.0},
    ]
    torch.optim.AdamW(groups, lr=1e-3).load_state_dict(value["optimizer"])


def test_meta_pickle_is_what_nanogpt_expects(tmp_path: Path) -> None:
    folder = written(exportable(), tmp_path)
    (path,) = folder.glob("data/*/meta.pkl")
    meta = pickle.loads(path.read_bytes())
    text = "To be, or not"
    ids = [meta["stoi"][c] for c in text]
    assert ids == char_tokenizer().encode(text)
    assert "".join(meta["itos"][i] for i in ids) == text
    assert meta["vocab_size"] == len(meta["itos"])


@pytest.mark.parametrize("protocol", range(6))
def test_meta_of_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    characters = "\n !azé🙂"
    meta = {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": {c: i for i, c in enumerate(characters)},
    }
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(meta, protocol=protocol))
    assert nanogpt.read_meta(path).encode("a!z🙂") == [3, 2, 4, 6]


def test_wrapped_names_and_numpy_scalars_are_read(tmp_path: Path) -> None:
    source = exportable()
    path = written(source, tmp_path) / "ckpt.pt"
    value = torch.load(path, weights_only=True)
    value["model"] = {f"module._orig_mod.{k}": v for k, v in value["model"].items()}
    value["best_val_loss"] = np.float32(1.5)
    torch.save(value, path)
    assert same_tensors(nanogpt.read(path).model, source.model())


def test_meta_is_found_in_the_data_folder(tmp_path: Path) -> None:
    folder = written(exportable(), tmp_path)
    (folder / "tokenizer.json").unlink()
    found = nanogpt.read(folder)
    assert found.tokenizer is not None
    assert found.tokenizer.kind == "char"


@pytest.mark.parametrize("dataset", ["../../etc", "/etc", "a/../.."])
def test_dataset_name_cannot_leave_the_folder(tmp_path: Path, dataset: str) -> None:
    folder = written(exportable(), tmp_path)
    (folder / "tokenizer.json").unlink()
    value = torch.load(folder / "ckpt.pt", weights_only=True)
    value["config"]["dataset"] = dataset
    torch.save(value, folder / "ckpt.pt")
    found = nanogpt.read(folder)
    assert found.tokenizer is None
    assert "--meta" in found.notes[0]


def test_what_nanogpt_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="erf"):
        written(exportable(activation="gelu_tanh"), tmp_path / "a")
    with pytest.raises(UserError, match="ties"):
        written(exportable(tied=False), tmp_path / "b")


def test_byte_tokenizer_comes_back(tmp_path: Path) -> None:
    found = nanogpt.read(written(exportable(ByteTokenizer()), tmp_path))
    assert found.tokenizer is not None
    assert found.tokenizer.kind == "byte"


def test_weights_alone_are_refused_with_what_to_name_instead(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    torch.save({"transformer.wte.weight": torch.zeros(4, 2)}, path)
    with pytest.raises(UserError, match="it has no model_args") as refused:
        nanogpt.read(path)
    assert "save_pretrained" in refused.value.hint


def test_head_that_differs_from_the_embedding_is_refused(tmp_path: Path) -> None:
    path = written(exportable(), tmp_path) / "ckpt.pt"
    value = torch.load(path, weights_only=True)
    value["model"]["lm_head.weight"] = value["model"]["lm_head.weight"] + 1
    torch.save(value, path)
    with pytest.raises(UserError, match="differs"):
        nanogpt.read(path)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_payload_in_a_vocabulary_is_not_executed(tmp_path: Path, protocol: int) -> None:
    path, proof = tmp_path / "meta.pkl", tmp_path / "executed"
    path.write_bytes(pickle.dumps({"itos": Payload(proof)}, protocol=protocol))
    with pytest.raises(UserError, match="refused"):
        nanogpt.read_meta(path)
    assert not proof.exists()


def test_memo_of_billions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "meta.pkl"
    path.write_bytes(b"\x80\x02}r" + struct.pack("<I", 0x7FFFFFFF) + b".")
    with pytest.raises(UserError, match="memo"):
        nanogpt.read_meta(path)


@pytest.mark.parametrize(
    "value",
    [
        {"itos": {0: "a", 1: "a"}}, {"itos": {1: "a"}}, {"itos": ["ab"]}, {"itos": []}, {}, [],
        {"itos": {0: 5}}, 7,
    ],
    ids=str,
)  # fmt: skip
def test_vocabulary_that_is_none_is_refused(tmp_path: Path, value: object) -> None:
    path = tmp_path / "meta.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(UserError, match=r"meta\.pkl"):
        nanogpt.read_meta(path)
