"""Responses are on disk before they are learnt from; a crash repeats nothing; any step can be recomputed."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from plans import replay_of
from training.test_loop import TRAIN, go, make_plan, trace

from vistill.data.diagrams import diagram_prompts
from vistill.errors import StorageError
from vistill.objectives import METHODS
from vistill.objectives.sft import SFT
from vistill.objectives.va_opd import VAOPD
from vistill.rollouts.hf import HFEngine
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import weights_hash
from vistill.training.journal import Journal
from vistill.training.replay import told
from vistill.training.settings import SaveSettings

pytestmark = pytest.mark.usefixtures("without_canary")


class Counting(HFEngine):
    """An engine that counts its calls and is not reproducible: every call has noise of its own."""

    calls = 0

    def write(self, requests, sampling):
        Counting.calls += 1
        return super().write(requests, replace(sampling, seed=sampling.seed + 1000 * Counting.calls))


def unreproducible(tokenizer, teacher, **changes):
    plan = make_plan(tokenizer, teacher, VAOPD(), save=SaveSettings(every=3, keep=2), **changes)
    return make_plan(
        tokenizer, teacher, VAOPD(), save=SaveSettings(every=3, keep=2), cast=plan.cast,
        engine=Counting(plan.cast.student), **changes,
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
    assert weights_hash(resumed.cast.student) == weights_hash(plan.cast.student)
    assert trace(folder) == trace(whole)


def test_responses_are_on_disk_before_the_update(tokenizer, teacher, tmp_path, monkeypatch):
    from vistill.training import step as step_module

    folder, honest, seen = RunFolder(tmp_path), step_module.apply_update, []

    def look(update, loss, lr):
        seen.append(sorted(int(f.stem) for f in folder.journal.glob("*.json"))[-1])
        return honest(update, loss, lr)

    monkeypatch.setattr(step_module, "apply_update", look)
    go(make_plan(tokenizer, teacher, stop_after=4), folder)
    assert seen == [1, 2, 3, 4]


def test_the_journal_is_kept_as_far_back_as_the_oldest_checkpoint(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)
    plan = make_plan(tokenizer, teacher, eval_prompts=[], save=SaveSettings(every=2, keep=2))
    go(plan, folder)
    kept = sorted(int(f.stem) for f in folder.journal.glob("*.json"))
    oldest = min(int(p.name.split("-")[1]) for p in tmp_path.glob("checkpoint-*"))
    assert kept == list(range(oldest + 1, plan_steps(folder) + 1))


def plan_steps(folder):
    return folder.read(folder.metrics)[-1]["step"]


def test_responses_under_another_recipe_or_to_other_prompts_are_not_taken(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)
    go(make_plan(tokenizer, teacher, stop_after=1), folder)
    record = json.loads((folder.journal / "000001.json").read_text())
    asked = [next(p for p in TRAIN if p.id == name) for name in record["prompts"]]
    assert Journal(folder.journal, "test").find(1, asked) is not None
    assert Journal(folder.journal, "other").find(1, asked) is None
    assert Journal(folder.journal, "test").find(1, diagram_prompts("val", 2, 3)) is None
    assert Journal(folder.journal, "test").find(2, asked) is None


@pytest.mark.parametrize("share", [0.5, *(pytest.param(x, marks=pytest.mark.slow) for x in (0.0, 0.99))])
def test_half_an_entry_is_none_and_is_written_again(tokenizer, teacher, tmp_path, share):
    whole, folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "torn")
    go(make_plan(tokenizer, teacher), whole)
    go(make_plan(tokenizer, teacher, stop_after=5), folder)
    file = folder.journal / "000005.json"
    text = file.read_bytes()
    file.write_bytes(text[: int(share * len(text))])
    plan = make_plan(tokenizer, teacher)
    go(plan, folder)
    assert file.read_bytes() == text or not file.exists()
    assert trace(folder) == trace(whole)


def test_a_run_without_a_journal_gives_the_same_bits(tokenizer, teacher, tmp_path):
    ends = []
    for journal in (True, False):
        folder = RunFolder(tmp_path / str(journal))
        plan = make_plan(tokenizer, teacher, save=SaveSettings(every=2, keep=1, journal=journal))
        go(plan, folder)
        ends.append((weights_hash(plan.cast.student), trace(folder)))
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
    "method", [m if m in ("va_opd", "vgs_with_memory") else pytest.param(m, marks=pytest.mark.slow) for m in REPLAYED]
)
def test_steps_are_recomputed_to_the_last_bit_and_nothing_in_the_folder_changes(tokenizer, teacher, tmp_path, method):
    folder = RunFolder(tmp_path / "run")
    make = lambda: make_plan(tokenizer, teacher, REPLAYED[method], save=SaveSettings(every=4, keep=5), eval_prompts=[])
    go(make(), folder)
    before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()}
    last = plan_steps(folder)
    for step, start in ((1, 0), (7, 4), (last, (last - 1) // 4 * 4)):
        made = replay_of(make(), folder, step)
        assert made.same
        assert made.start == start
        assert sorted(made.compared) == list(range(start + 1, step + 1))
    assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file()} == before
    assert "all" in told(made, last)


def test_a_log_that_was_changed_and_a_weight_that_was_changed_are_found(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path / "run")
    make = lambda: make_plan(tokenizer, teacher, save=SaveSettings(every=4, keep=5), eval_prompts=[])
    go(make(), folder)
    lines = folder.metrics.read_text().splitlines()
    record = json.loads(lines[5])
    record["loss"] *= 1 + 1e-7
    folder.metrics.write_text("\n".join([*lines[:5], json.dumps(record), *lines[6:]]) + "\n")
    made = replay_of(make(), folder, 7)
    assert {step: list(differ) for step, differ in made.differences.items() if differ} == {6: ["loss"]}
    assert "step 6 is the first that differs" in told(made, 7)


def test_without_its_journal_a_step_is_recomputed_from_fresh_responses(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path / "run")
    make = lambda: make_plan(tokenizer, teacher, save=SaveSettings(every=4, keep=5), eval_prompts=[])
    go(make(), folder)
    shutil.rmtree(folder.journal)
    made = replay_of(make(), folder, 6)
    assert made.same
    assert made.from_journal == []


def test_a_step_that_was_never_taken_cannot_be_recomputed(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path / "run")
    go(make_plan(tokenizer, teacher, stop_after=2), folder)
    with pytest.raises(StorageError) as caught:
        replay_of(make_plan(tokenizer, teacher), folder, 3)
    assert caught.value.code == "S605"
    assert "--step 2" in caught.value.fix


def test_a_run_that_begins_anew_takes_nothing_from_an_earlier_beginning(tokenizer, teacher, tmp_path):
    folder, whole = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "whole")
    save = SaveSettings(every=50)
    go(make_plan(tokenizer, teacher, stop_after=2, save=save, eval_prompts=[]), folder)
    assert sorted(f.stem for f in folder.journal.glob("*.json")) == ["000001", "000002"]
    other = lambda: make_plan(tokenizer, teacher, save=save, eval_prompts=[], seed=5)
    with torch.no_grad():
        for made, place in ((other(), folder), (other(), whole)):
            for parameter in made.cast.student.model.parameters():
                parameter.mul_(1.1)
            with torch.enable_grad():
                go(made, place)
    assert folder.metrics.read_text() == whole.metrics.read_text()
