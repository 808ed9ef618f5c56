"""Recipes are strict and kind: every mistake is named with file, line and what to do."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nanogpt_cli import shell
from nanogpt_cli.cli import app
from nanogpt_cli.errors import UserError
from nanogpt_cli.recipe import Recipe, writing
from nanogpt_cli.recipe import files as recipe_files
from nanogpt_cli.recipe import problems as wrong


def write(folder: Path, text: str, name: str = "mine.toml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def problems(path: Path, sets: tuple[str, ...] = ()) -> str:
    with pytest.raises(UserError) as caught:
        recipe_files.load(path, sets)
    return str(caught.value)


def test_a_base_that_is_missing_is_refused_with_the_file_that_names_it(tmp_path: Path) -> None:
    found = problems(write(tmp_path, 'extends = "smal"\n'))
    assert "mine.toml: extends = 'smal': no recipe 'smal'" in found


@pytest.mark.parametrize("header", recipe_files.shipped(), ids=lambda header: header.name)
def test_every_shipped_recipe_loads_and_says_what_to_expect(header: recipe_files.Header) -> None:
    loaded = recipe_files.load(header.name)
    assert loaded.recipe.run.name == header.name
    for field in ("what", "machine", "minutes", "loss"):
        assert getattr(header, field), f"{header.path.name} does not say its {field}"


@pytest.mark.parametrize("header", recipe_files.shipped(), ids=lambda header: header.name)
def test_every_shipped_recipe_fills_its_steps_and_tiles_on_any_number_of_gpus(
    header: recipe_files.Header,
) -> None:
    """Ragged micro-batches and rows that are no multiple of 64 waste a GPU's time."""
    recipe = recipe_files.load(header.name).recipe
    for gpus in (1, 2, 4, 8):
        sequences = recipe.for_processes(gpus).tokens_per_step // recipe.model.block_size
        assert sequences % (gpus * recipe.train.batch_size) == 0, f"{gpus} GPUs"
    begins_with_gpt2s_weights = header.name == "shakespeare-bpe-finetune"
    assert begins_with_gpt2s_weights or recipe.model.vocab_size % 64 == 0


def test_resolved_recipe_reads_back_equal(tmp_path: Path) -> None:
    recipe = recipe_files.load("small", ["optim.lr=3e-4"]).recipe
    again = recipe_files.load_resolved(write(tmp_path, recipe_files.to_toml(recipe)))
    assert again == recipe


def test_all_mistakes_are_reported_at_once_with_their_lines(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "[model]\nn_layers = 4\nn_head = 5\nn_embd = 64\n\n[train]\nmax_steps = 'many'\n"
        "\n[optin]\nlr = 1e-3\n",
    )
    text = problems(path)
    assert "3 problems" in text or "4 problems" in text
    assert "line 2: unknown key model.n_layers; did you mean model.n_layer?" in text
    assert "line 7: train.max_steps = 'many'" in text
    assert "[optin]; did you mean [optim]?" in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[model]\nn_head = 5\nn_embd = 64\n", "line 2: n_head = 5 does not divide n_embd = 64"),
        (
            "[model]\nn_head = 4\nn_embd = 64\nn_kv_head = 3\n",
            "line 4: n_kv_head = 3 does not divide n_head = 4; n_kv_head = 2 would",
        ),
        (
            '[model]\nn_head = 4\nn_embd = 20\nposition = "rope"\n',
            'line 4: position = "rope" turns pairs of channels, and n_embd / n_head = 5 is odd',
        ),
        ("[train]\nbatch_size = 0\n", "line 2: train.batch_size = 0"),
        ("[optim]\nlr = 1e-4\nmin_lr = 1e-3\n", "min_lr = 0.001 is above lr = 0.0001"),
        ("[optim]\nwarmup_steps = 2000\n", "line 2: optim.warmup_steps = 2000 is longer than"),
        ("[train]\ntokens_per_step = 1000\n", "line 2: train.tokens_per_step = 1000 is not a mul"),
        ('[model]\ninit = "gpt3"\n', "model.init: "),
        ("[optim]\nlr = nan\n", "optim.lr"),
        ("[model]\nbias = 1\n", "line 2: model.bias = 1"),
        ("n_layer = 3\n", "unknown section [n_layer]; the key n_layer belongs in [model]"),
        ("model = 3\n", "model = 3"),
        ("[optim]\nbetas = [0.9]\n", "optim.betas"),
    ],
)
def test_each_kind_of_mistake(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in problems(write(tmp_path, text))


@pytest.mark.parametrize("text", ["[{}]\na = 1\n", "[model]\n{} = 1\n", "[run]\nmodel.{} = 1\n"])
def test_endless_names_are_shortened(tmp_path: Path, text: str) -> None:
    assert len(problems(write(tmp_path, text.format("x" * 5000)))) < 400


def test_a_run_of_another_version_is_recognised(tmp_path: Path) -> None:
    path = write(tmp_path, "[log]\ncolour = 3\n", "recipe.toml")
    assert "another version" not in problems(path)
    (tmp_path / "events.jsonl").touch()
    assert "line 2: unknown key log.colour" in problems(path)
    assert "another version of nanogpt-cli made this run" in problems(path)


def test_syntax_errors_name_the_line(tmp_path: Path) -> None:
    text = problems(write(tmp_path, "[model]\nn_layer = = 3\n"))
    assert "mine.toml is not valid TOML" in text
    assert "line 2" in text


def test_files_that_are_not_text(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(b"[model]\n\xff\xfe")
    assert "not UTF-8" in problems(path)
    assert "is a folder" in problems(tmp_path)
    (tmp_path / "recipe.toml").write_text("")
    assert str(tmp_path / "recipe.toml") in problems(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.txt", b"to be or not to be\n"),
        ("chats.csv", "Frage;Antwort\r\n".encode("utf-16")),
        ("chats.jsonl", b'{"text": "to be"}\n'),
        ("latin.md", b"\xc4pfel\n"),
        ("long.txt", b"to be or not to be\n" * 5000),
    ],
)
def test_a_text_in_place_of_a_recipe_is_told_how_to_train_on_it(
    tmp_path: Path, name: str, content: bytes
) -> None:
    path = tmp_path / "my texts" / name
    path.parent.mkdir()
    path.write_bytes(content)
    assert f"`{shell.command('recipe', 'new', '--data', path)}`" in problems(path)


def test_unknown_recipe_names_the_nearest_shipped_one() -> None:
    text = problems(Path("smal"))
    assert "did you mean the shipped recipe: small?" in text


def test_extends_inherits_and_the_nearer_file_wins(tmp_path: Path) -> None:
    write(tmp_path, "[model]\nn_layer = 3\nn_head = 2\nn_embd = 8\n", "base.toml")
    path = write(tmp_path, 'extends = "base.toml"\n[model]\nn_layer = 5\n')
    loaded = recipe_files.load(path)
    assert (loaded.recipe.model.n_layer, loaded.recipe.model.n_embd) == (5, 8)
    assert loaded.origins["model.n_layer"] == f"{path}:3"
    assert loaded.origins["model.n_embd"].endswith("base.toml:4")
    assert loaded.recipe.run.name == "mine"


def test_extends_may_name_a_shipped_recipe_and_blames_the_right_file(tmp_path: Path) -> None:
    path = write(tmp_path, 'extends = "small"\n[model]\nn_embd = 130\n')
    assert "does not divide n_embd = 130" in problems(path)
    assert recipe_files.load(write(tmp_path, 'extends = "small"\n')).recipe.model.n_layer == 4


def test_extends_in_a_circle_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 'extends = "b.toml"\n', "a.toml")
    write(tmp_path, 'extends = "a.toml"\n', "b.toml")
    assert "circle: a.toml -> b.toml -> a.toml" in problems(tmp_path / "a.toml")


def test_set_overrides_any_key_with_toml_values_or_bare_words(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    sets = ["optim.lr=3e-4", "model.bias=true", "data.name=plays", "optim.betas=[0.8, 0.9]"]
    loaded = recipe_files.load(path, sets)
    recipe = loaded.recipe
    assert (recipe.optim.lr, recipe.model.bias, recipe.data.name) == (3e-4, True, "plays")
    assert recipe.optim.betas == (0.8, 0.9)
    assert loaded.origins["optim.lr"] == "--set"


def test_set_finds_the_only_section_that_has_a_key(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    loaded = recipe_files.load(path, ["train.lr=3e-4", "n_layer=2"])
    assert (loaded.recipe.optim.lr, loaded.recipe.model.n_layer) == (3e-4, 2)
    assert loaded.notes == ("--set train.lr: the key is optim.lr",)


def test_set_mistakes(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    assert "has no value" in problems(path, ("optim.lr",))
    assert "did you mean train.max_steps?" in problems(path, ("train.max_step=3",))
    assert "--set: optim.lr = 'fast'" in problems(path, ("optim.lr=fast",))
    assert "did you mean model.n_layer?" in problems(path, ("n_layers=3",))


def test_integers_are_taken_for_floats_but_not_the_reverse(tmp_path: Path) -> None:
    assert recipe_files.load(write(tmp_path, "[optim]\nlr = 1\n")).recipe.optim.lr == 1.0
    assert "train.max_steps = 1.5" in problems(write(tmp_path, "[train]\nmax_steps = 1.5\n"))


def test_every_key_is_described() -> None:
    for section, names in wrong.keys().items():
        model = Recipe.model_fields[section].annotation
        for name in names:
            assert model.model_fields[name].description, f"{section}.{name}"  # type: ignore[union-attr]


def test_the_names_others_rely_on_are_there() -> None:
    wanted = {
        "run": "name seed",
        "data": "name tokenizer val_fraction order",
        "model": "n_layer n_head n_embd block_size vocab_size dropout bias activation init",
        "train": "max_steps batch_size tokens_per_step eval_every checkpoint_every keep precision "
        "compile device parallel on_nonfinite",
        "optim": "name lr min_lr weight_decay betas schedule warmup_steps grad_clip",
        "stats": "every budget",
        "sample": "every prompt",
        "log": "sinks",
    }
    known = wrong.keys()
    for section, names in wanted.items():
        assert set(names.split()) <= set(known[section])


def test_habits_from_elsewhere_name_keys_that_exist() -> None:
    known = {f"{section}.{key}" for section, names in wrong.keys().items() for key in names}
    assert set(wrong._FOREIGN_NAMES.values()) <= known
    assert wrong.nearest_key("max_iters") == "train.max_steps"
    assert wrong.nearest_key("train.lr") == "optim.lr"
    assert wrong.nearest_key("qqqq") == ""


def test_the_schema_beside_the_recipes_is_the_generated_one() -> None:
    stored = json.loads(writing.schema_file().read_text(encoding="utf-8"))
    assert stored == writing.schema(), "nanogpt recipe schema > recipes/recipe.schema.json"
    assert set(stored["properties"]) == {"extends", *Recipe.model_fields}
    for header in recipe_files.shipped():
        first = header.path.read_text(encoding="utf-8").splitlines()[0]
        assert first == f"#:schema {writing.schema_file().name}"


def new(*arguments: str, answers: str | None = None) -> str:
    """What ``recipe new`` says; the answers are typed on a terminal when there are any."""
    terminal = pytest.MonkeyPatch()
    runner = CliRunner()
    with terminal.context() as patch:
        if answers is not None:
            patch.setattr("nanogpt_cli.cli.recipe_write._on_terminal", lambda: True)
        result = runner.invoke(app, ["recipe", "new", *arguments], input=answers)
    return str(result.exception) if isinstance(result.exception, UserError) else result.output


def test_new_writes_what_differs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("some text", encoding="utf-8")
    said = new("mine", "--data", "notes.txt", "--steps", "50", "--set", "optim.lr=1e-3")
    assert "wrote mine.toml" in said
    assert "next: nanogpt train mine.toml" in said
    text = Path("mine.toml").read_text(encoding="utf-8")
    assert text.startswith(f"#:schema {writing.schema_file()}\n# what:    notes.txt\n")
    assert tomllib.loads(text) == {
        "extends": "small",
        "data": {"name": "notes.txt"},
        "train": {"max_steps": 50},
        "optim": {"lr": 1e-3},
        "sample": {"prompt": "some text"},
    }
    assert recipe_files.load("mine.toml").recipe.model.n_layer == 4
    assert "exists already" in new("mine")
    Path("sub").mkdir()
    new("other", "--extends", "mine.toml", "--out", "sub/other.toml", "--steps", "60")
    found = recipe_files.load("sub/other.toml").recipe
    assert (found.data.name, found.train.max_steps, found.run.name) == ("notes.txt", 60, "other")


def test_new_asks_on_a_terminal_until_the_answer_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = new(answers="smal\ndebug\nno-such-text\nplays\nbpe:many\nbyte\nnone\n\na/b\nmein Rüde\n")
    assert "did you mean the shipped recipe: small?" in said
    assert "'none' is not a number of steps" in said
    assert "not usable as a folder name" in said
    found = recipe_files.load("mein Rüde.toml")
    assert (found.recipe.data.name, found.recipe.data.tokenizer) == ("plays", "byte")
    assert found.recipe.train.max_steps == recipe_files.load("debug").recipe.train.max_steps


def test_new_shortens_the_warmup_of_a_short_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    new("mine", "--steps", "5")
    assert recipe_files.load("mine.toml").recipe.optim.warmup_steps == 0


@pytest.mark.parametrize(
    ("content", "said"), [(b"", "the file is empty"), (b"\x89PNG\r\n\x1a\n00", "is a picture")]
)
def test_new_refuses_a_file_without_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_bytes(content)
    assert said in new("mine", "--data", "notes.txt")
    assert not Path("mine.toml").exists()


def test_new_refuses_what_would_not_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = new("mine", "--steps", "5", "--set", "optim.warmup_steps=10")
    assert "longer than train.max_steps = 5; set optim.warmup_steps = 0" in said
    assert "tokenizer" in new("mine", "--tokenizer", "chars")
    assert list(tmp_path.iterdir()) == []


def test_every_option_of_prepare_is_a_key_of_data() -> None:
    from dataclasses import fields

    from nanogpt_cli.text.request import Request, of_recipe

    data = Recipe().data.model_dump()
    options = {field.name for field in fields(Request)} - {"inputs"}
    assert options == set(data) - {"name", "order"}
    asked = of_recipe(data)
    assert asked == Request(("shakespeare",), tokenizer="char")  # with the same defaults
    assert of_recipe(data | {"name": ["a", "b"], "glob": "*.py", "limit": 3}) == Request(
        ("a", "b"), tokenizer="char", glob="*.py", limit=3
    )


def test_prepare_has_an_option_for_every_key_of_data() -> None:
    import inspect

    from nanogpt_cli.cli.prepare import prepare

    options = set(inspect.signature(prepare).parameters)
    assert set(Recipe().data.model_dump()) - {"name", "order"} <= options


def test_a_recipe_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    text = "# what:    mine\n[optim]\nlr = 1e-4\nmin_lr = 1e-3\n"
    for encoding in ("utf-8-sig", "utf-16"):
        path = tmp_path / f"{encoding}.toml"
        path.write_bytes(text.encode(encoding))
        assert recipe_files.read_header(path).what == "mine"
        assert "line 4: " in problems(path, ("optim.name=adam",)) or "min_lr" in problems(path)
        assert recipe_files.load(path, ["optim.min_lr=0"]).recipe.optim.lr == 1e-4


def test_lines_are_counted_as_editors_count_them(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[run]\nname = "a\u2028b\x85c"\n[optim]\nwarmup_steps = 2000\n', "utf-8")
    assert "line 4: optim.warmup_steps" in problems(path)


def test_a_dotted_key_below_a_table_is_told_where_it_belongs(tmp_path: Path) -> None:
    path = write(tmp_path, "[train]\nmax_steps = 3\noptim.lr = 1e-3\n")
    said = problems(path)
    assert "line 3: optim.lr stands in [train]" in said
    assert "write lr below [optim]" in said
    assert "parts" not in said
    assert "[train]" in problems(write(tmp_path, "[train.optim]\nlr = 1\n"))
    loaded = recipe_files.load(write(tmp_path, "optim.lr = 3e-4\n"), ["train.optim.eps=1e-7"])
    assert (loaded.recipe.optim.lr, loaded.recipe.optim.eps) == (3e-4, 1e-7)


def test_a_table_init_chooses_itself(tmp_path: Path) -> None:
    own = '[init]\nfc = "uniform(0.05)"\n[init.multipliers]\nresidual = "1/L"\n'
    path = write(tmp_path, own)
    loaded = recipe_files.load(path)
    assert loaded.recipe.model.init == "custom"
    assert loaded.origins["model.init"] == loaded.origins["init"] == f"{path}:1"
    assert (
        recipe_files.load_resolved(
            write(tmp_path, recipe_files.to_toml(loaded.recipe), "again.toml")
        )
        == loaded.recipe
    )
    both = write(tmp_path, f'[model]\ninit = "normal"\n{own}', "both.toml")
    assert "model.init = 'normal' does not use the table [init]" in problems(both)
    # A nearer file or an override replaces the scheme, and says so.
    near = write(tmp_path, 'extends = "mine.toml"\n[model]\ninit = "normal"\n', "near.toml")
    for found in (recipe_files.load(near), recipe_files.load(path, ["model.init=normal"])):
        assert (found.recipe.model.init, found.recipe.init) == ("normal", {})
        assert found.notes == (f"model.init = 'normal' replaces the table [init] of {path}:1",)
    # And the other way round.
    back = recipe_files.load(write(tmp_path, f'extends = "near.toml"\n{own}', "back.toml"))
    assert back.recipe.init == loaded.recipe.init
    given = recipe_files.load(near, ["init.multipliers.residual=1/L"]).recipe
    assert (given.model.init, given.init) == ("custom", {"multipliers": {"residual": "1/L"}})


def test_show_lists_the_table_init(tmp_path: Path) -> None:
    path = write(tmp_path, '[init]\nfc = "uniform(0.05)"\n')
    shown = CliRunner().invoke(app, ["recipe", "show", str(path), "--json"]).stdout
    values = json.loads(shown)["values"]
    assert values["init.fc"] == {"value": "uniform(0.05)", "from": f"{path}:1"}
    assert values["model.init"] == {"value": "custom", "from": f"{path}:1"}


def test_one_parser_reads_every_override() -> None:
    values = recipe_files.overridden({"model": {"n_layer": 2}}, ["n_embd=64", "data.name=a b"])
    assert values == {"model": {"n_layer": 2, "n_embd": 64}, "data": {"name": "a b"}}


def test_new_takes_the_options_with_which_the_text_was_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nanogpt_cli.text import prepare

    monkeypatch.chdir(tmp_path)
    path = Path("chat log.csv")
    path.write_text("id,body\n" + "".join(f"{i},message {i}\n" for i in range(60)))
    request = prepare.Request((str(path),), tokenizer="byte", text_field="body")
    made = prepare.prepare(request).folder
    said = new("chat", "--data", "chat log.csv", "--yes")
    assert f"as in {made}" in said
    assert tomllib.loads(Path("chat.toml").read_text())["data"] == {
        "name": "chat log.csv", "tokenizer": "byte", "text_field": "body",
    }  # fmt: skip
    asked = recipe_files.load("chat.toml").recipe.data.model_dump()
    assert prepare.ensure(asked, report=pytest.fail) == made
    # The prepared set itself will do as well, and its tokenizer is known.
    new("other", "--data", str(made), "--yes")
    data = tomllib.loads(Path("other.toml").read_text())["data"]
    assert data == {"name": str(made), "tokenizer": "byte"}
    assert "next: nanogpt train 'my chat.toml'" in new(
        "--data", str(made), "--out", "my chat.toml", "--yes"
    )


def test_a_key_of_several_types_has_one_problem(tmp_path: Path) -> None:
    text = problems(write(tmp_path, "[model]\nbias = 'k'\n"))
    assert "has a problem" in text
    assert "line 2: model.bias = 'k': input should be a valid boolean or 'qkv'" in text


@pytest.mark.parametrize("text", ["norm_eps=1e-300", "norm_eps=2", "rope_theta=1e308"])
def test_numbers_that_float32_does_not_hold_are_refused(text: str) -> None:
    with pytest.raises(UserError, match=text.partition("=")[0]):
        recipe_files.load("modern", [f"model.{text}"])
