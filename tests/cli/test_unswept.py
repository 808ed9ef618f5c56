from __future__ import annotations

import gc

import pytest

from nanogpt_cli.cli.unswept import unswept


def test_nothing_is_swept_inside_and_the_collector_is_as_before_behind() -> None:
    kept = gc.get_freeze_count()
    with unswept():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > kept


def test_a_collector_that_was_off_stays_off_also_after_an_error() -> None:
    gc.disable()
    try:
        with pytest.raises(KeyError), unswept():
            raise KeyError
        assert not gc.isenabled()
    finally:
        gc.enable()
