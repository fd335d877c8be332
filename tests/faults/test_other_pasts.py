"""A run reuses the journal's responses only if its whole past equals the one they belong to."""

import math
import shutil
from dataclasses import replace

import pytest
from faults.test_bad_rows import plan_on, rows_with_own_images, spoil_image
from plans import replay_plan
from training.test_loop import run_plan

from vistill.data.keys import rows_of_step
from vistill.faults import VARIABLE, reset_visits
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import weights_hash
from vistill.training.journal import chain_after, chain_key
from vistill.training.settings import SaveSettings, TrainSettings

pytestmark = pytest.mark.usefixtures("without_canary")


def plan_of(tokenizer, teacher, file, journal=True):
    """Ten steps with responses so long that other weights give other tokens."""
    plan, _ = plan_on(
        file, tokenizer, teacher, steps=10, save=SaveSettings(every=4, keep=5, journal=journal)
    )
    rollout = replace(plan.rollout, per_prompt=4, max_new_tokens=24)
    return replace(plan, rollout=rollout, train=TrainSettings(prompts_per_step=2, lr=0.1, steps=10))


def run_losing_a_row(tokenizer, teacher, folder, file, journal=True, vanishes=True):
    """Run with a save every four steps; after step 5 a row of step 6 loses its image."""
    plan = plan_of(tokenizer, teacher, file, journal)
    victim = plan.train_prompts[rows_of_step(5, 2, 8, plan.seed)[0]]

    def progress(record):
        if vanishes and record.get("step") == 5 and "loss" in record:
            spoil_image(victim)

    run_plan(replace(plan, progress=progress), folder)
    return weights_hash(plan.models.student), folder.metrics.read_text(), victim.id


@pytest.mark.more
@pytest.mark.parametrize("journal", [True, False])
def test_a_run_killed_at_8_and_resumed_from_4_loses_a_row_at_6(
    tokenizer, teacher, tmp_path, monkeypatch, journal
):
    file, folder = rows_with_own_images(tmp_path / "data"), RunFolder(tmp_path / "run")
    reset_visits()
    monkeypatch.setenv(VARIABLE, "learn.before_update:raise@8")
    with pytest.raises(RuntimeError, match="fault at learn"):
        run_losing_a_row(tokenizer, teacher, folder, file, journal=journal, vanishes=False)
    monkeypatch.delenv(VARIABLE)
    resumed = run_losing_a_row(tokenizer, teacher, folder, file, journal=journal)
    assert [(r["step"], r["id"]) for r in folder.read(folder.replaced)] == [(6, resumed[2])]
    assert "resumed from checkpoint-000004" in folder.events.read_text()
    other = rows_with_own_images(tmp_path / "other")
    undisturbed = run_losing_a_row(tokenizer, teacher, RunFolder(tmp_path / "uninterrupted"), other)
    assert resumed[:2] == undisturbed[:2]
    steps, from_journal = range(5, 11), steps_from_journal(tokenizer, teacher, folder, file)
    assert from_journal == (list(steps) if journal else [])


def steps_from_journal(tokenizer, teacher, folder, file):
    """Steps whose responses a replay from step 4 takes from the journal."""
    shutil.rmtree(folder.checkpoint(8))
    replayed = replay_plan(plan_of(tokenizer, teacher, file), folder, 10)
    assert (replayed.same, replayed.start) == (True, 4)
    return replayed.from_journal


def test_a_replaced_row_changes_the_key_of_the_chain():
    assert chain_key("x", ()) != chain_key("x", ("row",))


RECORDS = [
    {"step": step, "loss": 1 / step, "finite": 1.0, "va/mean": math.nan if step == 2 else 0.5}
    for step in (1, 2, 3)
]
REPLACED = [(), ("a",), ("b", "a")]


def chain_of(records, replaced, fingerprints):
    """The chain after some steps."""
    chain = ""
    for record, rows, fingerprint in zip(records, replaced, fingerprints, strict=True):
        chain = chain_after(chain, record, rows, fingerprint)
    return chain


def test_any_difference_in_the_past_changes_the_chain():
    base = chain_of(RECORDS, REPLACED, "fff")
    others = [
        chain_of(RECORDS[:2], REPLACED[:2], "ff"),
        chain_of(RECORDS[::-1], REPLACED, "fff"),
        chain_of(RECORDS, REPLACED[::-1], "fff"),
    ]
    for at in range(3):
        for name, value in RECORDS[at].items():
            changed = [dict(record) for record in RECORDS]
            changed[at][name] = 0.25 if math.isnan(value) else math.nextafter(value, math.inf)
            others.append(chain_of(changed, REPLACED, "fff"))
        changed = [dict(record) for record in RECORDS]
        del changed[at]["finite"]
        others.append(chain_of(changed, REPLACED, "fff"))
        others.append(chain_of(RECORDS, [*REPLACED[:at], ("c",), *REPLACED[at + 1 :]], "fff"))
        others.append(chain_of(RECORDS, REPLACED, ["g" if i == at else "f" for i in range(3)]))
    assert len({base, *others}) == 1 + len(others)


def test_the_chain_is_the_same_during_training_and_from_the_log(tmp_path):
    folder = RunFolder(tmp_path)
    for record in RECORDS:
        folder.log(folder.metrics, record)
    assert chain_of(
        folder.read(folder.metrics), [set(rows) for rows in REPLACED], "fff"
    ) == chain_of(RECORDS, REPLACED, "fff")
