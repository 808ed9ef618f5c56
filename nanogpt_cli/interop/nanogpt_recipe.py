"""Converting the settings of nanoGPT's train.py to an equivalent recipe, with notes on the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import tomli_w

from nanogpt_cli.interop.nanogpt_config import Settings
from nanogpt_cli.recipe import Recipe, problems
from nanogpt_cli.recipe import files as recipe_files

Plain = int | float | bool | str | list[float] | list[str]

# Settings that keep their meaning: nanoGPT's name -> the key here.
_SAME: Final = {
    "n_layer": "model.n_layer", "n_head": "model.n_head", "n_embd": "model.n_embd",
    "block_size": "model.block_size", "dropout": "model.dropout", "bias": "model.bias",
    "max_iters": "train.max_steps", "batch_size": "train.batch_size",
    "learning_rate": "optim.lr", "weight_decay": "optim.weight_decay",
    "grad_clip": "optim.grad_clip",
}  # fmt: skip

# Settings without an equivalent -> what happens instead.
_WITHOUT_EQUIVALENT: Final = {
    "out_dir": "a run is stored in runs/NAME; --out replaces runs/",
    "log_interval": "every step is logged",
    "eval_iters": "an evaluation reads the whole validation split",
    "wandb_project": "the project is called nanogpt-cli",
    "wandb_run_name": "a run is named after its recipe; --set run.name=… changes the name",
    "backend": "it is chosen for the device",
}

_DATA: Final = {
    "shakespeare_char": ("shakespeare", "char"),
    "shakespeare": ("shakespeare", "gpt2"),
    "openwebtext": ("openwebtext", "gpt2"),
}
_PRECISIONS: Final = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
# (layers, heads, channels) of the weights that init_from = "gpt2…" loads.
_GPT2: Final = {
    "gpt2": (12, 12, 768), "gpt2-medium": (24, 16, 1024), "gpt2-large": (36, 20, 1280),
    "gpt2-xl": (48, 25, 1600),
}  # fmt: skip


@dataclass
class Conversion:
    """A recipe made of nanoGPT's settings.

    Attributes:
        values: ``"section.key"`` -> value, in the order of a recipe.
        reasons: ``"section.key"`` -> the settings that determine it.
        notes: sentences about settings without an equivalent or with another meaning.
        source: the weights that training begins with (``--from``), or "".
    """

    values: dict[str, Plain] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    source: str = ""

    def put(self, key: str, value: Plain, *reasons: str) -> None:
        """Set one key."""
        self.values[key] = value
        self.reasons[key] = ", ".join(reasons)

    def recipe(self) -> Recipe:
        """The validated recipe.

        Raises:
            UserError: its values contradict each other.
        """
        nested: dict[str, dict[str, Plain]] = {}
        for key, value in self.values.items():
            section, _, name = key.partition(".")
            nested.setdefault(section, {})[name] = value
        return recipe_files.from_values(nested, "the converted recipe")

    def to_toml(self, what: str) -> str:
        """The text of a recipe file; each line says which setting it comes from."""
        lines = [f"# what:    {what}"]
        for section, names in problems.keys().items():
            mine = [(name, f"{section}.{name}") for name in names]
            mine = [(name, key) for name, key in mine if key in self.values]
            lines += ["", f"[{section}]"] if mine else []
            for name, key in mine:
                lines.append(f"{name} = {_toml(self.values[key])}  # {self.reasons[key]}")
        return "\n".join(lines) + "\n"


def convert(settings: Settings) -> Conversion:
    """The recipe; every setting is represented in it or named in the notes."""
    made = Conversion()
    made.notes += settings.notes
    for name, key in _SAME.items():
        made.put(key, _plain(settings, name), _where(settings, name))
    for step in (_data, _weights, _batch, _saving, _schedule, _machine, _sinks):
        step(settings, made)
    for name, instead in _WITHOUT_EQUIVALENT.items():
        if settings.given(name):
            made.notes.append(f"{name} has no equivalent: {instead}")
    made.notes.append("windows are shuffled; data.order = 'random' draws crops as nanoGPT does")
    return made


def _toml(value: Plain) -> str:
    """One value on one line."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"v": value}).strip().removeprefix("v = ")


def _plain(settings: Settings, name: str) -> Plain:
    return settings.values[name]


def _where(settings: Settings, name: str) -> str:
    """``learning_rate, line 25``, or ``learning_rate, nanoGPT's default``."""
    origin = settings.origins.get(name, "nanoGPT's default")
    return f"{name}, {origin}"


def _data(settings: Settings, made: Conversion) -> None:
    dataset = str(settings.values["dataset"])
    name, tokenizer = _DATA.get(dataset, (f"data/{dataset}", "gpt2"))
    where = _where(settings, "dataset")
    made.put("data.name", name, where)
    made.put("data.tokenizer", tokenizer, where)
    if dataset == "openwebtext":
        made.put("data.val_fraction", 0.0005, where)
    if dataset not in _DATA:
        made.notes.append(
            f"dataset = {dataset!r} is not known here: data.name is set to the folder {name}, "
            "which may hold nanoGPT's train.bin and val.bin"
        )
    if tokenizer == "gpt2":
        made.put("model.vocab_size", 50304, "as nanoGPT pads 50257")


def _batch(settings: Settings, made: Conversion) -> None:
    """nanoGPT divides its accumulation steps among processes, which keeps the product the same."""
    values = settings.values
    steps = int(values["gradient_accumulation_steps"])
    if steps > 1:
        block_size = made.values["model.block_size"]  # that of the weights, where there are any
        assert isinstance(block_size, int)
        tokens = steps * int(values["batch_size"]) * block_size
        where = _where(settings, "gradient_accumulation_steps")
        made.put("train.tokens_per_step", tokens, f"× {where}")


def _saving(settings: Settings, made: Conversion) -> None:
    where = _where(settings, "eval_interval")
    for key in ("train.eval_every", "train.checkpoint_every"):
        made.put(key, _plain(settings, "eval_interval"), where)
    if not settings.values["always_save_checkpoint"]:
        made.notes.append(
            "always_save_checkpoint = False has no equivalent: the best checkpoint and the "
            "newest ones are kept"
        )
    if settings.values["eval_only"]:
        made.notes.append("eval_only has no equivalent in a recipe: nanogpt eval")


def _schedule(settings: Settings, made: Conversion) -> None:
    values = settings.values
    steps, lr = int(values["max_iters"]), float(values["learning_rate"])
    made.put("optim.betas", [float(values["beta1"]), float(values["beta2"])],
             _where(settings, "beta1"), _where(settings, "beta2"))  # fmt: skip
    if not values["decay_lr"]:
        made.put("optim.schedule", "constant", f"{_where(settings, 'decay_lr')}")
        made.put("optim.warmup_steps", 0, "nanoGPT warms up only when it decays")
        return
    warmup, floor = int(values["warmup_iters"]), float(values["min_lr"])
    made.put("optim.warmup_steps", min(warmup, steps), _where(settings, "warmup_iters"))
    made.put("optim.min_lr", min(floor, lr), _where(settings, "min_lr"))
    if warmup > steps:
        made.notes.append(
            f"warmup_iters = {warmup} is longer than max_iters = {steps}: nanoGPT never reaches "
            "its peak learning rate; this recipe reaches it at its last step"
        )
    if floor > lr:
        made.notes.append(f"min_lr = {floor:g} is above learning_rate = {lr:g}: min_lr is {lr:g}")
    if values["lr_decay_iters"] != steps:
        made.notes.append(
            f"lr_decay_iters = {values['lr_decay_iters']} has no equivalent: the learning rate "
            f"decays over the whole run, max_steps = {steps}"
        )


def _weights(settings: Settings, made: Conversion) -> None:
    start = str(settings.values["init_from"])
    where = _where(settings, "init_from")
    if start == "scratch":
        return
    if start == "resume":
        made.notes.append("init_from = 'resume' has no equivalent in a recipe: use train --resume")
        return
    if start not in _GPT2:
        made.notes.append(f"init_from = {start!r} is not known: give the weights with train --from")
        return
    for key, value in zip(("n_layer", "n_head", "n_embd"), _GPT2[start], strict=True):
        made.put(f"model.{key}", value, where)
    made.put("model.bias", True, where)
    made.put("model.vocab_size", 50257, where)
    made.put("model.activation", "gelu_tanh", where)
    made.source = start
    made.notes.append(f"init_from = {start!r} becomes an option of the command: --from {start}")
    made.notes.append("GELU is computed by tanh, as in these weights' training; nanoGPT uses erf")
    if settings.values["block_size"] != 1024:
        made.notes.append("block_size is not reduced: such weights are read with 1024 positions")
        made.put("model.block_size", 1024, where)


def _machine(settings: Settings, made: Conversion) -> None:
    values = settings.values
    device, dtype = str(values["device"]), str(values["dtype"])
    if settings.given("device"):
        made.put("train.device", device, _where(settings, "device"))
    if settings.given("dtype") and dtype in _PRECISIONS:
        precision = _PRECISIONS[dtype]
        if precision == "fp32" and device.startswith("cuda"):
            precision = "tf32"  # nanoGPT allows it for all products
        made.put("train.precision", precision, _where(settings, "dtype"))
    elif settings.given("dtype"):
        made.notes.append(f"dtype = {dtype!r} is not known: precision stays automatic")
    if settings.given("compile"):
        made.put("train.compile", _plain(settings, "compile"), _where(settings, "compile"))


def _sinks(settings: Settings, made: Conversion) -> None:
    if settings.values["wandb_log"]:
        made.put("log.sinks", ["wandb"], _where(settings, "wandb_log"))
