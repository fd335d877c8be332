"""The loop: exact resume at every step, micro-batches, guards, signals."""

import itertools
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from conftest import build_model
from doubles import break_at, stop_breaking
from plans import prepare_run
from tiers import few

from vistill.batch import ScoredBatch, reduce_terms
from vistill.data.diagrams import DiagramSettings, diagram_prompts
from vistill.data.stored_prompts import with_content_hashes
from vistill.errors import NonFiniteError, Preempted, RolloutError, StorageError
from vistill.evaluation.settings import EvalSettings
from vistill.objectives import METHODS, OPD, SFT, VAOPD
from vistill.rollouts.engine import Sampling, WrappedEngine
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.scripted import ScriptedEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.runs.storage import file_hash
from vistill.training.checkpoint import (
    drop_old_checkpoints,
    list_checkpoints,
    newest_checkpoint,
    weights_hash,
)
from vistill.training.loop import Plan, choose_best, run
from vistill.training.micro_batches import BatchSplit
from vistill.training.models_of_run import Models
from vistill.training.optim import lr_factor
from vistill.training.response_source import ResponseSource, write_groups
from vistill.training.settings import SaveSettings, ScheduleSettings, TrainSettings
from vistill.training.step_inputs import (
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)
from vistill.training.teacher_responses import discard_stale_responses
from vistill.types import Pass, Reader, RolloutGroup, View

pytestmark = pytest.mark.usefixtures("without_canary")

TRAIN = with_content_hashes(diagram_prompts("train", 6, 0, DiagramSettings(thoughts=True)))
EVAL = diagram_prompts("val", 3, 0)


def make_plan(tokenizer, teacher, objective=None, layers=1, **changes):
    """Make a plan of nine steps; one layer suffices to test logs, checkpoints and resume."""
    student = build_model(tokenizer, 0, layers=layers)
    base = {
        "models": Models(student, teacher, student.vocabulary_size),
        "objective": objective or VAOPD(),
        "train_prompts": TRAIN,
        "eval_prompts": EVAL,
        "train": TrainSettings(
            prompts_per_step=2, steps=9, lr=3e-3, schedule=ScheduleSettings("cosine", 0.2)
        ),
        "rollout": RolloutSettings(
            per_prompt=2, temperature=1.0, top_p=1.0, max_new_tokens=5, all_truncated="go_on"
        ),
        "save": SaveSettings(every=2, keep=1),
        "evaluation": EvalSettings(every=4, limit=3, max_new_tokens=5, blind=False, greedy=False),
        "seed": 5,
        "num_steps": 9,
        "fingerprint": "test",
    }
    return Plan(**(base | changes))


def logged_text(folder):
    return (folder.path / "metrics.jsonl").read_text(), (
        folder.path / "evaluations.jsonl"
    ).read_text()


def run_plan(plan, folder):
    """Run every start check, then the loop, as for a recipe."""
    run(prepare_run(plan, folder), folder)


#: The methods that differ in what a checkpoint must hold; the others are slow tests.
FAST = {
    "va_opd": VAOPD(),
    "visual_opsd": METHODS["visual_opsd"](gate=False, ema_decay=0.7),
    "vgs_with_memory": METHODS["vgs"](scope="running", eta="dynamic", eta_every=2),
    "gkd": METHODS["gkd"](),
    "sft": SFT(),  # in the second tier
}
SLOW = {n: METHODS[n]() for n in METHODS if n not in ("va_opd", "sft", "visual_opsd", "gkd")} | {
    "sft_teacher": SFT(responses="teacher"),
    "grpo_two_updates": METHODS["grpo"](updates=2, reference_weight=0.1),
    "vgs_response_adaptive": METHODS["vgs"](scope="response", adaptive=True, preserve=0.0),
    "papo_gradient": METHODS["papo"](masked_gradient=True, annealed=True),
    "visual_opsd_self": METHODS["visual_opsd"](gate=False, teacher="self", thoughts="mismatched"),
    "visual_opsd_fixed": METHODS["visual_opsd"](gate=False, teacher="fixed", thoughts="noise"),
}


@pytest.fixture(
    scope="module",
    params=[*few(FAST, *range(len(FAST) - 1)), *few(SLOW, marks=pytest.mark.slow)],
)
def reference(request, tokenizer, teacher, tmp_path_factory):
    """An uninterrupted run of three epochs."""
    objective = {**FAST, **SLOW}[request.param]
    folder = RunFolder(tmp_path_factory.mktemp("reference"))
    if objective.requirements.keep_correct:
        store_correct_answers(folder, teacher)
    plan = make_plan(tokenizer, teacher, objective)
    run_plan(plan, folder)
    return objective, weights_hash(plan.models.student), logged_text(folder)


def store_correct_answers(folder, teacher):
    """Store some correct responses as the teacher's: a random teacher has none."""
    folder.path.mkdir(parents=True, exist_ok=True)
    rollout = RolloutSettings(
        per_prompt=2, temperature=1.0, top_p=1.0, max_new_tokens=5, all_truncated="go_on"
    )
    discard_stale_responses(folder, {"teacher": teacher.source, "seed": 5, **asdict(rollout)})
    for number, prompt in enumerate(TRAIN):
        texts = [
            f"The answer is \\boxed{{{prompt.answer if i <= number % 2 else 99}}}."
            for i in range(2)
        ]
        ids = [list(teacher.response_ids(text)) for text in texts]
        folder.log(
            folder.path / "teacher_responses.jsonl",
            {"prompt": prompt.id, "content": prompt.content, "ids": ids, "finish": ["stop"] * 2},
        )


@pytest.mark.parametrize(
    "step",
    [5, pytest.param(1, marks=pytest.mark.more), *few((2, 3, 4, 6, 7, 8), marks=pytest.mark.slow)],
)
def test_stopping_at_any_step_and_resuming_gives_the_same_bits(
    reference, tokenizer, teacher, tmp_path, step
):
    objective, weights, lines = reference
    folder = RunFolder(tmp_path)
    if objective.requirements.keep_correct:
        store_correct_answers(folder, teacher)
    run_plan(make_plan(tokenizer, teacher, objective, stop_after=step), folder)
    resumed = make_plan(tokenizer, teacher, objective)
    run_plan(resumed, folder)
    assert weights_hash(resumed.models.student) == weights
    assert logged_text(folder) == lines


def write_state_as_format_2(checkpoint):
    """Write state and manifest of a checkpoint as the version before format 3 did."""
    state = json.loads((checkpoint / "state.json").read_text())
    health = state.pop("rollout_health")
    state |= {**health, "gone": state.pop("replaced_rows"), "ladder": state.pop("halvings")}
    (checkpoint / "state.json").write_text(json.dumps(state))
    manifest = json.loads((checkpoint / "MANIFEST.json").read_text())
    for entry in manifest["files"]:
        if entry[0] == "state.json":
            file = checkpoint / "state.json"
            entry[1:] = [file.stat().st_size, file_hash(file)]
    (checkpoint / "MANIFEST.json").write_text(json.dumps(manifest | {"format": 2}))


@pytest.mark.more
def test_a_run_resumes_from_a_checkpoint_of_format_2_to_the_same_bits(tokenizer, teacher, tmp_path):
    """Two of six rows go bad after step 1; step 5 takes its responses from the journal."""

    class FailingEngine(WrappedEngine):
        """An engine that cannot answer two rows."""

        def generate(self, requests, sampling):
            bad = [r.key for r in requests if r.key in (TRAIN[0].id, TRAIN[1].id)]
            if bad and sampling.step > 0:
                error = RolloutError("R403", "no answer", why="a test", fix="none")
                error.rows = bad
                raise error
            return super().generate(requests, sampling)

    def make(**changes):
        objective = METHODS["vgs"](scope="running", eta="dynamic", eta_every=2)
        plan = make_plan(tokenizer, teacher, objective, max_bad_share=0.5, **changes)
        return replace(plan, engine=FailingEngine(HFEngine(plan.models.student)))

    whole, folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "resumed")
    reference = make()
    run_plan(reference, whole)
    run_plan(make(stop_after=5), folder)
    checkpoint = newest_checkpoint(folder)
    assert json.loads((checkpoint / "state.json").read_text())["replaced_rows"]
    write_state_as_format_2(checkpoint)
    resumed = make()
    run_plan(resumed, folder)
    assert "resumed from checkpoint-000004" in folder.events.read_text()
    assert "dropped" not in folder.events.read_text()
    assert weights_hash(resumed.models.student) == weights_hash(reference.models.student)
    assert logged_text(folder) == logged_text(whole)


@pytest.mark.more
def test_resuming_a_resumed_run_again_and_again_gives_the_same_bits(
    reference, tokenizer, teacher, tmp_path
):
    objective, weights, lines = reference
    folder = RunFolder(tmp_path)
    if objective.requirements.keep_correct:
        store_correct_answers(folder, teacher)
    for stop in (1, 2, 3, 5, 6, 8, None):
        plan = make_plan(tokenizer, teacher, objective, stop_after=stop)
        run_plan(plan, folder)
    assert weights_hash(plan.models.student) == weights
    assert logged_text(folder) == lines


def test_a_run_with_noise_by_counter_resumes_to_the_same_bits(tokenizer, teacher, tmp_path):
    rollout = RolloutSettings(
        per_prompt=2,
        temperature=1.5,
        top_p=0.9,
        max_new_tokens=5,
        all_truncated="go_on",
        noise="counter",
    )
    evaluation = EvalSettings(every=4, limit=3, max_new_tokens=5, blind=False, noise="counter")
    whole, folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    plans = [
        make_plan(tokenizer, teacher, rollout=rollout, evaluation=evaluation, stop_after=stop)
        for stop in (None, 5, None)
    ]
    for plan, path in zip(plans, (whole, folder, folder), strict=True):
        run_plan(plan, path)
    assert weights_hash(plans[2].models.student) == weights_hash(plans[0].models.student)
    assert logged_text(folder) == logged_text(whole)


@pytest.mark.parametrize("at", few([1, 5, 9], 1))
def test_a_signal_saves_the_last_complete_step_and_the_same_command_continues(
    tokenizer, teacher, tmp_path, at
):
    whole = RunFolder(tmp_path / "whole")
    reference = make_plan(tokenizer, teacher)
    run(reference, whole)
    folder, polls = RunFolder(tmp_path / "stopped"), []

    class Signalling(WrappedEngine):
        """Sends the process a signal in the middle of a rollout."""

        def generate(self, requests, sampling):
            polls.append(1)
            if len(polls) == at:
                signal.raise_signal(signal.SIGTERM)
            return super().generate(requests, sampling)

    plan = make_plan(tokenizer, teacher)
    plan = make_plan(
        tokenizer, teacher, models=plan.models, engine=Signalling(HFEngine(plan.models.student))
    )
    with pytest.raises(Preempted) as caught:
        run(plan, folder)
    assert caught.value.exit_code == 75
    assert newest_checkpoint(folder) is not None
    plan = make_plan(tokenizer, teacher)
    run(plan, folder)
    assert weights_hash(plan.models.student) == weights_hash(reference.models.student)
    assert logged_text(folder) == logged_text(whole)


@pytest.mark.more
@pytest.mark.parametrize("interrupted_step", [0, 4, 8])
def test_a_signal_during_an_evaluation_loses_neither_the_evaluation_nor_the_best(
    tokenizer, teacher, tmp_path, monkeypatch, interrupted_step
):
    whole, folder = RunFolder(tmp_path / "whole"), RunFolder(tmp_path / "stopped")
    reference = make_plan(tokenizer, teacher)
    best = run(reference, whole).best
    break_at(monkeypatch, f"evaluate.attempt:term@{1 + interrupted_step // 4}")
    with pytest.raises(Preempted):
        run(make_plan(tokenizer, teacher), folder)
    stop_breaking(monkeypatch)
    plan = make_plan(tokenizer, teacher)
    state = run(plan, folder)
    assert weights_hash(plan.models.student) == weights_hash(reference.models.student)
    assert logged_text(folder) == logged_text(whole)
    assert state.best == best


def write_rollouts(models, objective):
    """Rollouts to four prompts, three siblings each."""
    sampling = Sampling(0, 0, 1.0, 1.0, 6)
    return write_groups(
        models, ResponseSource(HFEngine(models.student), objective, 3), TRAIN[:4], sampling
    )


def step_gradient(models, objective, groups, micro_batch, rewards=None, part_tokens=4096):
    """The gradient of one step as one vector."""
    responses = flatten_responses(groups, 0, 0, models.student.device, rewards)
    split = BatchSplit(micro_batch, part_tokens=part_tokens)
    inputs = encode_step(models, groups, objective.passes(), responses, split)
    batch = score_without_gradient(models, inputs, objective.passes())
    signals = objective.signals(batch)
    models.student.model.zero_grad()
    for micro, cut in parts_with_gradient(models, inputs, batch, objective.passes(), signals):
        reduce_terms(objective.terms(micro, cut), responses.counts())[0].backward()
    return torch.cat(
        [p.grad.flatten() for p in models.student.model.parameters() if p.grad is not None]
    )


@pytest.mark.parametrize("objective", [OPD(), VAOPD(), SFT()], ids=["opd", "va_opd", "sft"])
def test_gradients_of_micro_batches_agree_within_1e_6(tokenizer, teacher, objective):
    models = make_plan(tokenizer, teacher, layers=2).models
    groups = write_rollouts(models, objective)
    whole = step_gradient(models, objective, groups, 4)
    for size in (1, 2, 3, "auto"):
        assert float((whole - step_gradient(models, objective, groups, size)).abs().max()) < 1e-6


@pytest.mark.more
@pytest.mark.parametrize(
    "objective",
    [OPD(), METHODS["papo"](masked_gradient=True, reference_weight=0.0), METHODS["vgs"]()],
)
def test_parts_of_any_size_give_the_gradient_of_separate_rows(tokenizer, teacher, objective):
    models = make_plan(tokenizer, teacher, layers=2).models
    groups = write_rollouts(models, objective)
    rewards = [0.0, 1.0, 1.0] * len(groups)
    separate = replace(models, student=replace(models.student, share_prompts=False))
    reference = step_gradient(separate, objective, groups, "auto", rewards)
    for tokens in (1, 7, 4096):
        gradient = step_gradient(models, objective, groups, "auto", rewards, tokens)
        assert float((gradient - reference).norm()) <= 1e-5 * float(reference.norm())


def test_the_order_of_prompts_and_siblings_in_a_step_does_not_change_the_gradient(
    tokenizer, teacher
):
    models, objective = make_plan(tokenizer, teacher, layers=2).models, VAOPD(tie_rule="random")
    groups = write_rollouts(models, objective)
    reversed_groups = [RolloutGroup(g.prompt, g.rollouts[::-1]) for g in groups[::-1]]
    difference = step_gradient(models, objective, groups, 2) - step_gradient(
        models, objective, reversed_groups, 2
    )
    assert float(difference.abs().max()) < 1e-6


def test_a_run_changes_every_part_of_the_student_and_nothing_else(tokenizer, teacher, tmp_path):
    before = weights_hash(teacher)
    plan = make_plan(tokenizer, teacher, num_steps=2, eval_prompts=[])
    start = {k: v.clone() for k, v in plan.models.student.model.state_dict().items()}
    run(plan, RunFolder(tmp_path))
    assert weights_hash(teacher) == before
    moved = {
        k for k, v in plan.models.student.model.state_dict().items() if not torch.equal(v, start[k])
    }
    assert any("visual" in k for k in moved)
    assert any("language_model" in k for k in moved)


def test_a_frozen_part_keeps_its_weights(tokenizer, teacher, tmp_path):
    plan = make_plan(
        tokenizer,
        teacher,
        num_steps=1,
        eval_prompts=[],
        train=TrainSettings(prompts_per_step=2, lr=1e-2, freeze=("vision",)),
    )
    start = {k: v.clone() for k, v in plan.models.student.model.state_dict().items()}
    run(plan, RunFolder(tmp_path))
    now = plan.models.student.model.state_dict()
    assert all(torch.equal(now[k], start[k]) for k in now if "visual" in k)
    assert any(not torch.equal(now[k], start[k]) for k in now if "language_model" in k)


@pytest.mark.more
def test_distillation_brings_the_student_to_the_teacher(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)
    run(make_plan(tokenizer, teacher, OPD(), num_steps=30, eval_prompts=[]), folder)
    losses = [r["loss"] for r in folder.read(folder.metrics)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


def test_updates_that_are_not_finite_are_skipped_and_several_in_a_row_stop_the_run(
    tokenizer, teacher, tmp_path
):
    plan = make_plan(tokenizer, teacher, OPD(), eval_prompts=[])
    with torch.no_grad():
        next(iter(plan.models.student.model.model.language_model.layers[0].parameters())).fill_(
            float("nan")
        )
    engine = ScriptedEngine(
        lambda key, sibling: (20, 21, plan.models.student.stop_ids[0]),
        plan.models.student.stop_ids[0],
    )
    plan = make_plan(tokenizer, teacher, OPD(), eval_prompts=[], models=plan.models, engine=engine)
    with pytest.raises(NonFiniteError) as caught:
        run(plan, RunFolder(tmp_path))
    assert caught.value.exit_code == 7
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])
    assert record["finite"] == 0.0
    assert record["loss"] is None


def test_one_update_that_is_not_finite_is_skipped_and_stored_and_the_run_continues(
    tokenizer, teacher, tmp_path, monkeypatch
):
    break_at(monkeypatch, "learn.loss:nan@3")
    folder, plan = RunFolder(tmp_path), make_plan(tokenizer, teacher, eval_prompts=[], num_steps=5)
    hashes = []

    def collect_hash(record):
        if "loss" in record:
            hashes.append(weights_hash(plan.models.student))

    state = run(replace(plan, progress=collect_hash), folder)
    assert state.skipped == 1
    assert [a == b for a, b in itertools.pairwise(hashes)] == [False, True, False, False]
    lines = (tmp_path / "nonfinite" / "step-000003" / "rollouts.jsonl").read_text().splitlines()
    assert {json.loads(line)["prompt"] for line in lines} <= {p.id for p in TRAIN}
    assert len(lines) == 4
    assert (
        json.loads((tmp_path / "nonfinite" / "step-000003" / "metrics.json").read_text())["loss"]
        is None
    )
    assert "step 3 skipped" in folder.events.read_text()
    assert [r["finite"] for r in folder.read(folder.metrics)] == [1.0, 1.0, 0.0, 1.0, 1.0]


def test_too_many_updates_that_are_not_finite_stop_the_run_though_never_in_a_row(
    tokenizer, teacher, tmp_path, monkeypatch
):
    break_at(monkeypatch, "learn.loss:nan@1,3,5,7")
    with pytest.raises(NonFiniteError, match="4 of 7 updates were not finite"):
        run(make_plan(tokenizer, teacher, eval_prompts=[]), RunFolder(tmp_path))


def test_damaged_checkpoints_are_rejected_with_a_reason_and_the_older_one_is_used(
    tokenizer, teacher, tmp_path
):
    folder = RunFolder(tmp_path)
    run(
        make_plan(
            tokenizer,
            teacher,
            save=SaveSettings(every=2, keep=3, keep_best="none"),
            num_steps=6,
            eval_prompts=[],
        ),
        folder,
    )
    last = folder.checkpoint(6)
    weights = last / "student" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    assert newest_checkpoint(folder) == folder.checkpoint(4)
    assert "checkpoint-000006" in folder.events.read_text()
    assert "changed since it was written" in folder.events.read_text()
    for path in list_checkpoints(folder):
        (path / "MANIFEST.json").write_text("{")
    with pytest.raises(StorageError) as caught:
        newest_checkpoint(folder)
    assert caught.value.code == "S604"


def test_leftovers_of_an_interrupted_save_are_removed_and_never_loaded(
    tokenizer, teacher, tmp_path
):
    folder = RunFolder(tmp_path)
    (tmp_path / ".inprogress-000009-0123abcd" / "student").mkdir(parents=True)
    (tmp_path / ".trash-checkpoint-000001-4711").mkdir()
    run(make_plan(tokenizer, teacher, num_steps=2, eval_prompts=[]), folder)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith((".inprogress", ".trash"))]


def test_the_best_checkpoint_and_the_newest_stay(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)
    run(
        make_plan(
            tokenizer,
            teacher,
            save=SaveSettings(every=1, keep=2, keep_best="none"),
            num_steps=5,
            eval_prompts=[],
        ),
        folder,
    )
    assert [p.name for p in list_checkpoints(folder)] == ["checkpoint-000004", "checkpoint-000005"]


def test_two_processes_cannot_use_one_run_folder(tmp_path):
    folder = RunFolder(tmp_path)
    code = (
        "from vistill.runs.folder import RunFolder\nfrom pathlib import Path\n"
        f"with RunFolder(Path({str(tmp_path)!r})).locked(): pass"
    )

    def lock_in_another_process():
        command = [sys.executable, "-c", code]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    with folder.locked(), folder.locked():
        refused = lock_in_another_process()
    assert "error[S602]" in refused.stderr
    assert lock_in_another_process().returncode == 0


def test_metrics_hold_no_durations(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)
    run(make_plan(tokenizer, teacher, num_steps=1, eval_prompts=[]), folder)
    keys = set(folder.read(folder.metrics)[0])
    assert not {k for k in keys if "second" in k or "time" in k}
    timing = folder.read(folder.timing)[0]
    assert {"rollout", "score", "learn"} <= set(timing["seconds"])
    assert timing["tokens_per_second"] > 0
    assert timing["peak_mib"] > 0


def test_a_signal_can_limit_the_gradient_of_a_pass_to_some_rows(tokenizer, teacher):
    """A pass whose `rows` name a signal has all rows, and gradient only at those that it marks."""
    models = make_plan(tokenizer, teacher, layers=2).models
    groups = write_rollouts(models, OPD())[:2]
    responses = flatten_responses(groups, 0, 0, models.student.device)
    gated = Pass(Reader.STUDENT, View.TEXT_ONLY, gradient=True, rows="gate")
    inputs = encode_step(models, groups, (gated,), responses)
    gate = torch.zeros(responses.num_tokens, dtype=torch.bool)
    gate[::3] = True
    [(micro, cut)] = list(
        parts_with_gradient(models, inputs, ScoredBatch(responses, {}), (gated,), {"gate": gate})
    )
    hidden = micro["student.text_only"].hidden
    assert len(hidden) == len(cut["gate"]) == responses.num_tokens
    first = next(p for n, p in models.student.model.named_parameters() if "layers.0" in n)

    def grad(rows):
        loss = hidden[rows].sum()
        return torch.autograd.grad(loss, first, retain_graph=True, allow_unused=True)[0]

    assert float(grad(gate).abs().sum()) > 0
    assert float(grad(~gate).abs().sum()) == 0


def test_a_method_sees_how_much_of_the_run_is_done(tokenizer, teacher, tmp_path):
    seen = []

    class RecordingOPD(OPD):
        def signals(self, batch):
            seen.append(batch.progress)
            return super().signals(batch)

    train = TrainSettings(prompts_per_step=2, steps=4, lr=1e-3)
    plan = make_plan(tokenizer, teacher, RecordingOPD(), train=train, eval_prompts=[])
    run_plan(plan, RunFolder(tmp_path))
    assert seen == [0.0, 0.25, 0.5, 0.75]


@pytest.mark.more
def test_removing_the_run_folder_starts_over(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path / "r")
    run(make_plan(tokenizer, teacher, num_steps=1, eval_prompts=[]), folder)
    shutil.rmtree(folder.path)
    state = run(make_plan(tokenizer, teacher, num_steps=1, eval_prompts=[]), folder)
    assert state.step == 1


def test_bf16_autocast_trains_and_keeps_float32_weights(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)
    train = TrainSettings(prompts_per_step=2, lr=1e-3, precision="bf16")
    plan = make_plan(tokenizer, teacher, OPD(), num_steps=2, eval_prompts=[], train=train)
    run(plan, folder)
    assert [r["finite"] for r in folder.read(folder.metrics)] == [1.0, 1.0]
    assert all(p.dtype == torch.float32 for p in plan.models.student.model.parameters())


def test_the_best_evaluation_is_the_latest_of_the_highest_and_its_checkpoint_survives(tmp_path):
    records = [
        {"step": s, "accuracy": a, "rows": 3.0}
        for s, a in ((0, 0.9), (2, 0.4), (4, 0.6), (6, 0.6), (8, 0.5))
    ]
    best = choose_best(records, SaveSettings())
    assert best == {"step": 6, "value": 0.6, "rows": 3.0}
    assert choose_best(records, SaveSettings(keep_best="none")) is None
    folder = RunFolder(tmp_path)
    for step in (2, 4, 6, 8):
        folder.checkpoint(step).mkdir()
    drop_old_checkpoints(folder, 1, best, 8)
    assert [p.name for p in list_checkpoints(folder)] == ["checkpoint-000006", "checkpoint-000008"]


def test_learning_rates_follow_their_schedules():
    # 1.8 and 4.6 steps of warm-up: only whole steps warm up, and no rate exceeds the peak
    assert [lr_factor(s, 9, ScheduleSettings("cosine", 0.2)) for s in (0, 1)] == [1.0, 1.0]
    linear = [lr_factor(s, 23, ScheduleSettings("linear", 0.2)) for s in range(5)]
    assert linear == [0.25, 0.5, 0.75, 1.0, 1.0]
    cosine = [lr_factor(s, 100, ScheduleSettings("cosine", 0.05)) for s in range(100)]
    assert cosine[0] == pytest.approx(0.2)
    assert cosine[4] == pytest.approx(1.0)
    assert cosine[5] == pytest.approx(1.0)
    assert cosine[-1] < 0.001
    assert lr_factor(52, 100, ScheduleSettings("linear", 0.05)) == pytest.approx(1 - 47 / 95)
    assert lr_factor(99, 100, ScheduleSettings("constant", 0.0)) == 1.0


def test_under_bf16_log_probs_with_and_without_gradient_are_equal(tokenizer, teacher, tmp_path):
    """With another precision without gradient, every probability ratio would be wrong."""
    seen = []

    class RecordingGRPO(METHODS["grpo"]):
        def policy_terms(self, batch, log_prob, advantage):
            seen.append(float((log_prob.detach() - batch["old.full"].sampled()).abs().max()))
            return super().policy_terms(batch, log_prob, advantage)

    train = TrainSettings(prompts_per_step=2, lr=0.0, steps=2, micro_batch=1, precision="bf16")
    objective = RecordingGRPO(updates=2)
    plan = make_plan(tokenizer, None, objective, num_steps=1, eval_prompts=[], train=train)
    run_plan(plan, RunFolder(tmp_path))
    assert len(seen) == 4
    assert max(seen) < 1e-6
