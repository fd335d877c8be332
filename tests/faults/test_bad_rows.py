"""Bad rows never pass unnoticed, never stop a run by being few, and never move a good one."""

import json
import re
from dataclasses import replace

import pytest
from bad_rows import KINDS, planted
from PIL import Image
from plans import prepare_run
from training.test_loop import make_plan

from vistill.data.keys import rows_of_step
from vistill.data.loading import load_rows
from vistill.data.settings import Columns, DataSettings
from vistill.errors import DataError, RolloutError
from vistill.evaluation.settings import EvalSettings
from vistill.objectives.opd import OPD
from vistill.rollouts.engine import WrappedEngine
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.scripted import ScriptedEngine
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import weights_hash
from vistill.training.loop import run
from vistill.training.settings import SaveSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("without_canary")


def plan_on(file, tokenizer, teacher, steps=6, columns=None, objective=None, **changes):
    """A run on a data file, and what was set aside."""
    columns = columns or Columns()
    data = load_rows(
        str(file), DataSettings(train=str(file), max_bad_share=0.5, columns=columns), None
    )
    settings = {
        "train_prompts": data.prompts,
        "eval_prompts": [],
        "evaluation": EvalSettings(every=0),
        "num_steps": steps,
        "train": TrainSettings(prompts_per_step=2, lr=3e-3, steps=steps),
        "max_bad_share": 0.5,
    }
    return make_plan(
        tokenizer, teacher, objective or OPD(), **(settings | changes)
    ), data.quarantined


def end_of(plan, folder):
    """Weights and metrics of a run to its end."""
    run(prepare_run(plan, folder), folder)
    return weights_hash(plan.models.student), folder.metrics.read_text()


@pytest.mark.parametrize(
    ("rows", "bad"), [(100, 25), pytest.param(10_000, 100, marks=pytest.mark.slow)]
)
def test_planted_rows_are_set_aside_exactly_and_the_weights_are_those_of_the_cleaned_file(
    tokenizer, teacher, tmp_path, rows, bad
):
    assert len(KINDS) >= 20
    dirty, clean, codes = planted(tmp_path / "data", rows, bad)
    plan, aside = plan_on(dirty, tokenizer, teacher)
    assert {int(re.search(r"jsonl:(\d+)", q.where)[1]): q.code for q in aside} == codes
    ends = end_of(plan, RunFolder(tmp_path / "dirty"))
    other, none = plan_on(clean, tokenizer, teacher)
    assert none == []
    assert ends == end_of(other, RunFolder(tmp_path / "clean"))


def test_a_row_keeps_its_id_wherever_it_stands_and_equal_rows_are_told_apart(tmp_path):
    _, clean, _ = planted(tmp_path / "data", 12, 0)
    lines = clean.read_text().splitlines()
    ids = lambda rows: [
        p.id for p in load_rows(str(write(clean, rows)), DataSettings(), None).prompts
    ]
    first = ids(lines)
    assert len(set(first)) == 12
    assert ids(lines[::-1]) == first[::-1]
    assert ids([lines[0], lines[1], lines[0]]) == [first[0], first[1], f"{first[0]}-2"]


def test_another_picture_under_the_same_name_is_another_row(tmp_path):
    _, clean, _ = planted(tmp_path / "data", 3, 0)
    before = load_rows(str(clean), DataSettings(), None).prompts
    Image.new("RGB", (48, 48), (9, 9, 9)).save(tmp_path / "data" / "1.png")
    after = load_rows(str(clean), DataSettings(), None).prompts
    assert [a.id == b.id for a, b in zip(before, after, strict=True)] == [True, False, True]
    with pytest.raises(DataError) as caught:
        before[1].images[0].load()
    assert caught.value.code == "D208"


def test_first_rows_that_are_all_bad_stop_the_loading_whatever_is_allowed(tmp_path):
    rows = [
        json.dumps({"question": "?", "images": ["gone.png"], "answer": "1"}) for _ in range(400)
    ]
    file = write(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_rows(str(file), DataSettings(max_bad_share=1.0), None)
    assert caught.value.code == "D201"
    assert len(caught.value.bad_rows) == 20


def write(file, lines):
    file.write_text("".join(line + "\n" for line in lines))
    return file


def spoil(prompt):
    """Cut the picture of a row in half."""
    path = prompt.images[0].path
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class Spoiling(WrappedEngine):
    """An engine that spoils the picture of a row once the run has written so many steps."""

    def __init__(self, vlm, after, prompt):
        super().__init__(HFEngine(vlm))
        self.left, self.prompt = after, prompt

    def write(self, requests, sampling):
        self.left -= 1
        if self.left == 0:
            spoil(self.prompt)
        return super().write(requests, sampling)


def one_picture_a_row(folder, rows=8):
    """A file whose rows share no picture."""
    dirty, _, _ = planted(folder, rows, 0)
    return dirty


@pytest.mark.parametrize("stop", [None, 2, 4, 5])
def test_a_row_that_goes_bad_later_is_replaced_and_stopping_anywhere_gives_the_same_bits(
    tokenizer, teacher, tmp_path, stop
):
    ends = []
    for name, leave in (("whole", None), ("stopped", stop)):
        file, folder = one_picture_a_row(tmp_path / f"data-{name}"), RunFolder(tmp_path / name)
        settings = {"steps": 9, "save": SaveSettings(every=2, keep=1), "stop_after": leave}
        plan, _ = plan_on(file, tokenizer, teacher, **settings)
        victim = plan.train_prompts[rows_of_step(3, 2, 8, plan.seed)[0]]
        plan = replace(plan, engine=Spoiling(plan.models.student, 3, victim))
        run(prepare_run(plan, folder), folder)
        if leave is not None:
            plan, _ = plan_on(file, tokenizer, teacher, steps=9, save=settings["save"])
            engine = Spoiling(plan.models.student, 3 - min(leave, 3), victim) if leave < 3 else None
            plan = replace(plan, engine=engine)
            run(prepare_run(plan, folder), folder)
        (record,) = folder.read(folder.replaced)
        assert (record["step"], record["id"], record["code"] in ("D202", "D208")) == (
            4,
            victim.id,
            True,
        )
        ends.append((weights_hash(plan.models.student), folder.metrics.read_text()))
    assert ends[0] == ends[1]


def test_a_slot_of_a_missing_row_takes_the_next_one_and_all_other_slots_stay():
    for step in range(12):
        plain = rows_of_step(step, 3, 8, seed=1)
        filled = rows_of_step(step, 3, 8, 1, lambda row: row in (2, 5))
        assert not {2, 5} & set(filled)
        assert len(set(filled)) == 3
        assert [f for p, f in zip(plain, filled, strict=True) if p not in (2, 5)] == [
            p for p in plain if p not in (2, 5)
        ]


def test_more_rows_gone_than_may_be_end_the_run_with_the_first_reason(tokenizer, teacher, tmp_path):
    file = one_picture_a_row(tmp_path / "data")
    plan, _ = plan_on(file, tokenizer, teacher, max_bad_share=0.01)
    spoil(plan.train_prompts[rows_of_step(0, 2, 8, plan.seed)[0]])
    with pytest.raises(DataError) as caught:
        run(replace(plan, engine=HFEngine(plan.models.student)), RunFolder(tmp_path / "run"))
    assert caught.value.code == "D208"


def test_a_row_whose_response_stays_empty_is_replaced(tokenizer, teacher, tmp_path):
    file, folder = one_picture_a_row(tmp_path / "data"), RunFolder(tmp_path / "run")
    plan, _ = plan_on(file, tokenizer, teacher)
    mute = plan.train_prompts[rows_of_step(1, 2, 8, plan.seed)[1]].id

    def silent(plan):
        """Nothing for one prompt, one word for the others."""
        stop = plan.models.student.stop_ids[0]
        return ScriptedEngine(
            lambda key, sibling: () if key == mute else (20 + sibling, stop), stop
        )

    run(replace(plan, engine=silent(plan)), folder)
    assert [(r["id"], r["code"], r["step"]) for r in folder.read(folder.replaced)] == [
        (mute, "R403", 2)
    ]
    assert len(folder.read(folder.metrics)) == 6
    strict, _ = plan_on(file, tokenizer, teacher, max_bad_share=0.0)
    with pytest.raises(RolloutError) as caught:
        run(replace(strict, engine=silent(strict)), RunFolder(tmp_path / "strict"))
    assert caught.value.code == "R403"
    assert re.search(r"jsonl:\d+$", caught.value.where)


def test_a_changed_data_file_is_noticed_at_the_next_start(tokenizer, teacher, tmp_path):
    file, folder = one_picture_a_row(tmp_path / "data"), RunFolder(tmp_path / "run")
    plan, _ = plan_on(file, tokenizer, teacher, stop_after=2)
    run(prepare_run(plan, folder), folder)
    lines = file.read_text().splitlines()
    write(file, [line.replace("What is", "How much is") for line in lines])
    changed, _ = plan_on(file, tokenizer, teacher)
    with pytest.raises(DataError) as caught:
        prepare_run(changed, folder)
    assert caught.value.code == "D307"
    write(file, lines[::-1])
    turned, _ = plan_on(file, tokenizer, teacher)
    assert [p.id for p in prepare_run(turned, folder).train_prompts] == [
        p.id for p in plan.train_prompts
    ]


def test_more_and_reordered_rows_leave_a_started_run_as_it_was(tokenizer, teacher, tmp_path):
    file, ends = one_picture_a_row(tmp_path / "data"), []
    lines = file.read_text().splitlines()
    for name in ("whole", "stopped"):
        folder = RunFolder(tmp_path / name)
        write(file, lines)
        if name == "stopped":
            plan, _ = plan_on(file, tokenizer, teacher, stop_after=3)
            run(prepare_run(plan, folder), folder)
            more = json.dumps({"question": "New?", "images": ["0.png"], "answer": "1"})
            write(file, [more, *lines[::-1]])
        plan, _ = plan_on(file, tokenizer, teacher)
        ends.append(end_of(plan, folder))
    assert ends[0] == ends[1]
