"""Responses are on disk before the update; after a crash none is sampled again."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from doubles import before_each_update
from plans import replay_plan
from tiers import few
from training.test_loop import TRAIN, logged_text, make_plan, run_plan

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


class CountingEngine(HFEngine):
    """An engine that counts its calls and is not reproducible: every call has other noise."""

    calls = 0

    def generate(self, requests, sampling):
        CountingEngine.calls += 1
        return super().generate(
            requests, replace(sampling, seed=sampling.seed + 1000 * CountingEngine.calls)
        )


def make_unreproducible_plan(tokenizer, teacher, **changes):
    save = SaveSettings(every=3, keep=2)
    plan = make_plan(tokenizer, teacher, VAOPD(), save=save, eval_prompts=[], **changes)
    return replace(plan, engine=CountingEngine(plan.models.student))


def test_after_a_crash_an_engine_that_would_write_other_responses_is_not_asked_again(
    tokenizer, teacher, tmp_path
):
    CountingEngine.calls = 0
    whole = RunFolder(tmp_path / "whole")
    plan = make_unreproducible_plan(tokenizer, teacher)
    run_plan(plan, whole)
    CountingEngine.calls = 0
    folder = RunFolder(tmp_path / "stopped")
    run_plan(make_unreproducible_plan(tokenizer, teacher, stop_after=5), folder)
    before = CountingEngine.calls
    resumed = make_unreproducible_plan(tokenizer, teacher)
    run_plan(resumed, folder)
    assert CountingEngine.calls - before == len(folder.read(folder.metrics)) - 5
    assert weights_hash(resumed.models.student) == weights_hash(plan.models.student)
    assert folder.metrics.read_text() == whole.metrics.read_text()


def test_responses_are_on_disk_before_the_update(tokenizer, teacher, tmp_path):
    folder, seen = RunFolder(tmp_path), []
    with before_each_update(lambda optimizer: seen.append(Journal(folder.journal, "").steps()[-1])):
        run_plan(make_plan(tokenizer, teacher, stop_after=4), folder)
    assert seen == [1, 2, 3, 4]


@pytest.mark.parametrize("best", few([False, True], 1))
def test_the_journal_goes_back_to_the_oldest_newest_checkpoint_and_not_to_the_best(
    tokenizer, teacher, tmp_path, best
):
    folder = RunFolder(tmp_path)
    plan = make_plan(tokenizer, teacher, eval_prompts=[], save=SaveSettings(every=2, keep=2))
    if best:
        run_plan(replace(plan, stop_after=2), folder)
        folder.log(folder.evaluations, {"step": 2, "accuracy": 1.0})
        plan = make_plan(tokenizer, teacher, eval_prompts=[], save=SaveSettings(every=2, keep=2))
    run_plan(plan, folder)
    assert [checkpoint_step(path) for path in checkpoints_in(tmp_path)] == [
        *([2] if best else []),
        8,
        9,
    ]
    assert Journal(folder.journal, "").steps() == [9]


def last_step(folder):
    return folder.read(folder.metrics)[-1]["step"]


def test_responses_of_another_recipe_or_to_other_prompts_are_not_used(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)
    run_plan(make_plan(tokenizer, teacher, stop_after=1), folder)
    record = json.loads((folder.journal / "000001.json").read_text())
    prompts = [next(p for p in TRAIN if p.id == name) for name in record["prompts"]]
    past = chain_key("", ())
    journal = Journal(folder.journal, record["fingerprint"], writes=False)
    other = Journal(folder.journal, "other", writes=False)
    assert journal.find(1, prompts, past) is not None
    assert other.find(1, prompts, past) is None
    assert journal.find(1, diagram_prompts("val", 2, 3), past) is None
    assert journal.find(2, prompts, past) is None
    assert journal.find(1, prompts, chain_key("", ("a row",))) is None
    assert journal.find(1, prompts, chain_key("another past", ())) is None
    assert journal.steps() == [1]


def make_va_opd_plan(tokenizer, teacher, **changes):
    """Make a plan of nine steps without evaluations, with checkpoints after 4, 8 and 9."""
    save = SaveSettings(every=4, keep=9)
    return make_plan(tokenizer, teacher, save=save, eval_prompts=[], **changes)


@pytest.fixture(scope="module")
def whole(tokenizer, teacher, tmp_path_factory):
    """An uninterrupted run."""
    folder = RunFolder(tmp_path_factory.mktemp("journal") / "whole")
    run_plan(make_va_opd_plan(tokenizer, teacher), folder)
    return folder


@pytest.fixture(scope="module")
def stopped_at_7(tokenizer, teacher, tmp_path_factory):
    """The same run, stopped after step 7; its newest checkpoint is that of step 4."""
    folder = RunFolder(tmp_path_factory.mktemp("journal") / "stopped")
    run_plan(make_va_opd_plan(tokenizer, teacher, stop_after=7), folder)
    return folder


def copy_folder(folder, path):
    return RunFolder(Path(shutil.copytree(folder.path, path / "copy")))


@pytest.mark.parametrize("share", few([0.5, 0.0, 0.99], 0))
def test_a_torn_entry_is_not_used_and_is_written_again(
    tokenizer, teacher, tmp_path, whole, stopped_at_7, share
):
    folder = copy_folder(stopped_at_7, tmp_path)
    file = folder.journal / "000005.json"
    text = file.read_bytes()
    file.write_bytes(text[: int(share * len(text))])
    run_plan(make_va_opd_plan(tokenizer, teacher), folder)
    assert file.read_bytes() == text
    assert "its entry cannot be read: 3 entries of the journal dropped" in folder.events.read_text()
    assert folder.metrics.read_text() == whole.metrics.read_text()


@pytest.mark.more
def test_a_run_without_a_journal_gives_the_same_bits(tokenizer, teacher, tmp_path):
    results = []
    for journal in (True, False):
        folder = RunFolder(tmp_path / str(journal))
        plan = make_plan(tokenizer, teacher, save=SaveSettings(every=2, keep=1, journal=journal))
        run_plan(plan, folder)
        results.append((weights_hash(plan.models.student), logged_text(folder)))
        assert folder.journal.exists() == journal
    assert results[0] == results[1]


REPLAYED = {
    "va_opd": VAOPD(),
    "sft": SFT(),
    "visual_opsd": METHODS["visual_opsd"](gate=False, ema_decay=0.7),
    "vgs_with_memory": METHODS["vgs"](scope="running", eta="dynamic", eta_every=2),
    "grpo_two_updates": METHODS["grpo"](updates=2, reference_weight=0.1),
}


@pytest.mark.parametrize("method", few(REPLAYED, 3))
def test_steps_are_recomputed_to_the_last_bit_and_nothing_in_the_folder_changes(
    tokenizer, teacher, tmp_path, method
):
    folder = RunFolder(tmp_path / "run")

    def make():
        return make_plan(
            tokenizer,
            teacher,
            REPLAYED[method],
            save=SaveSettings(every=4, keep=5),
            eval_prompts=[],
        )

    run_plan(make(), folder)
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    last = last_step(folder)
    for step, start in ((1, 0), (7, 4), (last, (last - 1) // 4 * 4)):
        replayed = replay_plan(make(), folder, step)
        assert replayed.same
        assert replayed.start == start
        assert sorted(replayed.compared) == list(range(start + 1, step + 1))
        assert replayed.from_journal == (list(range(start + 1, step + 1)) if start else [])
    assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before
    assert "all" in format_replay(replayed, last)


@pytest.mark.more
def test_a_changed_log_is_found(tokenizer, teacher, tmp_path, whole):
    folder = copy_folder(whole, tmp_path)
    lines = folder.metrics.read_text().splitlines()
    record = json.loads(lines[5])
    record["loss"] *= 1 + 1e-7
    folder.metrics.write_text("\n".join([*lines[:5], json.dumps(record), *lines[6:]]) + "\n")
    replayed = replay_plan(make_va_opd_plan(tokenizer, teacher), folder, 7)
    assert {step: list(differ) for step, differ in replayed.differences.items() if differ} == {
        6: ["loss"]
    }
    assert "step 6 is the first that differs" in format_replay(replayed, 7)


def test_without_its_journal_a_step_is_recomputed_from_new_responses(
    tokenizer, teacher, tmp_path, whole
):
    folder = copy_folder(whole, tmp_path)
    shutil.rmtree(folder.journal)
    replayed = replay_plan(make_va_opd_plan(tokenizer, teacher), folder, 6)
    assert replayed.same
    assert replayed.from_journal == []


def test_a_step_that_was_never_taken_cannot_be_recomputed(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path / "run")
    run_plan(make_plan(tokenizer, teacher, stop_after=2), folder)
    with pytest.raises(StorageError) as caught:
        replay_plan(make_plan(tokenizer, teacher), folder, 3)
    assert caught.value.code == "S605"
    assert "--step 2" in caught.value.fix


@pytest.mark.more
def test_a_run_that_starts_over_uses_nothing_of_its_earlier_start(
    tokenizer, teacher, tmp_path, whole
):
    folder, save = RunFolder(tmp_path / "run"), SaveSettings(every=50)
    run_plan(make_plan(tokenizer, teacher, stop_after=2, save=save, eval_prompts=[]), folder)
    assert Journal(folder.journal, "").steps() == [1, 2]
    for file in folder.journal.glob("*.json"):  # as from an engine that is not reproducible
        record = json.loads(file.read_text())
        record["rollouts"][0][0]["ids"][0] += 1
        file.write_text(json.dumps(record) + "\n")
    run_plan(make_plan(tokenizer, teacher, save=save, eval_prompts=[]), folder)
    assert folder.metrics.read_text() == whole.metrics.read_text()


def test_a_run_that_starts_over_with_another_student_is_refused(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path / "run")
    run_plan(
        make_plan(tokenizer, teacher, stop_after=2, save=SaveSettings(every=50), eval_prompts=[]),
        folder,
    )
    other = make_plan(tokenizer, teacher, save=SaveSettings(every=50), eval_prompts=[])
    with torch.no_grad():
        for parameter in other.models.student.model.parameters():
            parameter.mul_(1.1)
    with pytest.raises(ConfigError) as caught:
        run_plan(other, folder)
    assert caught.value.code == "C202"


class UnkeyedEngine(CountingEngine):
    """An engine that declares that it would not write the same again."""

    follows_keyed_noise = False


@pytest.mark.more
def test_a_step_older_than_the_journal_is_refused_for_an_unkeyed_engine(
    tokenizer, teacher, tmp_path
):
    folder, save = RunFolder(tmp_path / "run"), SaveSettings(every=3, keep=2)

    def plan(**changes):
        plan = make_plan(tokenizer, teacher, save=save, eval_prompts=[], **changes)
        return replace(plan, engine=UnkeyedEngine(plan.models.student))

    run_plan(plan(stop_after=8), folder)
    with pytest.raises(StorageError) as caught:
        replay_plan(plan(), folder, 3)
    assert caught.value.code == "S607"
    assert caught.value.fix.endswith("--step 8")
    assert replay_plan(plan(), folder, 8).same
    shutil.rmtree(folder.journal)
    with pytest.raises(StorageError, match=r"save\.keep=10"):
        replay_plan(plan(), folder, 8)


@pytest.mark.more
def test_entries_of_an_older_version_are_dropped_and_written_again(
    tokenizer, teacher, tmp_path, whole, stopped_at_7
):
    folder = copy_folder(stopped_at_7, tmp_path)
    for step in (5, 6, 7):
        file = folder.journal / f"{step:06d}.json"
        record = json.loads(file.read_text())
        file.write_text(
            json.dumps({k: v for k, v in record.items() if k not in ("chain", "digest")}) + "\n"
        )
    run_plan(make_va_opd_plan(tokenizer, teacher), folder)
    assert folder.metrics.read_text() == whole.metrics.read_text()
    assert (
        "step 5: its entry is of an older version: 3 entries of the journal dropped"
        in folder.events.read_text()
    )


def test_an_entry_with_changed_token_ids_is_not_used(
    tokenizer, teacher, tmp_path, whole, stopped_at_7
):
    folder = copy_folder(stopped_at_7, tmp_path)
    file = folder.journal / "000005.json"
    record = json.loads(file.read_text())
    record["rollouts"][0][0]["ids"][0] += 1
    file.write_text(json.dumps(record) + "\n")
    run_plan(make_va_opd_plan(tokenizer, teacher), folder)
    assert folder.metrics.read_text() == whole.metrics.read_text()


class RefusingEngine(UnkeyedEngine):
    """An engine that fails for one row from step 6 on: the row is replaced in that step."""

    bad = ""

    def generate(self, requests, sampling):
        if any(r.key == RefusingEngine.bad for r in requests) and sampling.step >= 5:
            error = RolloutError("R403", "no answer", why="a test", fix="none")
            error.rows = [RefusingEngine.bad]
            raise error
        return super().generate(requests, sampling)


@pytest.mark.more
def test_a_step_with_a_replaced_row_uses_its_own_responses_again(tokenizer, teacher, tmp_path):
    """A repeated step first looks for the bad row, finds another past, and drops no entry."""
    save = SaveSettings(every=5, keep=2)

    def plan(**changes):
        plan = make_plan(
            tokenizer, teacher, save=save, eval_prompts=[], max_bad_share=0.5, **changes
        )
        return replace(plan, engine=RefusingEngine(plan.models.student))

    RefusingEngine.bad, CountingEngine.calls = "", 0
    run_plan(plan(stop_after=6), RunFolder(tmp_path / "order"))
    RefusingEngine.bad = json.loads((tmp_path / "order" / "journal" / "000006.json").read_text())[
        "prompts"
    ][0]
    folder = RunFolder(tmp_path / "run")
    run_plan(plan(stop_after=8), folder)
    before = folder.metrics.read_text()
    assert [r["id"] for r in folder.read(folder.replaced)] == [RefusingEngine.bad]
    run_plan(plan(stop_after=8), folder)
    assert folder.metrics.read_text() == before
    assert "dropped" not in folder.events.read_text()


def test_files_of_the_user_in_the_journal_stay(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)
    names = ("notes.json", "000005-copy.json", "5.json", "0000005.json", "backup/x.json")
    for name in names:
        (folder.journal / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.journal / name).write_text("{}")
    Journal(folder.journal, "").drop_until(10)
    Journal(folder.journal, "").drop_from(1, "for a test")
    assert Journal(folder.journal, "").steps() == []
    assert all((folder.journal / name).exists() for name in names)
