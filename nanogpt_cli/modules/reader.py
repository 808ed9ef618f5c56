"""Reads a plan from a module: its structure from the configuration, sizes from the parameters."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from nanogpt_cli.init.blueprint import Blueprint, Layer, Variances
from nanogpt_cli.model.gpt import GPT
from nanogpt_cli.model.mlp import ACTIVATIONS as OUR_ACTIVATIONS
from nanogpt_cli.modules.anatomy import Part
from nanogpt_cli.modules.families import ACTIVATIONS, FAMILIES, NANOGPT, Family, own
from nanogpt_cli.modules.plan import NORM_NAMES, Parts, Plan


class UnclaimedError(Exception):
    """A part of a module that no theory is claimed for."""


class Reader:
    """Reads one module; every method may raise ``UnclaimedError``."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.config: Any = getattr(module, "config", None)
        self.parameters = dict(module.named_parameters(remove_duplicate=False))
        self.kind = str(getattr(self.config, "model_type", ""))
        self.settings: dict[str, Any] = {}
        if isinstance(module, GPT):
            self.family, self.settings, self.config = own(module.config)
        elif self.kind in FAMILIES:
            self.family = FAMILIES[self.kind]
            self.settings = self.family.settings(self.config)
        elif _is_nanogpt(module):
            self.family = NANOGPT
        else:
            named = f"model type {self.kind!r:.40}" if self.kind else type(module).__name__
            raise UnclaimedError(f"{named} is not among the architectures that theory knows")
        family: Family = self.family
        self.body = self._module(family.body)
        found = getattr(self.body, family.blocks, None)
        if not isinstance(found, nn.ModuleList) or not len(found):
            raise UnclaimedError(f"there is no list of blocks {family.body}.{family.blocks}")
        self.paths = tuple(f"{family.body}.{family.blocks}.{n}" for n in range(len(found)))

    def plan(self) -> Plan:
        """Everything put together."""
        settings = self.settings
        outside = self._outside()
        blocks = tuple(self._block(n) for n in range(len(self.paths)))
        known = {f.name for f in fields(Blueprint)}
        chosen = {key: value for key, value in settings.items() if key in known}
        width = self._shape(outside["wte"])[1]
        n_head = self._number("num_attention_heads", "n_head")
        n_kv_head = self._number("num_key_value_heads", default=n_head)
        head_size = self._number("head_dim", default=width // n_head)
        self._check_scores(blocks[0], n_head, n_kv_head, head_size)
        hidden = self._hidden(blocks[0])
        experts = self._experts(blocks[0])
        placement = chosen.pop("placement", self.family.placement)
        blueprint = Blueprint(
            width=width, n_head=n_head, n_kv_head=n_kv_head, head_size=head_size, hidden=hidden,
            vocab=self._shape(outside["wte"])[0], layers=self._layers(head_size),
            wte=0.0, head=0.0, activation=self._activation(), gated="gate" in blocks[0],
            norm=self.family.norm, eps=self._eps(), placement=placement,
            final_norm=getattr(self.body, self.family.final, None) is not None,
            qk_norm="q_norm" in self.family.names, tied="lm_head" not in outside,
            experts=experts, padding=self._padding(outside["wte"]), **chosen,
        )  # fmt: skip
        return Plan(
            blueprint,
            blocks,
            outside,
            self.paths,
            offset=float(self.family.offset),
            interleaved=self.family.interleaved,
            first_position=settings.get("first_position", 0),
        )

    def _module(self, path: str) -> nn.Module:
        try:
            return self.module.get_submodule(path)
        except AttributeError:
            raise UnclaimedError(f"there is no part {path}") from None

    def _number(self, *names: str, default: int = 0) -> int:
        block = self.body.get_submodule(f"{self.family.blocks}.0")
        for owner in (self.config, getattr(block, "attn", None)):
            for name in names:
                value = getattr(owner, name, None)
                if isinstance(value, int) and value > 0:
                    return value
        if not default:
            raise UnclaimedError(f"the configuration does not say {names[0]}")
        return default

    def _shape(self, part: Part) -> tuple[int, ...]:
        return tuple(self.parameters[part.parameter].shape)

    def _part(self, path: str, role: str, layer: int, *, required: bool) -> dict[str, Part]:
        """The weight and bias of a module, by suffix; a norm may have neither."""
        found = {}
        for suffix, end in (("", ".weight"), (".bias", ".bias")):
            name = path if path in self.parameters and not suffix else path + end
            if name in self.parameters:
                shape = self.parameters[name].shape
                found[suffix] = Part(
                    name, "bias" if suffix else role, layer,
                    transposed=self.family.transposed and role not in ("wte", "wpe")
                    and len(shape) == 2,
                )  # fmt: skip
        if required and "" not in found:
            raise UnclaimedError(f"there is no parameter {path}")
        return found

    def _outside(self) -> dict[str, Part]:
        family, body = self.family, self.family.body
        found = {"wte": self._part(f"{body}.{family.wte}", "wte", -1, required=True)[""]}
        if family.wpe:
            found["wpe"] = self._part(f"{body}.{family.wpe}", "wpe", -1, required=True)[""]
        final = self._part(f"{body}.{family.final}", "norm", -1, required=False)
        found.update({f"final{suffix}": part for suffix, part in final.items()})
        head = self._part("lm_head", "lm_head", -1, required=True)
        if self.parameters["lm_head.weight"] is not self.parameters[found["wte"].parameter]:
            found["lm_head"] = head[""]
        if ".bias" in head:
            found["lm_head.bias"] = head[".bias"]
        if self._shape(found["wte"]) != tuple(self.parameters["lm_head.weight"].shape):
            raise UnclaimedError("embedding and head are of different sizes")
        return found

    def _block(self, number: int) -> dict[str, Part]:
        """The parts of one block."""
        found: dict[str, Part] = {}
        names = dict(self.family.names)
        if self.settings.get("parallel") and self.kind == "stablelm":
            names["norm_2"] = names["norm_1"]
        post = self.settings.get("placement", self.family.placement) == "post"
        for name, relative in names.items():
            norm = name in NORM_NAMES
            role = ("qk_norm" if name in ("q_norm", "k_norm") else "norm") if norm else name
            path = f"{self.paths[number]}.{relative}"
            if norm:
                self._module(path)
            parts = self._part(path, role, number, required=not norm)
            if post and norm:
                name = name.replace("norm_", "after_")
            for suffix, part in parts.items():
                for piece, rows in self._pieces(name, part):
                    tag = piece if piece != name else ""
                    role = piece if part.role == name else part.role
                    found[piece + suffix] = replace(part, role=role, rows=rows, tag=tag)
        return found

    def _pieces(self, name: str, part: Part) -> list[tuple[str, Tensor | None]]:
        """Into which matrices a fused parameter falls, with their rows."""
        shape = self._shape(part)
        if name == "gate_fc":
            half = shape[-2 if len(shape) > 1 else -1] // 2
            stack = torch.arange(math.prod(shape[:-1]) if len(shape) > 1 else shape[0])
            first = stack % (2 * half) < half
            return [("gate", stack[first]), ("fc", stack[~first])]
        if name == "qkv":
            return self._qkv(shape[-1] if part.transposed else shape[0])
        if name == "fc" and self.family is NANOGPT and self._own_gated():
            rows = torch.arange(shape[0])
            return [("gate", rows[: shape[0] // 2]), ("fc", rows[shape[0] // 2 :])]
        return [(name, None)]

    def _own_gated(self) -> bool:
        return isinstance(self.module, GPT) and self.module.config.gated

    def _qkv(self, rows: int) -> list[tuple[str, Tensor | None]]:
        n_head = self._number("num_attention_heads", "n_head")
        shared = self._number("num_key_value_heads", default=n_head)
        size = rows // (n_head + 2 * shared)
        if self.family.fused == "by_head":
            place = torch.arange(rows).view(n_head, 3, size)
            return [(name, place[:, n].flatten()) for n, name in enumerate("qkv")]
        sizes = [n_head * size, shared * size, shared * size]
        pieces = torch.split(torch.arange(rows), sizes)
        return list(zip("qkv", pieces, strict=True))

    def _check_scores(self, parts: Parts, n_head: int, n_kv_head: int, size: int) -> None:
        """Whether the projections have the sizes that the number of heads says."""
        for name, heads in (("q", n_head), ("k", n_kv_head), ("v", n_kv_head)):
            part = parts[name]
            rows = len(part.rows) if part.rows is not None else self._shape(part)[0]
            if rows != heads * size:
                said = f"{heads} × {size} (heads × channels)"
                raise UnclaimedError(f"{part.parameter} has {rows} rows, not {said}")

    def _hidden(self, parts: Parts) -> int:
        """Columns of the MLP's last matrix."""
        part = parts["mlp_proj"]
        return self._shape(part)[-2 if part.transposed else -1]

    def _experts(self, parts: Parts) -> int:
        if "router" not in parts:
            return 0
        if len(self._shape(parts["mlp_proj"])) != 3:
            raise UnclaimedError("the experts are not stacked in one parameter")
        return self._shape(parts["mlp_proj"])[0]

    def _eps(self) -> float:
        """The ε of the norms, which must be the same everywhere."""
        names = [f"{path}.{self.family.names[role]}" for path in self.paths
                 for role in NORM_NAMES if role in self.family.names]  # fmt: skip
        found: set[float] = set()
        for name in (*names, f"{self.family.body}.{self.family.final}"):
            norm = self.module.get_submodule(name) if self._has(name) else None
            eps = getattr(norm, "eps", getattr(norm, "variance_epsilon", None))
            if isinstance(eps, float):
                found.add(eps)
        if len(found) > 1:
            raise UnclaimedError(f"its norms have different ε: {sorted(found)}")
        return found.pop() if found else 1e-5

    def _has(self, path: str) -> bool:
        try:
            return self.module.get_submodule(path) is not None
        except AttributeError:
            return False

    def _activation(self) -> str:
        names = ("hidden_activation", "hidden_act", "activation_function", "activation")
        for name in names:
            value = getattr(self.config, name, None)
            if isinstance(value, str):
                known = value if value in OUR_ACTIVATIONS else ACTIVATIONS.get(value)
                if known is None:
                    raise UnclaimedError(f"activation {value!r:.40} is unknown")
                return known
        for part in self.body.modules():
            kind = type(part).__name__
            if isinstance(part, nn.GELU):
                return "gelu_tanh" if part.approximate == "tanh" else "gelu"
            if kind in _ACTIVATION_MODULES:
                return _ACTIVATION_MODULES[kind]
        return "gelu"

    def _layers(self, head_size: int) -> tuple[Layer, ...]:
        scale = self.settings.get("attention_scale", head_size**-0.5)
        turned = self.settings.get("turned", [True] * len(self.paths))
        nothing = Variances(*[0.0] * 6)
        return tuple(
            Layer(
                nothing,
                scale / (n + 1) if self.settings.get("scores_by_layer") else scale,
                rope=self._rope(n, head_size) if turned[n] else (),
                window=self._window(n),
            )
            for n in range(len(self.paths))
        )

    def _window(self, layer: int) -> int:
        kinds = getattr(self.config, "layer_types", None)
        window = getattr(self.config, "sliding_window", None)
        if kinds and kinds[layer] != "sliding_attention":
            return 0
        if getattr(self.config, "use_sliding_window", True) is False:
            return 0
        return window if isinstance(window, int) else 0

    def _padding(self, table: Part) -> int:
        """The token whose row of the table is zero; on ``meta``, the one that is meant to be."""
        owner = self.module.get_submodule(table.parameter.rpartition(".")[0])
        row = getattr(owner, "padding_idx", None)
        if not isinstance(row, int):
            return -1
        values = self.parameters[table.parameter]
        return -1 if not values.is_meta and bool(values[row].any()) else row

    def _rope(self, layer: int, head_size: int) -> tuple[float, ...]:
        """The angles of rotary positions, as the configuration gives them or the module holds."""
        if "rotary_channels" in self.settings:
            return _angles(10000.0, self.settings["rotary_channels"] or head_size)
        given = getattr(self.config, "rope_parameters", None)
        if not given:
            return ()
        kinds = getattr(self.config, "layer_types", None)
        if kinds and kinds[layer] in given:
            given = given[kinds[layer]]
        if given.get("rope_type", "default") != "default":
            angles = self._held_angles()
        else:
            part = given.get("partial_rotary_factor", 1.0) or 1.0
            angles = _angles(float(given["rope_theta"]), int(head_size * part))
        return tuple(-a for a in angles) if self.settings.get("backwards") else angles

    def _held_angles(self) -> tuple[float, ...]:
        """Those of scaled rotary positions, which the module computed itself."""
        rotary = getattr(self.body, "rotary_emb", None)
        held = getattr(rotary, "inv_freq", None)
        if not isinstance(held, Tensor) or held.is_meta:
            raise UnclaimedError("its scaled rotary positions have no values yet")
        if getattr(rotary, "attention_scaling", 1.0) != 1.0:
            raise UnclaimedError("its rotary positions scale the scores")
        return tuple(held.double().tolist())


_ACTIVATION_MODULES = {
    "NewGELU": "gelu_tanh",
    "GELUTanh": "gelu_tanh",
    "ReLU": "relu",
    "SiLU": "silu",
}


def _angles(theta: float, channels: int) -> tuple[float, ...]:
    return tuple(theta ** (-n / channels) for n in range(0, channels, 2))


def _is_nanogpt(module: nn.Module) -> bool:
    body = getattr(module, "transformer", None)
    blocks = getattr(body, "h", None)
    if not isinstance(blocks, nn.ModuleList) or not len(blocks):
        return False
    names = dict(blocks[0].named_modules())
    return all(isinstance(names.get(path), nn.Linear) for path in ("attn.c_attn", "mlp.c_fc"))
