"""Initial values of a GPT, drawn from a scheme.

Every value depends only on the seed and the parameter's name. Each matrix is drawn in chunks of
``CHUNK_ROWS`` rows, each from its own generator, so a tensor can be drawn whole, by rows, out of
order, in parallel or on another machine with bit-identical results. q, k and v are three matrices,
each with its own law, that share one parameter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from nanogpt_cli import host
from nanogpt_cli.machine import threads
from nanogpt_cli.model.gpt import GPT, GPTConfig, Multipliers
from nanogpt_cli.model.parameters import layer_of, of_first_block, shapes, tensor_class
from nanogpt_cli.schemes import Scheme, positions
from nanogpt_cli.schemes.laws import Law

CHUNK_ROWS = 4096


@dataclass(frozen=True)
class MatrixSpec:
    """A matrix that has one law: a whole parameter, or the q, k or v rows of ``c_attn``.

    Attributes:
        key: with the seed, determines its random numbers.
        parameter: name of the parameter it belongs to.
        tensor_class: one of ``schemes.CLASSES``.
        start: its first row within the parameter.
        shape: (rows, columns); a vector counts as one column.
        law: distribution of its values.
        std: standard deviation of that law.
        mean_square: E[w²] of that law.
    """

    key: str
    parameter: str
    tensor_class: str
    start: int
    shape: tuple[int, int]
    law: Law
    std: float
    mean_square: float

    @property
    def size(self) -> int:
        """Number of values."""
        return self.shape[0] * self.shape[1]


def multipliers(scheme: Scheme, config: GPTConfig) -> Multipliers:
    """The forward-pass multipliers that ``scheme`` prescribes for the shape of ``config``."""
    values = _values(config)
    found = {name: scheme.multiplier(name, values) for name in ("embedding", "residual", "output")}
    chosen = {name: value for name, value in found.items() if value is not None}
    return Multipliers(**chosen, attention=scheme.multiplier("attention", values))


def configure(config: GPTConfig, scheme: Scheme) -> GPTConfig:
    """``config`` with the multipliers of ``scheme``: the architecture the scheme is meant for."""
    return replace(config, multipliers=multipliers(scheme, config))


def _values(config: GPTConfig) -> dict[str, float]:
    return {
        "d": config.n_embd,
        "L": config.n_layer,
        "D": config.head_size,
        "V": config.vocab_size,
        "T": config.block_size,
    }


def matrices_of(name: str, config: GPTConfig, scheme: Scheme) -> list[MatrixSpec]:
    """The matrices that make up parameter ``name``: three for ``c_attn``, one for all others."""
    shape = shapes_of(name, config)
    kind = tensor_class(name)
    if kind != "qkv":
        return [_spec(name, name, kind, 0, shape, config, scheme)]
    third = (config.n_embd, config.n_embd)
    return [
        _spec(f"{name}/{c}", name, c, i * config.n_embd, third, config, scheme)
        for i, c in enumerate("qkv")
    ]


def shapes_of(name: str, config: GPTConfig) -> tuple[int, int]:
    """(rows, columns) of one parameter; a vector counts as one column.

    Raises:
        ValueError: the model has no such parameter.
    """
    found = _shapes_of_one_block(config).get(of_first_block(name))
    if found is None:
        raise ValueError(f"{name} is not a parameter of this model")
    return (found[0], found[1] if len(found) == 2 else 1)


@lru_cache(maxsize=32)
def _shapes_of_one_block(config: GPTConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters outside the blocks and of block 0. It is asked for each matrix."""
    return shapes(replace(config, n_layer=1))


def _spec(
    key: str,
    name: str,
    kind: str,
    start: int,
    shape: tuple[int, int],
    config: GPTConfig,
    scheme: Scheme,
) -> MatrixSpec:
    fan_out, fan_in = _fans(name, kind, shape, config)
    values = _values(config) | {"l": max(0, layer_of(name)), "fan_in": fan_in, "fan_out": fan_out}
    # Queries and keys of the first block may compare positions, if there is a table of them.
    first = layer_of(name) == 0 and config.position == "learned"
    law = scheme.law(kind, values, first=first)
    return MatrixSpec(
        key, name, kind, start, shape, law, law.true_std(*shape), law.mean_square(*shape)
    )


def _fans(name: str, kind: str, shape: tuple[int, int], config: GPTConfig) -> tuple[int, int]:
    """(fan_out, fan_in); a bias takes those of its matrix, as in PyTorch's initialisation."""
    if kind == "bias":
        return shapes_of(name.removesuffix("bias") + "weight", config)
    return shape


def generator(seed: int, key: str, chunk: int) -> torch.Generator:
    """The generator for one chunk of rows of one matrix."""
    digest = hashlib.blake2b(f"{seed}/{key}/{chunk}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))


def draw(spec: MatrixSpec, seed: int, out: Tensor, *, start: int = 0) -> Tensor:
    """Fill ``out`` with rows ``start``.. of a matrix.

    Args:
        spec: the matrix.
        seed: the model's seed.
        out: (rows, columns) float32 on the CPU, contiguous.
        start: first row to draw, a multiple of ``CHUNK_ROWS``.
    """
    assert start % CHUNK_ROWS == 0
    if spec.law.kind == "orthogonal":
        return out.copy_(_orthogonal(spec, seed)[start : start + len(out)])
    if spec.law.placed:
        return out.copy_(placed(spec.law, spec.shape)[start : start + len(out)])
    for row in range(0, len(out), CHUNK_ROWS):
        # A chunk is always drawn whole, because the last values of a draw depend on its length.
        chunk, first = out[row : row + CHUNK_ROWS], start + row
        rows = min(CHUNK_ROWS, spec.shape[0] - first)
        whole = chunk if len(chunk) == rows else out.new_empty(rows, *out.shape[1:])
        _sample(spec.law, whole, generator(seed, spec.key, first // CHUNK_ROWS))
        if whole is not chunk:
            chunk.copy_(whole[: len(chunk)])
    return out


def _sample(law: Law, out: Tensor, rng: torch.Generator) -> None:
    if law.kind == "constant":
        out.fill_(law.scale)
    elif law.kind == "uniform":
        bound = 3**0.5 * law.scale
        out.uniform_(-bound, bound, generator=rng)
    else:
        out.normal_(0.0, law.scale, generator=rng)
        if law.kind == "truncated":
            _redraw(out.view(-1), law.scale, law.cut, rng)


def _redraw(values: Tensor, std: float, cut: float, rng: torch.Generator) -> None:
    """Redraw the values beyond ±cut·std, and only those, until there are none."""
    outside = (values.abs() > cut * std).nonzero().squeeze(1)
    while len(outside):
        fresh = torch.empty(len(outside)).normal_(0.0, std, generator=rng)
        values[outside] = fresh
        outside = outside[fresh.abs() > cut * std]


def _orthogonal(spec: MatrixSpec, seed: int) -> Tensor:
    """A Haar-distributed (semi-)orthogonal matrix: QR of a normal matrix, with R's signs fixed."""
    rows, columns = spec.shape
    rng = generator(seed, spec.key, 0)
    tall = torch.empty(max(spec.shape), min(spec.shape)).normal_(generator=rng)
    basis, r = threads.single_threaded(lambda: torch.linalg.qr(tall))
    q: Tensor = basis * r.diagonal().sign() * spec.law.scale
    return q if rows >= columns else q.T


def placed(law: Law, shape: tuple[int, int]) -> Tensor:
    """The float64 matrix of a law without chance (``Law.placed``), which no seed changes."""
    whole = torch.zeros(shape, dtype=torch.float64)
    rows, columns, values = zip(
        *positions.entries(law.kind, law.scale, shape, law.head), strict=True
    )
    whole[torch.tensor(rows), torch.tensor(columns)] = torch.tensor(values, dtype=torch.float64)
    return whole


def init_tensor(
    name: str,
    config: GPTConfig,
    scheme: Scheme,
    seed: int,
    out: Tensor | None = None,
) -> Tensor:
    """The initial values of one parameter, without the rest of the model.

    Args:
        name: e.g. ``"transformer.h.3.attn.c_attn.weight"``.
        config: the model.
        scheme: its scheme.
        seed: its seed.
        out: float32 CPU tensor of the parameter's shape to fill; a new one if ``None``.
    """
    parts = matrices_of(name, config, scheme)
    if out is None:
        out = torch.empty(_shapes_of_one_block(config)[of_first_block(name)])
    for spec in parts:
        draw(spec, seed, out[spec.start : spec.start + spec.shape[0]].view(*spec.shape))
    return out


@torch.no_grad()
def fill(model: GPT, scheme: Scheme, seed: int) -> None:
    """Give every parameter of ``model`` its initial values, in parallel threads."""
    jobs = list(_jobs(model, scheme, seed))
    with ThreadPoolExecutor(max_workers=min(8, host.usable_cores())) as pool:
        for done in [pool.submit(job) for job in jobs]:
            done.result()


def _jobs(model: GPT, scheme: Scheme, seed: int) -> Iterator[Callable[[], None]]:
    """One job per chunk of rows, largest first, so that the threads finish together."""
    found: list[tuple[int, Callable[[], None]]] = []
    for name, parameter in model.named_parameters():
        for spec in matrices_of(name, model.config, scheme):
            rows = parameter.detach()[spec.start : spec.start + spec.shape[0]]
            target = rows.view(rows.shape[0], -1)
            at_once = spec.law.placed or spec.law.kind == "orthogonal"
            step = spec.shape[0] if at_once else CHUNK_ROWS
            for start in range(0, spec.shape[0], step):
                part = target[start : start + step]
                found.append((part.numel(), _job(spec, seed, part, start)))
    return (job for _, job in sorted(found, key=lambda job: -job[0]))


def _job(spec: MatrixSpec, seed: int, target: Tensor, start: int) -> Callable[[], None]:
    """A job that draws directly into float32 CPU memory, and elsewhere copies the same values."""

    @torch.no_grad()
    def run() -> None:
        if target.dtype == torch.float32 and target.device.type == "cpu":
            draw(spec, seed, target, start=start)
        else:
            target.copy_(draw(spec, seed, torch.empty(target.shape), start=start))

    return run


def build(
    config: GPTConfig,
    scheme: Scheme,
    seed: int,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
) -> GPT:
    """A GPT with the initial values of ``scheme``.

    PyTorch's own initialisation does not run. The scheme's multipliers are not applied here: pass
    ``configure(config, scheme)`` for that.

    Args:
        config: the model; its ``multipliers`` are used as they are.
        scheme: from ``schemes.get`` or ``schemes.parse_custom``.
        seed: values are a function of (seed, parameter name), the same on every device.
        device: device of the parameters.
        dtype: values are drawn in float32 and rounded to this dtype.
    """
    with torch.device(device), undrawn():
        model = GPT(config).to(dtype)
    model.tie()  # a change of dtype may separate tied parameters
    fill(model, scheme, seed)
    return model


class undrawn(TorchFunctionMode):  # noqa: N801 - a context manager, named as those are
    """Context in which modules are constructed without drawing their initial values.

    Their memory is allocated but not written. (The meta device would do as well, but takes a second
    to load its decompositions.)
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        # Functions of torch.nn.init arrive here as a whole; the functions they call do not.
        drawing = getattr(func, "__module__", "") == "torch.nn.init"
        if drawing or func in (Tensor.uniform_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)
