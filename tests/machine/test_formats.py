"""Full float32 within a program that allows less."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nanogpt_cli.machine.formats import full_float32


@pytest.fixture(autouse=True)
def precision_is_restored() -> Iterator[None]:
    yield
    torch.set_float32_matmul_precision("highest")


def allowed() -> tuple[str, str]:
    """What each backend may do."""
    return (
        torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision
    )  # fmt: skip


@pytest.mark.parametrize("one_setting", [True, False])
def test_less_is_allowed_again_afterwards_however_it_was_set(one_setting: bool) -> None:
    if one_setting:
        torch.set_float32_matmul_precision("high")
    else:
        torch.backends.cuda.matmul.fp32_precision = "tf32"
    before = allowed()
    assert before[0] == "tf32"
    seen: list[object] = []

    @full_float32()
    def work() -> None:
        seen.extend([allowed(), torch.get_float32_matmul_precision()])
        raise ValueError("of the work")

    with pytest.raises(ValueError, match="of the work"):
        work()
    assert seen == [("ieee", "ieee"), "highest"]
    assert allowed() == before
    if one_setting:
        assert torch.get_float32_matmul_precision() == "high"
