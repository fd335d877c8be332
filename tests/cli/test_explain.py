"""`vistill explain`: every code has a long form.

No text names a command, a key or an option that does not exist.
"""

import ast
import json
import re

import pytest
from conftest import REPO
from typer.main import get_command

from vistill.cli.explain import explain_word, long_forms
from vistill.cli.glossary import terms
from vistill.cli.main import app, entry
from vistill.config import Recipe, all_keys, method_schemas
from vistill.errors import CATALOGUE, ConfigError, VistillError
from vistill.runs.recipe_changes import flatten
from vistill.schema import NAMED_GROUPS, key_info

KINDS = {kind.__name__ for kind in [VistillError, *VistillError.__subclasses__()]}


def recipe_keys():
    """Every dotted key of a recipe, and every group."""
    from vistill.config import ModelSettings

    plain = Recipe("x", ModelSettings(), "sft").to_dict()
    keys = set(flatten(plain)) | {
        f"{m}.{k}" for m, s in method_schemas().items() for k in s["properties"]
    }
    return keys | {".".join(key.split(".")[:n]) for key in keys for n in (1, 2)} | {*NAMED_GROUPS}


def python_arguments():
    """Keyword arguments of the Python functions that fixes name."""
    import inspect

    from vistill.api import distill
    from vistill.studies.replay import replay

    return {
        name for function in (distill, replay) for name in inspect.signature(function).parameters
    }


KEYS = recipe_keys() | python_arguments()


def wrong_names(text):
    """Commands, options and keys of a text that do not exist."""
    commands = get_command(app).commands
    wrong = []
    for verb, rest in re.findall(r"(?:^|`|: |   )vistill ([a-z]+)\b([^`\n]*)", text, re.MULTILINE):
        if verb not in commands:
            wrong.append(f"vistill {verb}")
            continue
        options = {o for p in commands[verb].params for o in p.opts} | {"--help"}
        wrong += [
            f"vistill {verb} {o}" for o in re.findall(r"(--[a-z-]+)", rest) if o not in options
        ]
    for key in re.findall(r"(?<![\w./-])([a-z_]+(?:\.[a-z_]+)*)=(?!=)", text):
        if (
            key not in KEYS
            and not key_info(all_keys(), key)  # below a free name, such as teachers.math.rows
            and not key.startswith("stages.")
            and key not in {"key", "prompt", "pattern"}
        ):
            wrong.append(f"{key}=")
    return wrong


def test_every_code_has_a_long_form_of_substance():
    assert set(long_forms()) == set(CATALOGUE)
    for code, parts in long_forms().items():
        labels = [label for label, _ in parts]
        assert labels[0] == ""
        assert list(dict.fromkeys(labels[1:])) == ["how", "why", "fix", "see"], code
        by_label = {
            label: " ".join(text for other, text in parts if other == label) for label in labels
        }
        assert all(len(by_label[label]) >= 25 for label in ("how", "why", "fix")), code
        assert explain_word(code).startswith(f"{code}: {CATALOGUE[code]}\n")
        assert max(map(len, explain_word(code).splitlines()[1:])) <= 100, code


@pytest.mark.parametrize("code", list(CATALOGUE))
def test_a_long_form_names_nothing_that_does_not_exist(code):
    parts = dict(long_forms()[code])
    text = "\n".join(text for _, text in long_forms()[code])
    assert wrong_names(text) == []
    for key in re.findall(r"`([a-z_]+\.[a-z_.]+)`", text):
        assert key in KEYS, key
    for page in re.findall(r"(docs/[\w-]+\.md|README\.md)", text):
        assert (REPO / page).is_file(), page
    mentioned = set(re.findall(r"\b([ACDEMNPRSV]\d{3})\b", parts["see"]))
    assert mentioned <= set(CATALOGUE) - {code}
    assert mentioned


def errors_in_the_code():
    """(place, code, whether it has a fix, the constant words of its fix) of every error."""
    for path in sorted((REPO / "vistill").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            is_error = (
                isinstance(node, ast.Call) and getattr(node.func, "id", "") in KINDS and node.args
            )
            if is_error and isinstance(node.args[0], ast.Constant):
                fix = next((k.value for k in node.keywords if k.arg == "fix"), None)
                words = (
                    [n.value for n in ast.walk(fix) if isinstance(n, ast.Constant)] if fix else []
                )
                place = f"{path.relative_to(REPO)}:{node.lineno}"
                yield (
                    place,
                    node.args[0].value,
                    fix is not None,
                    [w for w in words if isinstance(w, str)],
                )


def test_every_error_has_a_fix_that_names_nothing_that_does_not_exist():
    errors = list(errors_in_the_code())
    assert len(errors) > 60
    assert [place for place, _, has_fix, _ in errors if not has_fix] == []
    assert [
        (place, wrong) for place, _, _, words in errors for wrong in wrong_names("\n".join(words))
    ] == []


@pytest.mark.parametrize("word", ["nonsense", "va-odp", "picture", "D999", "x" * 500])
def test_an_unknown_word_ends_in_a_short_message(word):
    with pytest.raises(ConfigError) as caught:
        explain_word(word)
    lines = caught.value.render().splitlines()
    assert len(lines) <= 12
    assert max(map(len, lines)) <= 120
    for line in caught.value.fix.splitlines():
        assert explain_word(line.removeprefix("vistill explain "))


def test_a_close_word_is_suggested():
    with pytest.raises(ConfigError, match="vistill explain va_opd"):
        explain_word("va-odp")
    with pytest.raises(ConfigError, match="vistill explain M101"):
        explain_word("vocabulary")


@pytest.mark.parametrize("word", ["group", "Rollouts", "reverse KL", "gold answer", "on-policy"])
def test_a_term_of_the_glossary_is_explained(word):
    term, _, meaning = explain_word(word).partition(": ")
    assert term.lower() == word.lower().removesuffix("s")
    assert len(meaning) > 10


def test_every_term_of_the_glossary_is_known_and_a_misspelt_one_is_suggested():
    assert len(terms()) > 80
    for word in terms():
        assert explain_word(word)
    with pytest.raises(ConfigError, match="vistill explain 'weight sync'"):
        explain_word("wieght sync")


def test_lists_of_codes_and_methods_are_one_line_each():
    assert len(explain_word("codes").splitlines()) == len(CATALOGUE)
    assert len(explain_word("methods").splitlines()) == len(method_schemas())
    assert {line[:2] for line in explain_word("D2").splitlines()} == {"D2"}


def test_the_twin_for_machines_has_the_same_content_and_a_traceback_is_shown_on_demand(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("VISTILL_ERROR_JSON", str(tmp_path / "error.json"))
    monkeypatch.setenv("VISTILL_TRACEBACK", "")
    for words in (["explain", "nonsense"], ["--traceback", "explain", "nonsense"]):
        with pytest.raises(SystemExit) as stop:
            entry(words)
        shown, twin = capsys.readouterr().err, json.loads((tmp_path / "error.json").read_text())
        assert stop.value.code == int(twin["exit_code"]) == 2
        assert all(line in shown for line in twin["fix"].splitlines())
        assert ("Traceback" in shown) == (words[0] == "--traceback")


def test_a_failed_run_keeps_its_message_and_its_traceback_until_the_next_start(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VISTILL_ERROR_JSON", raising=False)
    (tmp_path / "r.yaml").write_text(
        "run: x\nmethod: sft\nstudent: {model: 'vistill:student'}\ndata: {train: gone.jsonl}\n"
    )
    with pytest.raises(SystemExit):
        entry(["train", "r.yaml"])
    assert json.loads((tmp_path / "x" / "error.json").read_text())["code"] == "D102"
    assert "Traceback" in (tmp_path / "x" / "events.log").read_text()
    (tmp_path / "gone.jsonl").write_text('{"question": "What?", "images": [], "answer": "1"}\n')
    with pytest.raises(SystemExit):
        entry(["train", "r.yaml"])
    assert json.loads((tmp_path / "x" / "error.json").read_text())["code"] == "D204"


def test_another_method_on_the_command_line_leaves_the_files_own_knobs_behind(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(
        "run: x\nmethod: va_opd\nva_opd: {high_share: 0.3}\nstudent: {model: 'vistill:student'}\n"
        "teacher: {model: 'vistill:teacher'}\n"
        "data: {train: diagrams, diagrams: {train: 16, eval: 2}}\n"
    )
    with pytest.raises(SystemExit) as stop:
        entry(["check", "r.yaml", "--fast", "method=vgs", "vgs.gamma=3.0"])
    assert stop.value.code == 0
    assert "method=vgs: ignoring the block va_opd: of r.yaml" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stop:
        entry(["check", "r.yaml", "--fast", "method=vgs", "va_opd.high_share=0.1"])
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert "error[C101]" in shown
    assert "the same command without va_opd.high_share   or   method=va_opd" in shown
