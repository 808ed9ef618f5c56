"""Verifying in an artefact's own runtime that it computes what the model computes.

The runtime works in a separate process (``runtimes.py``) and never sees the expected results. They
are compared here: logits, the likeliest token at 1,000 positions or more, greedy texts, the
tokenizer and the loss.
"""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from nanogpt_cli.interop import LoadedModel, compare, llama
from nanogpt_cli.interop.compare import Check, Reference
from nanogpt_cli.interop.source import Exportable
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.text.tokenizers import cuts
from nanogpt_cli.text.tokenizers.bpe import HuggingFaceTokenizer
from nanogpt_cli.text.tokenizers.tokenizer import Tokenizer
from nanogpt_cli.training.checkpoints import checkpoint

FILE: Final = "verify.json"
_LEAST_POSITIONS: Final = 1024
_PROMPTS: Final = 4
_NEW_TOKENS: Final = 40
_SECONDS: Final = 1800
# Tokens of text for the round trip through the tokenizer; smaller data sets are used whole.
_TEXT_TOKENS: Final = 2_000_000
# Bytes of text in one request to llama.cpp.
_PIECE: Final = 1 << 20
# Log-probabilities requested from llama.cpp in all, which sends them as text.
_FULL_NUMBERS: Final = 1_500_000
# Runtime -> the package that provides it.
_PACKAGES: Final = {
    "transformers": "transformers", "onnxruntime": "onnxruntime", "torch.export": "torch",
    "llama.cpp": "xllamacpp",
}  # fmt: skip


@dataclass(frozen=True)
class Artefact:
    """An exported file or folder to verify.

    Attributes:
        target: "hf", "gguf", "onnx", "pt2" or "nanogpt".
        path: the file or folder that the runtime opens.
        variant: quantisation of a GGUF file, else "".
    """

    target: str
    path: Path
    variant: str = ""

    @property
    def runtime(self) -> str:
        """The runtime that verifies it."""
        names = {"hf": "transformers", "onnx": "onnxruntime", "pt2": "torch.export",
                 "gguf": "llama.cpp", "nanogpt": "nanogpt-cli"}  # fmt: skip
        return names[self.target]


def reference(source: Exportable) -> Reference:
    """Compute with the native model what the runtimes will compute."""
    model = source.model()
    tokens, text, origin = _test_tokens(source)
    T = source.config.block_size
    # llama.cpp cannot evaluate the last position of a window; a block size of 1 has no other.
    count = max(1, math.ceil(_LEAST_POSITIONS / max(1, T - 1)))
    if len(tokens) < count * (T + 1):
        tokens = np.resize(tokens, count * (T + 1))
    rows = tokens[: count * (T + 1)].reshape(count, T + 1).astype(np.int64)
    new = min(_NEW_TOKENS, T // 2)
    # A context of one token leaves no room for new text.
    prompts = [row[: min(T // 2, 32)].tolist() for row in rows[: _PROMPTS if new else 0]]
    with torch.inference_mode():
        logits = torch.stack([model(torch.from_numpy(row[None, :-1]))[0][0] for row in rows])
        written = [_greedy(model, prompt, new) for prompt in prompts]
    return Reference(
        windows=rows[:, :-1], targets=rows[:, 1:], logits=logits.numpy(), prompts=prompts,
        greedy=written, eot=source.tokenizer.eot if source.tokenizer else None,
        new_tokens=new, origin=origin, gelu=source.config.activation.startswith("gelu"),
        **_expected_text(source.tokenizer, text),
    )  # fmt: skip


def _expected_text(tokenizer: Tokenizer | None, text: str) -> dict[str, Any]:
    """The fields of ``Reference`` about text, in which every added token occurs."""
    if tokenizer is None:
        return {"text": "", "ids": None}
    text += "".join(f" {added}" for added in _added(tokenizer, special=False).values())
    ids = tokenizer.encode_array(text)
    plain = ids.tolist()
    found: dict[str, Any] = {"text": text, "ids": ids, "decoded": tokenizer.decode(plain)}
    taken = tokenizer.taken_for_bytes()
    if taken and not taken.keys().isdisjoint(plain):
        parts = (taken.get(id) or tokenizer.token_bytes(id) for id in plain)
        found["decoded_otherwise"] = b"".join(parts).decode("utf-8", "replace")
        there = sorted(taken.keys() & set(plain))
        found["taken_for_bytes"] = [tokenizer.decode([id]) for id in there]
    return found


def _greedy(model: GPT, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding without a cache, which could be wrong."""
    ids = torch.tensor([prompt])
    for _ in range(count):
        ids = torch.cat([ids, model(ids)[0][:, -1:].argmax(-1)], dim=1)
    return ids[0, len(prompt) :].tolist()


def _test_tokens(source: Exportable) -> tuple[np.ndarray[Any, Any], str, str]:
    """Tokens and text for the comparison: the run's validation data, else random ids."""
    from nanogpt_cli.errors import UserError
    from nanogpt_cli.text.tokens import open_data

    data = source.state.get("data")
    folder = data.get("folder") if isinstance(data, dict) else None
    if folder and source.tokenizer is not None:
        try:
            opened = open_data(Path(folder))
            same = opened.manifest.fingerprint == source.tokenizer.fingerprint()
            whole = np.concatenate([opened.train[:_TEXT_TOKENS], opened.val])[-_TEXT_TOKENS:]
            if same and len(opened.val) > source.config.block_size:
                text = source.tokenizer.decode(_plain(source.tokenizer, whole))
                return np.asarray(opened.val), text, "validation data"
        except UserError:
            pass
    draw = np.random.default_rng(0)
    random = draw.integers(0, source.config.vocab_size, 1 << 16)
    return random, _random_text(source.tokenizer, draw), "random tokens"


def _random_text(tokenizer: Tokenizer | None, draw: np.random.Generator) -> str:
    if tokenizer is None:
        return ""
    ids = draw.integers(0, tokenizer.vocab_size, 4096)
    text = tokenizer.decode(_plain(tokenizer, ids))
    # Random bytes are not valid UTF-8: only ASCII characters survive the round trip.
    return text if tokenizer.kind == "char" else text.encode("ascii", errors="ignore").decode()


def _plain(tokenizer: Tokenizer, ids: np.ndarray[Any, Any]) -> list[int]:
    """The ids without end of text and special tokens, which are no text.

    Spelled out in a text, a special token is text here and a special token in transformers.
    """
    special = {tokenizer.eot} | _added(tokenizer, special=True).keys()
    return [id for id in ids.tolist() if id not in special]


def _added(tokenizer: Tokenizer, *, special: bool) -> dict[int, str]:
    """The added tokens that are special, or those that are not: texts by id."""
    if not isinstance(tokenizer, HuggingFaceTokenizer):
        return {}
    added = tokenizer.backend.get_added_tokens_decoder()
    return {id: token.content for id, token in added.items() if token.special is special}


def missing(artefact: Artefact) -> str:
    """The package with the artefact's runtime if this interpreter lacks it, else ""."""
    package = _PACKAGES.get(artefact.runtime, "")
    return package if package and importlib.util.find_spec(package) is None else ""


def not_run(artefact: Artefact, reason: str) -> Check:
    """The check of an artefact that nothing has run: neither passed nor failed."""
    return Check(artefact.target, artefact.variant, artefact.path.name, artefact.runtime, None,
                 [f"not verified: {reason}"])  # fmt: skip


def verify(
    source: Exportable,
    expected: Reference,
    artefact: Artefact,
    *,
    python: str = sys.executable,
) -> Check:
    """Run one artefact in its runtime and compare the results.

    Args:
        source: the model it was made from.
        expected: the result of ``reference``.
        artefact: the artefact to run.
        python: an interpreter that has the runtime.
    """
    if artefact.target == "nanogpt":
        return _read_back(source, artefact)
    with tempfile.TemporaryDirectory(prefix="nanogpt-verify-") as name:
        folder = Path(name)
        _write_request(folder, source, expected, float32=artefact.variant in ("", "f32"))
        script = Path(__file__).with_name("runtimes.py")
        command = [python, "-P", str(script), artefact.runtime, str(artefact.path), str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            return _failed(artefact, str(error))
        if not (folder / "answer.json").is_file():
            lines = done.stderr.decode(errors="replace").strip().splitlines()
            return _failed(artefact, lines[-1] if lines else f"exit status {done.returncode}")
        found = compare.compare(expected, folder, artefact.target, artefact.variant)
    problems = list(found.problems)
    if artefact.target == "hf" and not _same_tensors(source, artefact):
        problems.append("when read back, the tensors are not bit for bit those written")
    return Check(
        artefact.target, artefact.variant, artefact.path.name, found.runtime, not problems,
        problems, {**found.facts, "asked_about": expected.origin},
    )  # fmt: skip


def _failed(artefact: Artefact, reason: str) -> Check:
    problem = f"{artefact.runtime} failed: {reason[:300]}"
    return Check(artefact.target, artefact.variant, artefact.path.name, artefact.runtime, False,
                 [problem])  # fmt: skip


def _write_request(folder: Path, source: Exportable, expected: Reference, *, float32: bool) -> None:
    vocab_size = source.config.vocab_size
    asked = {
        "prompts": expected.prompts, "new_tokens": expected.new_tokens, "vocab_size": vocab_size,
        "full_vectors": max(16, min(_LEAST_POSITIONS, _FULL_NUMBERS // vocab_size)),
        "block_size": source.config.block_size, "float32": float32,
        "tokenizer_class": llama.tokenizer_class(source.config),
        "cuts": _cuts(source.tokenizer, expected.text.encode()) if source.tokenizer else [],
    }  # fmt: skip
    (folder / "request.json").write_text(json.dumps(asked))
    np.save(folder / "windows.npy", expected.windows)
    (folder / "text.txt").write_bytes(expected.text.encode("utf-8"))


def _cuts(tokenizer: Tokenizer, text: bytes) -> list[int]:
    """Byte offsets that cut ``text`` into pieces for one request each, with the same tokens."""
    cut, found = cuts.cutter(tokenizer), [0]
    while len(text) - found[-1] > _PIECE:
        piece = bytearray(text[found[-1] : found[-1] + _PIECE])
        found.append(found[-1] + (cut(piece) or cuts.character_cut(piece)))
    return found[1:]


def _read_back(source: Exportable, artefact: Artefact) -> Check:
    """Verify nanoGPT's files by reading them back: every tensor must be bit for bit the same."""
    problems = [] if _same_tensors(source, artefact) else ["a tensor is not bit for bit the same"]
    facts = {"tensors_bit_exact": not problems}
    runtime = "nanogpt-cli's restricted reader"
    return Check(artefact.target, "", artefact.path.name, runtime, not problems, problems, facts)


def _same_tensors(source: Exportable, artefact: Artefact) -> bool:
    from nanogpt_cli.interop import huggingface, nanogpt

    if artefact.target == "hf":
        read: Callable[[Path], LoadedModel] = huggingface.read
    else:
        read = nanogpt.read
    found = checkpoint.model_tensors(read(artefact.path).model)
    weights = source.weights
    return found.keys() == weights.shapes.keys() and all(
        torch.equal(weights.get(name), tensor) for name, tensor in found.items()
    )


def to_json(checks: list[Check]) -> dict[str, Any]:
    """The content of ``verify.json``; ``passed`` is None if nothing failed, but not all was run."""
    outcomes = {check.passed for check in checks}
    passed = False if False in outcomes else None if None in outcomes else True
    return {"passed": passed, "checks": [asdict(check) for check in checks]}
