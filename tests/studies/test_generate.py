"""`vistill generate`: one line per row, the same in every batch, continued after a stop."""

import json
from dataclasses import replace

import pytest
import torch
from finished_run import finished_run

import vistill
from vistill.cli.main import entry
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import WrappedEngine, sampling_for_step
from vistill.rollouts.settings import RolloutSettings
from vistill.studies.generate import generate_batch
from vistill.types import Finish, LoadedImage, Prompt

SHORT = ["rollout.max_new_tokens=8", "data.limit=5", "data.diagrams.eval=6"]


def run_verb(capsys, *words):
    """Exit code, stdout and stderr of a verb."""
    code = 0
    try:
        entry(["generate", *map(str, words)])
    except SystemExit as stop:
        code = stop.code or 0
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def records(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def rows(tmp_path):
    """A data file: pictures, a row without one, a row without a gold answer."""
    from PIL import Image

    Image.linear_gradient("L").resize((80, 48)).convert("RGB").save(tmp_path / "a.png")
    lines = [
        {"question": "What is x?", "images": ["a.png"], "answer": "3"},
        {"question": "What is y?", "images": ["a.png"], "answer": ["1", "2"]},
        {"question": "Is 2 even?", "answer": "yes"},
        {"question": "What is z?", "images": ["a.png"]},
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


@pytest.mark.more
def test_each_row_gets_a_line_with_a_verdict_where_it_has_a_gold_answer(rows, tmp_path, capsys):
    out = tmp_path / "deep" / "out.jsonl"
    code, shown, err = run_verb(capsys, "vistill:student", rows, "--out", out, SHORT[0])
    assert code == 0, err
    lines = records(out)
    assert [line["row"] for line in lines] == [f"{rows}:{n}" for n in (1, 2, 3, 4)]
    assert all(line["tokens"] == 8 or line["finish"] == Finish.STOP for line in lines)
    assert [line.get("gold") for line in lines] == ["3", ["1", "2"], "yes", None]
    assert ["verdict" in line for line in lines] == [True, True, True, False]
    assert {"correct", "extracted", "checker"} <= set(lines[0]["verdict"])
    assert "4 responses in" in shown
    assert "of 3 with a gold answer" in shown
    stored = json.loads(out.with_name("out.jsonl.settings.json").read_text())
    assert stored["rollout"]["max_new_tokens"] == 8
    assert stored["weights"]["hash"]


def test_a_stopped_file_is_continued_to_the_same_bytes(tmp_path, capsys):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    assert run_verb(capsys, "vistill:student", "diagrams", "--out", whole, *SHORT)[0] == 0
    assert len(records(whole)) == 5
    lines = whole.read_text().splitlines(keepends=True)
    stopped.write_text("".join(lines[:2]) + lines[2][:40])  # a kill in the middle of a line
    settings = whole.with_name("whole.jsonl.settings.json").read_text()
    stopped.with_name("stopped.jsonl.settings.json").write_text(settings)
    few = "rollout.rows_per_call=2"  # other batches
    code, shown, _ = run_verb(capsys, "vistill:student", "diagrams", "--out", stopped, *SHORT, few)
    assert code == 0
    assert "3 of them new" in shown
    assert stopped.read_bytes() == whole.read_bytes()
    again = run_verb(capsys, "vistill:student", "diagrams", "--out", stopped, *SHORT)[1]
    assert "0 of them new" in again


CHANGES = {
    "another temperature": (["rollout.temperature=0.1"], "rollout.temperature is 0.1 now"),
    "another seed": (["seed=7"], "seed is 7 now and was 42"),
    "another checker": (["eval.checker=number"], "eval.checker"),
    "other weights": (["student.model=vistill:teacher"], "weights."),
}


@pytest.mark.more
@pytest.mark.parametrize("name", [
    "another temperature",
    "another seed",
    "another checker",
    "other weights",
])  # fmt: skip
def test_a_file_of_other_settings_is_never_continued(rows, tmp_path, capsys, name):
    out = tmp_path / "out.jsonl"
    words = ["vistill:student", rows, "--out", out, "rollout.max_new_tokens=2"]
    assert run_verb(capsys, *words)[0] == 0
    before = out.read_bytes()
    change, why = CHANGES[name]
    code, _, err = run_verb(capsys, *words, *change)
    assert code == 2
    assert "error[C203]" in err
    assert why in err
    assert f"fix   --out {tmp_path}/out-2.jsonl" in err
    assert out.read_bytes() == before


@pytest.mark.more
def test_a_row_that_changed_or_is_gone_is_refused_and_a_new_one_is_added(rows, tmp_path, capsys):
    out = tmp_path / "out.jsonl"
    words = ["vistill:student", rows, "--out", out, "rollout.max_new_tokens=2"]
    assert run_verb(capsys, *words)[0] == 0
    text = rows.read_text()
    rows.write_text(text + json.dumps({"question": "New?", "answer": "no"}) + "\n")
    assert "1 of them new" in run_verb(capsys, *words)[1]
    rows.write_text(text.replace("What is y?", "What is yy?"))
    code, _, err = run_verb(capsys, *words)
    assert code == 2
    assert "error[C203]" in err
    out.with_name("out.jsonl.settings.json").unlink()
    rows.write_text(text + json.dumps({"question": "New?", "answer": "no"}) + "\n")
    assert "settings.json is missing" in run_verb(capsys, *words)[2]


@pytest.mark.more
def test_a_run_folder_gives_sampling_wording_and_seed_but_not_its_folders(rows, tmp_path, capsys):
    data = {"train": "diagrams", "template": "{prompt}\nAnswer:", "images": "/nowhere"}
    data |= {"limit": 1, "system": "Be brief."}
    run = finished_run(tmp_path / "run", data=data, seed=9)
    out = tmp_path / "out.jsonl"
    code, _, err = run_verb(capsys, run, rows, "--out", out)
    assert code == 0, err
    stored = json.loads(out.with_name("out.jsonl.settings.json").read_text())
    assert stored["seed"] == 9
    assert stored["rollout"]["temperature"] == 0.0
    assert len(records(out)) == 4
    settings = {"template": data["template"], "system": data["system"], "text_only": "plain"}
    prompts = vistill.load_prompts(str(rows), **settings)
    assert [line["id"] for line in records(out)] == [prompt.id for prompt in prompts]


@pytest.mark.more
@pytest.mark.parametrize(("words", "code"), [
    (["vistill:student", "missing.jsonl"], "D102"),
    (["vistill:studnt", "diagrams"], "M103"),
    (["vistill:student", "diagrams", "rollout.temperature=-1"], "C002"),
    (["vistill:student", "diagrams", "data.diagrams.eval=2", "data.max_prompt_tokens=4"], "D203"),
])  # fmt: skip
def test_bad_input_is_coded_before_a_file_is_written(tmp_path, monkeypatch, capsys, words, code):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_verb(capsys, *words)
    assert status != 0
    assert f"error[{code}]" in err
    assert "student.model=" not in err
    assert not (tmp_path / "runs").exists()


@pytest.mark.more
def test_data_without_an_answer_column_are_answered_without_verdicts(tmp_path, capsys):
    rows, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    rows.write_text(json.dumps({"question": "What is x?"}) + "\n")
    words = ["vistill:student", rows, "--out", out, "rollout.max_new_tokens=2"]
    code, shown, err = run_verb(capsys, *words)
    assert code == 0, err
    assert "verdict" not in records(out)[0]
    assert "no column answer in the data" in shown
    rows.write_text(json.dumps({"q": "What is x?"}) + "\n")
    code, _, err = run_verb(capsys, *words)
    assert code == 3
    assert "data.columns.prompt=COLUMN   one of: q" in err


@pytest.mark.more
def test_two_processes_do_not_write_one_file(rows, tmp_path, capsys):
    import fcntl

    out = tmp_path / "out.jsonl"
    with out.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        code, _, err = run_verb(capsys, "vistill:student", rows, "--out", out)
    assert code == 6
    assert "error[S602]" in err


def test_the_function_answers_prompts_of_any_batch_alike(student):
    from PIL import Image

    picture = Image.linear_gradient("L").resize((80, 48)).convert("RGB")
    prompts = [Prompt(f"p{n}", (LoadedImage(picture), f"What is {n}?")) for n in range(5)]
    prompts[2] = replace(prompts[2], parts=(prompts[2].text,), answer="3")
    settings = RolloutSettings(max_new_tokens=6, temperature=1.0)
    seen = []
    together = vistill.generate(
        student, prompts, rollout=settings, seed=3, progress=lambda *now: seen.append(now)
    )
    alone = [vistill.generate(student, [p], rollout=settings, seed=3)[0] for p in prompts]
    assert [r.rollout.ids for r in together] == [r.rollout.ids for r in alone]
    assert [r.verdict is None for r in together] == [True, True, False, True, True]
    assert seen[0] == (0, 5, 0)
    assert seen[-1] == (5, 5, 0)
    assert torch.is_grad_enabled()
    other = vistill.generate(student, prompts, rollout=settings, seed=4)
    assert [r.rollout.ids for r in together] != [r.rollout.ids for r in other]


class SmallEngine(WrappedEngine):
    """An engine whose memory holds one response."""

    def generate(self, requests, sampling):
        if sampling.rows_per_call > 1:
            raise torch.OutOfMemoryError("too large")
        return super().generate(requests, sampling)


@pytest.mark.more
def test_less_memory_gives_the_same_responses(student):
    prompts = [Prompt(f"p{n}", (f"What is {n}?",)) for n in range(4)]
    settings = RolloutSettings(max_new_tokens=4, temperature=1.0)
    whole = make_engine(student, settings)
    sampling = sampling_for_step(settings, 0, 0)
    expected = generate_batch(student, whole, prompts, sampling)
    assert generate_batch(student, SmallEngine(whole), prompts, sampling) == expected
