"""`vistill init`: the recipe fits the method and the data, and passes `check --fast`.

It names everything that is missing.
"""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from vistill.cli.init import SCHEMA_NAME, write_recipe
from vistill.config import all_keys, flatten, load_recipe, method_schemas, parse_text
from vistill.errors import ConfigError
from vistill.studies.check import check


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save("a.png")


def rows(count=40, file="data.jsonl", **changed):
    """A data file; a column set to None is left out."""
    whole = {"question": "What is {n}?", "images": ["a.png"], "answer": "{n}"} | changed
    with Path(file).open("w") as handle:
        for n in range(count):
            row = {k: v(n) if callable(v) else v for k, v in whole.items() if v is not None}
            row = {k: v.replace("{n}", str(n)) if isinstance(v, str) else v for k, v in row.items()}
            handle.write(json.dumps(row) + "\n")
    return file


def init_recipe(name="va-opd", data="data.jsonl"):
    """(what init printed, the recipe)."""
    text = write_recipe(name, "vistill:student", "vistill:teacher", data)
    return text, load_recipe(re.search(r"wrote +(\S+\.yaml)", text).group(1))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, {"prompt": "question", "images": "images", "answer": "answer"}),
        (
            {
                "question": None,
                "images": None,
                "answer": None,
                "problem": "P {n}",
                "image": "a.png",
                "solution": "{n}",
            },
            {"prompt": "problem", "images": "image", "answer": "solution"},
        ),
        (
            {"answer": None, "gold": lambda n: n, "options": ["1", "2"]},
            {"answer": "gold", "choices": "options"},
        ),
        ({"choices": "A or B"}, {"choices": ""}),
        ({"Question": "{n}", "question": None}, {"prompt": "Question"}),
        ({"boxes": [[1, 2, 3, 4]]}, {"boxes": "boxes"}),
    ],
)
def test_the_columns_of_the_data_are_mapped(columns, expected):
    rows(**columns)
    text, recipe = init_recipe()
    for key, name in expected.items():
        assert getattr(recipe.data.columns, key) == name
        assert not name or f"{key}={name}" in text
    assert check("va_opd.yaml", ["run=x"], fast=True)


def test_choices_are_put_below_the_question_unless_it_lists_them_already():
    rows(choices=["red", "blue"])
    text, recipe = init_recipe()
    assert recipe.data.template == "{prompt}\n{choices}"
    assert "template  {prompt}\\n{choices}" in text
    rows(choices=["red", "blue"], question="red or blue, {n}?", file="inside.jsonl")
    text, recipe = init_recipe("opd", "inside.jsonl")
    assert recipe.data.template == "{prompt}"
    assert "list their choices already" in text


def test_evaluation_rows_are_held_out_or_from_a_file_and_keep_best_needs_them():
    rows()
    text, recipe = init_recipe()
    assert (recipe.data.holdout, recipe.save.keep_best) == (4, "accuracy")
    assert "4 training rows held out" in text
    rows(file="train.jsonl")
    rows(5, file="val.jsonl", question="Other {n}?")
    text, recipe = init_recipe("opd", "train.jsonl")
    assert (recipe.data.eval, recipe.data.holdout) == ("val.jsonl", 0)
    rows(answer=None, file="unanswered.jsonl")
    text, recipe = init_recipe("kd", "unanswered.jsonl")
    assert (recipe.data.holdout, recipe.save.keep_best, recipe.eval.every) == (0, "none", 0)
    assert "no accuracy; save.keep_best=none" in text
    Path("few").mkdir()
    rows(6, file="few/few.jsonl", images=["../a.png"])
    text, recipe = init_recipe("gkd", "few/few.jsonl")
    assert (recipe.save.keep_best, recipe.train.prompts_per_step) == ("none", 6)
    assert "too few to hold any out" in text


@pytest.mark.parametrize("method", method_schemas())
@pytest.mark.parametrize(
    "data", ["data.jsonl", "hf:owner/name[train]", "missing.jsonl", "diagrams"]
)
def test_no_recipe_keeps_the_best_by_accuracy_without_rows_to_evaluate_on(method, data):
    rows(response="It is {n}", thoughts="a.png")
    text, recipe = init_recipe(method, data)
    evaluated = recipe.data.holdout > 0 or recipe.data.eval or recipe.data.train == "diagrams"
    assert evaluated or recipe.save.keep_best == "none"
    assert recipe.method == method
    assert "data" in text


def test_data_that_cannot_be_looked_at_is_said_to_be_so():
    assert "not looked at: a hub data set" in init_recipe("opd", "hf:owner/name[train]")[0]
    assert (
        'not looked at: data file "gone.jsonl" does not exist (D102)'
        in init_recipe("kd", "gone.jsonl")[0]
    )


def test_what_the_method_needs_and_the_data_lack_is_named():
    rows(answer=None)
    text, _ = init_recipe("grpo")
    assert "the method needs a column for answer: set data.columns.answer" in text
    rows(3, images=lambda n: ["a.png"] if n else None, file="some.jsonl")
    assert "1 of 3 rows have no picture" in init_recipe("opd", "some.jsonl")[0]


@pytest.mark.parametrize(
    ("name", "method", "guessed"),
    [("vaopd", "va_opd", True), ("VA-OPD", "va_opd", False), ("vgs-lp", "vgs", False),
     ("va-odp", "va_opd", True), ("visualopsd", "visual_opsd", True),
     ("grpo-vgs-2", "grpo_vgs", False)],
)  # fmt: skip
def test_a_method_is_understood_without_its_hyphens_and_by_its_near_name(name, method, guessed):
    text, recipe = init_recipe(name, "diagrams")
    assert recipe.method == method
    assert (f"{name} is understood as {method}" in text) == guessed


def test_a_name_that_is_near_no_method_is_refused():
    with pytest.raises(ConfigError) as caught:
        write_recipe("nonsense", "s", "t", "diagrams")
    assert caught.value.code == "C102"


def test_the_first_line_names_the_schema_next_to_the_recipe():
    import jsonschema

    text, _ = init_recipe("sub/mine.yaml", "diagrams")
    written = Path("sub/mine.yaml").read_text()
    assert written.splitlines()[0] == f"# yaml-language-server: $schema={SCHEMA_NAME}"
    schema = json.loads(Path(f"sub/{SCHEMA_NAME}").read_text())
    jsonschema.Draft202012Validator(schema).validate(parse_text(written, Path("mine.yaml")))
    assert f"sub/{SCHEMA_NAME}" in text


def test_values_that_are_not_the_defaults_are_those_of_the_paper_or_say_so():
    rows()
    init_recipe()
    tree = parse_text(Path("va_opd.yaml").read_text(), Path("r.yaml"))
    departs = {"run", "student.model", "teacher.model", "method", "data.train", "data.holdout"}
    departs |= {"data.max_image_tokens", "rollout.max_new_tokens", "eval.max_new_tokens"}
    for key, value in flatten(tree).items():
        default = all_keys()[key].get("default")
        assert value == default or key in departs, key


def test_odd_names_are_quoted():
    rows(file="a b: #1.jsonl")
    _, recipe = init_recipe("opd", "a b: #1.jsonl")
    assert recipe.data.train == "a b: #1.jsonl"


TURNS = [{"role": "user", "content": "<image>How many?"}]
FORMATS = {
    "array.json": lambda rows: json.dumps(rows),
    "pretty.json": lambda rows: json.dumps(rows, indent=2),
    "rows.csv": lambda rows: (
        "question,images,answer\n" + "".join(f"{r['question']},a.png,{r['answer']}\n" for r in rows)
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_init_opens_every_kind_of_file_and_counts_its_rows(name):
    data = [{"question": f"Q{n}?", "images": ["a.png"], "answer": str(n)} for n in range(40)]
    Path(name).write_text(FORMATS[name](data))
    text = write_recipe("va-opd", "vistill:student", "vistill:teacher", name)
    assert "40 rows" in text
    assert check("va_opd.yaml", ["run=x"], fast=True)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": TURNS, "images": ["a.png"], "solution": "7"}, "format ms-swift"),
        (
            {
                "conversations": [
                    {"from": "human", "value": "<image>How many?"},
                    {"from": "gpt", "value": "7"},
                ],
                "image": "a.png",
            },
            "format sharegpt",
        ),
        (
            {
                "prompt": TURNS,
                "images": [{"path": "a.png"}],
                "reward_model": {"ground_truth": "7"},
            },
            "format verl",
        ),
    ],
)
def test_init_names_the_format_of_another_trainer_and_its_recipe_passes_check(row, words):
    data = [json.loads(json.dumps(row).replace("many", f"many {n}")) for n in range(40)]
    Path("data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in data))
    text = write_recipe("va-opd", "vistill:student", "vistill:teacher", "data.jsonl")
    assert words in text
    findings = check("va_opd.yaml", ["run=x"], fast=True)
    (lines,) = findings.values()
    assert any(words in line.summary for line in lines)
