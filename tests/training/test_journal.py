"""Responses are on disk before they are learnt from; a crash repeats nothing; any step can be recomputed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from plans import replay_plan
from training.test_loop import TRAIN, go, make_plan, trace

from vistill.data.diagrams import diagram_prompts
from vistill.errors import ConfigError, RolloutError, StorageError
from vistill.objectives import METHODS
from vistill.objectives.sft import SFT
from vistill.objectives.va_opd import VAOPD
from vistill.rollouts.hf import HFEngine
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in
from vistill.training.checkpoint import weights_hash
from vistill.training.journal import Journal, chain_key
from vistill.training.replay import format_replay
from vistill.training.settings import SaveSettings

pytestmark = pytest.mark.usefixtures("without_canary")


class Counting(HFEngine):
    """An engine that counts its calls and is not reproducible: every call has noise of its own."""

    calls = 0

    def write(self, requests, sampling):
        Counting.calls += 1
        return super().write(
            requests, replace(sampling, seed=sampling.seed + 1000 * Counting.calls)
        )


def unreproducible(tokenizer, teacher, **changes):
    plan = make_plan(tokenizer, teacher, VAOPD(), save=SaveSettings(every=3, keep=2), **changes)
    return make_plan(
        tokenizer, teacher, VAOPD(), save=SaveSettings(every=3, keep=2), models=plan.models,
        engine=Counting(plan.models.student), **changes,
    )  # fmt: skip


def test_after_a_crash_in_an_update_the_same_responses_are_learnt_from_even_by_an_engine_that_would_write_others(
    tokenizer, teacher, tmp_path
):
    Counting.calls = 0
    whole = RunFolder(tmp_path / "whole")
    plan = unreproducible(tokenizer, teacher)
    go(plan, whole)
    Counting.calls = 0
    folder = RunFolder(tmp_path / "stopped")
    go(unreproducible(tokenizer, teacher, stop_after=5), folder)
    before = Counting.calls
    resumed = unreproducible(tokenizer, teacher)
    go(resumed, folder)
    assert Counting.calls - before == len(folder.read(folder.metrics)) - 5
    assert weights_hash(resumed.models.student) == weights_hash(plan.models.student)
    assert trace(folder) == trace(whole)


def test_responses_are_on_disk_before_the_update(tokenizer, teacher, tmp_path, monkeypatch):
    from vistill.training import step as step_module

    folder, honest, seen = RunFolder(tmp_path), step_module.apply_update, []

    def look(update, loss, lr):
        seen.append(Journal(folder.journal, "").steps()[-1])
        return honest(update, loss, lr)

    monkeypatch.setattr(step_module, "apply_update", look)
    go(make_plan(tokenizer, teacher, stop_after=4), folder)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("best", [False, True])
def test_the_journal_goes_back_to_the_oldest_of_the_newest_checkpoints_however_old_the_best_is(
    tokenizer, teacher, tmp_path, best
):
    folder = RunFolder(tmp_path)
    plan = make_plan(tokenizer, teacher, eval_prompts=[], save=SaveSettings(every=2, keep=2))
    if best:
        go(replace(plan, stop_after=2), folder)
        folder.log(folder.evaluations, {"step": 2, "accuracy": 1.0})
        plan = make_plan(tokenizer, teacher, eval_prompts=[], save=SaveSettings(every=2, keep=2))
    go(plan, folder)
    assert [checkpoint_step(path) for path in checkpoints_in(tmp_path)] == [
        *([2] if best else []),
        14,
        15,
    ]
    assert Journal(folder.journal, "").steps() == [15]


def plan_steps(folder):
    return folder.read(folder.metrics)[-1]["step"]


def test_responses_under_another_recipe_or_to_other_prompts_are_not_taken(
    tokenizer, teacher, tmp_path
):
    folder = RunFolder(tmp_path)
    go(make_plan(tokenizer, teacher, stop_after=1), folder)
    record = json.loads((folder.journal / "000001.json").read_text())
    asked = [next(p for p in TRAIN if p.id == name) for name in record["prompts"]]
    past = chain_key("", ())
    looking = lambda fingerprint: Journal(folder.journal, fingerprint, writes=False)
    assert looking(record["fingerprint"]).find(1, asked, past) is not None
    assert looking("other").find(1, asked, past) is None
    assert looking(record["fingerprint"]).find(1, diagram_prompts("val", 2, 3), past) is None
    assert looking(record["fingerprint"]).find(2, asked, past) is None
    assert looking(record["fingerprint"]).find(1, asked, chain_key("", ("a row",))) is None
    assert looking(record["fingerprint"]).find(1, asked, chain_key("another past", ())) is None
    assert looking(record["fingerprint"]).steps() == [1]


@pytest.mark.parametrize(
    "share", [0.5, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.0, 0.99))]
)
def test_half_an_entry_is_none_and_is_written_again(tokenizer, teacher, tmp_path, share):
    whole, folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "torn")
    save = SaveSettings(every=4, keep=9)
    go(make_plan(tokenizer, teacher, save=save), whole)
    go(make_plan(tokenizer, teacher, save=save, stop_after=5), folder)
    file = folder.journal / "000005.json"
    text = file.read_bytes()
    file.write_bytes(text[: int(share * len(text))])
    go(make_plan(tokenizer, teacher, save=save), folder)
    assert file.read_bytes() == text
    assert "its entry cannot be read: 1 entries of the journal dropped" in folder.events.read_text()
    assert trace(folder) == trace(whole)


def test_a_run_without_a_journal_gives_the_same_bits(tokenizer, teacher, tmp_path):
    ends = []
    for journal in (True, False):
        folder = RunFolder(tmp_path / str(journal))
        plan = make_plan(tokenizer, teacher, save=SaveSettings(every=2, keep=1, journal=journal))
        go(plan, folder)
        ends.append((weights_hash(plan.models.student), trace(folder)))
        assert folder.journal.exists() == journal
    assert ends[0] == ends[1]


REPLAYED = {
    "va_opd": VAOPD(),
    "sft": SFT(),
    "visual_opsd": METHODS["visual_opsd"](gate=False, ema_decay=0.7),
    "vgs_with_memory": METHODS["vgs"](scope="running", eta="dynamic", eta_every=2),
    "grpo_two_updates": METHODS["grpo"](updates=2, reference_weight=0.1),
}


@pytest.mark.parametrize(
    "method",
    [
        m if m in ("va_opd", "vgs_with_memory") else pytest.param(m, marks=pytest.mark.slow)
        for m in REPLAYED
    ],
)
def test_steps_are_recomputed_to_the_last_bit_and_nothing_in_the_folder_changes(
    tokenizer, teacher, tmp_path, method
):
    folder = RunFolder(tmp_path / "run")
    make = lambda: make_plan(
        tokenizer, teacher, REPLAYED[method], save=SaveSettings(every=4, keep=5), eval_prompts=[]
    )
    go(make(), folder)
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    last = plan_steps(folder)
    for step, start in ((1, 0), (7, 4), (last, (last - 1) // 4 * 4)):
        made = replay_plan(make(), folder, step)
        assert made.same
        assert made.start == start
        assert sorted(made.compared) == list(range(start + 1, step + 1))
        assert made.from_journal == (list(range(start + 1, step + 1)) if start else [])
    assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before
    assert "all" in format_replay(made, last)


def test_a_log_that_was_changed_and_a_weight_that_was_changed_are_found(
    tokenizer, teacher, tmp_path
):
    folder = RunFolder(tmp_path / "run")
    make = lambda: make_plan(
        tokenizer, teacher, save=SaveSettings(every=4, keep=5), eval_prompts=[]
    )
    go(make(), folder)
    lines = folder.metrics.read_text().splitlines()
    record = json.loads(lines[5])
    record["loss"] *= 1 + 1e-7
    folder.metrics.write_text("\n".join([*lines[:5], json.dumps(record), *lines[6:]]) + "\n")
    made = replay_plan(make(), folder, 7)
    assert {step: list(differ) for step, differ in made.differences.items() if differ} == {
        6: ["loss"]
    }
    assert "step 6 is the first that differs" in format_replay(made, 7)


def test_without_its_journal_a_step_is_recomputed_from_fresh_responses(
    tokenizer, teacher, tmp_path
):
    folder = RunFolder(tmp_path / "run")
    make = lambda: make_plan(
        tokenizer, teacher, save=SaveSettings(every=4, keep=5), eval_prompts=[]
    )
    go(make(), folder)
    shutil.rmtree(folder.journal)
    made = replay_plan(make(), folder, 6)
    assert made.same
    assert made.from_journal == []


def test_a_step_that_was_never_taken_cannot_be_recomputed(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path / "run")
    go(make_plan(tokenizer, teacher, stop_after=2), folder)
    with pytest.raises(StorageError) as caught:
        replay_plan(make_plan(tokenizer, teacher), folder, 3)
    assert caught.value.code == "S605"
    assert "--step 2" in caught.value.fix


def test_a_run_that_begins_anew_takes_nothing_from_an_earlier_beginning(
    tokenizer, teacher, tmp_path
):
    folder, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    save = SaveSettings(every=50)
    go(make_plan(tokenizer, teacher, stop_after=2, save=save, eval_prompts=[]), folder)
    assert Journal(folder.journal, "").steps() == [1, 2]
    for file in folder.journal.glob(
        "*.json"
    ):  # as an engine that is not reproducible would have written
        record = json.loads(file.read_text())
        record["rollouts"][0][0]["ids"][0] += 1
        file.write_text(json.dumps(record) + "\n")
    for place in (folder, whole):
        go(make_plan(tokenizer, teacher, save=save, eval_prompts=[]), place)
    assert folder.metrics.read_text() == whole.metrics.read_text()


def test_a_run_that_begins_anew_with_another_student_is_refused(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path / "run")
    go(
        make_plan(tokenizer, teacher, stop_after=2, save=SaveSettings(every=50), eval_prompts=[]),
        folder,
    )
    other = make_plan(tokenizer, teacher, save=SaveSettings(every=50), eval_prompts=[])
    with torch.no_grad():
        for parameter in other.models.student.model.parameters():
            parameter.mul_(1.1)
    with pytest.raises(ConfigError) as caught:
        go(other, folder)
    assert caught.value.code == "C202"


class Changing(Counting):
    """An engine that says that it would not write the same again."""

    follows_keyed_noise = False


def test_a_step_older_than_the_journal_is_refused_where_the_engine_would_write_other_responses(
    tokenizer, teacher, tmp_path
):
    folder, save = RunFolder(tmp_path / "run"), SaveSettings(every=3, keep=2)

    def plan(**changes):
        plan = make_plan(tokenizer, teacher, save=save, eval_prompts=[], **changes)
        return replace(plan, engine=Changing(plan.models.student))

    go(plan(stop_after=8), folder)
    with pytest.raises(StorageError) as caught:
        replay_plan(plan(), folder, 3)
    assert caught.value.code == "S607"
    assert caught.value.fix.endswith("--step 8")
    assert replay_plan(plan(), folder, 8).same
    shutil.rmtree(folder.journal)
    with pytest.raises(StorageError, match=r"save\.keep=10"):
        replay_plan(plan(), folder, 8)


def test_entries_of_an_older_version_are_dropped_and_written_again(tokenizer, teacher, tmp_path):
    whole, folder, save = (
        RunFolder(tmp_path / "whole"),
        RunFolder(tmp_path / "run"),
        SaveSettings(every=4, keep=9),
    )
    go(make_plan(tokenizer, teacher, save=save), whole)
    go(make_plan(tokenizer, teacher, save=save, stop_after=7), folder)
    for step in (5, 6, 7):
        file = folder.journal / f"{step:06d}.json"
        record = json.loads(file.read_text())
        file.write_text(
            json.dumps({k: v for k, v in record.items() if k not in ("chain", "digest")}) + "\n"
        )
    go(make_plan(tokenizer, teacher, save=save), folder)
    assert trace(folder) == trace(whole)
    assert (
        "step 5: its entry is of an older version: 3 entries of the journal dropped"
        in folder.events.read_text()
    )


def test_an_entry_whose_token_ids_were_changed_is_not_taken(tokenizer, teacher, tmp_path):
    whole, folder, save = (
        RunFolder(tmp_path / "whole"),
        RunFolder(tmp_path / "run"),
        SaveSettings(every=4, keep=9),
    )
    go(make_plan(tokenizer, teacher, save=save), whole)
    go(make_plan(tokenizer, teacher, save=save, stop_after=6), folder)
    file = folder.journal / "000005.json"
    record = json.loads(file.read_text())
    record["rollouts"][0][0]["ids"][0] += 1
    file.write_text(json.dumps(record) + "\n")
    go(make_plan(tokenizer, teacher, save=save), folder)
    assert trace(folder) == trace(whole)


class Refusing(Changing):
    """It has no answer to one row from some call on: the row is set aside, and its step taken with another one."""

    bad = ""

    def write(self, requests, sampling):
        if any(r.key == Refusing.bad for r in requests) and sampling.step >= 5:
            error = RolloutError("R403", "no answer", why="a test", fix="none")
            error.rows = [Refusing.bad]
            raise error
        return super().write(requests, sampling)


def test_a_step_whose_row_was_replaced_takes_its_own_responses_again(tokenizer, teacher, tmp_path):
    """A repeated step meets the row first: that look-up finds another past, and once dropped every later entry."""
    save = SaveSettings(every=5, keep=2)

    def plan(**changes):
        plan = make_plan(
            tokenizer, teacher, save=save, eval_prompts=[], max_bad_share=0.5, **changes
        )
        return replace(plan, engine=Refusing(plan.models.student))

    Refusing.bad, Counting.calls = "", 0
    go(plan(stop_after=6), RunFolder(tmp_path / "order"))
    Refusing.bad = json.loads((tmp_path / "order" / "journal" / "000006.json").read_text())[
        "prompts"
    ][0]
    folder = RunFolder(tmp_path / "run")
    go(plan(stop_after=8), folder)
    before = folder.metrics.read_text()
    assert [r["id"] for r in folder.read(folder.replaced)] == [Refusing.bad]
    go(plan(stop_after=8), folder)
    assert folder.metrics.read_text() == before
    assert "dropped" not in folder.events.read_text()


def test_files_of_people_in_the_journal_are_left_alone(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)
    names = ("notes.json", "000005-copy.json", "5.json", "0000005.json", "backup/x.json")
    for name in names:
        (folder.journal / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.journal / name).write_text("{}")
    Journal(folder.journal, "").forget_until(10)
    Journal(folder.journal, "").drop_from(1, "for a test")
    assert Journal(folder.journal, "").steps() == []
    assert all((folder.journal / name).exists() for name in names)
