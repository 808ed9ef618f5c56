"""A script that runs an exported artefact in its own runtime, in a separate process.

``verify.py`` starts it as ``python -P runtimes.py RUNTIME ARTEFACT FOLDER``. It does not know the
native model and imports nothing from this package, so that any interpreter with the runtime can run
it. FOLDER holds ``request.json``, ``windows.npy`` (N, T) and ``text.txt``; the results are
``logits.npy`` or ``logprobs.npy`` + ``positions.npy``, ``argmax.npy`` (N, T; -1 unknown),
``ids.npy`` of the text, ``decoded.txt`` of those ids, and ``answer.json``.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

# Bytes of a GGUF file below which one thread is fastest.
_SMALL_FILE = 1 << 26
# Members of enumerations in llama.cpp (``ggml_type``, ``llama_flash_attn_type``).
_GGML_F32 = 0
_NO_FLASH_ATTENTION = 0


class Request:
    """The input of a runtime, and the folder for its results."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        asked = json.loads((folder / "request.json").read_text())
        self.prompts: list[list[int]] = asked["prompts"]
        self.new_tokens: int = asked["new_tokens"]
        self.vocab_size: int = asked["vocab_size"]
        self.full_vectors: int = asked["full_vectors"]
        self.block_size: int = asked["block_size"]
        # Whether the artefact holds the model's own float32 values.
        self.float32: bool = asked["float32"]
        # The class of transformers that reads the tokenizer.
        self.tokenizer_class: str = asked["tokenizer_class"]
        # Byte offsets where the text may be cut without changing its tokens.
        self.cuts: list[int] = asked["cuts"]
        self.windows = np.load(folder / "windows.npy")
        # Read as bytes, because text mode would change line ends.
        self.text_bytes = (folder / "text.txt").read_bytes()
        self.text = self.text_bytes.decode("utf-8")

    def save(self, name: str, value: Any) -> None:
        """Write an array."""
        np.save(self.folder / f"{name}.npy", value)

    def save_text(self, ids: Any, decoded: str) -> None:
        """Write the ids of the text, and what they are decoded to."""
        self.save("ids", np.array(ids, dtype=np.int64))
        (self.folder / "decoded.txt").write_bytes(decoded.encode("utf-8", "replace"))

    def answer(self, **values: Any) -> None:
        """Write ``answer.json``."""
        (self.folder / "answer.json").write_text(json.dumps(values))


def run_transformers(artefact: Path, request: Request) -> None:
    """Run transformers: logits, greedy generation with its cache, its tokenizer."""
    import torch

    transformers: Any = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(artefact).eval()
    greedy = transformers.GenerationConfig(
        do_sample=False, max_new_tokens=max(1, request.new_tokens), pad_token_id=0,
        eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    with torch.no_grad():
        logits = [model(torch.from_numpy(w[None])).logits[0].numpy() for w in request.windows]
        request.save("logits", np.stack(logits))
        written = []
        for prompt in request.prompts:
            ids = torch.tensor([prompt])
            out = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=greedy)
            written.append(out[0, len(prompt) :].tolist())
    facts: dict[str, Any] = {}
    if request.text:
        tokenizer = getattr(transformers, request.tokenizer_class).from_pretrained(artefact)
        encoded = tokenizer(request.text, add_special_tokens=False)
        request.save_text(encoded["input_ids"], tokenizer.decode(encoded["input_ids"]))
        facts["token_type_ids"] = "token_type_ids" in encoded
    request.answer(runtime=_version("transformers"), greedy=written, **facts)


def run_onnxruntime(artefact: Path, request: Request) -> None:
    """Run onnxruntime: whole windows, a left-padded batch, greedy generation with the cache."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(artefact / "onnx" / "model.onnx"), options, providers=["CPUExecutionProvider"]
    )
    run = _Onnx(session)
    request.save("logits", np.stack([run(w[None])[0][0] for w in request.windows]))
    request.save("padded", _padded(run, request.windows[0]))
    written = [_greedy_onnx(run, prompt, request.new_tokens) for prompt in request.prompts]
    if request.text and (artefact / "tokenizer.json").is_file():
        _library_round_trip(artefact / "tokenizer.json", request)
    request.answer(runtime=_version("onnxruntime"), greedy=written)


class _Onnx:
    """A session called with ids, mask and past; returns logits and the new past."""

    def __init__(self, session: Any) -> None:
        self.session = session
        self.past = [i for i in session.get_inputs() if i.name.startswith("past_key_values.")]

    def __call__(
        self, ids: Any, mask: Any = None, past: list[Any] | None = None
    ) -> tuple[Any, list[Any]]:
        if past is None:
            past = [np.zeros(self._empty(i.shape, len(ids)), np.float32) for i in self.past]
        seen = past[0].shape[2]
        mask = np.ones((len(ids), seen + ids.shape[1]), np.int64) if mask is None else mask
        positions = np.maximum(mask.cumsum(1) - 1, 0)[:, seen:]
        feed = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
        feed |= {i.name: value for i, value in zip(self.past, past, strict=True)}
        logits, *present = self.session.run(None, feed)
        return logits, present

    @staticmethod
    def _empty(shape: list[Any], batch: int) -> tuple[int, ...]:
        # Sizes are found by the names of dimensions, as in transformers.js.
        sizes = {"batch_size": batch}
        return tuple(d if isinstance(d, int) else sizes.get(d, 0) for d in shape)


def _padded(run: _Onnx, window: Any) -> Any:
    """Logits at the last position of prefixes of the window, run as one left-padded batch."""
    lengths = sorted({1, max(1, len(window) // 3), max(1, len(window) // 2), len(window)})
    longest = lengths[-1]
    ids = np.zeros((len(lengths), longest), np.int64)
    mask = np.zeros_like(ids)
    for row, length in enumerate(lengths):
        ids[row, longest - length :] = window[:length]
        mask[row, longest - length :] = 1
    return run(ids, mask)[0][:, -1]


def _greedy_onnx(run: _Onnx, prompt: list[int], count: int) -> list[int]:
    logits, past = run(np.array([prompt], np.int64))
    written = [int(logits[0, -1].argmax())]
    while len(written) < count:
        logits, past = run(np.array([written[-1:]], np.int64), None, past)
        written.append(int(logits[0, -1].argmax()))
    return written


def _library_round_trip(path: Path, request: Request) -> None:
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    tokenizer.encode_special_tokens = True
    ids = tokenizer.encode(request.text, add_special_tokens=False).ids
    request.save_text(ids, tokenizer.decode(ids, skip_special_tokens=False))


def run_torch_export(artefact: Path, request: Request) -> None:
    """Run torch.export: the program, without any class of this package."""
    import torch

    program = torch.export.load(str(artefact)).module()
    with torch.no_grad():
        logits = [program(torch.from_numpy(w[None]))[0].numpy() for w in request.windows]
        request.save("logits", np.stack(logits))
        written = []
        for prompt in request.prompts:
            ids = torch.tensor([prompt])
            for _ in range(request.new_tokens):
                ids = torch.cat([ids, program(ids)[:, -1:].argmax(-1)], dim=1)
            written.append(ids[0, len(prompt) :].tolist())
    request.answer(runtime=f"torch {torch.__version__}", greedy=written)


def run_llama_cpp(artefact: Path, request: Request) -> None:
    """Run llama.cpp's server, one position at a time, as in text generation."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(artefact)
    parameters.n_ctx, parameters.n_parallel = request.block_size, 1
    if request.float32:
        # By default, keys, values and the fused attention's sums are of half precision.
        parameters.cache_type_k = parameters.cache_type_v = _GGML_F32
        parameters.flash_attn_type = _NO_FLASH_ATTENTION
    # For a small model, threads wait for each other longer than they compute.
    if artefact.stat().st_size < _SMALL_FILE:
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.warmup, parameters.n_gpu_layers, parameters.verbosity = False, 0, -1
    server = xllamacpp.Server(parameters)
    _llama_positions(server, request)
    address = server.listening_address
    written = [_greedy_llama(address, prompt, request.new_tokens) for prompt in request.prompts]
    if request.text:
        _llama_round_trip(address, request)
    request.answer(runtime=_version("xllamacpp"), greedy=written)


def _next_token(server: Any, prompt: list[int], n_probs: int) -> list[Any]:
    """The likeliest next tokens with log-probabilities, best first.

    Empty if the likeliest is an incomplete character: the server holds such tokens back.
    """
    asked = {
        "prompt": prompt, "n_predict": 1, "n_probs": n_probs, "temperature": -1,
        "cache_prompt": True,
    }  # fmt: skip
    answer = server.handle_completions(asked)
    if "error" in answer:
        raise RuntimeError(answer["error"]["message"])
    given = answer["choices"][0]["logprobs"]
    found: list[Any] = given["content"][0]["top_logprobs"] if given and given["content"] else []
    return found


def _greedy_llama(address: str, prompt: list[int], count: int) -> list[int]:
    asked = {"prompt": prompt, "n_predict": count, "temperature": -1, "return_tokens": True}
    found: list[int] = _post(address + "/completion", asked)["tokens"]
    return found


def _post(address: str, value: dict[str, Any]) -> dict[str, Any]:
    import urllib.request

    asked = urllib.request.Request(
        address, json.dumps(value).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(asked) as reply:
        found: dict[str, Any] = json.loads(reply.read())
    return found


def _llama_positions(server: Any, request: Request) -> None:
    """The likeliest token at every position, and all log-probabilities at some of them."""
    windows = request.windows
    argmax = np.full(windows.shape, -1)
    # The server needs room for one more token, so that it cannot evaluate the last position.
    within = [(n, t) for n in range(len(windows)) for t in range(windows.shape[1] - 1)]
    every = max(1, len(within) // max(1, request.full_vectors))
    vectors, positions = [], []
    for number, (n, t) in enumerate(within):
        full = number % every == every // 2
        prompt = windows[n, : t + 1].tolist()
        likeliest = _next_token(server, prompt, request.vocab_size + 1 if full else 1)
        if not likeliest:
            continue
        argmax[n, t] = likeliest[0]["id"]
        if full:
            vector = np.full(request.vocab_size, np.nan, np.float32)
            for other in likeliest:
                if other["id"] < request.vocab_size:
                    vector[other["id"]] = other["logprob"]
            vectors.append(vector)
            positions.append((n, t))
    request.save("logprobs", np.stack(vectors))
    request.save("positions", np.array(positions))
    request.save("argmax", argmax)


def _llama_round_trip(address: str, request: Request) -> None:
    ids: list[int] = []
    decoded = []
    ends = [*request.cuts, len(request.text_bytes)]
    for start, end in zip([0, *request.cuts], ends, strict=True):
        piece = request.text_bytes[start:end].decode("utf-8")
        plain = {"content": piece, "add_special": False, "parse_special": False}
        found = _post(address + "/tokenize", plain)["tokens"]
        decoded.append(_post(address + "/detokenize", {"tokens": found})["content"])
        ids += found
    request.save_text(ids, "".join(decoded))


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


RUNTIMES: dict[str, Callable[[Path, Request], None]] = {
    "transformers": run_transformers,
    "onnxruntime": run_onnxruntime,
    "torch.export": run_torch_export,
    "llama.cpp": run_llama_cpp,
}


if __name__ == "__main__":
    RUNTIMES[sys.argv[1]](Path(sys.argv[2]), Request(Path(sys.argv[3])))
    sys.stdout.flush()
    # llama.cpp's server threads do not end by themselves.
    os._exit(0)
