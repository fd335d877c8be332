"""The loop: pick prompts, step, log, evaluate, save; resume by itself."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from vistill.batch import Need
from vistill.data.keys import rows_of_step
from vistill.data.math_judge import MathJudge
from vistill.errors import DataError, NonFiniteError, RolloutError
from vistill.evaluation.runner import evaluate, selection_summary
from vistill.faults import fault
from vistill.rollouts.build import make_engine
from vistill.runs.folder import RunFolder
from vistill.runs.storage import to_json, write_json
from vistill.training.canary.reader import weak_reader_warnings
from vistill.training.canary.run import canary_rows, run_canary
from vistill.training.checkpoint import (
    TrainedObjects,
    format_older_terms,
    newest,
    publish,
    remove_leftovers,
    restore,
)
from vistill.training.checks.check import CheckResult
from vistill.training.clock import Clock, Profile, measured_rate, peak_mib
from vistill.training.context import StepContext
from vistill.training.interrupt import Interrupt, Interrupted, preempted
from vistill.training.journal import Journal, chain_after
from vistill.training.oom import MemoryRetry, is_out_of_memory, out_of_memory_error
from vistill.training.optim import freeze_parts, make_optimizer
from vistill.training.plan import Plan
from vistill.training.precision import precision_of
from vistill.training.response_source import ResponseSource
from vistill.training.results import forget_result
from vistill.training.rewards import Rewards
from vistill.training.rollout_health import rollout_warnings
from vistill.training.rollout_log import rollout_records
from vistill.training.row_lock import (
    bad_rows_in,
    partners_of,
    replace_rows,
    rows_missing_at_start,
    within_bad_row_limit,
    without_replaced,
)
from vistill.training.run_lock import TRAINED_STUDENTS
from vistill.training.run_state import RunState
from vistill.training.settings import SaveSettings
from vistill.training.step import StepResult, train_step
from vistill.training.student_copies import check_reference, copies_to_save, with_student_copies
from vistill.types import Prompt, Writer

#: Updates in a row that may be non-finite before the run stops.
MAX_NON_FINITE = 3
#: Share of all updates that may be.
MAX_SKIPPED_SHARE = 0.01


def run(plan: Plan, folder: RunFolder) -> RunState:
    """Train to the end, or from wherever the folder's newest valid checkpoint is.

    Raises:
        Preempted: a signal arrived; a checkpoint of the last whole step is saved.
        NonFiniteError: several updates in a row were not finite.
    """
    interrupt, clock = Interrupt(), clock_of(plan)
    plan, optimizer = trainable(plan)
    TRAINED_STUDENTS[plan.models.student.model] = str(folder.path.resolve())
    with ExitStack() as stack:
        stack.enter_context(deterministic(plan.train.deterministic))
        stack.enter_context(folder.locked())
        stack.enter_context(interrupt.listening())
        rewards = stack.enter_context(rewards_of(plan))
        state = start_or_resume(plan, folder, optimizer)
        if state.step < plan.num_steps:
            forget_result(folder)
        check_reference(plan.models, state)
        saved = TrainedObjects(plan.models.student, optimizer, state, copies_to_save(plan.models))
        context = step_context(plan, folder, saved, rewards, interrupt, clock)
        borrow_from_present(plan, context, state.gone)
        stack.enter_context(context.response_source.engine)
        try:
            train(plan, folder, saved, context, clock)
        except Interrupted as stop:
            publish(folder, saved, plan.fingerprint, plan.save.keep)
            folder.event(f"stopped by {stop} after step {state.step}")
            raise preempted(stop, state.step) from None
        finally:
            if isinstance(clock, Profile):
                write_json(
                    folder.path / "profile.json", {"rate": clock.rate, "beside": clock.beside}
                )
    return state


def train(
    plan: Plan, folder: RunFolder, saved: TrainedObjects, context: StepContext, clock: Clock
) -> None:
    """The loop: canary, then step, log, evaluate, save until the last step."""
    state = saved.state
    context.response_source.engine.sync_weights(state.step)
    with clock.aside("canary"):
        run_canary_and_replace_rows(plan, folder, context, state)
    if missed_evaluation(plan, folder, state.step):
        evaluate_student(plan, folder, saved, context, clock)
    while state.step < plan.num_steps:
        result = next_step(plan, folder, context, state)
        state.step += 1
        state.memory = result.memory
        context.response_source.engine.sync_weights(state.step)
        count_non_finite(plan, folder, state, result)
        log_step(plan, folder, state, result, clock)
        for warning in rollout_warnings(plan.rollout, state, result, str(folder.path)):
            report_event(plan, folder, warning, f"step {state.step}: ")
        if is_due(state.step, plan.evaluation.every, plan.num_steps):
            evaluate_student(plan, folder, saved, context, clock)
        if is_due(state.step, plan.save.every, plan.num_steps):
            with clock.aside("save"):
                publish(folder, saved, plan.fingerprint, plan.save.keep)
        if state.step == plan.stop_after:
            return


def trainable(plan: Plan) -> tuple[Plan, torch.optim.Optimizer]:
    """The plan with the copies of the student that its method reads, parts frozen, and the optimizer of the rest."""
    plan = replace(plan, models=with_student_copies(plan.models, plan.objective))
    freeze_parts(plan.models.student, plan.train.freeze)
    return plan, make_optimizer(plan.models.student.model, plan.train)


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Deterministic kernels inside; afterwards the caller's process is as it was."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    if wanted:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


def report_event(plan: Plan, folder: RunFolder, text: str, prefix: str = "") -> None:
    """A line for people: in the event log, and wherever progress is shown."""
    folder.event(f"{prefix}{text}")
    plan.progress({"event": text})


def clock_of(plan: Plan) -> Clock:
    """A plain clock, or one that counts."""
    if not plan.profile:
        return Clock()
    device = plan.models.student.device
    return Profile(device=device, rate=measured_rate(device, precision_of(plan.train, device)))


def rewards_of(plan: Plan) -> AbstractContextManager[Rewards | None]:
    """The reward function, where the method needs one."""
    if Need.REWARD not in plan.objective.needs():
        return nullcontext()
    return Rewards(plan.reward, plan.models.student, MathJudge())


def step_context(
    plan: Plan,
    folder: RunFolder,
    saved: TrainedObjects,
    rewards: Rewards | None,
    interrupt: Interrupt,
    clock: Clock,
) -> StepContext:
    """What stays the same from step to step."""

    def say(text: str) -> None:
        report_event(plan, folder, text, f"step {saved.state.step + 1}: ")

    engine = make_engine(plan.models.student, plan.rollout, interrupt.poll, plan.engine)
    per_prompt = 1 if plan.objective.writer is Writer.DATA else plan.rollout.per_prompt
    return StepContext(
        models=plan.models,
        response_source=ResponseSource(engine, plan.objective, per_prompt, plan.written),
        optimizer=saved.optimizer,
        train=plan.train,
        rollout=plan.rollout,
        seed=plan.seed,
        num_steps=plan.num_steps,
        rewards=rewards,
        split=plan.split,
        poll=interrupt.poll,
        observe=clock.observe,
        ladder=MemoryRetry(saved.state.ladder, say),
        journal=Journal(folder.journal, plan.fingerprint, say=folder.event)
        if plan.save.journal
        else None,
    )


def prompts_of_step(
    plan: Plan, step: int, gone: Collection[str] = ()
) -> tuple[list[Prompt], list[int]]:
    """The prompts of a step and the epoch each stands in."""
    num, per_step = len(plan.train_prompts), plan.train.prompts_per_step
    picks = rows_of_step(
        step, per_step, num, plan.seed, lambda row: plan.train_prompts[row].id in gone
    )
    return [plan.train_prompts[i] for i in picks], [
        (step * per_step + i) // num for i in range(per_step)
    ]


def next_step(plan: Plan, folder: RunFolder, context: StepContext, state: RunState) -> StepResult:
    """One step; a row that goes bad in it is replaced and the step, thrown away before its update, done again."""
    while True:
        prompts, epochs = prompts_of_step(plan, state.step, state.gone)
        try:
            return train_step(context, prompts, state, epochs)
        except (DataError, RolloutError) as error:
            partners = [
                context.models.partners[p.id] for p in prompts if p.id in context.models.partners
            ]
            replace_rows_or_raise(plan, folder, context, state, error, [*prompts, *partners])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise out_of_memory_error("update", 0, str(error)) from error


def replace_rows_or_raise(
    plan: Plan,
    folder: RunFolder,
    context: StepContext,
    state: RunState,
    error: DataError | RolloutError,
    prompts: Sequence[Prompt],
) -> None:
    """Set the rows aside that an error comes from; raise the error where it comes from none, or from too many."""
    bad = bad_rows_in(error, prompts)
    if not bad or not within_bad_row_limit(plan, {*state.gone, *bad}):
        raise error
    replace_rows(plan, folder, state.gone, bad, state.step + 1)
    borrow_from_present(plan, context, state.gone)


def borrow_from_present(plan: Plan, context: StepContext, gone: Collection[str]) -> None:
    """Let views borrow pictures only from rows that are still there."""
    if gone:
        partners = partners_of(plan, without_replaced(plan.train_prompts, gone))
        context.models = replace(context.models, partners=partners)


def start_or_resume(plan: Plan, folder: RunFolder, optimizer: torch.optim.Optimizer) -> RunState:
    """A fresh state, or the newest valid checkpoint's; later log lines are cut."""
    remove_leftovers(folder)
    found = newest(folder)
    if found is None:
        folder.cut_after(-1)
        Journal(
            folder.journal, plan.fingerprint
        ).forget_all()  # who wrote it cannot be known to be this student
        state = RunState()
        replace_rows(plan, folder, state.gone, rows_missing_at_start(plan), 1)
        return state
    state = restore(found, plan.models.student, optimizer, copies_to_save(plan.models))
    folder.cut_after(state.step, state.gone)
    replace_rows(plan, folder, state.gone, rows_missing_at_start(plan), state.step + 1)
    state.best = best_of(folder.read(folder.evaluations), plan.save)
    report_event(plan, folder, f"resumed from {found.name}{format_older_terms(found)}")
    return state


def missed_evaluation(plan: Plan, folder: RunFolder, step: int) -> bool:
    """Whether the state a run starts from should have been judged, but was interrupted before it was."""
    judged = {record["step"] for record in folder.read(folder.evaluations)}
    return (step == 0 or is_due(step, plan.evaluation.every, plan.num_steps)) and step not in judged


def best_of(evaluations: Sequence[dict[str, Any]], save: SaveSettings) -> dict[str, float] | None:
    """Step, value and rows of the best evaluation after step 0, on one fixed set of rows; the latest wins ties.

    Evaluations of other rows, or with other samples or noise, cannot be compared: those are left out that judged
    otherwise than the last one (`eval.` may change between starts, and earlier versions have no fixed set).
    """
    if save.keep_best == "none":
        return None
    judged = [
        selection_of(r) for r in evaluations if r["step"] > 0 and r.get("accuracy") is not None
    ]
    if not judged:
        return None
    kind = lambda r: (r["fixed"], r["rows"], r["protocol"])
    same = [r for r in judged if kind(r) == kind(judged[-1])]
    best = max(same, key=lambda r: (r["value"], r["step"]))
    return {name: best[name] for name in ("step", "value", "rows")}


def selection_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What checkpoints are chosen by, of one evaluation."""
    fixed = "selection/accuracy" in record
    value = record["selection/accuracy"] if fixed else record["accuracy"]
    rows = record["selection/rows"] if fixed else record.get("rows")
    protocol = record.get("selection/protocol")
    return {
        "step": record["step"],
        "value": value,
        "rows": rows,
        "fixed": fixed,
        "protocol": protocol,
    }


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return step == last or (every > 0 and step % every == 0)


def log_step(
    plan: Plan, folder: RunFolder, state: RunState, result: StepResult, clock: Clock
) -> None:
    """Reproducible values to `metrics.jsonl`, seconds to `timing.jsonl`, now and then the rollouts."""
    fault("log.before_metrics")
    record = {"step": state.step, **result.metrics}
    folder.log(folder.metrics, record)
    state.chain = chain_after(state.chain, record, state.gone, plan.fingerprint)
    fault("log.after_metrics")
    seconds = clock.take()
    tokens = result.metrics["rollout/tokens"]
    work = clock.take_work()
    peak = max((w["peak_mib"] for w in work.values()), default=0.0) or peak_mib(
        plan.models.student.device
    )
    rate = tokens / max(1e-9, sum(seconds.values()))
    cost = {"tokens": tokens, "tokens_per_second": rate, "peak_mib": peak}
    folder.log(
        folder.timing,
        {"step": state.step, "seconds": seconds, **cost, **({"work": work} if work else {})},
    )
    if is_due(state.step, plan.evaluation.every, plan.num_steps):
        path = folder.rollouts(state.step)
        folder.write(
            str(path.relative_to(folder.path)),
            rollout_records(plan.models.student, result.groups, result.signals),
        )
    plan.progress(
        {
            "step": state.step,
            "steps": plan.num_steps,
            **result.metrics,
            "seconds": sum(seconds.values()),
        }
    )


def count_non_finite(plan: Plan, folder: RunFolder, state: RunState, result: StepResult) -> None:
    """Count skipped updates, write down what they were made of; several in a row, or too many, stop the run (N701)."""
    if result.finite:
        state.non_finite_in_a_row = 0
        return
    state.skipped += 1
    state.non_finite_in_a_row += 1
    place = f"nonfinite/step-{state.step:06d}"
    folder.write(
        f"{place}/rollouts.jsonl",
        rollout_records(plan.models.student, result.groups, result.signals),
    )
    folder.write(f"{place}/metrics.json", to_json({"step": state.step, **result.metrics}, indent=2))
    made = (
        f"; the other updates of the step were made: {result.updates_made}"
        if result.updates_made
        else ""
    )
    folder.event(
        f"step {state.step} skipped: a reading, signal, loss or gradient is not finite{made}; see {place}"
    )
    several = state.non_finite_in_a_row >= MAX_NON_FINITE
    if several or state.skipped > max(MAX_NON_FINITE, MAX_SKIPPED_SHARE * state.step):
        what = (
            f"{MAX_NON_FINITE} updates in a row"
            if several
            else f"{state.skipped} of {state.step} updates"
        )
        raise NonFiniteError(
            "N701",
            f"{what} were not finite",
            where=f"step {state.step}",
            why="a reading, signal, loss or gradient is NaN or infinite; those updates were skipped and changed no weight",
            fix=f"train.lr=1e-7 --accept train.lr   or in a new run: train.precision=fp32 run={folder.path}-2",
            note=f"prompts, responses, signals and what was not finite in each: {folder.path / 'nonfinite'}",
        )


def run_canary_and_replace_rows(
    plan: Plan, folder: RunFolder, context: StepContext, state: RunState
) -> dict[str, float]:
    """Stop the run if a reader ignores the image (V802 to V816); warn where one hardly uses it."""
    while True:
        prompts = without_replaced(plan.train_prompts, state.gone)
        try:
            facts = run_canary(context, prompts)
            break
        except DataError as error:
            replace_rows_or_raise(plan, folder, context, state, error, canary_rows(prompts))
    for warning in weak_reader_warnings(facts):
        report_event(plan, folder, f"canary: {warning}")
    return facts


def evaluate_student(
    plan: Plan, folder: RunFolder, saved: TrainedObjects, context: StepContext, clock: Clock
) -> None:
    """Evaluate on validation, remember the best, keep its checkpoint."""
    if not plan.eval_prompts or plan.evaluation.every <= 0:
        return
    step = saved.state.step
    at_end = step in (0, plan.num_steps)
    settings = (
        replace(plan.evaluation, limit=plan.evaluation.final_limit) if at_end else plan.evaluation
    )
    fault("evaluate.begin")
    engine = make_engine(plan.models.student, plan.rollout.without_image_skips(), context.poll)
    with clock.aside("evaluate"), engine:
        most = min(settings.rows_per_call, settings.samples * len(plan.eval_prompts))
        rows = lambda times: max(1, most >> times)
        attempt = lambda times: evaluate(
            plan.models,
            plan.eval_prompts,
            replace(settings, rows_per_call=rows(times)) if times else settings,
            context.poll,
            plan.diagrams if at_end else (),
            engine,
        )
        result = context.ladder.run_halving("evaluate", rows, attempt)
    with clock.aside("canary"):
        facts = run_canary_and_replace_rows(plan, folder, context, saved.state)
    fault("evaluate.before_log")
    summary = result.summary | selection_summary(result, plan.eval_prompts, plan.evaluation)
    folder.log(folder.evaluations, {"step": step, **summary, **facts})
    folder.write(f"samples/step-{step:06d}.jsonl", result.to_lines())
    if at_end:
        tokens = {"tail": result.tail(), "items": result.heatmaps(plan.models.student)}
        folder.write(f"tokens/step-{step:06d}.json", to_json(tokens))
    plan.progress(
        {
            "step": step,
            "steps": plan.num_steps,
            **{f"eval/{k}": v for k, v in result.summary.items()},
        }
    )
    before = saved.state.best
    saved.state.best = best_of(folder.read(folder.evaluations), plan.save)
    if saved.state.best is not None and saved.state.best != before:
        publish(folder, saved, plan.fingerprint, plan.save.keep)


def canary_finding(plan: Plan, folder: RunFolder) -> list[CheckResult]:
    """The canary of a run that does not begin: how much each reader uses the picture, and warnings."""
    plan, optimizer = trainable(replace(plan, save=replace(plan.save, journal=False)))
    saved = TrainedObjects(plan.models.student, optimizer, RunState())
    effects = run_canary(
        step_context(plan, folder, saved, None, Interrupt(), Clock()), plan.train_prompts
    )
    shown = [
        f"{name.split('/')[1].removesuffix('_image_effect')} {x:.3g}" for name, x in effects.items()
    ]
    seen = (
        f"every reader sees the image: {', '.join(shown)} nats per token"
        if shown
        else "no pictures"
    )
    return [
        CheckResult("canary", seen),
        *(CheckResult("warning", text) for text in weak_reader_warnings(effects)),
    ]
