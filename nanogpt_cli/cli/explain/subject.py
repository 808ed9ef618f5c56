"""The model that ``nanogpt explain`` is asked about, from its configuration alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanogpt_cli.cli.init_inspect.subject import DEFAULT_VOCABULARY, recipe_of
from nanogpt_cli.errors import UserError, nearest

if TYPE_CHECKING:
    from nanogpt_cli.explain.values import Model, Shape
    from nanogpt_cli.recipe.sections import Recipe


def shape(recipe: str, origin: str, sets: Sequence[str], given: dict[str, Any]) -> Shape:
    """The model that the command line names: a recipe, a run, a folder, or GPT-2 with changes.

    Raises:
        UserError: two are named, or a value is wrong.
    """
    from nanogpt_cli.explain.values import Shape

    sizes = {key: value for key, value in given.items() if value is not None}
    if origin and (recipe or sets or "n_layer" in sizes or "n_embd" in sizes):
        raise UserError(
            "--from defines the model itself", "of the model options it allows only --init"
        )
    if init := sizes.get("init"):
        _check_scheme(init)
    if origin:
        return Shape(given=_stored(origin, init or ""))
    if not recipe and not sets:
        recipe_of("", "", [], sizes | {"n_head": 1, "init": "gpt2"})  # within a recipe's limits
        sizes.setdefault("n_layer", 12)
        return Shape(**sizes)
    found, label = recipe_of(recipe, "", sets, sizes)
    return Shape(given=_of_recipe(found, label))


def _check_scheme(name: str) -> None:
    from nanogpt_cli import schemes

    try:
        schemes.get(name)
    except UserError as error:
        close = nearest(name, schemes.names())
        hint = f"did you mean {close}?" if close else "nanogpt init-inspect --list shows all"
        raise UserError(f"--init: there is no scheme {name!r}", hint) from error


def _of_recipe(recipe: Recipe, label: str) -> Model:
    from nanogpt_cli import schemes
    from nanogpt_cli.explain.values import Model
    from nanogpt_cli.model.config import GPTConfig

    section = recipe.model.model_dump()
    scheme = section.pop("init")
    section["vocab_size"] = section["vocab_size"] or _vocabulary(recipe)
    chosen = schemes.parse_custom(recipe.init) if scheme == "custom" else schemes.get(scheme)
    return Model(GPTConfig(**section), chosen, label, recipe.optim, recipe.train.max_steps)


def _vocabulary(recipe: Recipe) -> int:
    """Tokens of the data if they are prepared, else GPT-2's: nothing is fetched to explain."""
    from nanogpt_cli.text import prepare, tokens

    try:
        folder = prepare.ready(recipe.data.model_dump())
        return tokens.read_manifest(folder).vocab_size if folder else DEFAULT_VOCABULARY
    except UserError:
        return DEFAULT_VOCABULARY


def _stored(origin: str, init: str) -> Model:
    from nanogpt_cli import foreign_files, schemes
    from nanogpt_cli.explain.values import Model
    from nanogpt_cli.interop import hf_config, llama_config
    from nanogpt_cli.run.folder import find_run, list_runs

    path = Path(origin)
    path = path.parent if path.name == "config.json" else path
    file = path / "config.json"
    if not foreign_files.present(file):
        try:
            run = find_run(origin)
        except UserError as error:
            if list_runs():
                raise  # its hint names them
            kinds = "the name or folder of a run, or a Hugging Face folder with a config.json"
            raise UserError(f"--from: {error.message}", f"name {kinds}") from error
        found, _ = recipe_of(str(run.path / "recipe.toml"), "", [], {"init": init or None})
        return _of_recipe(found, f"run {run.name}")
    values = foreign_files.read_object(file)
    gpt2 = hf_config.model_type(file, values) == "gpt2"
    config = (hf_config if gpt2 else llama_config).read(file, values, [])
    return Model(config, schemes.get(init or "gpt2"), path.name)
