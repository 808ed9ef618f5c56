"""Targets by name, folders whole or absent, the model card."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from tiny import exportable, make_run, quiet

from nanogpt_cli.errors import UserError
from nanogpt_cli.interop import card, exporting, source
from nanogpt_cli.interop.compare import Check
from nanogpt_cli.run import events
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.run.log import EventWriter


def test_targets_are_parsed_and_misspellings_answered() -> None:
    assert exporting.parse_targets("hf, gguf,hf") == ["hf", "gguf"]
    with pytest.raises(UserError, match="'gguf'"):
        exporting.parse_targets("ggufs")
    with pytest.raises(UserError, match="no target"):
        exporting.parse_targets(" , ")


def test_existing_artefact_is_never_overwritten_unasked(tmp_path: Path) -> None:
    exporting.export(exportable(), "hf", tmp_path, quiet)
    before = (tmp_path / "hf" / "model.safetensors").read_bytes()
    other = exportable(n_layer=1)
    with pytest.raises(UserError, match="exists") as refused:
        exporting.export(other, "hf", tmp_path, quiet)
    assert "--overwrite" in refused.value.hint
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == before
    exporting.export(other, "hf", tmp_path, quiet, overwrite=True)
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() != before


def test_failed_export_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        exporting.export(exportable(activation="swiglu"), "hf", tmp_path, quiet)
    assert list(tmp_path.iterdir()) == []


def test_missing_package_is_named_with_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(exporting.TARGETS, "gguf", exporting.Target("", ("no_such_lib",), "gguf"))
    with pytest.raises(UserError, match="no_such_lib") as refused:
        exporting.export(exportable(), "gguf", tmp_path, quiet)
    assert "nanogpt-cli[gguf]" in refused.value.hint
    with pytest.raises(UserError, match="'relu2'"):  # which no package would change
        exporting.export(exportable(activation="relu2"), "gguf", tmp_path, quiet)
    assert list(tmp_path.iterdir()) == []


def logged_run(path: Path) -> RunFolder:
    run = make_run(path)
    with EventWriter(run.events) as write:
        write(events.RunStarted(name="tiny"))
        for step in range(1, 10):
            loss = 4.0 - step / 10
            write(events.Step(step=step, loss=loss, lr=1.0, grad_norm=1.0, tokens=1,
                              tokens_per_s=1.0))  # fmt: skip
        write(events.RunStarted(name="tiny", step=5))  # resumed: 6 to 9 are void
        write(events.Step(step=6, loss=float("nan"), lr=1.0, grad_norm=1.0, tokens=1,
                          tokens_per_s=1.0))  # fmt: skip
        write(events.Eval(step=7, val_loss=3.25))
    return run


def test_card_has_curves_of_the_steps_that_count(tmp_path: Path) -> None:
    found = source.from_run(logged_run(tmp_path / "runs" / "tiny"))
    curves = card._curves(found)
    assert [step for step, _ in curves["train"]] == [1, 2, 3, 4, 5, 6]
    assert curves["validation"] == [(7, 3.25)]
    card.write(found, tmp_path)
    drawing = ElementTree.fromstring((tmp_path / "curves.svg").read_text())
    paths = [e.attrib["d"] for e in drawing.iter() if e.attrib.get("stroke-width") == "1.6"]
    lengths = [path.count(",") for path in paths if path.count(",") != 3]  # 3: signs of the legend
    assert lengths == [5, 1]  # NaN is left out
    text = (tmp_path / "README.md").read_text()
    assert "curves.svg" in text or "recipe" not in found.state


def test_long_runs_are_drawn_with_few_points() -> None:
    assert len(card._thinned([(step, 1.0) for step in range(100_000)])) <= 600


def test_card_shows_what_was_measured(tmp_path: Path) -> None:
    facts = {
        "max_abs_diff": 1.5e-6, "argmax_agreement": 0.9991, "positions": 1088, "greedy_equal": 4,
        "greedy_texts": 4, "tokenizer_characters": 1000, "tokenizer_same_ids": True,
        "tokenizer_text_equal": False, "loss_difference": -2e-7,
    }  # fmt: skip
    checks = [
        Check("hf", "", "hf", "transformers 5", True, [], facts),
        Check("gguf", "f16", "x.gguf", "xllamacpp", None, ["not verified"]),
    ]
    card.write(exportable(), tmp_path, checks)
    text = (tmp_path / "README.md").read_text()
    assert "1.5e-06" in text
    assert "99.91% of 1,088" in text
    assert "1,000 characters DIFFER" in text
    assert "not run" in text
    assert text.startswith("---\n")
