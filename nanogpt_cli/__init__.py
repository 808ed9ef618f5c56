"""nanogpt-cli: understand, train, watch, sample and export GPT-2-style language models.

From Python, ``import nanogpt_cli as ng`` offers the functions of ``nanogpt_cli.api``; they are
imported when first used, so that importing the package costs nothing.
"""

from typing import TYPE_CHECKING, Any

from nanogpt_cli.version import __version__ as __version__

if TYPE_CHECKING:
    from nanogpt_cli.api import Event as Event
    from nanogpt_cli.api import Recipe as Recipe
    from nanogpt_cli.api import Report as Report
    from nanogpt_cli.api import Sampling as Sampling
    from nanogpt_cli.api import UserError as UserError
    from nanogpt_cli.api import Watch as Watch
    from nanogpt_cli.api import inspect as inspect
    from nanogpt_cli.api import load_model as load_model
    from nanogpt_cli.api import load_recipe as load_recipe
    from nanogpt_cli.api import prepare as prepare
    from nanogpt_cli.api import sample as sample
    from nanogpt_cli.api import train as train
    from nanogpt_cli.api import trainer_callback as trainer_callback


# Named here so that looking for a submodule imports nothing; a test compares it with the API's own.
_API = {
    "Event", "Recipe", "Report", "Sampling", "UserError", "Watch", "inspect", "load_model",
    "load_recipe", "prepare", "sample", "train", "trainer_callback",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _API:
        from nanogpt_cli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_API})
