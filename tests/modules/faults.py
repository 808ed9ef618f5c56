"""Mistakes to plant in the weights of small decoders, each as it happens in practice."""

from __future__ import annotations

import copy
import math
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import named_parts
import torch
import transformers
from torch import Tensor, nn

from nanogpt_cli import schemes
from nanogpt_cli.modules.anatomy import MATRICES, Part
from nanogpt_cli.modules.faults import lint

WIDTH, LAYERS, HEADS, WORDS, POSITIONS = 128, 6, 8, 512, 128


def decoder(kind: str, seed: int = 0, *, tied: bool | None = None) -> nn.Module:
    """A GPT-2, Llama (grouped keys), NeoX or Mixtral of transformers, at its own start."""
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(
            vocab_size=WORDS, n_positions=POSITIONS, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS,
            bos_token_id=0, eos_token_id=0, tie_word_embeddings=tied is not False,
        )  # fmt: skip
    else:
        sizes = {
            "vocab_size": WORDS, "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS, "intermediate_size": 3 * WIDTH,
            "max_position_embeddings": POSITIONS, "tie_word_embeddings": bool(tied),
        }  # fmt: skip
        if kind != "gpt_neox":
            sizes["num_key_value_heads"] = HEADS // 2
        if kind == "mixtral":
            sizes |= {"num_local_experts": 4, "intermediate_size": WIDTH}
        ids = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
        config = transformers.AutoConfig.for_model(kind, **sizes, **ids)
    torch.manual_seed(seed)
    make: Any = transformers.AutoModelForCausalLM.from_config
    model: nn.Module = make(config)
    return model.eval().requires_grad_(False)


@dataclass
class Patient:
    """A model and its parts, which faults change."""

    kind: str
    model: Any
    generator: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(7))

    def parts(self, *roles: str) -> list[Part]:
        return [p for p, _ in named_parts.parts_of(self.model) if p.role in roles or not roles]

    def get(self, part: Part) -> Tensor:
        return part.of(self.model.get_parameter(part.parameter)).clone()

    def put(self, part: Part, values: Tensor) -> None:
        parameter = self.model.get_parameter(part.parameter)
        whole = parameter.detach().clone()
        turned = whole.transpose(-1, -2).clone() if part.transposed else whole
        flat = turned.flatten(0, -2) if turned.dim() > 2 else turned
        flat[slice(None) if part.rows is None else part.rows] = values.to(whole.dtype)
        flat = flat.view_as(turned)
        parameter.copy_(flat.transpose(-1, -2) if part.transposed else flat)

    def change(
        self, roles: str, how: Callable[[Tensor], Tensor], layers: list[int] | None = None
    ) -> None:
        for part in self.parts(*roles.split()):
            if layers is None or part.layer in layers:
                self.put(part, how(self.get(part)))

    def normal(self, like: Tensor, std: float) -> Tensor:
        return torch.randn(like.shape, generator=self.generator) * std

    def redraw(self, scheme: str) -> None:
        """Draw every matrix by the law of a scheme."""
        found = schemes.get(scheme)
        for part in self.parts(*MATRICES, "wte", "wpe", "lm_head"):
            x = self.get(part)
            role = {"gate": "fc", "router": "fc"}.get(part.role, part.role)
            values = {
                "d": WIDTH, "L": LAYERS, "V": WORDS, "T": POSITIONS, "D": WIDTH // HEADS,
                "l": max(0, part.layer), "fan_out": x.shape[0], "fan_in": x.shape[1],
            }  # fmt: skip
            self.put(part, self.normal(x, found.law(role, values).true_std(*x.shape)))


MIDDLE = [3]
PROJ = "attn_proj mlp_proj"
ALL = " ".join(MATRICES) + " wte wpe lm_head"
DEPTH = 1 / math.sqrt(2 * LAYERS)
Fault = Callable[[Patient], None]


def proj_1_over_l(p: Patient) -> None:
    p.redraw("gpt2")
    p.change(PROJ, lambda x: x * math.sqrt(2))


def untied_copy(p: Patient) -> None:
    p.model.lm_head = nn.Linear(WIDTH, WORDS, bias=False).requires_grad_(False)
    p.model.lm_head.weight.copy_(p.model.get_input_embeddings().weight)


def untied_resize(p: Patient) -> None:
    table = p.model.get_input_embeddings()
    untied_copy(p)
    extra = p.normal(torch.zeros(64, WIDTH), 0.02)
    table.weight = nn.Parameter(torch.cat([table.weight, extra]), requires_grad=False)


def biased(p: Patient) -> None:
    for name, x in p.model.named_parameters():
        if name.endswith("bias") and "ln" not in name and "norm" not in name:
            x.fill_(0.1)


def gains_drawn(p: Patient) -> None:
    p.change("norm", lambda x: p.normal(x, 0.02))


def rounded(p: Patient) -> None:
    p.model.bfloat16().float()


def half_rounded(p: Patient) -> None:
    p.change("q k v", lambda x: x.half().float(), [1, 2])


def underflow(p: Patient) -> None:
    p.change(PROJ, lambda x: (x * 5e-6).half().float())


def same_blocks(p: Patient) -> None:
    for part in p.parts(*MATRICES):
        if part.layer == 4:
            twin = next(q for q in p.parts(part.role) if q.layer == 2)
            p.put(part, p.get(twin))


def one_seed(p: Patient) -> None:
    for x in p.model.parameters():
        if x.dim() > 1:
            x.normal_(0, 0.02, generator=torch.Generator().manual_seed(0))


def padded_zero(p: Patient) -> None:
    p.change("wte", lambda x: torch.cat([x[:-30], torch.zeros_like(x[:30])]))


def padded_large(p: Patient) -> None:
    p.change("wte", lambda x: torch.cat([x[:-30], 50 * x[-30:]]))


def head_zero(p: Patient) -> None:
    size = WIDTH // HEADS
    p.change("q", lambda x: torch.cat([x[:size], 0 * x[size : 2 * size], x[2 * size :]]), MIDDLE)


def half_zero(p: Patient) -> None:
    p.change("fc", lambda x: torch.cat([x[: len(x) // 2], 0 * x[len(x) // 2 :]]), MIDDLE)


def half_empty(p: Patient) -> None:
    p.change("mlp_proj", lambda x: torch.cat([x[: len(x) // 2], 0 * x[len(x) // 2 :] + 1e-40]),
             MIDDLE)  # fmt: skip


def repeated_shards(p: Patient) -> None:
    p.change("fc", lambda x: x[: len(x) // 2].repeat(2, 1), [1])


def q_is_k(p: Patient) -> None:
    for q, k in zip(p.parts("q"), p.parts("k"), strict=True):
        x = p.get(q)
        p.put(k, x[: len(p.get(k))])


def positions_are_tokens(p: Patient) -> None:
    p.model.transformer.wpe.weight.copy_(p.model.transformer.wte.weight[:POSITIONS])


def all_uniform(p: Patient) -> None:
    p.change(ALL, lambda x: (torch.rand(x.shape, generator=p.generator) * 2 - 1) * 0.02)


def fused_orthogonal(p: Patient) -> None:
    for layer in range(LAYERS):
        parts = [q for q in p.parts("q", "k", "v") if q.layer == layer]
        sizes = [len(p.get(q)) for q in parts]
        torch.manual_seed(layer)
        whole = nn.init.orthogonal_(torch.empty(sum(sizes), WIDTH))
        for part, x in zip(parts, torch.split(whole, sizes), strict=True):
            p.put(part, x)


def rank_two(p: Patient) -> None:
    def thin(x: Tensor) -> Tensor:
        left, right = p.normal(x[:, :2], 0.1), p.normal(x[:2], 0.14)
        return left @ right

    p.change("v", thin, MIDDLE)


def first_block_unscaled(p: Patient) -> None:
    p.redraw("gpt2")
    p.change(PROJ, lambda x: x / DEPTH, [0])


def scaled_twice(p: Patient) -> None:
    p.redraw("gpt2")
    p.change(PROJ, lambda x: x * DEPTH)


def leftovers(p: Patient) -> None:
    def default(x: Tensor) -> Tensor:
        return (torch.rand(x.shape, generator=p.generator) * 2 - 1) / math.sqrt(x.shape[1])

    p.change("fc mlp_proj", default)


def leftovers_in_a_block(p: Patient) -> None:
    def default(x: Tensor) -> Tensor:
        return (torch.rand(x.shape, generator=p.generator) * 2 - 1) / math.sqrt(x.shape[1])

    p.change("q k v attn_proj", default, MIDDLE)


def one_nan(p: Patient) -> None:
    def hit(x: Tensor) -> Tensor:
        x[3, 4] = math.nan
        return x

    p.change("attn_proj", hit, MIDDLE)


def swapped_qv(p: Patient) -> None:
    p.redraw("deepnorm")
    for q, v in zip(p.parts("q"), p.parts("v"), strict=True):
        a, b = p.get(q), p.get(v)
        if a.shape == b.shape:
            p.put(q, b)
            p.put(v, a)
        else:
            p.put(v, a[: len(b)] * float(b.std() / a.std()) * (8 * LAYERS) ** 0.25)
            p.put(q, p.normal(a, float(a.std()) * (8 * LAYERS) ** -0.25))


def swapped_kv(p: Patient) -> None:
    p.redraw("deepnorm")
    for k, v in zip(p.parts("k"), p.parts("v"), strict=True):
        a, b = p.get(k), p.get(v)
        p.put(k, b)
        p.put(v, a)


def transposed(p: Patient) -> None:
    p.redraw("lecun")
    for part in p.parts("fc", "mlp_proj"):
        x = p.get(part)
        p.put(part, p.normal(x, 1 / math.sqrt(x.shape[0])))


def transposed_square(p: Patient) -> None:
    p.change("attn_proj", lambda x: x.T.clone(), MIDDLE)


def swapped_gate(p: Patient) -> None:
    for gate, fc in zip(p.parts("gate"), p.parts("fc"), strict=True):
        a, b = p.get(gate), p.get(fc)
        p.put(gate, b)
        p.put(fc, a)


def reversed_blocks(p: Patient) -> None:
    p.redraw("layer-index")
    found = {(q.role, q.layer): p.get(q) for q in p.parts("attn_proj", "mlp_proj")}
    for part in p.parts("attn_proj", "mlp_proj"):
        p.put(part, found[part.role, LAYERS - 1 - part.layer])


def layer_off_by_one(p: Patient) -> None:
    p.redraw("layer-index")
    for part in p.parts("attn_proj", "mlp_proj"):
        p.put(part, p.normal(p.get(part), 0.02 / math.sqrt(2 * (part.layer + 2))))


def doubled_block(p: Patient) -> None:
    p.change("k fc", lambda x: 2 * x, [4])


def huge_column(p: Patient) -> None:
    def hit(x: Tensor) -> Tensor:
        x[:, 5] *= 20
        return x

    p.change("fc", hit, MIDDLE)


def huge_row(p: Patient) -> None:
    def hit(x: Tensor) -> Tensor:
        x[7] *= 20
        return x

    p.change("mlp_proj", hit, MIDDLE)


def negated_block(p: Patient) -> None:
    for part in p.parts("fc", "mlp_proj"):
        if part.layer == 5:
            p.put(part, -p.get(next(q for q in p.parts(part.role) if q.layer == 0)))


def constant_rows(p: Patient) -> None:
    p.change("v", lambda x: x[:, :1].expand_as(x).clone(), MIDDLE)


def sparse(p: Patient) -> None:
    p.change("q k v fc", lambda x: x * (torch.rand(x.shape, generator=p.generator) > 0.5))


def int8(p: Patient) -> None:
    def to_grid(x: Tensor) -> Tensor:
        step = x.abs().amax(1, keepdim=True) / 127
        return (x / step).round() * step

    p.change("q k v attn_proj fc mlp_proj gate", to_grid)


def clipped(p: Patient) -> None:
    p.change("q k v fc", lambda x: x.clamp(-float(x.std()), float(x.std())))


def mean_shift(p: Patient) -> None:
    p.change("fc", lambda x: x + 0.01, MIDDLE)


def correlated_rows(p: Patient) -> None:
    p.change("q", lambda x: x + p.normal(x[:1], 0.01), MIDDLE)


def times_sqrt_d(p: Patient) -> None:
    p.change("wte", lambda x: x * math.sqrt(WIDTH))


def unused_ids(p: Patient) -> None:
    unused = torch.randperm(WORDS, generator=p.generator)[:40]
    p.change("wte", lambda x: x.index_fill(0, unused, 0.0))


def norm_bias(p: Patient) -> None:
    for name, x in p.model.named_parameters():
        if name.endswith("bias") and ("ln_" in name or "norm" in name):
            x.copy_(p.normal(x, 0.02))


def gain_zero(p: Patient) -> None:
    first = p.parts("norm")[2]
    p.put(first, torch.zeros(WIDTH))


def block_zero(p: Patient) -> None:
    p.change(" ".join(MATRICES), torch.zeros_like, MIDDLE)


def hot(p: Patient) -> None:
    p.change("q k", lambda x: 8 * x)


def half_scaled(p: Patient) -> None:
    p.redraw("gpt2")
    p.change("attn_proj", lambda x: x / DEPTH)


def wrong_matrix(p: Patient) -> None:
    p.change("attn_proj mlp_proj", lambda x: p.normal(x, 0.02))
    p.change("fc", lambda x: x * DEPTH)


def fan_out(p: Patient) -> None:
    p.redraw("kaiming")
    for part in p.parts("fc", "mlp_proj", "gate"):
        x = p.get(part)
        p.put(part, p.normal(x, math.sqrt(2 / x.shape[0])))


def xavier_fused(p: Patient) -> None:
    p.redraw("xavier")
    for part in p.parts("q", "k", "v"):
        x = p.get(part)
        rows = sum(len(p.get(q)) for q in p.parts("q", "k", "v") if q.layer == part.layer)
        p.put(part, p.normal(x, math.sqrt(2 / (WIDTH + rows))))


def kaiming_embedding(p: Patient) -> None:
    p.change("wte", lambda x: p.normal(x, math.sqrt(2 / WIDTH)))


def positions_of_one(p: Patient) -> None:
    p.change("wpe", lambda x: p.normal(x, 1.0))


def head_is_zero(p: Patient) -> None:
    if p.kind == "gpt2":
        p.model.lm_head = nn.Linear(WIDTH, WORDS, bias=False).requires_grad_(False)
    p.model.get_output_embeddings().weight.zero_()


def half_infinity(p: Patient) -> None:
    def cast(x: Tensor) -> Tensor:
        x[0, 0] = 1e5
        return x.half().float()

    p.change("fc", cast, MIDDLE)


def denormals(p: Patient) -> None:
    def tiny(x: Tensor) -> Tensor:
        bits = torch.randint(1, 1 << 22, x.shape, generator=p.generator, dtype=torch.int32)
        return bits.view(torch.float32)

    p.change("fc", tiny, MIDDLE)


def of_float64(p: Patient) -> None:
    p.change("fc", lambda x: x.double().contiguous().view(torch.float32)[:, : x.shape[1]].clone(),
             MIDDLE)  # fmt: skip


def swapped_bytes(p: Patient) -> None:
    def swap(x: Tensor) -> Tensor:
        raw = x.contiguous().view(torch.uint8).view(*x.shape, 4)
        return raw.flip(-1).contiguous().view(torch.float32).view(x.shape)

    p.change("fc", swap, MIDDLE)


def same_experts(p: Patient) -> None:
    for name, x in p.model.named_parameters():
        if ".2." in name and x.dim() == 3:
            x.copy_(x[:1].expand_as(x).clone())


def router_bias(p: Patient) -> None:
    for layer in range(LAYERS):
        router = p.model.model.layers[layer].mlp.gate
        router.bias = nn.Parameter(torch.linspace(-0.5, 0.5, 4), requires_grad=False)


def kv_heads_copied(p: Patient) -> None:
    size = WIDTH // HEADS
    p.change("k v", lambda x: x[:size].repeat(len(x) // size, 1))


def double_norm(p: Patient) -> None:
    p.change("norm", lambda x: 2 * x)


def constant_table(p: Patient) -> None:
    p.change("wte", lambda x: torch.full_like(x, 0.02))


def signs_only(p: Patient) -> None:
    p.change("fc", lambda x: x.sign() * 0.02, MIDDLE)


def ten_times(p: Patient) -> None:
    p.change(ALL, lambda x: 10 * x)


def shared_projection(p: Patient) -> None:
    first, *others = p.parts("attn_proj")
    for part in others:
        p.put(part, p.get(first))


def masked(p: Patient) -> None:
    p.change("q k v", torch.triu, MIDDLE)


def columns_copied(p: Patient) -> None:
    p.change("v", lambda x: x[:, : WIDTH // 2].repeat(1, 2), MIDDLE)


def magnitudes(p: Patient) -> None:
    p.change("mlp_proj", torch.abs, MIDDLE)


EVERY = ("gpt2", "llama", "gpt_neox")
# Each fault: what plants it, what a verdict that names it says (regular expression), and where.
PLANTED: dict[str, tuple[Fault, str, tuple[str, ...]]] = {
    "projections 1/√L": (proj_1_over_l, r"1/√L", EVERY),
    "untied by copy": (untied_copy, r"wte.*lm_head.*equal.*tie|embed.*equal.*tie", EVERY),
    "untied by resize": (untied_resize, r"two tensors where one was meant", EVERY),
    "biases 0.1": (biased, r"bias.*0\.1 throughout", ("gpt2", "gpt_neox")),
    "gains drawn": (gains_drawn, r"gain.*drawn as if", EVERY),
    "rounded to bf16": (rounded, r"bfloat16", EVERY),
    "two blocks' q, k, v through float16": (half_rounded, r"float16.*cast and cast back", EVERY),
    "underflow in float16": (underflow, r"proj.*underflow|down.*underflow|dense.*underflow", EVERY),
    "identical blocks": (same_blocks, r"blocks 2, 4 are equal", EVERY),
    "one seed for all": (one_seed, r"seed was set again", EVERY),
    "padded rows zero": (padded_zero, r"30 of 512 rows are zero \(482-511\)", EVERY),
    "padded rows × 50": (padded_large, r"30 of 512 rows.*(49|50|51)\S* times", EVERY),
    "a head's q zero": (head_zero, r"16 of 128 rows are zero \(16-31\).*head", EVERY),
    "half a matrix zero": (half_zero, r"rows are zero", EVERY),
    "half a matrix empty": (half_empty, r"memory never written", EVERY),
    "repeated shards": (repeated_shards, r"rows repeat another.*shard", EVERY),
    "q = k": (q_is_k, r"copied from the other|in common", EVERY),
    "wpe = wte": (positions_are_tokens, r"positions look like tokens", ("gpt2",)),
    "all uniform ±0.02": (all_uniform, r"uniform within ±0.02", EVERY),
    "fused orthogonal": (fused_orthogonal, r"one orthogonal matrix", EVERY),
    "rank 2": (rank_two, r"rank 2", EVERY),
    "first block unscaled": (first_block_unscaled, r"block 0 is 3.\d+ times.*missing", EVERY),
    "depth factor twice": (scaled_twice, r"applied twice", EVERY),
    "fc and mlp_proj left at torch's default": (leftovers, r"torch's default", EVERY),
    "a block left at torch's default": (leftovers_in_a_block, r"block 3.*torch's default", EVERY),
    "one NaN": (one_nan, r"3\..*1 of 16,384 values", EVERY),
    "q and v swapped (DeepNorm)": (swapped_qv, r"^q: std|^v: std", EVERY),
    "k and v swapped (DeepNorm)": (swapped_kv, r"^k: std|^v: std", EVERY),
    "square matrix transposed": (transposed_square, r"transpos", EVERY),
    "gate and fc swapped": (swapped_gate, r"gate.*swap", ("llama",)),
    "fc and mlp_proj by transposed shape": (transposed, r"1/√fan_out.*transposed", EVERY),
    "blocks reversed": (reversed_blocks, r"runs backwards", EVERY),
    "layer index + 1": (layer_off_by_one, r"one too large", EVERY),
    "std × 2 in a block": (doubled_block, r"block 4 is (2|2\.0\d|1\.9\d*) times", EVERY),
    "a column × 20": (huge_column, r"column 5 is (19|20|2\d)", EVERY),
    "a row × 20": (huge_row, r"row 7 is (19|20|2\d|1\d)", EVERY),
    "a block negated": (negated_block, r"blocks 0, 5 are equal up to the sign", EVERY),
    "constant rows": (constant_rows, r"one value throughout", EVERY),
    "half of the values zero": (sparse, r"50% of its values are zero", EVERY),
    "int8 grid": (int8, r"int8", EVERY),
    "clipped at ±σ": (clipped, r"clamped", EVERY),
    "mean shift": (mean_shift, r"mean 0.0\d+ is", EVERY),
    "rows share a component": (correlated_rows, r"share a component", EVERY),
    "embedding × √d": (times_sqrt_d, r"wte.*√d", EVERY),
    "unused ids zero": (unused_ids, r"40 of 512 rows are zero.*ids", EVERY),
    "norm biases drawn": (norm_bias, r"bias has mean.*start at zero", ("gpt2", "gpt_neox")),
    "a gain zero": (gain_zero, r"gain is zero", EVERY),
    "a block zero": (block_zero, r"block 3: every matrix is zero", EVERY),
    "q and k × 8": (hot, r"^q: .*(7\.9\d|8\.0?\d*) times.*sharper", EVERY),
    "attn_proj unscaled": (half_scaled, r"attn_proj has the plain std.*only mlp_proj", EVERY),
    "depth factor on fc": (wrong_matrix, r"fc.*belongs on the residual", EVERY),
    "std by fan-out": (fan_out, r"√\(2/fan_out\)", EVERY),
    "Xavier on the fused matrix": (xavier_fused, r"(fused|q:).*", EVERY),
    "Kaiming on the embedding": (kaiming_embedding, r"wte.*Kaiming", EVERY),
    "wpe of std 1": (positions_of_one, r"wpe.*nn.Embedding", ("gpt2",)),
    "untied head zero": (head_is_zero, r"lm_head is zero|embed_out", EVERY),
    "infinity in float16": (half_infinity, r"65,504", EVERY),
    "subnormal values": (denormals, r"below 1.2e-38", EVERY),
    "float64 read as float32": (of_float64, r"number format", EVERY),
    "bytes in the other order": (swapped_bytes, r"byte order|bytes in the wrong order", EVERY),
    "identical experts": (same_experts, r"layers\.2\..*repeat another", ("mixtral",)),
    "router biased": (router_bias, r"prefers some experts", ("mixtral",)),
    "heads of k and v copied": (kv_heads_copied, r"rows repeat another", ("llama",)),
    "a constant table": (constant_table, r"is 0.02 throughout.*one value", EVERY),
    "signs only": (signs_only, r"multiples of one step", EVERY),
    "all × 10": (ten_times, r"every matrix is (9|10|3\.[56])\S* times", EVERY),
    "one projection for all blocks": (shared_projection, r"blocks 0-5 are equal in attn", EVERY),
    "a mask multiplied in": (masked, r"[45]\d% of its values are zero", EVERY),
    "columns copied": (columns_copied, r"64 of 128 columns repeat another", EVERY),
    "magnitudes only": (magnitudes, r"standard errors from zero", EVERY),
    "gains of 2": (double_norm, r"gain is 2 throughout", EVERY),
}  # fmt: skip


def patient(kind: str, name: str) -> Patient:
    """A fresh model of a kind, in which the fault is planted."""
    found = Patient(kind, copy.deepcopy(_cached(kind)))
    PLANTED[name][0](found)
    return found


_MADE: dict[str, nn.Module] = {}


def _cached(kind: str) -> nn.Module:
    if kind not in _MADE:
        _MADE[kind] = decoder(kind)
    return _MADE[kind]


def table() -> Iterator[str]:
    """What the lint says of every fault in every shape, and how many are named."""
    named = total = 0
    for name, (_, pattern, kinds) in PLANTED.items():
        for kind in kinds:
            model = patient(kind, name).model
            found = lint.sketches_of(named_parts.parts_of(model))
            verdicts = lint.lint(found, tied=named_parts.is_tied(model))
            hits = [v for v in verdicts if re.search(pattern, v.text)]
            total, named = total + 1, named + bool(hits)
            yield f"{name} | {kind} | {hits[0].severity + ' ' + hits[0].topic if hits else '-'}\n"
    yield f"{named} of {total} named\n"


if __name__ == "__main__":
    for line in table():
        sys.stdout.write(line)
