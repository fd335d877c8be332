"""The loop: pick prompts, take a step, log, evaluate, save; resume from the newest checkpoint."""

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from functools import partial

import torch

from vistill.answers.math_process import shared_judge
from vistill.batch import Need
from vistill.errors import DataError, RolloutError
from vistill.evaluation.runner import EvalResult, selection_summary
from vistill.evaluation.unparsed import unparsed_warning
from vistill.faults import fault
from vistill.phases import EVALUATING, open_phase, report_phases
from vistill.plugin_calls import method_call
from vistill.registry import tasks
from vistill.rollouts.build import make_engine
from vistill.runs.folder import RunFolder
from vistill.runs.storage import to_json, write_json
from vistill.training.benchmarks import changed_benchmarks, evaluate_benchmarks
from vistill.training.canary.reader import weak_reader_warnings
from vistill.training.canary.run import canary_rows, describe_canary, run_canary
from vistill.training.checkpoint import (
    format_older_terms,
    newest_checkpoint,
    remove_leftovers,
    restore_checkpoint,
)
from vistill.training.checkpoint_content import TrainedObjects
from vistill.training.checkpoint_writer import CheckpointWriter, make_writer
from vistill.training.checks.check import CheckResult
from vistill.training.clock import Clock, Profile, measure_rate
from vistill.training.context import StepContext
from vistill.training.determinism import deterministic_kernels
from vistill.training.interrupt import Interrupt, Interrupted, preempted_error
from vistill.training.journal import Journal
from vistill.training.oom import MemoryRetry, is_out_of_memory, memory_savings, out_of_memory_error
from vistill.training.optim import freeze_parts, make_optimizer
from vistill.training.plan import Plan, pick_prompts
from vistill.training.precision import training_dtype
from vistill.training.progress_records import evaluation_record
from vistill.training.response_source import ResponseSource
from vistill.training.results import already_finished, choose_best, forget_result, was_finished
from vistill.training.rewards import Rewards
from vistill.training.rollout_health import always_truncated_error
from vistill.training.row_lock import (
    bad_rows_in,
    find_partners,
    replace_rows,
    rows_missing_at_start,
    within_bad_row_limit,
    without_replaced,
)
from vistill.training.run_lock import TRAINED_STUDENTS
from vistill.training.run_state import RunState
from vistill.training.step import StepResult, train_step
from vistill.training.step_log import count_non_finite, is_due, log_step
from vistill.training.student_copies import check_reference, copies_to_save, with_student_copies
from vistill.training.teacher_scores import make_teacher_scores
from vistill.types import Prompt, Writer


def run(plan: Plan, folder: RunFolder) -> RunState:
    """Train to the last step, from the newest valid checkpoint of the folder if it has one.

    Raises:
        Preempted: a signal arrived; a checkpoint of the last completed step is saved.
        NonFiniteError: several updates in a row were not finite.
    """
    interrupt, clock = Interrupt(), make_clock(plan)
    plan, optimizer = prepare_student(plan)
    TRAINED_STUDENTS[plan.models.student.model] = str(folder.path.resolve())
    with ExitStack() as stack:
        device = plan.models.student.device
        stack.enter_context(deterministic_kernels(plan.train.deterministic, device))
        stack.enter_context(report_phases(plan.progress))
        stack.enter_context(folder.locked())
        stack.enter_context(interrupt.listening())
        rewards = stack.enter_context(make_rewards(plan))
        state = start_or_resume(plan, folder, optimizer)
        if state.step < plan.num_steps:
            forget_result(folder)
        check_reference(plan.models, state)
        saved = TrainedObjects(plan.models.student, optimizer, state, copies_to_save(plan.models))
        context = make_step_context(plan, folder, saved, rewards, interrupt, clock)
        update_partners(plan, context, state.replaced_rows)
        stack.enter_context(context.ahead)
        stack.enter_context(context.overlap)
        stack.enter_context(context.response_source.engine)
        writer = stack.enter_context(make_writer(plan, folder, saved).open())
        context.before_update = writer.wait_for_copy
        try:
            train(plan, folder, writer, context, clock)
            writer.finish()
        except Interrupted as stop:
            saved_as = writer.save_now()
            folder.event(f"stopped by {stop} after step {state.step}")
            raise preempted_error(stop, state.step, plan.num_steps, saved_as) from None
        finally:
            if isinstance(clock, Profile):
                profile = {"rate": clock.rate, "outside_seconds": clock.outside_steps}
                write_json(folder.path / "profile.json", profile)
    return state


def train(
    plan: Plan, folder: RunFolder, writer: CheckpointWriter, context: StepContext, clock: Clock
) -> None:
    """Run the canary; then step, log, evaluate and save until the last step."""
    state = writer.saved.state
    context.response_source.engine.sync_weights(state.step)
    with clock.time_outside_steps("canary"):
        run_canary_and_replace_rows(plan, folder, context, state)
    if is_evaluation_missing(plan, folder, state.step):
        evaluate_student(plan, folder, writer, context, clock)
    while state.step < plan.num_steps:
        writer.raise_error()
        result = run_next_step(plan, folder, context, state)
        state.step += 1
        state.memory = result.memory
        context.response_source.engine.sync_weights(state.step)
        count_non_finite(plan, folder, state, result)
        log_step(plan, folder, state, result, clock)
        check_rollouts(plan, folder, state, result)
        if is_due(state.step, plan.evaluation.every, plan.num_steps):
            evaluate_student(plan, folder, writer, context, clock)
        if is_due(state.step, plan.save.every, plan.num_steps):
            with clock.time_outside_steps("save"):
                writer.save()
        if state.step == plan.stop_after:
            return


def prepare_student(plan: Plan) -> tuple[Plan, torch.optim.Optimizer]:
    """Freeze parts, copy the student for the method's readers, and make the optimizer."""
    freeze_parts(plan.models.student, plan.train.freeze)
    plan = replace(plan, models=with_student_copies(plan.models, plan.objective))
    model = plan.models.student.model
    return plan, make_optimizer(model, plan.train, plan.precision, plan.seed)


def report_event(plan: Plan, folder: RunFolder, text: str, prefix: str = "") -> None:
    """Write a line to the event log, and show it where progress is shown."""
    folder.event(f"{prefix}{text}")
    plan.progress({"event": text})


def make_clock(plan: Plan) -> Clock:
    """A clock, which with `profile` also counts operations."""
    if not plan.profile:
        return Clock()
    device = plan.models.student.device
    return Profile(device=device, rate=measure_rate(device, training_dtype(plan.train, device)))


def make_rewards(plan: Plan) -> AbstractContextManager[Rewards | None]:
    """The rewards, or None where the method needs none."""
    if Need.REWARD not in plan.objective.requirements.needs:
        return nullcontext()
    return Rewards(plan.reward, plan.models.student, shared_judge(), plan.set_rewards)


def make_step_context(
    plan: Plan,
    folder: RunFolder,
    saved: TrainedObjects,
    rewards: Rewards | None,
    interrupt: Interrupt,
    clock: Clock,
) -> StepContext:
    """What stays the same from step to step."""

    def report(text: str) -> None:
        report_event(plan, folder, text, f"step {saved.state.step + 1}: ")

    train = plan.train
    if plan.profile and train.overlap:  # its counts are global, and would mix two phases
        train = replace(train, overlap=False)
        report_event(plan, folder, "profile=true: the teacher reads after the rollouts")
    own = plan.rollout.of_trained_student()
    engine = make_engine(plan.models.student, own, interrupt.poll, plan.engine)
    writer = plan.objective.requirements.writer
    per_prompt = 1 if writer is Writer.DATA else plan.rollout.per_prompt
    journal = Journal(folder.journal, plan.fingerprint, report=folder.event)
    return StepContext(
        models=plan.models,
        response_source=ResponseSource(engine, plan.objective, per_prompt, plan.teacher_responses),
        optimizer=saved.optimizer,
        train=train,
        rollout=plan.rollout,
        seed=plan.seed,
        num_steps=plan.num_steps,
        rewards=rewards,
        split=plan.split,
        poll=interrupt.poll,
        observe=clock.observe,
        memory_retry=MemoryRetry(
            saved.state.halvings, report, partial(memory_savings, plan.models)
        ),
        teacher_scores=make_teacher_scores(plan, interrupt.poll),
        journal=journal if plan.save.journal else None,
    )


def run_next_step(
    plan: Plan, folder: RunFolder, context: StepContext, state: RunState
) -> StepResult:
    """Take the next step; if a row goes bad before the update, replace it and start again."""
    while True:
        prompts, epochs = pick_prompts(plan, state.step, state.replaced_rows)
        last = plan.num_steps if plan.stop_after is None else plan.stop_after
        context.encode_ahead(
            lambda step: pick_prompts(plan, step, state.replaced_rows)[0], state.step, last
        )
        try:
            return train_step(context, prompts, state, epochs)
        except (DataError, RolloutError) as error:
            partners = context.models.partners
            rows = [*prompts, *(partners[p.id] for p in prompts if p.id in partners)]
            replace_rows_or_raise(plan, folder, context, state, error, rows)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            savings = memory_savings(context.models, "update")
            raise out_of_memory_error("update", 0, str(error), savings) from error


def replace_rows_or_raise(
    plan: Plan,
    folder: RunFolder,
    context: StepContext,
    state: RunState,
    error: DataError | RolloutError,
    prompts: Sequence[Prompt],
) -> None:
    """Replace the rows that cause an error; raise it if no row does, or if too many do."""
    bad = bad_rows_in(error, prompts)
    if not bad or not within_bad_row_limit(plan, {*state.replaced_rows, *bad}):
        raise error
    replace_rows(plan, folder, state.replaced_rows, bad, state.step + 1)
    update_partners(plan, context, state.replaced_rows)
    context.ahead.forget()


def update_partners(plan: Plan, context: StepContext, replaced_rows: Collection[str]) -> None:
    """Use only rows that are not replaced as partners."""
    if replaced_rows:
        partners = find_partners(plan, without_replaced(plan.train_prompts, replaced_rows))
        context.models = replace(context.models, partners=partners)


def start_or_resume(plan: Plan, folder: RunFolder, optimizer: torch.optim.Optimizer) -> RunState:
    """A new state, or that of the newest valid checkpoint; removes later log lines."""
    remove_leftovers(folder)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        folder.cut_after(-1)
        # nothing tells whether this student wrote its entries
        Journal(folder.journal, plan.fingerprint).drop_all()
        state = RunState()
        replace_rows(plan, folder, state.replaced_rows, rows_missing_at_start(plan), 1)
        return state
    copies = copies_to_save(plan.models)
    state = restore_checkpoint(checkpoint, plan.models.student, optimizer, copies)
    folder.cut_after(state.step, state.replaced_rows)
    missing = rows_missing_at_start(plan)
    replace_rows(plan, folder, state.replaced_rows, missing, state.step + 1)
    state.best = choose_best(folder.read(folder.evaluations), plan.save)
    if state.step >= plan.num_steps and was_finished(folder):
        report_event(plan, folder, already_finished(folder, state.step))
    else:
        older = format_older_terms(checkpoint)
        report_event(plan, folder, f"resumed from {checkpoint.name}{older}")
    return state


def check_rollouts(plan: Plan, folder: RunFolder, state: RunState, result: StepResult) -> None:
    """Report new warnings about the responses of a step.

    Raises:
        RolloutError: R401, every response of several steps in a row was cut off.
    """
    health = state.rollout_health
    with method_call(plan.objective, "warnings"):
        own = plan.objective.warnings(result.metrics)
    for warning in health.update(result.metrics, result.groups, plan.rollout, own):
        report_event(plan, folder, warning, f"step {state.step}: ")
    if health.never_ends(plan.rollout):
        taken, limit, _ = plan.models.free_positions(plan.train_prompts[0])
        most = limit - taken  # as at the start of a run
        raise always_truncated_error(health, plan.rollout, state.step, str(folder.path), most)


def is_evaluation_missing(plan: Plan, folder: RunFolder, step: int) -> bool:
    """Whether the evaluation of the step where a run starts was interrupted or never began."""
    evaluated = {record["step"] for record in folder.read(folder.evaluations)}
    due = step == 0 or is_due(step, plan.evaluation.every, plan.num_steps)
    return due and step not in evaluated


def run_canary_and_replace_rows(
    plan: Plan, folder: RunFolder, context: StepContext, state: RunState
) -> dict[str, float]:
    """Stop the run if a reader ignores the image (V802 to V816); warn if it hardly uses it.

    Rows with unreadable images are replaced.
    """
    while True:
        prompts = without_replaced(plan.train_prompts, state.replaced_rows)
        try:
            facts = run_canary(context, prompts)
            break
        except DataError as error:
            replace_rows_or_raise(plan, folder, context, state, error, canary_rows(prompts))
    for warning in weak_reader_warnings(facts):
        report_event(plan, folder, f"canary: {warning}")
    return facts


def evaluate_student(
    plan: Plan, folder: RunFolder, writer: CheckpointWriter, context: StepContext, clock: Clock
) -> None:
    """Evaluate the student, log the result, and save a checkpoint if it is the best so far."""
    if not (plan.eval_prompts or plan.benchmarks) or plan.evaluation.every <= 0:
        return
    state = writer.saved.state
    step = state.step
    is_first_or_last = step in (0, plan.num_steps)
    fault("evaluate.begin")
    with clock.time_outside_steps("evaluate"), open_phase(EVALUATING):
        result = evaluate_halving(plan, context, is_first_or_last)
        tasks_facts = evaluate_tasks(plan, folder, context, step)
    with clock.time_outside_steps("canary"):
        facts = run_canary_and_replace_rows(plan, folder, context, state)
    fault("evaluate.before_log")
    summary = result.summary | selection_summary(result, plan.eval_prompts, plan.evaluation)
    folder.log(folder.evaluations, {"step": step, **summary, **tasks_facts, **facts})
    folder.write(f"samples/step-{step:06d}.jsonl", result.to_lines())
    if is_first_or_last:
        tokens = {"tail": result.tail(), "items": result.heatmaps(plan.models.student)}
        folder.write(f"tokens/step-{step:06d}.json", to_json(tokens))
    plan.progress(evaluation_record(plan, step, result))
    if is_first_or_last and (warning := unparsed_warning(summary)):
        report_event(plan, folder, f"WARNING: {warning}", f"step {step}: ")
    before = state.best
    state.best = choose_best(folder.read(folder.evaluations), plan.save)
    if state.best is not None and state.best != before:
        with clock.time_outside_steps("save"):
            writer.save()


def evaluate_tasks(
    plan: Plan, folder: RunFolder, context: StepContext, step: int
) -> dict[str, float]:
    """The figures of the benchmarks of `eval.tasks`; empty without."""
    if not plan.benchmarks:
        return {}
    engine = make_engine(plan.models.student, plan.rollout.without_image_skips(), context.poll)
    with engine:
        retry = context.memory_retry.run_halving
        facts = evaluate_benchmarks(plan, folder, step, engine, retry)
    for name in changed_benchmarks(folder.read(folder.evaluations), facts):
        text = f"WARNING: {name} has other rows or another protocol than at the evaluation before"
        report_event(plan, folder, text, f"step {step}: ")
    return facts


def evaluate_halving(plan: Plan, context: StepContext, is_first_or_last: bool) -> EvalResult:
    """Evaluate the student, with fewer rows per call each time memory runs out."""
    settings, diagrams = plan.evaluation, ()
    if is_first_or_last:
        settings = replace(settings, limit=settings.final_limit)
        diagrams = plan.diagrams
    max_rows = min(settings.rows_per_call, settings.samples * len(plan.eval_prompts))
    own = plan.rollout.of_trained_student().without_image_skips()
    engine = make_engine(plan.models.student, own, context.poll)

    def rows_per_call(times: int) -> int:
        return max(1, max_rows >> times)

    def attempt(times: int) -> EvalResult:
        halved = replace(settings, rows_per_call=rows_per_call(times)) if times else settings
        evaluate = tasks.get(settings.task)
        return evaluate(plan.models, plan.eval_prompts, halved, context.poll, diagrams, engine)

    with engine:
        return context.memory_retry.run_halving("evaluate", rows_per_call, attempt)


def run_canary_check(plan: Plan, folder: RunFolder) -> list[CheckResult]:
    """The canary of `vistill check`: how much each reader uses the image, and warnings."""
    plan, optimizer = prepare_student(replace(plan, save=replace(plan.save, journal=False)))
    saved = TrainedObjects(plan.models.student, optimizer, RunState())
    context = make_step_context(plan, folder, saved, None, Interrupt(), Clock())
    facts = run_canary(context, plan.train_prompts)
    warnings = [CheckResult("warning", text) for text in weak_reader_warnings(facts)]
    return [CheckResult("canary", describe_canary(facts)), *warnings]
