"""`--help`: verbs in groups, brackets in help texts, and examples that work when pasted."""

import shlex

import pytest
from typer.main import get_command

from vistill.cli.main import app, entry

COMMAND = get_command(app)
#: Verbs whose examples take less than a second and need no run folder.
FAST = {"init", "explain", "doctor"}


def examples_of(command):
    """The example commands of a help text, as a user would paste them."""
    title, *lines = (command.epilog or "").split("\n\n")
    assert title in ("Example:", "Examples:")
    return [line.replace(r"\[", "[") for line in lines]


EXAMPLES = [
    (verb, line) for verb in COMMAND.commands for line in examples_of(COMMAND.commands[verb])
]


def run_verb(words):
    with pytest.raises(SystemExit) as stop:
        entry(words)
    return stop.value.code


def test_every_verb_has_a_group_and_an_example(capsys):
    panels = {verb: command.rich_help_panel for verb, command in COMMAND.commands.items()}
    assert all(isinstance(panel, str) for panel in panels.values()), panels
    assert {verb for verb, _ in EXAMPLES} == set(COMMAND.commands)
    assert run_verb(["--help"]) == 0
    shown = capsys.readouterr().out
    places = [shown.index(f"─ {panel}") for panel in dict.fromkeys(panels.values())]
    assert places == sorted(places)


@pytest.mark.parametrize(("verb", "line"), EXAMPLES)
def test_an_example_parses(verb, line):
    program, name, *words = shlex.split(line)
    assert (program, name) == ("vistill", verb)
    COMMAND.commands[verb].make_context(verb, words)


@pytest.mark.parametrize(
    "line", [line for verb, line in EXAMPLES if verb in ("train", "check", "methods")]
)
def test_the_recipe_and_the_settings_of_an_example_load(line, monkeypatch, tmp_path):
    from vistill.config import load_stages

    monkeypatch.chdir(tmp_path)
    _, verb, *words = shlex.split(line)
    settings = [word for word in words if "=" in word]
    recipe = "every_method.yaml" if verb == "methods" else words[0]
    stages = load_stages(recipe, settings)
    if "--stage" in words:
        assert words[words.index("--stage") + 1] in stages


@pytest.mark.parametrize(
    "line", [line for verb, line in EXAMPLES if verb in FAST or line.endswith("--fast")]
)
def test_a_fast_example_runs(line, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_verb(shlex.split(line)[1:]) == 0, capsys.readouterr().err


def test_the_examples_of_the_main_help_exist():
    for line in examples_of(COMMAND):
        _, verb, *_ = shlex.split(line)
        assert verb in COMMAND.commands


def test_help_shows_words_in_brackets(monkeypatch, capsys):
    """rich read `[split]` as markup, so the help did not show it."""
    monkeypatch.setenv("COLUMNS", "120")
    assert run_verb(["init", "--help"]) == 0
    assert "hf:owner/name[split]" in capsys.readouterr().out


@pytest.mark.parametrize("verb", sorted(COMMAND.commands))
def test_no_help_text_loses_words_to_markup(verb):
    from rich.text import Text

    command = COMMAND.commands[verb]
    texts = [command.help, command.epilog, *(getattr(p, "help", None) for p in command.params)]
    for text in filter(None, texts):
        assert Text.from_markup(text).plain == text.replace(r"\[", "[")


def test_the_help_of_selftest_says_how_many_trials_it_runs(capsys):
    import pytest

    from vistill.cli.main import entry

    with pytest.raises(SystemExit):
        entry(["selftest", "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "N kills at random instants and N signals in phases" in text
