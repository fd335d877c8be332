"""`vistill init`: the recipe fits the method and the data, and passes `check --fast`.

It names everything that is missing.
"""

import base64
import itertools
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from vistill.cli.init import SCHEMA_NAME, write_recipe
from vistill.config import all_keys, flatten, load_recipe, method_schemas, parse_text
from vistill.errors import ConfigError, DataError
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
            {"answer": None, "gold": str, "options": lambda n: [str(n), str(n + 100)]},
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


LETTER = "Put the letter of the right option in \\boxed{{}}."


def test_choices_are_put_below_the_question_unless_it_lists_them_already():
    rows(choices=["red", "blue"], answer="red")
    text, recipe = init_recipe()
    assert recipe.data.template == f"{{prompt}}\n{{choices}}\n{LETTER}"
    assert "template  {prompt}\\n{choices}" in text
    rows(choices=["red", "blue"], answer="red", question="red or blue, {n}?", file="inside.jsonl")
    text, recipe = init_recipe("opd", "inside.jsonl")
    assert recipe.data.template == f"{{prompt}}\n{LETTER}"
    assert "list their choices already" in text


def test_a_question_that_lists_its_options_without_the_letters_of_the_answers_gets_them():
    rows(choices=["red", "blue"], answer="B", question="red or blue, {n}?")
    assert init_recipe()[1].data.template.startswith("{prompt}\n{choices}")
    question = "Which colour, {n}?\n(A) red\n(B) blue"
    rows(choices=["red", "blue"], answer="B", question=question, file="marked.jsonl")
    assert init_recipe("opd", "marked.jsonl")[1].data.template == f"{{prompt}}\n{LETTER}"


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
     ("grpo-vgs-2", "grpo_vgs", False), ("va_opdd", "va_opd", True)],
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
    departs |= {
        "data.template",
        "data.max_image_tokens",
        "rollout.max_new_tokens",
        "eval.max_new_tokens",
    }
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


def test_pictures_in_the_turns_of_a_conversation_are_pictures():
    picture = {"type": "image_url", "image_url": {"url": "a.png"}}
    parts = [[picture, {"type": "text", "text": f"How many, {n}?"}] for n in range(40)]
    lines = [{"messages": [{"role": "user", "content": p}], "answer": "7"} for p in parts]
    lines[3]["messages"][0]["content"] = "How many?"
    Path("data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "1 of 40 rows have no picture" in init_recipe("va-opd")[0]


# ---- checker and answer instruction ----

BOXED = "\nPut the final answer in \\boxed{{}}."
PEOPLE = [{"answer": "red", "answer_id": n} for n in range(8)] + [{"answer": "pink"}] * 2
GRID = ["_*_", "_#_", "_@_"]
DATA = {
    "0 and 1": ({"question": "Is it {n}?", "answer": lambda n: str(n % 2)}, "yes_no",
                "\nAnswer with yes or no in \\boxed{{}}."),
    "counts": ({"question": "How many, {n}?", "answer": lambda n: n % 2}, "auto", BOXED),
    "yes and no": ({"answer": lambda n: ("Yes", "no")[n % 2]}, "yes_no",
                   "\nAnswer with yes or no in \\boxed{{}}."),
    "people": ({"answer": None, "answers": PEOPLE, "multiple_choice_answer": "red"}, "vqa",
               "\nAnswer the question using a single word or phrase."),
    "numbers": ({"answer": lambda n: n + 0.5}, "auto", BOXED),
    "chartqa": ({"answer": lambda n: n + 0.5, "source": "ChartQA"}, "relaxed", BOXED),
    "chartqapro": ({"answer": lambda n: n + 0.5, "source": "ChartQAPro"}, "auto", BOXED),
    "docvqa": ({"source": "docvqa_train"}, "anls",
               "\nAnswer the question using a single word or phrase."),
    "ocrbench": ({"answer": "w{n}", "dataset_name": "OCRBench"}, "contains", ""),
    "mazes": ({"answer": None, "extra": {"grid": GRID}}, "maze",
              "\nPut the moves, such as L,R,U,D, in \\boxed{{}}."),
    "letters": ({"question": "{n}? (A) 1 (B) 2", "answer": "B"}, "auto", f"\n{LETTER}"),
    "instructed": ({"question": "How many, {n}? Answer with only the number."}, "auto", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_the_checker_and_the_instruction_follow_from_the_rows_and_pass_check(name):
    changed, checker, instruction = DATA[name]
    rows(**changed)
    text, recipe = init_recipe("grpo")
    assert (recipe.eval.checker, recipe.reward.checker) == (checker, checker)
    assert recipe.data.template == "{prompt}" + instruction
    assert f"checker  {checker}: " in text
    assert "instruction  " in text
    assert check("grpo.yaml", ["run=x"], fast=True)


def test_a_list_of_accepted_answers_is_taken_before_one_of_them():
    rows(extra=lambda n: {"answers": [str(n), f"{n} cm"]})
    assert init_recipe()[1].data.columns.answer == "extra.answers"
    rows(extra=lambda n: {"answers": [f"other {n}", "x"]}, file="other.jsonl")
    assert init_recipe("opd", "other.jsonl")[1].data.columns.answer == "answer"


@pytest.mark.parametrize("odd", ["None", "nan", {"x": 1}, None])
def test_one_odd_cell_does_not_hide_the_column_and_is_named(odd):
    rows(answer=lambda n: odd if n == 3 else "w{n}")
    text, recipe = init_recipe()
    assert recipe.data.columns.answer == "answer"
    assert ("1 of 40 cells of answer cannot be read as answer" in text) == (odd is not None)


def test_responses_of_the_data_keep_the_form_of_their_answers():
    rows(response="It is {n}")
    text, recipe = init_recipe("sft")
    assert recipe.data.template == "{prompt}"
    assert "the responses are in the data" in text


def test_commands_are_quoted_for_the_shell():
    rows(file="my data.jsonl")
    text = write_recipe("my opd ä.yaml", "vistill:student", "vistill:teacher", "my data.jsonl")
    assert "vistill check 'my opd ä.yaml'   then   vistill train 'my opd ä.yaml'" in text
    head = Path("my opd ä.yaml").read_text().splitlines()[1]
    assert head.endswith("--data 'my data.jsonl'")


def test_few_rows_held_out_are_said_to_be_coarse():
    rows()
    assert "one of 4 rows is 25 points of accuracy" in init_recipe()[0]
    assert "fewer than 2,000" in init_recipe("opd", "hf:owner/name[train]")[0]


def test_rows_of_the_whole_file_are_looked_at():
    rows(1000, answer=lambda n: "yes" if n < 500 else "word")
    assert init_recipe()[1].eval.checker == "auto"


# ---- columns that belong together ----


def test_numbered_columns_of_images_and_options_in_text_are_mapped():
    images = {"image_1": "a.png", "image_2": lambda n: "a.png" if n % 2 else None}
    rows(images=None, options="['30', \"it's 40\"]", answer="B", **images)
    _, recipe = init_recipe()
    assert recipe.data.columns.images == "image_1,image_2"
    assert recipe.data.columns.choices == "options"
    assert check("va_opd.yaml", ["run=x"], fast=True)


def test_one_column_per_option_is_mapped_in_a_table_with_pictures_in_base64():
    picture = base64.b64encode(Path("a.png").read_bytes()).decode()
    lines = ["index\tquestion\tA\tB\tC\tanswer\timage"]
    lines += [f"{n}\tWhat is {n}?\tcat\tdog\t{'' if n % 3 else 'cow'}\tB\t{picture}"
              for n in range(40)]  # fmt: skip
    Path("bench.tsv").write_text("\n".join(lines) + "\n")
    _, recipe = init_recipe(data="bench.tsv")
    assert (recipe.data.columns.choices, recipe.data.columns.images) == ("A,B,C", "image")
    findings = check("va_opd.yaml", ["run=x"], fast=True)
    shown = [line.summary for lines in findings.values() for line in lines if line.what == "row"]
    assert "| (B) dog" in shown[0]


OPTION_CELLS = ("red", "blue", "green", "yellow")


@pytest.mark.parametrize(
    ("names", "key", "gold"),
    [
        ("A B C D", "answer", lambda n: n % 4),
        ("option_a option_b option_c option_d", "correct_option", lambda n: "abcd"[n % 4]),
        ("option_a option_b option_c option_d", "answer", lambda n: OPTION_CELLS[n % 4]),
    ],
)
def test_one_column_per_option_is_mapped_for_indices_and_other_names(names, key, gold):
    cells = dict(zip(names.split(), OPTION_CELLS, strict=True))
    rows(**{"answer": None, **cells, key: gold})
    text, recipe = init_recipe()
    assert recipe.data.columns.choices == names.replace(" ", ",")
    assert recipe.data.columns.answer == key
    assert "{choices}" in recipe.data.template
    assert "not used" not in text
    assert check("va_opd.yaml", ["run=x"], fast=True)


def test_columns_that_look_like_options_and_are_not_read_are_named():
    rows(option_a="cat", option_b="dog", answer="7 or 8")
    text, _ = init_recipe()
    setting = "data.columns.choices=option_a,option_b"
    assert f"option_a, option_b look like options and are not read: {setting}" in text


def test_options_counted_from_1_get_their_setting():
    rows(options=json.dumps(OPTION_CELLS), answer=lambda n: n % 4 + 1)
    text, recipe = init_recipe()
    assert recipe.data.index_base == 1
    assert "data.index_base  1: gold answers count the options from 1" in text
    assert "refused" not in text
    assert check("va_opd.yaml", ["run=x"], fast=True)


def test_an_uncertain_base_of_indices_is_named():
    rows(options=json.dumps(OPTION_CELLS), answer=lambda n: n % 3 + 1)
    text, recipe = init_recipe()
    assert recipe.data.index_base == 0
    assert "If 1 means option A: data.index_base=1" in text


def test_the_fix_comes_before_the_next_command_where_check_refuses_the_data():
    rows(question=None, frage="What is {n}?")
    text, _ = init_recipe()
    assert "vistill check refuses these data: D101" in text
    assert re.search(r"^next   data\.columns\.prompt=.*   then   vistill check", text, re.M)


def test_a_recipe_made_without_an_answer_column_says_what_else_to_set():
    rows(answer=None, loesung="{n}")
    text, _ = init_recipe()
    assert "set data.holdout=4 eval.every=50 save.keep_best=accuracy too" in text
    words = ["run=x", "data.columns.answer=loesung"]
    lines = [*itertools.chain(*check("va_opd.yaml", words, fast=True).values())]
    (note,) = [str(line.summary) for line in lines if "nothing is evaluated" in str(line.summary)]
    assert "(data.holdout=4 eval.every=50 save.keep_best=accuracy)" in note
    assert "data.template asks for no form of the answer" in note
    words += ["data.holdout=4", "eval.every=50", "save.keep_best=accuracy"]
    lines = [*itertools.chain(*check("va_opd.yaml", words, fast=True).values())]
    assert not [line for line in lines if "nothing is evaluated" in str(line.summary)]


REFUSED = {
    "two.jsonl": ({"question": "<image1> or <image2>, {n}?"}, "D103", "<image2> has no image"),
    "talk.jsonl": (
        {
            "question": None,
            "conversations": [
                {"from": who, "value": "<image> {n}" if turn == 0 else "more"}
                for turn, who in enumerate(("human", "gpt", "human", "gpt"))
            ],
        },
        "D105",
        "a conversation of 4 turns",
    ),
    "index.jsonl": ({"images": lambda n: "a.png" if n else "7"}, "D201", "index of a row"),
    "gone.jsonl": ({"images": lambda n: [f"{n}.png"]}, "D201", "image missing"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_rows_that_check_refuses_are_named(name):
    columns, code, reason = REFUSED[name]
    rows(file=name, **columns)
    text, _ = init_recipe("opd", name)
    line = next(line for line in text.splitlines() if "rows are refused" in line)
    assert f"({code})" in line
    assert f"{name}:1" in line
    assert reason in line
    assert "vistill check" in line
    with pytest.raises(DataError) as caught:
        check("opd.yaml", ["run=x"], fast=True)
    assert caught.value.code == code


def test_rows_that_can_be_used_are_not_named_and_a_bad_line_is():
    rows()
    assert "refused" not in init_recipe()[0]
    with Path("data.jsonl").open("a") as handle:
        handle.write("{oh\n")
    assert "1 of 41 rows are refused (D102), first data.jsonl:41" in init_recipe("opd")[0]


def test_decimal_commas_are_named_where_there_are_many():
    rows(answer="{n},5")
    assert "40 of 40 gold answers have a decimal comma, such as 0,5" in init_recipe()[0]
    rows(answer=lambda n: "2,3" if n < 3 else str(n), file="few.jsonl")
    assert "decimal comma" not in init_recipe("opd", "few.jsonl")[0]


@pytest.mark.parametrize("data", ["nowhere", "nowhere/", "here", "here/"])
def test_a_folder_is_refused_with_a_command_that_names_a_file(data):
    Path("here/inner").mkdir(parents=True)
    for name in ("a.jsonl", "train set.jsonl"):
        rows(3, file=f"here/{name}", images=["../a.png"])
    with pytest.raises(DataError) as caught:
        write_recipe("opd", "vistill:student", "vistill:teacher", data)
    assert caught.value.code == "D102"
    file = "'here/train set.jsonl'" if data.startswith("here") else "FILE"
    assert caught.value.fix.endswith(f"--data {file}")
    assert not list(Path().glob("*.yaml"))


def test_a_folder_among_several_data_sets_keeps_the_other_ones_in_its_command():
    Path("here").mkdir()
    rows(3, file="here/b.jsonl", images=["../a.png"])
    sources = [rows(40, file="größe 1.jsonl"), "here"]
    with pytest.raises(DataError) as caught:
        write_recipe("opd", "vistill:student", "vistill:teacher", sources)
    assert caught.value.fix.endswith("--data 'größe 1.jsonl' --data here/b.jsonl")


def test_names_of_data_sets_are_ascii_and_what_they_lack_is_said_in_their_words():
    """A set named after its file was refused by the recipe that init wrote."""
    sources = [rows(40, file="größe.jsonl"), rows(40, file="日本.jsonl", answer=None)]
    text = write_recipe("grpo", "vistill:student", "vistill:teacher", sources)
    recipe = load_recipe(re.search(r"wrote +(\S+\.yaml)", text).group(1))
    assert list(recipe.data.sets) == ["gr_e", "data"]
    assert "needs a column for answer: set data.sets.data.columns.answer" in text
    assert not re.search(r"(?<!data)\.columns\.answer", text)


def test_a_column_of_options_that_cannot_be_read_is_named():
    rows(options=["red", None, "blue"], answer="A")
    text, recipe = init_recipe()
    assert recipe.data.columns.choices == ""
    assert "the column options is not used: most cells are no options (D104)" in text
    rows(images="A.PNG", file="case.jsonl")
    assert 'did you mean "a.png"?' in init_recipe("opd", "case.jsonl")[0]


@pytest.mark.parametrize(("config", "limit"), [
    ({"model_type": "llava_onevision"}, None),
    ({"model_type": "llava", "vision_config": {"model_type": "clip_vision_model"}}, None),
    ({"model_type": "llava", "vision_config": {"model_type": "pixtral"}}, 1024),
    ({"model_type": "qwen2_5_vl"}, 1024),
    ([], 1024),
])  # fmt: skip
def test_a_family_without_a_limit_of_image_tokens_gets_none(config, limit):
    """1024 was written for every family, and `check` refused it (C101)."""
    Path("model").mkdir()
    Path("model/config.json").write_text(json.dumps(config))
    rows()
    write_recipe("opd", "model", "vistill:teacher", "data.jsonl")
    tree = parse_text(Path("opd.yaml").read_text(), Path("opd.yaml"))
    assert tree["data"]["max_image_tokens"] == limit
