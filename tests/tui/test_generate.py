"""A sample of a run that nobody trains any more, by the key that asks a trainer for one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from helpers import load, opened, press, screen
from recorded import write_run

from nanogpt_cli.model.gpt import GPT, GPTConfig
from nanogpt_cli.run.folder import RunFolder
from nanogpt_cli.text.tokenizers.tokenizer import CharTokenizer
from nanogpt_cli.tui import generate
from nanogpt_cli.tui.state.view import RunView

LETTERS = "\n !,.:ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz'"


def ended_run(folder: Path) -> RunFolder:
    from nanogpt_cli.training.checkpoints import checkpoint

    run = RunFolder(write_run(folder, steps=60, max_steps=60, ended="finished"))
    tokenizer = CharTokenizer(sorted(LETTERS))
    torch.manual_seed(0)
    model = GPT(GPTConfig(1, 1, 8, 16, tokenizer.vocab_size, 0.0, True, "gelu")).eval()
    checkpoint.save(run, model, {"step": 60}, tokenizer=tokenizer.to_json())
    return run


async def test_g_on_a_finished_run_writes_a_sample(tmp_path: Path) -> None:
    run = ended_run(tmp_path / "ended")
    async with opened(load(run.path)) as pilot:
        await press(pilot, "g", *"ROMEO", "enter")
        await pilot.app.workers.wait_for_complete()
        await press(pilot, "4")
        assert "ROMEO" in screen(pilot)
        assert "step 60" in screen(pilot)


async def test_g_without_a_checkpoint_says_that_nobody_answers(tmp_path: Path) -> None:
    write_run(tmp_path / "bare", steps=60, max_steps=60, ended="finished")
    async with opened(load(tmp_path / "bare")) as pilot:
        await press(pilot, "g")
        assert screen(pilot).splitlines()[-1].strip() == (
            "no trainer would answer: the run is finished"
        )


def test_a_command_that_cannot_start_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate.sys, "executable", str(tmp_path / "python"))
    found = generate.sample(RunFolder(tmp_path), RunView(), "")
    assert isinstance(found, str)
    assert "No such file" in found
