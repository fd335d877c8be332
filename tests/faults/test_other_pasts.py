"""Responses of the journal are learnt from only where the whole past of the run is the one they were written in."""

import math
import shutil
from dataclasses import replace

import pytest
from faults.test_bad_rows import one_picture_a_row, plan_on, spoil
from plans import replay_plan
from training.test_loop import go

from vistill.data.keys import rows_of_step
from vistill.faults import VARIABLE, reset_visits
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import weights_hash
from vistill.training.journal import chain_after, chain_key
from vistill.training.settings import SaveSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("without_canary")


def plan_of(tokenizer, teacher, file, journal=True):
    """Ten steps, responses so long that other weights write other tokens."""
    plan, _ = plan_on(
        file, tokenizer, teacher, steps=10, save=SaveSettings(every=4, keep=5, journal=journal)
    )
    rollout = replace(plan.rollout, per_prompt=4, max_new_tokens=24)
    return replace(plan, rollout=rollout, train=TrainSettings(prompts_per_step=2, lr=0.1, steps=10))


def losing_a_row(tokenizer, teacher, folder, file, journal=True, vanishes=True):
    """A run that saves every four steps; a row of step 6 loses its picture once step 5 is done."""
    plan = plan_of(tokenizer, teacher, file, journal)
    victim = plan.train_prompts[rows_of_step(5, 2, 8, plan.seed)[0]]

    def progress(record):
        if vanishes and record.get("step") == 5 and "loss" in record:
            spoil(victim)

    go(replace(plan, progress=progress), folder)
    return weights_hash(plan.models.student), folder.metrics.read_text(), victim.id


@pytest.mark.parametrize("journal", [True, False])
def test_killed_at_8_resumed_from_4_and_a_row_vanishes_at_6(
    tokenizer, teacher, tmp_path, monkeypatch, journal
):
    file, folder = one_picture_a_row(tmp_path / "data"), RunFolder(tmp_path / "run")
    reset_visits()
    monkeypatch.setenv(VARIABLE, "learn.before_update:raise@8")
    with pytest.raises(RuntimeError, match="fault at learn"):
        losing_a_row(tokenizer, teacher, folder, file, journal=journal, vanishes=False)
    monkeypatch.delenv(VARIABLE)
    resumed = losing_a_row(tokenizer, teacher, folder, file, journal=journal)
    assert [(r["step"], r["id"]) for r in folder.read(folder.replaced)] == [(6, resumed[2])]
    assert "resumed from checkpoint-000004" in folder.events.read_text()
    other = one_picture_a_row(tmp_path / "other")
    undisturbed = losing_a_row(tokenizer, teacher, RunFolder(tmp_path / "whole"), other)
    assert resumed[:2] == undisturbed[:2]
    steps, from_journal = range(5, 11), steps_from_journal(tokenizer, teacher, folder, file)
    assert from_journal == (list(steps) if journal else [])


def steps_from_journal(tokenizer, teacher, folder, file):
    """Steps whose responses a replay of the whole run since step 4 takes from the journal."""
    shutil.rmtree(folder.checkpoint(8))
    made = replay_plan(plan_of(tokenizer, teacher, file), folder, 10)
    assert (made.same, made.start) == (True, 4)
    return made.from_journal


def test_a_row_that_vanishes_in_a_step_with_its_own_prompts_untouched_breaks_its_entry_too():
    assert chain_key("x", ()) != chain_key("x", ("row",))


RECORDS = [
    {"step": step, "loss": 1 / step, "finite": 1.0, "va/mean": math.nan if step == 2 else 0.5}
    for step in (1, 2, 3)
]
GONE = [(), ("a",), ("b", "a")]


def chain_of(records, gone, fingerprints):
    """The chain after some steps."""
    chain = ""
    for record, rows, fingerprint in zip(records, gone, fingerprints, strict=True):
        chain = chain_after(chain, record, rows, fingerprint)
    return chain


def test_any_difference_in_the_past_breaks_the_chain():
    base = chain_of(RECORDS, GONE, "fff")
    others = [
        chain_of(RECORDS[:2], GONE[:2], "ff"),
        chain_of(RECORDS[::-1], GONE, "fff"),
        chain_of(RECORDS, GONE[::-1], "fff"),
    ]
    for at in range(3):
        for name, value in RECORDS[at].items():
            changed = [dict(record) for record in RECORDS]
            changed[at][name] = 0.25 if math.isnan(value) else math.nextafter(value, math.inf)
            others.append(chain_of(changed, GONE, "fff"))
        changed = [dict(record) for record in RECORDS]
        del changed[at]["finite"]
        others.append(chain_of(changed, GONE, "fff"))
        others.append(chain_of(RECORDS, [*GONE[:at], ("c",), *GONE[at + 1 :]], "fff"))
        others.append(chain_of(RECORDS, GONE, ["g" if i == at else "f" for i in range(3)]))
    assert len({base, *others}) == 1 + len(others)


def test_the_chain_is_the_same_computed_while_training_and_from_the_log(tmp_path):
    folder = RunFolder(tmp_path)
    for record in RECORDS:
        folder.log(folder.metrics, record)
    assert chain_of(folder.read(folder.metrics), [set(rows) for rows in GONE], "fff") == chain_of(
        RECORDS, GONE, "fff"
    )
