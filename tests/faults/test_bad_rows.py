"""Bad rows are always reported, few of them do not stop a run, and good rows do not move."""

import json
import re
from dataclasses import replace

import pytest
from bad_rows import KINDS, write_data_files
from PIL import Image
from plans import prepare_run
from tiers import few
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
    """A plan on a data file, and its quarantined rows."""
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


def run_to_end(plan, folder):
    """Run to the end; return weights and metrics."""
    run(prepare_run(plan, folder), folder)
    return weights_hash(plan.models.student), folder.metrics.read_text()


@pytest.mark.parametrize(
    ("rows", "bad"),
    [
        pytest.param(100, 25, marks=pytest.mark.more),
        pytest.param(10_000, 100, marks=pytest.mark.slow),
    ],
)
def test_exactly_the_bad_rows_are_quarantined_and_the_weights_equal_those_of_the_clean_file(
    tokenizer, teacher, tmp_path, rows, bad
):
    assert len(KINDS) >= 20
    dirty, clean, codes = write_data_files(tmp_path / "data", rows, bad)
    plan, quarantined = plan_on(dirty, tokenizer, teacher)
    assert {int(re.search(r"jsonl:(\d+)", q.where)[1]): q.code for q in quarantined} == codes
    result = run_to_end(plan, RunFolder(tmp_path / "dirty"))
    clean_plan, quarantined = plan_on(clean, tokenizer, teacher)
    assert quarantined == []
    assert result == run_to_end(clean_plan, RunFolder(tmp_path / "clean"))


def test_a_row_keeps_its_id_in_any_place_and_equal_rows_get_different_ids(tmp_path):
    _, clean, _ = write_data_files(tmp_path / "data", 12, 0)
    lines = clean.read_text().splitlines()

    def ids(rows):
        data = load_rows(str(write_lines(clean, rows)), DataSettings(), None)
        return [p.id for p in data.prompts]

    first = ids(lines)
    assert len(set(first)) == 12
    assert ids(lines[::-1]) == first[::-1]
    assert ids([lines[0], lines[1], lines[0]]) == [first[0], first[1], f"{first[0]}-2"]


def test_another_image_under_the_same_name_is_another_row(tmp_path):
    _, clean, _ = write_data_files(tmp_path / "data", 3, 0)
    before = load_rows(str(clean), DataSettings(), None).prompts
    Image.new("RGB", (48, 48), (9, 9, 9)).save(tmp_path / "data" / "1.png")
    after = load_rows(str(clean), DataSettings(), None).prompts
    assert [a.id == b.id for a, b in zip(before, after, strict=True)] == [True, False, True]
    with pytest.raises(DataError) as caught:
        before[1].images[0].load()
    assert caught.value.code == "D208"


def test_loading_stops_if_the_first_rows_are_all_bad_for_any_limit(tmp_path):
    rows = [
        json.dumps({"question": "?", "images": ["gone.png"], "answer": "1"}) for _ in range(400)
    ]
    file = write_lines(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError) as caught:
        load_rows(str(file), DataSettings(max_bad_share=1.0), None)
    assert caught.value.code == "D201"
    assert len(caught.value.bad_rows) == 20


def write_lines(file, lines):
    file.write_text("".join(line + "\n" for line in lines))
    return file


def spoil_image(prompt):
    """Cut the image of a row in half."""
    path = prompt.images[0].path
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


class SpoilingEngine(WrappedEngine):
    """An engine that spoils the image of a row at its n-th call."""

    def __init__(self, vlm, after, prompt):
        super().__init__(HFEngine(vlm))
        self.left, self.prompt = after, prompt

    def generate(self, requests, sampling):
        self.left -= 1
        if self.left == 0:
            spoil_image(self.prompt)
        return super().generate(requests, sampling)


def rows_with_own_images(folder, rows=8):
    """A data file whose rows share no image."""
    dirty, _, _ = write_data_files(folder, rows, 0)
    return dirty


@pytest.mark.parametrize("stop", few([None, 2, 4, 5], 3))
def test_a_row_that_becomes_bad_is_replaced_and_any_interruption_gives_the_same_bits(
    tokenizer, teacher, tmp_path, stop
):
    ends = []
    for name, leave in (("uninterrupted", None), ("stopped", stop)):
        file, folder = rows_with_own_images(tmp_path / f"data-{name}"), RunFolder(tmp_path / name)
        settings = {"steps": 9, "save": SaveSettings(every=2, keep=1), "stop_after": leave}
        plan, _ = plan_on(file, tokenizer, teacher, **settings)
        victim = plan.train_prompts[rows_of_step(3, 2, 8, plan.seed)[0]]
        plan = replace(plan, engine=SpoilingEngine(plan.models.student, 3, victim))
        run(prepare_run(plan, folder), folder)
        if leave is not None:
            plan, _ = plan_on(file, tokenizer, teacher, steps=9, save=settings["save"])
            engine = (
                SpoilingEngine(plan.models.student, 3 - min(leave, 3), victim)
                if leave < 3
                else None
            )
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


def test_the_slot_of_a_missing_row_takes_the_next_row_and_all_other_slots_stay():
    for step in range(12):
        original = rows_of_step(step, 3, 8, seed=1)
        filled = rows_of_step(step, 3, 8, 1, lambda row: row in (2, 5))
        assert not {2, 5} & set(filled)
        assert len(set(filled)) == 3
        assert [f for p, f in zip(original, filled, strict=True) if p not in (2, 5)] == [
            p for p in original if p not in (2, 5)
        ]


def test_too_many_bad_rows_end_the_run_with_the_first_reason(tokenizer, teacher, tmp_path):
    file = rows_with_own_images(tmp_path / "data")
    plan, _ = plan_on(file, tokenizer, teacher, max_bad_share=0.01)
    spoil_image(plan.train_prompts[rows_of_step(0, 2, 8, plan.seed)[0]])
    with pytest.raises(DataError) as caught:
        run(replace(plan, engine=HFEngine(plan.models.student)), RunFolder(tmp_path / "run"))
    assert caught.value.code == "D208"


def test_a_row_whose_response_stays_empty_is_replaced(tokenizer, teacher, tmp_path):
    file, folder = rows_with_own_images(tmp_path / "data"), RunFolder(tmp_path / "run")
    plan, _ = plan_on(file, tokenizer, teacher)
    empty_id = plan.train_prompts[rows_of_step(1, 2, 8, plan.seed)[1]].id

    def make_engine(plan):
        """An engine with an empty response for one prompt and one token for the others."""
        stop = plan.models.student.stop_ids[0]
        return ScriptedEngine(
            lambda key, sibling: () if key == empty_id else (20 + sibling, stop), stop
        )

    run(replace(plan, engine=make_engine(plan)), folder)
    assert [(r["id"], r["code"], r["step"]) for r in folder.read(folder.replaced)] == [
        (empty_id, "R403", 2)
    ]
    assert len(folder.read(folder.metrics)) == 6
    strict, _ = plan_on(file, tokenizer, teacher, max_bad_share=0.0)
    with pytest.raises(RolloutError) as caught:
        run(replace(strict, engine=make_engine(strict)), RunFolder(tmp_path / "strict"))
    assert caught.value.code == "R403"
    assert re.search(r"jsonl:\d+$", caught.value.where)


@pytest.mark.more
def test_a_changed_data_file_is_detected_at_the_next_start(tokenizer, teacher, tmp_path):
    file, folder = rows_with_own_images(tmp_path / "data"), RunFolder(tmp_path / "run")
    plan, _ = plan_on(file, tokenizer, teacher, stop_after=2)
    run(prepare_run(plan, folder), folder)
    lines = file.read_text().splitlines()
    write_lines(file, [line.replace("What is", "How much is") for line in lines])
    changed, _ = plan_on(file, tokenizer, teacher)
    with pytest.raises(DataError) as caught:
        prepare_run(changed, folder)
    assert caught.value.code == "D307"
    write_lines(file, lines[::-1])
    reversed_plan, _ = plan_on(file, tokenizer, teacher)
    assert [p.id for p in prepare_run(reversed_plan, folder).train_prompts] == [
        p.id for p in plan.train_prompts
    ]


@pytest.mark.more
def test_new_and_reordered_rows_do_not_change_a_started_run(tokenizer, teacher, tmp_path):
    file, ends = rows_with_own_images(tmp_path / "data"), []
    lines = file.read_text().splitlines()
    for name in ("uninterrupted", "stopped"):
        folder = RunFolder(tmp_path / name)
        write_lines(file, lines)
        if name == "stopped":
            plan, _ = plan_on(file, tokenizer, teacher, stop_after=3)
            run(prepare_run(plan, folder), folder)
            more = json.dumps({"question": "New?", "images": ["0.png"], "answer": "1"})
            write_lines(file, [more, *lines[::-1]])
        plan, _ = plan_on(file, tokenizer, teacher)
        ends.append(run_to_end(plan, folder))
    assert ends[0] == ends[1]
