"""What `vistill eval` prints: which model on which data, and the denominator of every share."""

import contextlib
import json

from terminal_emulator import FakeTerminal

from vistill.cli.messages import print_result
from vistill.cli.table import facts_table, run_facts, summary_table
from vistill.config import build_recipe


def recipe_of(model, **data):
    tree = {
        "run": "r",
        "method": "sft",
        "student": {"model": str(model)},
        "data": {"train": "diagrams", **data},
    }
    return build_recipe(tree, name="eval")


def folder_of(path, training_rows=False, **data):
    path.mkdir()
    (path / "result.json").write_text(
        json.dumps({"finished": True, "training_rows": training_rows})
    )
    (path / "data.json").write_text(
        json.dumps({"train_rows": 0, "eval_rows": 388, "quarantined": 2} | data)
    )
    return path


def test_an_evaluation_names_model_checkpoint_data_and_rows(tmp_path):
    run = tmp_path / "trained"
    (run / "checkpoint-000300" / "student").mkdir(parents=True)
    (run / "result.json").write_text(json.dumps({"checkpoint": "checkpoint-000300"}))
    recipe = recipe_of(run, train="train.jsonl", eval="mathverse.jsonl")
    facts = run_facts(recipe, folder_of(tmp_path / "eval"))
    text = facts_table(facts)
    assert f"model        {run}" in text
    assert f"checkpoint   {run}/checkpoint-000300/student" in text
    assert "data         mathverse.jsonl   (388 rows, 2 more quarantined)" in text
    assert (facts["data"], facts["data_rows"], facts["training_rows"]) == (
        "mathverse.jsonl",
        388,
        False,
    )


def test_an_evaluation_on_the_built_in_diagrams_or_on_training_rows_says_so(tmp_path):
    text = facts_table(
        run_facts(recipe_of("vistill:student"), folder_of(tmp_path / "a", quarantined=0))
    )
    assert "data         the built-in diagrams   (388 rows)" in text
    recipe = recipe_of("vistill:student", train="train.jsonl")
    text = facts_table(
        run_facts(recipe, folder_of(tmp_path / "b", training_rows=True, quarantined=0))
    )
    assert (
        "train.jsonl   (388 rows, the TRAINING rows: name others by data.eval or data.holdout)"
        in text
    )


def test_every_share_stands_with_the_rows_it_is_taken_on():
    summary = {
        "rows": 300.0,
        "samples": 8.0,
        "unanswered_rows": 88.0,
        "accuracy": 0.5,
        "accuracy_low": 0.45,
    }
    summary |= {
        "accuracy_high": 0.55,
        "greedy_accuracy": 0.6,
        "greedy_rows": 200.0,
        "accuracy/swapped": 0.1,
    }
    summary |= {"accuracy/pixelated": 0.2, "blind_rows": 190.0, "swapped_rows": 150.0}
    lines = summary_table(summary).splitlines()
    assert lines[0] == "300 questions, 8 responses each; 88 rows without a gold answer left out"
    ends = {line[:22].strip(): line.split("   ")[-1] for line in lines[1:]}
    assert ends["accuracy, T = 1"] == "95 % [45.0, 55.0]"
    assert lines[1].split("   ")[-2].strip() == "50.0 %"
    assert ends["accuracy, greedy"] == "on 200 questions"
    assert ends["image pixelated"] == "on 190 questions"
    assert ends["image swapped"] == "on 150 questions"


def test_a_swap_that_no_row_could_have_is_not_left_out_in_silence():
    assert "no row has another image" in summary_table(
        {"rows": 3.0, "blind_rows": 3.0, "swapped_rows": 0.0}
    )


def test_the_summary_names_the_temperature_that_answers_were_sampled_at():
    summary = {"accuracy": 0.5, "rows": 4.0, "samples": 1.0}
    assert "accuracy, T = 1  " in summary_table(summary)
    assert "accuracy, T = 0.7  " in summary_table(summary, 0.7)


def test_many_responses_without_an_answer_come_before_the_figures():
    summary = {"rows": 8.0, "samples": 1.0, "accuracy": 0.25, "unparsed_share": 0.5}
    lines = summary_table(summary).splitlines()
    assert lines[1].startswith("WARNING: 50.0 % of the responses contain no answer")
    assert "WARNING" not in summary_table(summary | {"unparsed_share": 0.2})


def test_an_evaluation_breaks_between_words_on_a_narrow_terminal():
    summary = {"rows": 4, "samples": 1, "unparsed_share": 1.0, "accuracy": 0.0}
    terminal = FakeTerminal(40)
    with contextlib.redirect_stdout(terminal):
        print_result(summary_table(summary, 1.0))
    assert terminal.wrapped == 0
    start = next(i for i, row in enumerate(terminal.rows) if row.startswith("WARNING"))
    words = " ".join(terminal.rows[start : start + 5]).split()
    assert {"responses", "contain", "answer", "accuracy"} <= set(words)
