"""Exporting a run to artefacts, one complete folder per target, and verifying them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from nanogpt_cli import files, foreign_files
from nanogpt_cli.errors import UserError, nearest
from nanogpt_cli.extras import install_command
from nanogpt_cli.interop import card, llama, verify
from nanogpt_cli.interop.compare import Check
from nanogpt_cli.interop.source import Exportable

Reporter = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """An export format.

    Attributes:
        what: a description for help texts.
        packages: further packages that writing needs.
        extra: the name of the extra that installs them.
    """

    what: str
    packages: tuple[str, ...] = ()
    extra: str = ""


TARGETS: Final = {
    "hf": Target("Hugging Face folder: safetensors, config, tokenizer, model card"),
    "gguf": Target("GGUF for llama.cpp", ("gguf",), "gguf"),
    "onnx": Target("ONNX with a key/value cache", ("onnx", "onnxscript"), "onnx"),
    "pt2": Target("torch.export program"),
    "nanogpt": Target("nanoGPT's ckpt.pt and meta.pkl"),
}


def parse_targets(text: str) -> list[str]:
    """The targets in a list such as ``"hf,gguf"``, without repetition.

    Raises:
        UserError: a target is unknown.
    """
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in TARGETS:
            near = nearest(name, TARGETS)
            raise UserError(
                f"unknown target {name!r}" + (f"; did you mean {near!r}?" if near else ""),
                f"known: {', '.join(TARGETS)}",
            )
    if not names:
        raise UserError("no target given", f"--to takes some of: {', '.join(TARGETS)}")
    return names


class Lacking(UserError):  # noqa: N818 - the name says what is wrong
    """A package is missing: after its installation the same export is possible."""


def check_ready(
    source: Exportable,
    targets: Sequence[str],
    out: Path,
    *,
    overwrite: bool,
    quantizations: Sequence[str] = (),
    runtimes: bool = False,
) -> dict[str, UserError]:
    """Check before any work what can be exported.

    Args:
        source: the model.
        targets: the formats asked for.
        out: the folder that will hold one folder per target.
        overwrite: whether existing folders may be replaced.
        quantizations: GGUF types.
        runtimes: whether the runtime of every target has to be installed.

    Returns:
        The targets that are impossible, each with its reason: it cannot represent the model, or a
        package is missing (``Lacking``).

    Raises:
        UserError: a quantisation is unknown, or the folder of a possible target exists.
    """
    from nanogpt_cli.interop import gguf

    for quantization in quantizations if "gguf" in targets else ():
        gguf.check_type(quantization)
    refused = {}
    for name in targets:
        try:
            _check_possible(source, name, runtimes)
        except UserError as error:
            refused[name] = error
    for name in targets:
        if name not in refused and foreign_files.present(out / name) and not overwrite:
            raise UserError(f"{out / name} exists", "--overwrite replaces it; --out goes elsewhere")
    return refused


def _check_possible(source: Exportable, name: str, runtime: bool) -> None:
    from nanogpt_cli.interop import gguf, huggingface, nanogpt, onnx, pt2

    checks = {"hf": huggingface.check, "gguf": gguf.check, "onnx": onnx.check,
              "pt2": pt2.check, "nanogpt": nanogpt.check}  # fmt: skip
    # The model first: nobody should install a package for what remains impossible.
    if name in checks:
        checks[name](source)
    target = TARGETS[name]
    absent = [p for p in target.packages if importlib.util.find_spec(p) is None]
    if absent:
        raise Lacking(f"--to {name} needs the package {absent[0]}", install_command(target.extra))
    if runtime and (package := verify.missing(verify.Artefact(name, Path()))):
        raise Lacking(f"--verify needs the package {package}", install_command("verify"))


def export(
    source: Exportable,
    target: str,
    out: Path,
    report: Reporter,
    *,
    quantizations: Sequence[str] = ("f16",),
    overwrite: bool = False,
) -> list[verify.Artefact]:
    """Write ``out/TARGET``; returns the artefacts in it that can be verified.

    Raises:
        UserError: the target cannot represent the model, exists, or cannot be written.
    """
    folder = out / target
    for error in check_ready(source, [target], out, overwrite=overwrite).values():
        raise error
    with (
        files.readable_os_errors(f"export to {target}", folder),
        files.new_folder(folder, replace=overwrite) as fresh,
    ):
        names = _WRITERS[target](source, fresh, report, quantizations)
    return [verify.Artefact(target, folder / name, variant) for name, variant in names]


Written = list[tuple[str, str]]


def _hf(source: Exportable, folder: Path, report: Reporter, _: Sequence[str]) -> Written:
    from nanogpt_cli.interop import huggingface

    _say_what_transformers_reads_otherwise(source, report)
    huggingface.write(source, folder, report)
    card.write(source, folder)
    return [("", "")]


def _gguf(
    source: Exportable, folder: Path, report: Reporter, quantizations: Sequence[str]
) -> Written:
    from nanogpt_cli.interop import gguf

    for name in set(quantizations) & set(gguf.LOSSY):
        report(f"{name} is lossy and changes the model's output; q8_0 hardly does")
    if source.config.activation == "gelu":
        report("llama.cpp computes GELU by tanh, the model by erf: logits differ by about 0.01")
    report(
        f"llama.cpp: prompt and new text together hold at most {source.config.block_size} tokens "
        f"(-c {source.config.block_size}, and -n below that)"
    )
    return [(gguf.write(source, folder, report, name).name, name) for name in quantizations]


def _onnx(source: Exportable, folder: Path, report: Reporter, _: Sequence[str]) -> Written:
    from nanogpt_cli.interop import onnx

    _say_what_transformers_reads_otherwise(source, report)
    onnx.write(source, folder, report)
    return [("", "")]


def _say_what_transformers_reads_otherwise(source: Exportable, report: Reporter) -> None:
    reader = llama.tokenizer_class(source.config)
    if source.tokenizer is not None and reader != llama.AUTO_TOKENIZER:
        report(
            f"warning: load the tokenizer with transformers' {reader}; its AutoTokenizer splits "
            "words otherwise for every model of this type"
        )
    if source.tokenizer is not None and (tokens := card.written_otherwise(source.tokenizer)):
        report(
            f"warning: transformers decodes {tokens}; the ids are right, and nanogpt sample writes "
            "the tokens as they are"
        )


def _pt2(source: Exportable, folder: Path, report: Reporter, _: Sequence[str]) -> Written:
    from nanogpt_cli.interop import pt2

    return [(pt2.write(source, folder, report).name, "")]


def _nanogpt(source: Exportable, folder: Path, report: Reporter, _: Sequence[str]) -> Written:
    from nanogpt_cli.interop import nanogpt

    nanogpt.write(source, folder, report)
    return [("", "")]


_WRITERS: Final[dict[str, Callable[[Exportable, Path, Reporter, Sequence[str]], Written]]] = {
    "hf": _hf, "gguf": _gguf, "onnx": _onnx, "pt2": _pt2, "nanogpt": _nanogpt,
}  # fmt: skip


def verify_all(
    source: Exportable,
    artefacts: Sequence[verify.Artefact],
    report: Reporter,
    *,
    python: str = sys.executable,
    wanted: bool | None = None,
    on_check: Callable[[Check], None] = lambda _: None,
) -> list[Check]:
    """Verify artefacts; writes ``verify.json`` beside each and rewrites the model card.

    Args:
        source: the model they were made from.
        artefacts: from ``export``.
        report: receives a line per artefact.
        python: an interpreter that has the runtimes.
        wanted: True demands every runtime, None does without those that are missing, False runs
            nothing. What was not run has a check that says so.
        on_check: called with each check when it is done.

    Raises:
        UserError: a runtime is missing and ``wanted`` is true.
    """
    own = python == sys.executable
    reasons = {a: f"{package} is not installed" for a in artefacts
               if own and (package := verify.missing(a))}  # fmt: skip
    if wanted and reasons:
        raise UserError(f"not verified: {next(iter(reasons.values()))}", install_command("verify"))
    if wanted is False:
        reasons = dict.fromkeys(artefacts, "--no-verify was given")
    expected = None
    checks = []
    for artefact in artefacts:
        if artefact in reasons:
            checks.append(verify.not_run(artefact, reasons[artefact]))
        else:
            if expected is None:
                report("computing the expected results with the model itself")
                expected = verify.reference(source)
            report(f"running {artefact.path.name} in {artefact.runtime}")
            checks.append(verify.verify(source, expected, artefact, python=python))
        on_check(checks[-1])
    _record(source, artefacts, checks)
    return checks


def _record(
    source: Exportable, artefacts: Sequence[verify.Artefact], checks: Sequence[Check]
) -> None:
    """Write ``verify.json`` in every target's folder and all results in the model card."""
    for folder in {_folder_of(artefact) for artefact in artefacts}:
        own = [c for a, c in zip(artefacts, checks, strict=True) if _folder_of(a) == folder]
        with files.readable_os_errors("write verify.json", folder):
            files.write_json(folder / verify.FILE, verify.to_json(own))
            if own[0].target == "hf":
                card.write(source, folder, checks)


def _folder_of(artefact: verify.Artefact) -> Path:
    return artefact.path if artefact.path.is_dir() else artefact.path.parent
