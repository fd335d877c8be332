"""Gold answers of training rows, control tokens of the models, notes, and the page of rows."""

import base64
import json
import re
from types import SimpleNamespace

import html5lib
import pytest
from PIL import Image

from vistill.answers import Verdict
from vistill.cli.main import entry
from vistill.config import build_recipe
from vistill.data.settings import DataSettings
from vistill.errors import ConfigError, DataError
from vistill.evaluation.settings import EvalSettings
from vistill.lora_settings import LoraSettings
from vistill.registry import checkers
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.studies.check import check
from vistill.training.build import make_setup
from vistill.training.checks.check import run_checks
from vistill.training.checks.data import DATA_CHECKS, check_no_limits, load_rows
from vistill.training.checks.notes import notes_on_run
from vistill.training.checks.special_tokens import check_special_tokens_of_models
from vistill.training.recipe import Recipe, StudentSettings, TeacherSettings
from vistill.training.settings import SaveSettings
from vistill.types import Prompt

#: A gold answer that the checker of this module never accepts.
UNREADABLE = "unreadable"


@pytest.fixture(autouse=True)
def checker_with_a_blind_spot(clean_registry):
    """A registered checker that compares texts and rejects one of them."""

    @checkers.register("blind")
    def check_blindly(response, answer, choices, take, math):
        return Verdict(answer, answer != UNREADABLE and answer in response)


def write_rows(folder, golds, name="rows.jsonl", **more):
    Image.new("RGB", (64, 64), (90, 120, 200)).save(folder / "a.png")
    rows = [
        {"question": f"What is {n}?", "images": ["a.png"], "answer": gold, **more}
        for n, gold in enumerate(golds)
    ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / name)


def setup_for(folder, source, method, **data):
    tree = {
        "run": str(folder / "run"),
        "student": {"model": "vistill:student"},
        "teacher": {"model": "vistill:teacher"},
        "method": method,
        "data": {"train": source, **data},
        "save": {"keep_best": "none"},
        "reward": {"checker": "blind"},
    }
    return make_setup(build_recipe(tree), RunFolder(folder / "run"), "check")


@pytest.mark.parametrize("method", ["grpo", "papo", "sft", "visual_opsd"])
def test_a_gold_answer_that_no_response_can_match_is_set_aside_where_a_method_uses_answers(
    tmp_path, method
):
    source = write_rows(tmp_path, ["7"] * 40 + [UNREADABLE] + ["8"])
    setup = setup_for(tmp_path, source, method, max_bad_share=0.1)
    run_checks(setup, DATA_CHECKS)
    uses_answers = method != "sft"
    assert len(setup.train_prompts) == (41 if uses_answers else 42)
    bad = setup.train_data.quarantined
    assert [(row.code, row.where.rpartition(":")[2]) for row in bad] == (
        [("D301", "41")] if uses_answers else []
    )


def test_too_many_unreadable_gold_answers_of_training_rows_stop_the_run_and_the_fix_works(tmp_path):
    source = write_rows(tmp_path, ["7", UNREADABLE, "8", "9"] * 5)
    setup = setup_for(tmp_path, source, "grpo")
    with pytest.raises(DataError) as caught:
        run_checks(setup, DATA_CHECKS)
    assert caught.value.code == "D301"
    assert "5 of 20 gold answers of training rows" in caught.value.what
    share = float(re.search(r"data.max_bad_share=([\d.]+)", caught.value.fix)[1])
    setup = setup_for(tmp_path, source, "grpo", max_bad_share=share)
    until = next(i for i, check in enumerate(DATA_CHECKS) if check.name == "gold answers")
    run_checks(setup, DATA_CHECKS[: until + 1])
    assert len(setup.train_prompts) == 15
    stopping = setup_for(tmp_path, source, "grpo", on_bad_row="stop")
    with pytest.raises(DataError) as caught:
        run_checks(stopping, DATA_CHECKS)
    assert caught.value.fix.endswith("data.on_bad_row=quarantine")


def test_one_readable_form_of_several_gold_answers_is_enough(tmp_path):
    setup = setup_for(tmp_path, write_rows(tmp_path, [["7", UNREADABLE]] * 20), "grpo")
    run_checks(setup, DATA_CHECKS)
    assert setup.train_data.quarantined == []


#: An encoder whose tokenizer has control tokens of its own.
ENCODER = SimpleNamespace(
    tokenizer=SimpleNamespace(all_special_tokens=("</s>", ""), added_tokens_decoder={})
)


@pytest.mark.parametrize("field", ["answer", "response", "system", "parts", "choices"])
def test_a_control_token_of_the_models_is_refused_in_any_text(tmp_path, field):
    setup = setup_for(tmp_path, write_rows(tmp_path, ["7"]), "opd", max_bad_share=0.5)
    setup.encoders = (ENCODER, None)
    value = {"parts": ("a</s>",), "choices": ("x", "</s>")}.get(field, "7</s>")
    bad = Prompt(**{"id": "bad", "parts": ("What?",), field: value})
    good = [Prompt(f"{n}", ("What <b>is</b> it?",)) for n in range(9)]
    setup.train_prompts = [*good, bad]
    check_special_tokens_of_models(setup)
    assert [p.id for p in setup.train_prompts] == [p.id for p in good]
    setup.train_prompts, setup.eval_prompts = good, [bad]
    with pytest.raises(DataError) as caught:
        check_special_tokens_of_models(setup)
    assert caught.value.code == "D103"
    assert "</s>" in caught.value.what


@pytest.mark.parametrize("name", ["min_pixels", "max_pixels"])
def test_pixel_limits_next_to_prompts_that_are_passed_in_are_refused(name):
    with pytest.raises(ConfigError) as caught:
        check_no_limits(DataSettings(**{name: 4096}))
    assert caught.value.code == "C101"
    assert name in caught.value.fix


# ---- without a model ----


def fast(tmp_path, golds, method, *words, **more):
    source = write_rows(tmp_path, golds, **more)
    (tmp_path / "r.yaml").write_text(
        f"run: {tmp_path}/run\nstudent: {{model: 'vistill:student'}}\nmethod: {method}\n"
        f"teacher: {{model: 'vistill:teacher'}}\ndata: {{train: {source}}}\n"
        "train: {prompts_per_step: 2, steps: 1}\nsave: {keep_best: none}\n"
    )
    return check(str(tmp_path / "r.yaml"), words, fast=True)


FAST = {
    "grpo without an answer": (["7", None, "8"] * 9, "grpo", (), "D302"),
    "sft of the teacher without an answer": (
        [None] * 9, "sft", ("sft.responses=teacher",), "D302"),
    "sft without a response": (["7"] * 9, "sft", (), "D303"),
    "no thoughts": (["7"] * 9, "visual_opsd", (), "D304"),
    "a gate without answers": (
        [None] * 9, "visual_opsd", ("data.columns.thoughts=images",), "D302"),
    "mazes of numbers, in evaluation": (
        ["7"] * 30, "opd", ("data.holdout=3", "eval.checker=maze"), "D301"),
    "mazes of numbers, rewarded": (["7"] * 30, "grpo", ("reward.checker=maze",), "D301"),
    "no image": (["7"] * 9, "va_opd", ("data.text_only=plain", "data.columns.images=no"), "D305"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAST)
def test_fast_refuses_what_a_start_refuses_about_the_rows(tmp_path, name):
    golds, method, words, code = FAST[name]
    more = {"no": []} if code == "D305" else {}
    with pytest.raises(DataError) as caught:
        fast(tmp_path, golds, method, *words, **more)
    assert caught.value.code == code
    if code == "D301":
        assert caught.value.fix.startswith(("eval.checker=auto", "reward.checker=auto"))


@pytest.mark.parametrize(
    ("golds", "method", "words"),
    [
        (["_*_/___/_@_"] * 9, "grpo", ["reward.checker=maze", "data.holdout=0"]),
        (["1", "0"] * 5, "grpo", ["reward.checker=yes_no"]),
        ([None] * 9, "visual_opsd",
         ["visual_opsd.gate=false", "data.columns.thoughts=images", "data.holdout=0"]),
    ],
)  # fmt: skip
def test_fast_accepts_what_a_checker_or_a_knob_allows(tmp_path, golds, method, words):
    (lines,) = fast(tmp_path, golds, method, *words).values()
    assert "satisfied by" in {line.what: line.summary for line in lines}["method"]


def test_fast_sets_unreadable_gold_answers_aside_as_a_start_does(tmp_path):
    golds = ["7"] * 199 + [UNREADABLE]
    (lines,) = fast(tmp_path, golds, "grpo", "reward.checker=blind").values()
    shown = {line.what: line.summary for line in lines}
    assert shown["data"].startswith("199 training rows")
    assert "1 quarantined, first:" in shown["data"]
    assert "D301" in shown["data"]


# ---- notes ----


def notes(train=(), evaluation=(), needs=(), **groups):
    settings = {"student": StudentSettings(), "save": SaveSettings(keep_best="none"), **groups}
    recipe = Recipe("x", method="opd", **settings)
    return "\n".join(notes_on_run(recipe, needs, train, evaluation))


ANSWERED = Prompt("e", ("?",), answer="7")


def test_settings_that_are_rarely_meant_are_noted():
    best = {"save": SaveSettings(keep_best="accuracy")}
    assert "no evaluation row:" in notes(**best)
    assert "no evaluation row with a gold answer" in notes(evaluation=[Prompt("a", ("?",))], **best)
    assert notes(evaluation=[Prompt("a", ("?",), answer="7")], **best) == ""
    train = [Prompt(str(n), ("?",)) for n in range(30)]
    assert "(data.holdout=3, data.eval=FILE, or save.keep_best=none)" in notes(train, **best)
    assert "measures no accuracy (data.eval=FILE, or eval.every=0)" in notes()
    assert notes(eval=EvalSettings(every=0)) == ""
    greedy = {"rollout": RolloutSettings(temperature=0.0)}
    assert "comparing siblings" in notes(needs=("siblings",), **greedy)
    assert notes(evaluation=[ANSWERED], **greedy) == ""
    same = Recipe("x", StudentSettings("m"), method="opd", teacher=TeacherSettings("m"))
    unused = {"student": StudentSettings(lora=LoraSettings(rank=4))}
    assert "student.train is full: all weights are trained" in notes(
        evaluation=[ANSWERED], **unused
    )
    used = {"student": StudentSettings(train="lora", lora=LoraSettings(rank=4))}
    assert notes(evaluation=[ANSWERED], **used) == ""
    assert "are the same model" in "\n".join(notes_on_run(same, (), [], [ANSWERED]))


def test_options_that_the_question_does_not_show_are_noted():
    hidden = Prompt("a", ("What is it?",), choices=("cat", "dog"))
    shown = Prompt("b", ("Is it a cat or a dog?",), choices=("cat", "dog"))
    letters = Prompt("c", ("What is it?",), choices=("A", "B"))
    assert "1 rows have options that the question does not show" in notes([hidden, shown, letters])
    settings = DataSettings(template="{prompt}\n{choices}")
    assert notes([hidden], [ANSWERED], data=settings) == ""


def test_what_was_detected_is_said_by_check_and_at_the_start(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    turns = [{"role": "user", "content": "<image>How many?"}]
    rows = [{"messages": turns, "images": ["a.png"], "solution": "7"}] * 20
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    setup = setup_for(tmp_path, str(tmp_path / "rows.jsonl"), "opd")
    results = {result.what: result.summary for result in run_checks(setup, DATA_CHECKS)}
    assert "format ms-swift: column messages" in results["notes"]
    setup.purpose, events = "train", []
    setup.progress = events.append
    run_checks(setup, [one for one in DATA_CHECKS if one.name == "notes"])
    assert "format ms-swift" in events[0]["event"]


# ---- the page ----


def page_of(tmp_path, fast, rows, **changes):
    Image.new("RGB", (64, 64), (200, 30, 30)).save(tmp_path / "a.png")
    Image.new("RGBA", (32, 16), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "r.yaml").write_text(
        f"run: {tmp_path}/run\nstudent: {{model: 'vistill:student'}}\n"
        "teacher: {model: 'vistill:teacher'}\nmethod: va_opd\n"
        f"data: {{train: {tmp_path}/rows.jsonl}}\n"
        "train: {prompts_per_step: 1, steps: 1}\nsave: {keep_best: none}\n"
    )
    file = tmp_path / "pages" / "rows.html"
    check(
        str(tmp_path / "r.yaml"), [f"{k}={v}" for k, v in changes.items()], fast=fast, preview=file
    )
    text = file.read_text(encoding="utf-8")
    return html5lib.parse(text, treebuilder="etree", namespaceHTMLElements=False), text


HOSTILE = '<script>alert(1)</script> " onload=x &amp; \u202e'


@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.more)])
def test_the_page_shows_pictures_views_prompt_and_gold_as_the_models_see_them(tmp_path, fast):
    rows = [
        {"question": f"{HOSTILE} {n}", "images": ["a.png"], "answer": ["7", HOSTILE]}
        for n in range(14)
    ]
    rows[13]["images"] = ["clear.png"]
    tree, text = page_of(tmp_path, fast, rows)
    assert not list(tree.iter("script"))
    assert "http://" not in text.replace("http-equiv", "")
    assert "https://" not in text
    pictures = [e.attrib["src"] for e in tree.iter("img")]
    assert len(pictures) == 2 * 13  # twelve first rows and the odd one, under two views
    last = base64.b64decode(pictures[-1].partition(",")[2])
    (tmp_path / "shown.png").write_bytes(last)
    with Image.open(tmp_path / "shown.png") as shown:
        assert (shown.mode, shown.getpixel((0, 0))) == ("RGB", (255, 255, 255))
    words = "".join(tree.itertext())
    assert "PNG RGBA 32 x 16 -> RGB 32 x 16" in words
    assert "mode RGBA" in words
    assert "<script>alert(1)</script>" in words
    assert ("<|im_start|>user" in words) != fast
    assert ("tokens," in words) != fast


def test_the_option_of_the_command_line_writes_the_page(tmp_path, capsys):
    rows = [{"question": "What?", "images": ["a.png"], "answer": "7"}]
    page_of(tmp_path, True, rows)
    file = tmp_path / "new folder" / "other page.html"
    command = ["check", str(tmp_path / "r.yaml"), "--fast", "--preview", str(file)]
    for place in (f"written to {file}, in a new folder\n", f"written to {file}\n"):
        with pytest.raises(SystemExit) as stop:
            entry(command)
        assert stop.value.code == 0
        assert place in capsys.readouterr().out
        assert file.exists()


@pytest.mark.parametrize("content", ["<html><title>my report</title></html>", ""])
def test_a_page_of_another_origin_is_never_overwritten(tmp_path, content, capsys):
    page_of(tmp_path, True, [{"question": "What?", "images": ["a.png"], "answer": "7"}])
    file = tmp_path / "mine.html"
    file.write_text(content)
    with pytest.raises(SystemExit) as stop:
        entry(["check", str(tmp_path / "r.yaml"), "--fast", "--preview", str(file)])
    assert stop.value.code == 6
    assert "S601" in capsys.readouterr().err
    assert file.read_text() == content


@pytest.mark.parametrize(("evaluated", "training"), [("train.jsonl", True), ("other.jsonl", False)])
def test_an_evaluation_on_the_rows_of_the_training_is_recorded(evaluated, training, tmp_path):
    for name, words in (("train.jsonl", "How many"), ("other.jsonl", "Why")):
        rows = [{"question": f"{words} {n}?", "answer": str(n)} for n in range(4)]
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataSettings(
        train=str(tmp_path / "train.jsonl"), eval=str(tmp_path / evaluated), text_only="plain"
    )
    recipe = SimpleNamespace(data=data, teachers={})
    recipe.located = lambda: recipe
    setup = SimpleNamespace(
        provided=None, recipe=recipe, purpose="eval", evaluates_training_rows=False,
        folder=RunFolder(tmp_path), teacher_names={},
    )  # fmt: skip
    load_rows(setup)
    assert setup.evaluates_training_rows is training
    assert json.loads((tmp_path / "data.json").read_text())["eval"] == data.eval
