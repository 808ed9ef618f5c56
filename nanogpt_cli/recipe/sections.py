"""The sections of a recipe as validated models. Every default of a run is defined here.

Reading files, ``extends`` and ``--set`` are implemented in ``recipe/files.py``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    model_validator,
)

from nanogpt_cli.errors import UserError
from nanogpt_cli.run.addresses import check_address, hidden
from nanogpt_cli.sizes import (
    LARGEST_THETA,
    MOST_CHANNELS,
    MOST_LAYERS,
    MOST_ROWS,
    SMALLEST_EPS,
)

# Larger than any useful value, but small enough that no arithmetic overflows or takes for ever.
_MANY = 2**40
Positive = Annotated[int, Field(ge=1, le=_MANY)]
Count = Annotated[int, Field(ge=0, le=_MANY)]
Size = Annotated[int, Field(ge=1, le=MOST_CHANNELS)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A table of a recipe: unknown keys are errors, values are never coerced."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class Run(Section):
    """Name and seed."""

    name: str = Field("run", description="Folder below runs/; the recipe's file name by default.")
    seed: Annotated[int, Field(ge=0, lt=2**63)] = Field(
        1337, description="Seed of initial values, data order and dropout."
    )


class Data(Section):
    """The training data: what ``nanogpt prepare`` is asked for, and the order of its windows."""

    name: str | list[str] = Field(
        "shakespeare",
        description="A named data set, a prepared folder, or text files and folders.",
        min_length=1,
    )
    tokenizer: str = Field("char", description="char, byte, gpt2 (or another tiktoken), bpe:SIZE.")
    split: Literal["auto", "tail", "hash"] = Field(
        "auto",
        description="What is kept for validation: tail: the end; hash: documents drawn by their "
        "hashes; auto: hash for records and many files, else and for a few records tail.",
    )
    val_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Share of the text kept for validation."
    )
    glob: str = Field("", description="Files to take from a folder, such as *.py; empty: all.")
    text_field: str = Field(
        "text",
        description="Field of a record (JSON, CSV, Parquet) that holds the text or a chat's "
        "messages; also a path: text.body.",
    )
    errors: Literal["strict", "replace", "skip"] = Field(
        "strict", description="What to do about text that cannot be read."
    )
    encoding: str = Field("utf-8", description="Encoding of text files without a byte-order mark.")
    newlines: Literal["keep", "lf"] = Field(
        "keep", description="lf: turn the line ends CRLF and CR into LF."
    )
    eot: bool = Field(False, description="Give char and byte an end-of-text token.")
    limit: Count = Field(0, description="Documents to read; 0: all.")
    order: Literal["shuffle", "random"] = Field(
        "shuffle",
        description="shuffle: each window once an epoch; random: nanoGPT's random crops.",
    )


class Model(Section):
    """Shape and initialisation of the model."""

    n_layer: Annotated[int, Field(ge=1, le=MOST_LAYERS)] = Field(
        12, description="Transformer blocks."
    )
    n_head: Size = Field(12, description="Attention heads per block; must divide n_embd.")
    n_embd: Size = Field(768, description="Channels of the residual stream.")
    block_size: Size = Field(1024, description="Context length in tokens.")
    vocab_size: Annotated[int, Field(ge=0, le=MOST_ROWS)] = Field(
        0, description="Rows of the embedding; 0: as many as the tokenizer has."
    )
    dropout: Annotated[float, Field(ge=0, le=0.99)] = Field(
        0.0, description="Dropout after embeddings, attention and branches."
    )
    bias: bool | Literal["qkv"] = Field(
        False,
        description="Biases in linear layers and LayerNorms; qkv: of queries, keys and values "
        "alone, as in Qwen2.",
    )
    activation: Literal["gelu", "gelu_tanh", "relu", "relu2", "silu", "swiglu", "geglu"] = Field(
        "gelu",
        description="gelu is the exact (erf) form, as in nanoGPT; swiglu and geglu are gated.",
    )
    hidden: Annotated[int, Field(ge=0, le=MOST_CHANNELS)] = Field(
        0, description="Hidden size of the MLP; 0: 4 n_embd, gated 8/3 n_embd rounded up to 8."
    )
    norm: Literal["layer", "rms"] = Field("layer", description="LayerNorm, or RMSNorm as in Llama.")
    norm_eps: Annotated[float, Field(ge=SMALLEST_EPS, le=1)] = Field(
        1e-5, description="Epsilon of every norm."
    )
    position: Literal["learned", "rope"] = Field(
        "learned", description="A table of positions, or rotary embedding as in Llama."
    )
    rope_theta: Annotated[float, Field(gt=0, le=LARGEST_THETA)] = Field(
        10_000.0, description="Base of the rotary wavelengths."
    )
    qk_norm: bool = Field(
        False, description="RMSNorm of each head's queries and keys, as in Qwen3."
    )
    n_kv_head: Annotated[int, Field(ge=0, le=MOST_CHANNELS)] = Field(
        0,
        description="Heads of keys and values, each shared by several query heads; 0: n_head.",
    )
    head_dim: Annotated[int, Field(ge=0, le=MOST_CHANNELS)] = Field(
        0, description="Channels of a head; 0: n_embd / n_head."
    )
    tied: bool = Field(True, description="The head shares the weights of the token embedding.")
    init: str = Field("gpt2", description="Initialisation scheme; nanogpt init-inspect --list.")

    @model_validator(mode="after")
    def _sizes_fit(self) -> Model:
        if not self.head_dim and self.n_embd % self.n_head:
            fits = [h for h in range(1, self.n_embd + 1) if self.n_embd % h == 0]
            near = min(fits, key=lambda h: abs(h - self.n_head))
            raise ValueError(
                f"n_head = {self.n_head} does not divide n_embd = {self.n_embd}; "
                f"n_head = {near} would"
            )
        if self.n_kv_head and self.n_head % self.n_kv_head:
            fits = [h for h in range(1, self.n_head + 1) if self.n_head % h == 0]
            near = min(fits, key=lambda h: abs(h - self.n_kv_head))
            raise ValueError(
                f"n_kv_head = {self.n_kv_head} does not divide n_head = {self.n_head}; "
                f"n_kv_head = {near} would"
            )
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(
                f'position = "rope" turns pairs of channels, and head_dim = {self.head_dim} '
                f"is odd; head_dim = {self.head_dim + 1} would do"
            )
        size = self.n_embd // self.n_head
        if self.position == "rope" and not self.head_dim and size % 2:
            raise ValueError(
                f'position = "rope" turns pairs of channels, and n_embd / n_head = {size} is odd; '
                f"n_embd = {2 * self.n_embd} would do"
            )
        return self


class Train(Section):
    """Length, batch, saving, and how the machine is used."""

    max_steps: Positive = Field(1000, description="Optimizer steps.")
    batch_size: Size = Field(12, description="Sequences in one micro-batch on one device.")
    tokens_per_step: Annotated[int, Field(ge=0, le=2**30)] = Field(
        0,
        description="Tokens in one optimizer step over all micro-batches and devices; "
        "0: one micro-batch a device.",
    )
    eval_every: Count = Field(250, description="Steps between evaluations; 0: only at the end.")
    checkpoint_every: Count = Field(
        250, description="Steps between checkpoints; 0: only at the end."
    )
    keep: Positive = Field(2, description="Newest checkpoints kept (the best one stays too).")
    keep_every: Count = Field(0, description="Also keep multiples of this step; 0: none.")
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        "auto",
        description="auto: bf16 where the device multiplies it natively, fp16 on older GPUs with "
        "tensor cores, else fp32.",
    )
    compile: bool | Literal["auto"] = Field(
        "auto", description="torch.compile; auto: on CUDA if it works; if not, the run says why."
    )
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps.")
    parallel: Literal["ddp", "fsdp"] = Field(
        "ddp", description="Several processes: ddp copies the model to each, fsdp splits it."
    )
    on_nonfinite: Literal["skip", "stop", "rollback"] = Field(
        "stop", description="What to do when a loss or gradient is not finite."
    )
    parts: Count = Field(
        0,
        description="CPU: parts of a micro-batch computed in parallel, one thread each; "
        "0: one per core, up to 8. The last bits of the results depend on it.",
    )
    deterministic: bool = Field(False, description="Same bits every time on a GPU too (slower).")
    patience: Count = Field(
        0, description="Stop after this many evaluations without a new best; 0: never."
    )


class Optim(Section):
    """Optimizer and learning-rate schedule."""

    name: Literal["adamw", "muon"] = Field(
        "adamw", description="muon: Muon for the blocks' matrices, AdamW for the rest."
    )
    lr: Rate = Field(1e-3, description="Peak learning rate of AdamW.")
    min_lr: NonNegative = Field(0.0, description="Learning rate at the end of the schedule.")
    weight_decay: NonNegative = Field(0.1, description="Decoupled decay of matrices.")
    betas: tuple[Share, Share] = Field(
        (0.9, 0.95), description="AdamW's moment decays.", strict=False
    )
    eps: Rate = Field(1e-8, description="AdamW's epsilon.")
    schedule: Literal["cosine", "linear", "wsd", "constant"] = Field(
        "cosine", description="Shape after warmup; wsd: constant, then decay."
    )
    warmup_steps: Count = Field(100, description="Steps of linear warmup.")
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="Share of the run over which wsd decays."
    )
    decay_shape: Literal["linear", "1-sqrt"] = Field("linear", description="Shape of wsd's decay.")
    grad_clip: NonNegative = Field(1.0, description="Largest gradient norm; 0: no clipping.")
    ema: Share = Field(
        0.0,
        description="Decay of a moving average of the weights, which evaluations, samples and "
        "exports then use; 0: none.",
    )
    muon_lr: Rate = Field(0.02, description="Peak learning rate of Muon.")
    momentum: Share = Field(0.95, description="Muon's momentum.")
    ns_steps: Annotated[int, Field(ge=1, le=100)] = Field(
        5, description="Muon's Newton-Schulz iterations."
    )

    @model_validator(mode="after")
    def _min_below_peak(self) -> Optim:
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr = {self.min_lr} is above lr = {self.lr}")
        return self


class Stats(Section):
    """Per-layer statistics."""

    every: Count = Field(
        0, description="Steps between statistics; 0: as often as the budget allows."
    )
    budget: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01, description="Largest share of the step time for statistics; 0: no statistics."
    )


class Sample(Section):
    """Text sampled during training."""

    every: Count = Field(0, description="Steps between samples; 0: at each evaluation.")
    prompt: str = Field(
        "", description="Text that the sample continues; empty: the data's own beginning."
    )
    max_new_tokens: Annotated[int, Field(ge=0, le=2**20)] = Field(
        100, description="Length of a sample; 0: no samples."
    )
    temperature: NonNegative = Field(0.8, description="Sampling temperature; 0: greedy.")


class Log(Section):
    """Where events go besides events.jsonl, who is told, and how often the machine is sampled."""

    sinks: list[Literal["csv", "tensorboard", "wandb", "trackio"]] = Field(
        default_factory=list, description="Further sinks; all but csv need the extra of that name."
    )
    bell: Literal["off", "bell", "osc9"] = Field(
        "off",
        description="What the terminal is sent at the end, alarms and incidents: BEL, or OSC 9, a "
        "desktop notification.",
    )
    notify: Annotated[str, AfterValidator(check_address), PlainSerializer(hidden, str)] = Field(
        "",
        repr=False,
        description="URL that gets the same as JSON, for ntfy and Slack; recorded without its "
        "path. Better in the environment, NANOGPT_NOTIFY.",
    )
    system_every: Annotated[float, Field(ge=0, le=86_400)] = Field(
        5.0, description="Seconds between samples of CPU, memory, disk and GPUs; 0: none."
    )


class Recipe(Section):
    """A whole recipe."""

    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    train: Train = Train()
    optim: Optim = Optim()
    stats: Stats = Stats()
    sample: Sample = Sample()
    log: Log = Log()
    init: dict[str, Any] = Field(
        default_factory=dict, description='A scheme of your own; it implies model.init = "custom".'
    )

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        problems = list(_contradictions(self))
        if problems:
            raise ValueError("\n".join(problems))
        return self

    @property
    def tokens_per_step(self) -> int:
        """Tokens of one optimizer step, the automatic value resolved for one process."""
        return self.train.tokens_per_step or self.train.batch_size * self.model.block_size

    def for_processes(self, number: int) -> Recipe:
        """The recipe with ``tokens_per_step`` written out for that many processes."""
        tokens = self.train.tokens_per_step or self.tokens_per_step * number
        train = self.train.model_copy(update={"tokens_per_step": tokens})
        return self.model_copy(update={"train": train})


def _contradictions(recipe: Recipe) -> Iterator[str]:
    """Sentences about keys that do not fit together, each beginning with SECTION.KEY."""
    from nanogpt_cli import schemes

    micro = recipe.train.batch_size * recipe.model.block_size
    if recipe.train.tokens_per_step % micro:
        yield _uneven_step(recipe.train, recipe.model.block_size)
    if recipe.optim.warmup_steps > recipe.train.max_steps:
        yield (
            f"optim.warmup_steps = {recipe.optim.warmup_steps} is longer than "
            f"train.max_steps = {recipe.train.max_steps}; "
            f"set optim.warmup_steps = {recipe.train.max_steps // 10}"
        )
    try:
        if recipe.model.init == "custom":
            schemes.parse_custom(recipe.init)
        elif recipe.init:
            yield (
                f"model.init = {recipe.model.init!r} does not use the table [init]; remove one of "
                'them, or set model.init = "custom"'
            )
        else:
            schemes.get(recipe.model.init)
    except UserError as error:
        yield f"model.init: {error}"


def _uneven_step(train: Train, block_size: int) -> str:
    """A sentence about a step that its micro-batches do not fill, with values that would fit."""
    micro, wanted = train.batch_size * block_size, train.tokens_per_step
    sequences = wanted // block_size
    fits = [size for size in range(1, sequences + 1) if sequences % size == 0]
    advice = f"train.tokens_per_step = {max(1, round(wanted / micro)) * micro}"
    if wanted % block_size == 0:
        near = min(fits, key=lambda size: abs(size - train.batch_size))
        advice = f"train.batch_size = {near}, or {advice}"
    return (
        f"train.tokens_per_step = {wanted} is not a multiple of train.batch_size * "
        f"model.block_size = {train.batch_size} * {block_size} = {micro}; set {advice}"
    )
