"""Checks, filters and teacher responses before step 1."""

import json
import os
import signal
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from conftest import build_model
from plans import prepare_run

from vistill.data.diagrams import DiagramSettings, diagram_prompts
from vistill.data.stored_prompts import with_content_hashes
from vistill.errors import ConfigError, DataError, ModelError, Preempted
from vistill.evaluation.settings import EvalSettings
from vistill.objectives import METHODS, OPD, SFT
from vistill.rollouts.scripted import ScriptedEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.training.checkpoint import weights_hash
from vistill.training.loop import Plan, run
from vistill.training.models_of_run import Models
from vistill.training.optim import freeze_parts
from vistill.training.rewards import Rewards
from vistill.training.run_state import RunState
from vistill.training.settings import RewardSettings, SaveSettings, TrainSettings
from vistill.training.student_copies import (
    check_reference,
    copy_frozen,
    update_ema,
    with_student_copies,
)
from vistill.training.teacher_responses import (
    UNRELATED,
    discard_stale_responses,
    is_same,
    read_responses,
)
from vistill.types import Finish, Prompt, Reader, Rollout, RolloutGroup

pytestmark = pytest.mark.usefixtures("without_canary")

WITH_THOUGHTS = with_content_hashes(diagram_prompts("train", 6, 0, DiagramSettings(thoughts=True)))
WITHOUT_THOUGHTS = diagram_prompts("train", 6, 0)


def make_plan(tokenizer, teacher, objective, prompts=WITH_THOUGHTS, **changes):
    student = build_model(tokenizer, 0)
    base = {
        "models": Models(student, teacher, student.vocabulary_size),
        "objective": objective,
        "train_prompts": prompts,
        "eval_prompts": [],
        "train": TrainSettings(prompts_per_step=2, lr=1e-3, epochs=1),
        "rollout": RolloutSettings(
            per_prompt=2, temperature=1.0, top_p=1.0, max_new_tokens=5, all_truncated="go_on"
        ),
        "save": SaveSettings(),
        "evaluation": EvalSettings(every=0, max_new_tokens=5),
        "seed": 5,
        "num_steps": 3,
        "fingerprint": "test",
    }
    return Plan(**(base | changes))


def assert_refused(plan, folder, code):
    with pytest.raises((ConfigError, DataError, ModelError)) as caught:
        prepare_run(plan, RunFolder(folder))
    assert caught.value.code == code
    assert caught.value.fix
    assert not (folder / "metrics.jsonl").exists()
    return caught.value


def test_a_method_of_visual_thoughts_is_refused_without_any(tokenizer, teacher, tmp_path):
    error = assert_refused(
        make_plan(tokenizer, None, METHODS["visual_opsd"](gate=False), WITHOUT_THOUGHTS),
        tmp_path,
        "D304",
    )
    assert "data.columns.thoughts" in error.fix


def test_rows_without_thoughts_are_dropped_and_counted_in_the_events(tokenizer, tmp_path):
    mixed = [
        *WITH_THOUGHTS[:4],
        replace(WITH_THOUGHTS[4], thoughts=()),
        replace(WITH_THOUGHTS[5], thoughts=()),
    ]
    plan = prepare_run(
        make_plan(tokenizer, None, METHODS["visual_opsd"](gate=False), mixed), RunFolder(tmp_path)
    )
    assert [p.id for p in plan.train_prompts] == [p.id for p in WITH_THOUGHTS[:4]]
    assert plan.num_steps == 2
    assert "dropped 2 of 6 rows without visual thoughts" in (tmp_path / "events.log").read_text()


def test_responses_beyond_the_students_positions_are_refused_and_the_fix_works(
    tokenizer, teacher, tmp_path
):
    def plan_with_max_tokens(count):
        rollout = RolloutSettings(per_prompt=2, max_new_tokens=count)
        return make_plan(tokenizer, teacher, OPD(), rollout=rollout)

    error = assert_refused(plan_with_max_tokens(8192), tmp_path, "C101")
    assert "8,192 positions" in error.what
    prepare_run(plan_with_max_tokens(int(error.fix.split("=")[1])), RunFolder(tmp_path))
    assert prepare_run(
        make_plan(tokenizer, None, SFT(), [replace(p, response="1") for p in WITH_THOUGHTS]),
        RunFolder(tmp_path),
    )


@pytest.mark.parametrize(
    "name",
    ["va_opd", "grounded_opd", "vgs", "papo", "vppo", "s2vopd", "vcsd", "visual_opsd"],
)
def test_a_visual_method_is_refused_without_any_image(tokenizer, teacher, tmp_path, name):
    text_only = [Prompt(p.id, (p.text,), answer=p.answer) for p in WITH_THOUGHTS]
    options = {"gate": False} if name == "visual_opsd" else {}
    assert_refused(
        make_plan(tokenizer, teacher, METHODS[name](**options), text_only), tmp_path, "D305"
    )


@pytest.mark.parametrize("name", ["va_opd", "grpo", "papo", "vppo", "grpo_vgs", "grpo_va_opd"])
def test_one_rollout_per_prompt_is_refused_for_methods_that_compare_siblings(
    tokenizer, teacher, tmp_path, name
):
    plan = make_plan(tokenizer, teacher, METHODS[name](), rollout=RolloutSettings(per_prompt=1))
    assert_refused(plan, tmp_path, "C103")


@pytest.mark.parametrize(
    "objective", [METHODS["grpo"](), METHODS["papo"](), SFT(responses="teacher")]
)
def test_a_row_without_an_answer_is_refused_for_methods_that_score_answers(
    tokenizer, teacher, tmp_path, objective
):
    rows = [
        *WITH_THOUGHTS[:3],
        replace(WITH_THOUGHTS[3], answer=None, labels={"row": "train.jsonl:4"}),
    ]
    error = assert_refused(make_plan(tokenizer, teacher, objective, rows), tmp_path, "D302")
    assert "train.jsonl:4" in error.where


def test_a_model_that_cannot_run_without_an_image_is_refused(tokenizer, teacher, tmp_path):
    class NeedsImages(type(teacher.family)):
        def packed_states(self, model, row):
            if row.prompts and not any(p.has_image for p in row.prompts):
                raise ValueError("pixel_values is required")
            return super().packed_states(model, row)

    family = object.__new__(NeedsImages)
    family.__dict__ = teacher.family.__dict__
    image_only = replace(teacher, family=family)
    error = assert_refused(make_plan(tokenizer, image_only, METHODS["vgs"]()), tmp_path, "M106")
    assert "teacher cannot read the view text_only" in error.what
    assert "pixel_values is required" in error.why
    prepare_run(make_plan(tokenizer, image_only, OPD()), RunFolder(tmp_path / "opd"))


def test_fewer_usable_rows_than_prompts_per_step_are_refused(tokenizer, tmp_path):
    mixed = [WITH_THOUGHTS[0], *(replace(p, thoughts=()) for p in WITH_THOUGHTS[1:])]
    assert_refused(
        make_plan(tokenizer, None, METHODS["visual_opsd"](gate=False), mixed), tmp_path, "C101"
    )


def test_the_gate_refuses_a_model_that_thoughts_do_not_help_and_stores_its_measurements(
    tokenizer, tmp_path
):
    plan = make_plan(tokenizer, None, METHODS["visual_opsd"](gate_rows=4))
    error = assert_refused(plan, tmp_path, "V801")
    gate = json.loads((tmp_path / "gate.json").read_text())
    assert gate["rows"] == 4
    assert gate["generation_gap"] > 0
    assert not gate["passes"]
    assert "visual_opsd.gate=false" in error.note
    prepare_run(
        make_plan(tokenizer, None, METHODS["visual_opsd"](gate=False)), RunFolder(tmp_path / "open")
    )


def test_the_gate_needs_higher_accuracy_and_a_significant_gap():
    from vistill.evaluation.privilege import PrivilegeGain

    assert PrivilegeGain(0.5, 0.1, 0.3, 0.4, 10).passes()
    assert not PrivilegeGain(0.5, 0.1, 0.4, 0.4, 10).passes()
    assert not PrivilegeGain(0.5, 0.3, 0.3, 0.4, 10).passes()
    assert not PrivilegeGain(0.0, 0.0, 0.3, 0.4, 10).passes()


def test_the_teacher_writes_once_and_continues_after_an_interruption(tokenizer, teacher, tmp_path):
    folder = RunFolder(tmp_path)
    plan = prepare_run(make_plan(tokenizer, teacher, METHODS["kd"]()), folder)
    file = tmp_path / "teacher_responses.jsonl"
    text = file.read_text()
    assert len(text.splitlines()) == 6
    assert all(len(rollouts) == 2 for rollouts in plan.teacher_responses.values())
    again = prepare_run(make_plan(tokenizer, teacher, METHODS["kd"]()), folder)
    assert file.read_text() == text
    assert again.teacher_responses == plan.teacher_responses
    file.write_text(
        "".join(line + "\n" for line in text.splitlines()[:2]) + text.splitlines()[2][:20]
    )
    resumed = prepare_run(make_plan(tokenizer, teacher, METHODS["kd"]()), folder)
    assert resumed.teacher_responses == plan.teacher_responses


def test_teacher_responses_of_other_sampling_settings_are_written_again(
    tokenizer, teacher, tmp_path
):
    folder = RunFolder(tmp_path)
    first = prepare_run(make_plan(tokenizer, teacher, METHODS["kd"]()), folder)
    shorter = RolloutSettings(
        per_prompt=2, temperature=1.0, top_p=1.0, max_new_tokens=3, all_truncated="go_on"
    )
    second = prepare_run(make_plan(tokenizer, teacher, METHODS["kd"](), rollout=shorter), folder)
    assert second.teacher_responses != first.teacher_responses
    assert max(len(r.ids) for rollouts in second.teacher_responses.values() for r in rollouts) <= 3
    assert (tmp_path / "teacher_responses.lost.jsonl").exists()
    assert "writing them again" in (tmp_path / "events.log").read_text()


#: What the first version of the settings file held. Each later key needs a default.
FIRST_KEYS = (
    "teacher", "seed", "engine", "per_prompt", "temperature", "top_p", "max_new_tokens",
    "image_skips", "image_marker", "reopen",
)  # fmt: skip


def test_settings_of_teacher_responses_from_before_a_key_existed_have_its_default(tmp_path):
    folder = RunFolder(tmp_path)
    stored = {"teacher": "T", "seed": 5, **asdict(RolloutSettings())}
    stored = {key: value for key, value in stored.items() if key in FIRST_KEYS}
    (tmp_path / "teacher_responses.settings.json").write_text(json.dumps(stored))
    (tmp_path / "teacher_responses.jsonl").write_text("{}\n")
    facts = {"teacher": "T", "seed": 5, "revision": None, "precision": "auto"}
    discard_stale_responses(folder, {**facts, **asdict(RolloutSettings())})
    assert (tmp_path / "teacher_responses.jsonl").exists()
    discard_stale_responses(folder, {**facts, **asdict(RolloutSettings(noise="counter"))})
    assert not (tmp_path / "teacher_responses.jsonl").exists()


def test_settings_of_teacher_responses_do_not_name_what_earlier_files_left_out():
    """They had those of the recipe, and several teachers as a list."""
    facts = {"revision": "a1", "precision": "int8", "view": "full", "max_image_tokens": 1024}
    sampling = {"seed": 5, **asdict(RolloutSettings())}
    old = {key: value for key, value in sampling.items() if key in FIRST_KEYS}
    sampling = {key: value for key, value in sampling.items() if key not in UNRELATED}
    assert is_same({"teacher": "T", **old}, {"teacher": "T", **facts, **sampling})
    several = {"teachers": {"a": {"teacher": "T", **facts}, "b": {"teacher": "U", **facts}}}
    assert is_same({"teacher": ["T", "U"], **old}, {**several, **sampling})
    assert not is_same({"teacher": ["U", "T"], **old}, {**several, **sampling})
    other = {"teacher": "T", **facts, **sampling}
    assert not is_same(other, {**other, "max_image_tokens": 512})


def test_a_run_that_has_started_keeps_its_teacher_responses(tmp_path):
    folder = RunFolder(tmp_path)
    (tmp_path / "teacher_responses.settings.json").write_text('{"teacher": "T", "seed": 1}')
    (tmp_path / "teacher_responses.jsonl").write_text("{}\n")
    folder.metrics.write_text('{"step": 1}\n')
    discard_stale_responses(folder, {"teacher": "T", "seed": 2})
    assert (tmp_path / "teacher_responses.jsonl").exists()


def test_stored_responses_that_do_not_name_their_teacher_are_read(tmp_path):
    """Those of several teachers were lost when a run of an earlier version went on."""
    prompts = WITH_THOUGHTS[:2]
    writers = [
        SimpleNamespace(name=name, prompts=[prompt])
        for name, prompt in zip("ab", prompts, strict=True)
    ]
    folder = RunFolder(tmp_path)
    for prompt, named in zip(prompts, ({}, {"teacher": "a"}), strict=True):
        record = {"prompt": prompt.id, "content": prompt.content, **named}
        record |= {"ids": [[1]], "finish": ["stop"]}
        folder.log(tmp_path / "teacher_responses.jsonl", record)
    assert list(read_responses(folder, writers)) == [prompts[0].id]  # the other one is of a, not b


def test_a_gate_measures_again_with_other_settings_of_its_answers(tokenizer, tmp_path):
    objective = METHODS["visual_opsd"](gate_rows=4)
    assert_refused(make_plan(tokenizer, None, objective), tmp_path, "V801")
    before = json.loads((tmp_path / "gate.json").read_text())
    shorter = EvalSettings(every=0, max_new_tokens=3)
    assert_refused(make_plan(tokenizer, None, objective, evaluation=shorter), tmp_path, "V801")
    after = json.loads((tmp_path / "gate.json").read_text())
    assert (before["question"]["max_new_tokens"], after["question"]["max_new_tokens"]) == (5, 3)


def test_a_gate_measures_again_if_its_question_changes(tokenizer, tmp_path):
    assert_refused(
        make_plan(tokenizer, None, METHODS["visual_opsd"](gate_rows=4)), tmp_path, "V801"
    )
    before = (tmp_path / "gate.json").read_text()
    assert_refused(
        make_plan(tokenizer, None, METHODS["visual_opsd"](gate_rows=4)), tmp_path, "V801"
    )
    assert (tmp_path / "gate.json").read_text() == before
    assert_refused(
        make_plan(tokenizer, None, METHODS["visual_opsd"](gate_rows=4, thoughts="noise")),
        tmp_path,
        "V801",
    )
    assert "privileged_noise" in (tmp_path / "gate.json").read_text()


def test_kd_uses_all_teacher_responses_in_every_epoch_and_the_student_never_writes(
    tokenizer, teacher, tmp_path
):
    folder = RunFolder(tmp_path)

    def script(key, sibling):
        raise AssertionError("the student must not write")

    engine = ScriptedEngine(script, teacher.stop_ids[0])
    plan = make_plan(
        tokenizer,
        teacher,
        METHODS["kd"](),
        engine=engine,
        train=TrainSettings(prompts_per_step=2, epochs=2),
    )
    plan = prepare_run(plan, folder)
    assert plan.num_steps == 6
    run(plan, folder)
    assert all(r["finite"] == 1.0 for r in folder.read(folder.metrics))


def test_gkd_mixes_writers_by_a_keyed_coin(tokenizer, teacher, tmp_path):
    from vistill.rollouts.engine import Sampling
    from vistill.training.response_source import uses_teacher_responses

    method = METHODS["gkd"](off_policy_share=0.25)
    coins = [
        uses_teacher_responses(method, p, Sampling(0, step, 1.0, 1.0, 4))
        for p in WITH_THOUGHTS
        for step in range(200)
    ]
    assert abs(sum(coins) / len(coins) - 0.25) < 0.04
    assert coins == [
        uses_teacher_responses(method, p, Sampling(0, step, 1.0, 1.0, 4))
        for p in WITH_THOUGHTS
        for step in range(200)
    ]
    assert not uses_teacher_responses(
        METHODS["gkd"](off_policy_share=0.0), WITH_THOUGHTS[0], Sampling(0, 0, 1.0, 1.0, 4)
    )


def test_only_correct_chains_of_thought_are_learned_one_per_epoch(tokenizer, teacher, tmp_path):
    from vistill.training.response_source import ResponseSource, pick_teacher_responses

    folder = RunFolder(tmp_path)
    folder.path.mkdir(exist_ok=True)
    rollout = make_plan(tokenizer, teacher, SFT()).rollout
    discard_stale_responses(folder, {"teacher": teacher.source, "seed": 5, **asdict(rollout)})
    for number, p in enumerate(WITH_THOUGHTS):
        right = [True, True] if number == 0 else [False, number % 2 == 0]
        ids = [
            list(teacher.response_ids(f"{i}: \\boxed{{{p.answer if ok else 99}}}"))
            for i, ok in enumerate(right)
        ]
        folder.log(
            tmp_path / "teacher_responses.jsonl",
            {"prompt": p.id, "content": p.content, "ids": ids, "finish": ["stop"] * 2},
        )
    plan = prepare_run(make_plan(tokenizer, teacher, SFT(responses="teacher")), folder)
    assert [p.id for p in plan.train_prompts] == [WITH_THOUGHTS[i].id for i in (0, 2, 4)]
    assert "dropped 3 of 6 rows" in (tmp_path / "events.log").read_text()
    response_source = ResponseSource(None, plan.objective, 2, plan.teacher_responses)
    first, second, third = (
        pick_teacher_responses(response_source, WITH_THOUGHTS[0], epoch) for epoch in (0, 1, 2)
    )
    assert len(first) == 1
    assert first != second
    assert first == third


def test_a_teacher_that_is_never_right_is_refused(tokenizer, teacher, tmp_path):
    assert_refused(make_plan(tokenizer, teacher, SFT(responses="teacher")), tmp_path, "D306")


def test_the_moving_average_starts_at_the_student_and_follows_by_its_rate(tokenizer):
    student = build_model(tokenizer, 0)
    models = with_student_copies(
        Models(student, None, student.vocabulary_size), METHODS["visual_opsd"]()
    )
    assert set(models.copies) == {Reader.EMA}
    average = models.copies[Reader.EMA].model
    before = [p.clone() for p in average.parameters()]
    with torch.no_grad():
        for p in student.model.parameters():
            p.add_(1.0)
    update_ema(models, 0.25)
    for old, new in zip(before, average.parameters(), strict=True):
        assert torch.allclose(new, old + 0.25, atol=1e-6)
        assert not new.requires_grad


def test_the_reference_is_fixed_and_another_one_on_resume_is_refused(tokenizer):
    student = build_model(tokenizer, 0)
    models = with_student_copies(Models(student, None, student.vocabulary_size), METHODS["grpo"]())
    state = RunState()
    check_reference(models, state)
    assert state.reference_sha256 == weights_hash(student)
    check_reference(models, state)
    other = build_model(tokenizer, 3)
    with pytest.raises(ConfigError) as caught:
        check_reference(with_student_copies(Models(other, None, 1), METHODS["grpo"]()), state)
    assert caught.value.code == "C202"


def test_a_copy_shares_no_weight_with_its_model(tokenizer):
    student = build_model(tokenizer, 0)
    pointers = {p.data_ptr() for p in student.model.parameters()}
    assert not pointers & {p.data_ptr() for p in copy_frozen(student).model.parameters()}


@pytest.mark.parametrize("parts", [("vision",), ("head",)])
def test_a_copy_shares_frozen_weights_and_the_average_follows_the_others(tokenizer, parts):
    student = build_model(tokenizer, 0)
    freeze_parts(student, parts)
    models = Models(student, None, student.vocabulary_size)
    models = with_student_copies(models, METHODS["visual_opsd"]())
    average = models.copies[Reader.EMA].model
    pairs = list(zip(student.model.named_parameters(), average.parameters(), strict=True))
    assert all((a is b) == (not a.requires_grad) for (_, a), b in pairs)
    assert any(a is b for (_, a), b in pairs)
    before = weights_hash(models.copies[Reader.EMA])
    with torch.no_grad():
        for p in student.model.parameters():
            p.add_(1.0 * p.requires_grad)
    assert weights_hash(models.copies[Reader.EMA]) == before
    update_ema(models, 1.0)
    assert weights_hash(models.copies[Reader.EMA]) == weights_hash(student)


def test_rewards_add_accuracy_and_format(tokenizer):
    from vistill.answers.math_process import MathJudge

    vlm = build_model(tokenizer, 0)
    prompt = Prompt("p", ("1+1?",), answer="2")
    texts = ["So \\boxed{2}.", "So \\boxed{3}.", "The answer is 2", "no idea"]
    rollouts = tuple(Rollout(vlm.response_ids(t), i, Finish.STOP) for i, t in enumerate(texts))
    with Rewards(RewardSettings(accuracy=0.9, format=0.1), vlm, MathJudge()) as rewards:
        assert rewards.of([RolloutGroup(prompt, rollouts)]) == pytest.approx([1.0, 0.1, 0.9, 0.0])


def test_an_invalid_regular_expression_is_refused():
    with pytest.raises(ConfigError):
        RewardSettings(pattern="(")


def test_grpo_makes_the_rewarded_response_more_likely(tokenizer, tmp_path):
    """Two siblings, one of them rewarded."""
    student = build_model(tokenizer, 0)
    stop = student.stop_ids[0]
    right, wrong = (tuple(student.response_ids(t)) for t in ("\\boxed{2}", "\\boxed{7}"))
    engine = ScriptedEngine(lambda key, sibling: right if sibling == 0 else wrong, stop)
    prompts = [replace(p, answer="2") for p in WITHOUT_THOUGHTS]
    plan = make_plan(
        tokenizer,
        None,
        METHODS["grpo"](),
        prompts,
        models=Models(student, None, student.vocabulary_size),
        engine=engine,
    )
    plan = replace(plan, rollout=replace(plan.rollout, max_new_tokens=len(right)))
    folder = RunFolder(tmp_path)

    def log_prob(ids):
        from vistill.models.scoring import EncodedGroup, score

        with torch.no_grad():
            group = EncodedGroup(student.encode(prompts[0]), (ids,))
            return float(
                score(student, [group], torch.tensor(ids), student.vocabulary_size, "log_prob")
                .sampled()
                .sum()
            )

    before = log_prob(right) - log_prob(wrong)
    run(prepare_run(plan, folder), folder)
    assert log_prob(right) - log_prob(wrong) > before
    assert folder.read(folder.metrics)[0]["reward/mean"] == 0.5


def test_several_updates_per_step_take_every_prompt_once(tokenizer, tmp_path):
    from vistill.training.step import split_into_updates

    assert split_into_updates([[0, 1], [2, 3], [4]], 2) == [[[0, 1]], [[2, 3], [4]]]
    assert split_into_updates([[0, 1, 2]], 1) == [[[0, 1, 2]]]
    assert sorted(
        g
        for part in split_into_updates([[0, 1, 2, 3, 4, 5, 6]], 3)
        for micro in part
        for g in micro
    ) == list(range(7))


def test_a_prompt_that_is_too_long_only_with_its_thoughts_is_refused(tokenizer):
    from vistill.training.checks.prompt_lengths import (
        check_prompt_lengths,
        find_overlong_prompts,
    )
    from vistill.types import View

    student = build_model(tokenizer, 0)
    models = Models(student, None, student.vocabulary_size)
    longest = max(len(models.encode(p, View.FULL).ids) for p in WITH_THOUGHTS)
    assert find_overlong_prompts(student, models.view, WITH_THOUGHTS, longest + 10) == []
    with pytest.raises(DataError) as caught:
        check_prompt_lengths(
            find_overlong_prompts(
                student, models.view, WITH_THOUGHTS, longest + 10, View.PRIVILEGED
            ),
            longest + 10,
        )
    assert caught.value.code == "D203"


@pytest.mark.parametrize("name", ["opd", "kd", "vgs", "gkd"])
def test_a_method_without_the_teacher_it_needs_is_refused_with_a_reason(tokenizer, tmp_path, name):
    assert_refused(make_plan(tokenizer, None, METHODS[name]()), tmp_path, "C101")


@pytest.mark.more
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_the_teacher_writes_stops_the_run_and_keeps_its_responses(
    number, tokenizer, teacher, tmp_path
):
    """The signal follows the first 16 of 18 responses: exit 75 or 130; the 16 stay stored."""

    class SignallingFolder(RunFolder):
        """A run folder that sends a signal after the sixteenth response of the teacher."""

        def log(self, path, record, **options):
            super().log(path, record, **options)
            if len(self.read(path)) == 16:
                os.kill(os.getpid(), number)

    prompts = with_content_hashes(diagram_prompts("train", 18, 0))
    folder, plan = RunFolder(tmp_path), make_plan(tokenizer, teacher, METHODS["kd"](), prompts)
    with pytest.raises(Preempted) as caught:
        prepare_run(plan, SignallingFolder(tmp_path))
    assert caught.value.exit_code == {signal.SIGTERM: 75, signal.SIGINT: 130}[number]
    assert "before the first step" in str(caught.value)
    assert len(folder.read(folder.path / "teacher_responses.jsonl")) == 16
    assert set(prepare_run(plan, folder).teacher_responses) == {p.id for p in plan.train_prompts}


@pytest.mark.more
def test_the_engine_of_the_recipe_writes_every_response(tokenizer, teacher, tmp_path, monkeypatch):
    """With `rollout.engine: hf`, training, evaluation, teacher and gate never use our engine."""
    from vistill.rollouts.shared import SharedEngine

    def refuse(self, requests, sampling):
        raise AssertionError("rollout.engine is hf")

    def run_with(engine):
        """Weights and logs of a run with teacher responses, and the gate's measurements."""
        rollout = RolloutSettings(
            engine,
            per_prompt=2,
            temperature=1.0,
            top_p=1.0,
            max_new_tokens=5,
            all_truncated="go_on",
        )
        evaluation = EvalSettings(every=2, limit=2, max_new_tokens=5)
        plan = make_plan(
            tokenizer,
            teacher,
            METHODS["gkd"](),
            rollout=rollout,
            eval_prompts=diagram_prompts("val", 2, 0),
            evaluation=evaluation,
        )
        folder = RunFolder(tmp_path / engine)
        run(prepare_run(plan, folder), folder)
        gated = make_plan(tokenizer, None, METHODS["visual_opsd"](gate_rows=4), rollout=rollout)
        assert_refused(gated, tmp_path / f"{engine}-gate", "V801")
        gate = (tmp_path / f"{engine}-gate" / "gate.json").read_text()
        return (
            weights_hash(plan.models.student),
            folder.metrics.read_text(),
            folder.evaluations.read_text(),
            gate,
        )

    shared = run_with("shared")
    # catches every engine that the run builds
    monkeypatch.setattr(SharedEngine, "generate", refuse)
    assert run_with("hf") == shared
