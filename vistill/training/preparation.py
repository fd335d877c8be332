"""Before step 1: what the method cannot do without, which rows it can use, and what the teacher must write first."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from vistill.batch import EntryGate, Need, ScoredBatch
from vistill.data.keys import num_steps
from vistill.data.loading import check_enough
from vistill.errors import ConfigError, DataError, ModelError
from vistill.evaluation.privilege import measure_privilege
from vistill.rollouts.shared import plain_engine
from vistill.runs.folder import RunFolder
from vistill.runs.storage import read_json, to_json
from vistill.training.checkpoint import weights_hash
from vistill.training.interrupt import Interrupt, Interrupted
from vistill.training.loop import preempted
from vistill.training.measuring import split_of
from vistill.training.plan import Plan
from vistill.training.reading import lay_out, prepare, read_without_gradient
from vistill.training.roster import enrolled, partners_of
from vistill.training.writing import Desk
from vistill.training.written import only_correct, written_by_teacher
from vistill.types import Finish, Prompt, Reader, Rollout, RolloutGroup, View, Writer
from vistill.views import has_thoughts


def prepare_run(plan: Plan, folder: RunFolder) -> Plan:
    """The plan with the rows its method can use, their partners, and the teacher's responses.

    Raises:
        ConfigError, DataError, ModelError: something the method needs is not there.
        Preempted: a signal arrived; what the teacher wrote so far is kept.
    """
    interrupt = Interrupt()
    try:
        with interrupt.listening():
            made = prepared(plan, folder, interrupt.poll)
            interrupt.poll()  # whoever listens next knows nothing of a signal that came since the last look
            return made
    except Interrupted as stop:
        folder.event(f"stopped by {stop} before the first step")
        raise preempted(stop, None) from None


def prepared(plan: Plan, folder: RunFolder, poll: Callable[[], None]) -> Plan:
    """The same, looking for signals while somebody writes or answers."""
    plan = checked(plan, folder)
    gate = plan.objective.entry_gate()
    if gate is not None:
        check_gate(plan, gate, folder, poll)
    if plan.objective.off_policy() > 0:
        with folder.owned():
            plan = with_written(plan, folder, poll)
    plan = enrolled(plan, folder)
    check_enough(plan.train.prompts_per_step, len(plan.train_prompts) - len(plan.gone))
    steps = num_steps(len(plan.train_prompts), plan.train.prompts_per_step, plan.train.epochs)
    return replace(plan, num_steps=plan.train.steps or steps, split=split_of(plan, folder))


def checked(plan: Plan, folder: RunFolder) -> Plan:
    """What can be known without writing or judging a response: usable rows, partners, every view read once."""
    plan = usable_rows(plan, folder)
    plan = replace(plan, cast=replace(plan.cast, partners=partners_of(plan.train_prompts)))
    check_views(plan)
    check_positions(plan)
    return plan


def check_positions(plan: Plan) -> None:
    """C101 where a response of full length would run past the positions the student was made for."""
    if plan.objective.writer is Writer.DATA:
        return
    limit = plan.cast.student.model.config.get_text_config().max_position_embeddings
    first = plan.cast.encode(plan.train_prompts[0], View.FULL).next_position
    if first + plan.rollout.max_new_tokens > limit:
        raise ConfigError(
            "C101",
            f"rollout.max_new_tokens = {plan.rollout.max_new_tokens:,}, but the student has {limit:,} positions",
            where=plan.train_prompts[0].labels.get("row", plan.train_prompts[0].id),
            why=f"this prompt takes {first:,} of them, so at most {max(0, limit - first):,} tokens can follow;"
            " beyond the last position a model was never trained",
            fix=f"rollout.max_new_tokens={(limit - first) // 2}"
            if limit - first >= 2
            else f"data.max_prompt_tokens={limit // 2}   or data.max_image_tokens={limit // 4}",
        )


def usable_rows(plan: Plan, folder: RunFolder) -> Plan:
    """Refuse what the method cannot do without (C103, D302, D304, D305); leave out rows without thoughts."""
    needs, prompts = plan.objective.needs(), plan.train_prompts
    name = type(plan.objective).__name__
    if Need.SIBLINGS in needs and plan.rollout.per_prompt == 1:
        raise ConfigError(
            "C103",
            f"rollout.per_prompt = 1, but {name} compares siblings of one prompt",
            why="with one rollout every weight is 1 and every advantage 0",
            fix="rollout.per_prompt=4",
        )
    reads_teacher = any(p.reader is Reader.TEACHER for p in plan.objective.passes())
    if plan.cast.teacher is None and (reads_teacher or plan.objective.off_policy() > 0):
        raise ConfigError("C101", f"{name} needs a teacher", fix="vistill.distill(student, teacher, ...) with a model")
    if Need.IMAGE in needs and not any(p.images for p in prompts):
        raise DataError(
            "D305", f"{name} needs pictures, and no row has one", fix="method=opd   or   data.columns.images=COLUMN"
        )
    if Need.REWARD in needs or plan.objective.keep_correct:
        check_answers(prompts, name)
    if Need.THOUGHTS not in needs:
        return plan
    source = plan.cast.view.thought
    kept = [p for p in prompts if has_thoughts(p, source)]
    if not kept:
        raise no_thoughts(name, source)
    if len(kept) < len(prompts):
        folder.event(f"left out {len(prompts) - len(kept)} of {len(prompts)} rows without visual thoughts")
    return replace(plan, train_prompts=kept)


def check_answers(prompts: Sequence[Prompt], name: str) -> None:
    """D302 for the first row without a gold answer."""
    without = [p for p in prompts if p.answer is None]
    if without:
        raise DataError(
            "D302",
            f"{name} asks whether answers are right, and {len(without)} of {len(prompts)} rows have no gold answer",
            where=without[0].labels.get("row", without[0].id),
            why="the reward of such a row would be 0 whatever the student says",
            fix="data.columns.answer=COLUMN, or leave these rows out",
        )


def no_thoughts(name: str, source: str) -> DataError:
    """D304."""
    column = "thoughts" if source == "data" else "boxes"
    return DataError(
        "D304",
        f"{name} needs visual thoughts, and no row has any",
        why=f"views.thought={source} takes them from the column data.columns.{column}; without them the teacher would"
        "\ndiffer from the student by the wording of two sentences alone",
        fix=f"data.columns.{column}=COLUMN, or for procedural diagrams data.diagrams.options.thoughts=true",
        note="rows with boxes draw their own: data.columns.boxes=COLUMN views.thought=crop" if source == "data" else "",
    )


def check_views(plan: Plan) -> None:
    """Every reader reads one short response under every view the method needs (M106)."""
    pictured = [p for p in plan.train_prompts if p.images] or list(plan.train_prompts)
    same = {Reader.EMA: plan.cast.student, Reader.REFERENCE: plan.cast.student}
    cast = replace(plan.cast, companions=same)
    response = Rollout((cast.student.stop_ids[0],), 0, Finish.STOP)
    groups = [RolloutGroup(pictured[0], (response,))]
    for p in plan.objective.passes():
        try:
            responses = lay_out(groups, plan.seed, 0, cast.student.device)
            asked = (replace(p, gradient=False, keep="log_prob"),)
            reading = prepare(cast, groups, asked, responses)
            scored: ScoredBatch = read_without_gradient(cast, reading, asked)
            finite = bool(torch.isfinite(scored[p.name].sampled()).all())
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
            raise unreadable(p.name, f"{type(error).__name__}: {error}") from error
        if not finite:
            raise unreadable(p.name, "the log-probability it gives is not finite")


def unreadable(name: str, why: str) -> ModelError:
    """M106."""
    reader, view = name.split(".")
    hint = "another model family" if view == View.TEXT_ONLY else "another model, or another view"
    return ModelError(
        "M106",
        f"the {reader} cannot read the view {view}",
        why=why[:300],
        fix=f"use {hint}: {'teacher' if reader == 'teacher' else 'student'}.model=FOLDER_OR_HUB_ID",
    )


def check_gate(plan: Plan, asks: EntryGate, folder: RunFolder, poll: Callable[[], None] = lambda: None) -> None:
    """V801 where the thoughts change nothing, or do not make the untrained model more accurate."""
    file = folder.path / "gate.json"
    asked = [p for p in plan.train_prompts if p.answer is not None][: asks.rows]
    question = {"view": str(asks.view), "thought": plan.cast.view.thought, "prompts": [p.id for p in asked]}
    question |= {"seed": plan.seed, "student_sha256": weights_hash(plan.cast.student)}
    if not file.exists() or read_json(file).get("question") != question:
        if not asked:
            check_answers(plan.train_prompts, f"the gate of {type(plan.objective).__name__}")
        settings = replace(plan.evaluation, samples=1, seed=plan.seed)
        found = measure_privilege(plan.cast.student, asked, asks.view, settings, plan.cast.view, poll)
        made = {**found.to_dict(), "passes": found.passes(), "question": question}
        folder.write("gate.json", to_json(made, exact=True))
    gate = read_json(file, passes=bool, question=dict)
    if not gate["passes"]:
        raise ModelError(
            "V801",
            "the visual thoughts do not help this model, so there is nothing to distil",
            where=str(file),
            why=f"greedy accuracy {gate['accuracy']:.1%} without and {gate['privileged_accuracy']:.1%} with them, "
            f"generation gap {gate['generation_gap']:.4f} +- {gate['generation_gap_error']:.4f} nats a token,"
            f" {gate['rows']} rows",
            fix="a model trained to read visual thoughts: student.model=FOLDER_OR_HUB_ID",
            note="for a control on purpose: visual_opsd.gate=false",
        )


def with_written(plan: Plan, folder: RunFolder, poll: Callable[[], None]) -> Plan:
    """The plan with the teacher's responses; with only the correct ones, and the rows that have any, where asked."""
    assert plan.cast.teacher is not None, "usable_rows asks for a teacher"
    engine = plain_engine(plan.cast.teacher, poll)
    desk = Desk(engine, plan.objective, plan.rollout.per_prompt)
    written = written_by_teacher(plan.cast, folder, desk, plan.train_prompts, plan.rollout, plan.seed)
    if not plan.objective.keep_correct:
        return replace(plan, written=written)
    kept = only_correct(plan.cast, plan.train_prompts, written, plan.reward)
    dropped = len(plan.train_prompts) - len(kept)
    if dropped:
        folder.event(f"left out {dropped} of {len(plan.train_prompts)} rows: no correct response of the teacher")
    return replace(plan, written=kept, train_prompts=[p for p in plan.train_prompts if p.id in kept])
