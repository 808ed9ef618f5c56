"""Where things are stored: the cache, prepared data, runs."""

from __future__ import annotations

import os
from pathlib import Path

from nanogpt_cli.user_input import expanded

RUNS = Path("runs")
DATA = Path("data")


def cache_home() -> Path:
    """The cache folder: ``NANOGPT_HOME`` when set, else the user cache folder of the platform."""
    home = os.environ.get("NANOGPT_HOME")
    if home:
        return expanded(home)
    import platformdirs

    return Path(platformdirs.user_cache_dir("nanogpt-cli", appauthor=False))


def nearest_existing(path: Path) -> Path:
    """``path`` or the nearest folder above it that exists and is accessible."""
    found = (place for place in (path, *path.parents) if os.access(place, os.F_OK))
    return next(found, Path(path.anchor or os.curdir))


def shipped_recipes() -> Path:
    """The folder of shipped recipes: inside the package, or beside it in a source checkout."""
    package = Path(__file__).parent
    inside = package / "recipes"
    return inside if inside.is_dir() else package.parent / "recipes"


def docs_folder() -> Path:
    """The folder of the manual's pages, each named ``TOPIC.md``."""
    return Path(__file__).parent / "docs"


def assets_folder() -> Path:
    """Downloaded or rebuilt files, each verified by its sha256."""
    return cache_home() / "assets"


def mirrors_folder() -> Path:
    """Copies of run folders that lie on other machines, see ``run/remote``."""
    return cache_home() / "mirrors"


def compiled_folder() -> Path:
    """Where ``torch.compile`` caches its output; ``TORCHINDUCTOR_CACHE_DIR`` takes precedence."""
    return Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", cache_home() / "compiled"))


def data_folder(name: str, tokenizer: str) -> Path:
    """Where the prepared set ``NAME-TOKENIZER`` is or will be stored.

    ``./data/NAME-TOKENIZER`` when that exists, else the same folder name in the cache. A colon in
    a tokenizer's name (``bpe:4096``) becomes a dash, since not every file system takes it.
    """
    folder = f"{name}-{tokenizer}".replace(":", "-").replace("/", "-")
    local = DATA / folder
    return local if local.is_dir() else cache_home() / "data" / folder
