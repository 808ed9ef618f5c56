"""A token file's sha256, kept while it is written, is that of the file on disk."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from nanogpt_cli.text import token_file
from nanogpt_cli.text.token_file import TokenFile

ARRAYS = [np.arange(size, dtype="<u2") for size in (3, 0, 500, 1, 77, 1000)]


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TokenFile:
    monkeypatch.setattr(token_file, "_MARK", 256)
    file = TokenFile(tmp_path / "a.bin")
    for array in ARRAYS:
        file.write(array)
    file.close()
    return file


def test_the_hash_is_that_of_the_file(written: TokenFile) -> None:
    data = written.path.read_bytes()
    assert data == b"".join(array.tobytes() for array in ARRAYS)
    assert written.sha256() == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("kept", [0, 1, 255, 1006, 1500, 3162])
def test_an_edited_end_is_hashed_again(written: TokenFile, kept: int) -> None:
    data = written.path.read_bytes()
    assert kept <= len(data)
    written.path.write_bytes(data[:kept] + b"other end")
    assert written.sha256(kept) == hashlib.sha256(written.path.read_bytes()).hexdigest()


def test_what_the_disk_refuses_is_raised(tmp_path: Path) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    file = TokenFile(full)
    file.write(np.zeros(1 << 20, dtype="<u2"))
    with pytest.raises(OSError, match="No space"):
        file.close()
    file.abandon()
