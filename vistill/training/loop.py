"""The loop: pick prompts, step, log, evaluate, save; resume by itself."""

import signal
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch

from vistill.batch import Need
from vistill.data.keys import rows_of_step
from vistill.data.math_judge import MathJudge
from vistill.errors import DataError, NonFiniteError, Preempted, RolloutError
from vistill.evaluation.runner import evaluate
from vistill.faults import fault
from vistill.models.loading import check_pair
from vistill.rollouts.skipping import make_engine
from vistill.runs.folder import RunFolder
from vistill.runs.storage import to_json, write_json
from vistill.training.canary import SAMPLES, weak
from vistill.training.checkpoint import Saved, TrainState, newest, publish, restore, sweep
from vistill.training.clock import Clock, Profile, measured_rate, peak_mib
from vistill.training.companions import check_reference, stored, with_companions
from vistill.training.interrupt import Interrupt, Interrupted
from vistill.training.journal import Journal
from vistill.training.ladder import Ladder, does_not_fit, is_out_of_memory
from vistill.training.optim import freeze_parts, make_optimizer
from vistill.training.plan import Plan
from vistill.training.precision import precision_of
from vistill.training.rewards import Rewards
from vistill.training.rollout_log import rollout_records
from vistill.training.roster import bearable, missing_now, partners_of, present, set_aside, to_blame
from vistill.training.settings import SaveSettings
from vistill.training.step import StepResult, Update, train_step
from vistill.training.watching import examine
from vistill.training.writing import Desk
from vistill.types import Prompt, Writer

#: Updates in a row that may be non-finite before the run stops.
MAX_NON_FINITE = 3
#: Share of all updates that may be.
MAX_SKIPPED_SHARE = 0.01
#: Share of cut-off responses that is worth a word, and steps in a row with nothing else that stop a run.
MUCH_TRUNCATED, MAX_ALL_TRUNCATED = 0.2, 3


def run(plan: Plan, folder: RunFolder) -> TrainState:
    """Train to the end, or from wherever the folder's newest valid checkpoint is.

    Raises:
        Preempted: a signal arrived; a checkpoint of the last whole step is saved.
        NonFiniteError: several updates in a row were not finite.
    """
    if plan.cast.teacher is not None:
        check_pair(plan.cast.student, plan.cast.teacher)
    if plan.train.deterministic:
        torch.use_deterministic_algorithms(True, warn_only=True)
    interrupt, clock = Interrupt(), clock_of(plan)
    plan = replace(plan, cast=with_companions(plan.cast, plan.objective))
    freeze_parts(plan.cast.student, plan.train.freeze)
    optimizer = make_optimizer(plan.cast.student.model, plan.train)
    with folder.owned(), interrupt.listening(), rewards_of(plan) as rewards:
        state = start(plan, folder, optimizer)
        check_reference(plan.cast, state.method)
        saved = Saved(plan.cast.student, optimizer, state, stored(plan.cast))
        update = without(plan, update_of(plan, folder, saved, rewards, interrupt, clock), state.gone)
        try:
            with clock.aside("canary"):
                update, _ = sing(plan, folder, update, state)
            if owes_evaluation(plan, folder, state.step):
                update = judge(plan, folder, saved, update, clock)
            while state.step < plan.num_steps:
                update, result = next_step(plan, folder, update, state)
                state.step += 1
                state.method["memory"] = result.memory
                count_non_finite(plan, folder, state, result)
                log_step(plan, folder, state, result, clock)
                heed_rollouts(plan, folder, state, result)
                if is_due(state.step, plan.evaluation.every, plan.num_steps):
                    update = judge(plan, folder, saved, update, clock)
                if is_due(state.step, plan.save.every, plan.num_steps):
                    with clock.aside("save"):
                        publish(folder, saved, plan.fingerprint, plan.save.keep)
                if state.step == plan.stop_after:
                    break
        except Interrupted as stop:
            publish(folder, saved, plan.fingerprint, plan.save.keep)
            folder.event(f"stopped by {stop} after step {state.step}")
            raise preempted(stop, state.step) from None
        finally:
            if isinstance(clock, Profile):
                write_json(folder.path / "profile.json", {"rate": clock.rate, "beside": clock.beside})
    return state


def clock_of(plan: Plan) -> Clock:
    """A plain clock, or one that counts."""
    if not plan.profile:
        return Clock()
    device = plan.cast.student.device
    return Profile(device=device, rate=measured_rate(device, precision_of(plan.train, device)))


def rewards_of(plan: Plan) -> AbstractContextManager[Rewards | None]:
    """The reward function, where the method needs one."""
    if Need.REWARD not in plan.objective.needs():
        return nullcontext()
    return Rewards(plan.reward, plan.cast.student, MathJudge())


def update_of(
    plan: Plan, folder: RunFolder, saved: Saved, rewards: Rewards | None, interrupt: Interrupt, clock: Clock
) -> Update:
    """What stays the same from step to step."""

    def say(text: str) -> None:
        folder.event(f"step {saved.state.step + 1}: {text}")
        plan.progress({"event": text})

    engine = plan.engine or make_engine(plan.cast.student, plan.rollout, interrupt.poll)
    per_prompt = 1 if plan.objective.writer is Writer.DATA else plan.rollout.per_prompt
    return Update(
        cast=plan.cast,
        desk=Desk(engine, plan.objective, per_prompt, plan.written),
        optimizer=saved.optimizer,
        train=plan.train,
        rollout=plan.rollout,
        seed=plan.seed,
        num_steps=plan.num_steps,
        rewards=rewards,
        split=plan.split,
        poll=interrupt.poll,
        observe=clock.observe,
        ladder=Ladder(saved.state.ladder, say),
        journal=Journal(folder.journal, plan.fingerprint) if plan.save.journal else None,
    )


def prompts_of_step(plan: Plan, step: int, gone: Collection[str] = ()) -> tuple[list[Prompt], list[int]]:
    """The prompts of a step and the epoch each stands in."""
    num, per_step = len(plan.train_prompts), plan.train.prompts_per_step
    picks = rows_of_step(step, per_step, num, plan.seed, lambda row: plan.train_prompts[row].id in gone)
    return [plan.train_prompts[i] for i in picks], [(step * per_step + i) // num for i in range(per_step)]


def next_step(plan: Plan, folder: RunFolder, update: Update, state: TrainState) -> tuple[Update, StepResult]:
    """One step; a row that goes bad in it is replaced and the step, thrown away before its update, done again."""
    while True:
        prompts, epochs = prompts_of_step(plan, state.step, state.gone)
        try:
            return update, train_step(update, prompts, state, epochs)
        except (DataError, RolloutError) as error:
            partners = [update.cast.partners[p.id] for p in prompts if p.id in update.cast.partners]
            update = set_aside_or_raise(plan, folder, update, state, error, [*prompts, *partners])
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise does_not_fit("update", 0, str(error)) from error


def set_aside_or_raise(
    plan: Plan,
    folder: RunFolder,
    update: Update,
    state: TrainState,
    error: DataError | RolloutError,
    prompts: Sequence[Prompt],
) -> Update:
    """The update without the rows that an error comes from; the error itself where it comes from none, or too many."""
    bad = to_blame(error, prompts)
    if not bad or not bearable(plan, {*state.gone, *bad}):
        raise error
    set_aside(plan, folder, state.gone, bad, state.step + 1)
    return without(plan, update, state.gone)


def without(plan: Plan, update: Update, gone: Collection[str]) -> Update:
    """The update whose views borrow pictures only from rows that are there."""
    if not gone:
        return update
    return replace(update, cast=replace(update.cast, partners=partners_of(present(plan.train_prompts, gone))))


def start(plan: Plan, folder: RunFolder, optimizer: torch.optim.Optimizer) -> TrainState:
    """A fresh state, or the newest valid checkpoint's; later log lines are cut."""
    sweep(folder)
    found = newest(folder)
    if found is None:
        folder.cut_after(-1)
        Journal(folder.journal, plan.fingerprint).forget_all()  # who wrote it cannot be known to be this student
        state = TrainState()
        set_aside(plan, folder, state.gone, missing_now(plan), 1)
        return state
    state = restore(found, plan.cast.student, optimizer, stored(plan.cast))
    folder.cut_after(state.step, state.gone)
    Journal(folder.journal, plan.fingerprint).forget_other_futures(state.step)
    set_aside(plan, folder, state.gone, missing_now(plan), state.step + 1)
    state.best = best_of(folder.read(folder.evaluations), plan.save)
    folder.event(f"resumed from {found.name}")
    plan.progress({"event": f"resumed from {found.name}"})
    return state


def owes_evaluation(plan: Plan, folder: RunFolder, step: int) -> bool:
    """Whether the state a run starts from should have been judged, but was interrupted before it was."""
    judged = {record["step"] for record in folder.read(folder.evaluations)}
    return (step == 0 or is_due(step, plan.evaluation.every, plan.num_steps)) and step not in judged


def best_of(evaluations: Sequence[dict[str, Any]], save: SaveSettings) -> dict[str, float] | None:
    """Step and value of the best evaluation after step 0; the earliest wins ties."""
    judged = [r for r in evaluations if r["step"] > 0 and r.get("accuracy") is not None]
    if save.keep_best == "none" or not judged:
        return None
    best = max(judged, key=lambda r: (r["accuracy"], -r["step"]))
    return {"step": best["step"], "value": best["accuracy"]}


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens now."""
    return step == last or (every > 0 and step % every == 0)


def log_step(plan: Plan, folder: RunFolder, state: TrainState, result: StepResult, clock: Clock) -> None:
    """Reproducible values to `metrics.jsonl`, seconds to `timing.jsonl`, now and then the rollouts."""
    fault("log.before_metrics")
    folder.log(folder.metrics, {"step": state.step, **result.metrics})
    fault("log.after_metrics")
    seconds = clock.take()
    tokens = result.metrics["rollout/tokens"]
    work = clock.take_work()
    peak = max((w["peak_mib"] for w in work.values()), default=0.0) or peak_mib(plan.cast.student.device)
    rate = tokens / max(1e-9, sum(seconds.values()))
    cost = {"tokens": tokens, "tokens_per_second": rate, "peak_mib": peak}
    folder.log(folder.timing, {"step": state.step, "seconds": seconds, **cost, **({"work": work} if work else {})})
    if is_due(state.step, plan.evaluation.every, plan.num_steps):
        path = folder.rollouts(state.step)
        folder.write(
            str(path.relative_to(folder.path)), rollout_records(plan.cast.student, result.groups, result.signals)
        )
    plan.progress({"step": state.step, "steps": plan.num_steps, **result.metrics, "seconds": sum(seconds.values())})


def count_non_finite(plan: Plan, folder: RunFolder, state: TrainState, result: StepResult) -> None:
    """Count skipped updates, write down what they were made of; several in a row, or too many, stop the run (N701)."""
    if result.finite:
        state.method.pop("non_finite_in_a_row", None)
        return
    state.skipped += 1
    state.method["non_finite_in_a_row"] = state.method.get("non_finite_in_a_row", 0) + 1
    place = f"nonfinite/step-{state.step:06d}"
    folder.write(f"{place}/rollouts.jsonl", rollout_records(plan.cast.student, result.groups, result.signals))
    folder.write(f"{place}/metrics.json", to_json({"step": state.step, **result.metrics}, indent=2))
    folder.event(f"step {state.step} skipped: its loss or gradient is not finite; see {place}")
    several = state.method["non_finite_in_a_row"] >= MAX_NON_FINITE
    if several or state.skipped > max(MAX_NON_FINITE, MAX_SKIPPED_SHARE * state.step):
        what = f"{MAX_NON_FINITE} updates in a row" if several else f"{state.skipped} of {state.step} updates"
        raise NonFiniteError(
            "N701",
            f"{what} were not finite",
            where=f"step {state.step}",
            why="loss or gradient is NaN or infinite; those updates were skipped, the weights are unharmed",
            fix=f"train.lr=1e-7 --accept train.lr   or in a new run: train.precision=fp32 run={folder.path}-2",
            note=f"prompts, responses and signals of each: {folder.path / 'nonfinite'}",
        )


def heed_rollouts(plan: Plan, folder: RunFolder, state: TrainState, result: StepResult) -> None:
    """Say where responses teach little: cut off, or all siblings the same. Stop where none ever ends (R401)."""
    cut = result.metrics["rollout/truncated_share"]
    several = [g for g in result.groups if len(g.rollouts) > 1]
    same = bool(several) and all(len({r.ids for r in g.rollouts}) == 1 for g in several)
    before = state.method.pop("all_truncated", 0)
    row = before + 1 if cut == 1.0 else 0
    state.method |= {"all_truncated": row} if row else {}
    warnings = {
        "truncated": f"{cut:.0%} of the responses were cut off: rollout.max_new_tokens={plan.rollout.max_new_tokens}",
        "identical": "all siblings of every prompt are the same: what compares them has nothing to compare",
        "blind": "no token of this step has visual advantage: the picture raises nothing the teacher says",
    }
    blind = result.metrics.get("va/zero_share") == 1.0
    for name, holds in (("truncated", cut >= MUCH_TRUNCATED), ("identical", same), ("blind", blind)):
        if holds and name not in state.method.setdefault("warned", []):
            state.method["warned"].append(name)
            folder.event(f"step {state.step}: {warnings[name]}")
            plan.progress({"event": warnings[name]})
    if row >= MAX_ALL_TRUNCATED and plan.rollout.all_truncated == "stop":
        raise RolloutError(
            "R401",
            f"every response of {row} steps in a row was cut off at the length limit",
            where=f"step {state.step}",
            why="the student never ends a response by itself; what it would say at the end is never learnt",
            fix=f"rollout.max_new_tokens={2 * plan.rollout.max_new_tokens} run={folder.path}-2",
            note="short responses on purpose: rollout.all_truncated=go_on",
        )


def sing(plan: Plan, folder: RunFolder, update: Update, state: TrainState) -> tuple[Update, dict[str, float]]:
    """The canary: everybody sees the picture, or the run stops here (V802 to V816); hardly seeing is said."""
    while True:
        prompts = present(plan.train_prompts, state.gone)
        try:
            facts = examine(update, prompts)
            break
        except DataError as error:
            looked_at = [p for p in prompts if p.images][:SAMPLES]
            update = set_aside_or_raise(plan, folder, update, state, error, looked_at)
    for warning in weak(facts):
        folder.event(f"canary: {warning}")
        plan.progress({"event": f"canary: {warning}"})
    return update, facts


def judge(plan: Plan, folder: RunFolder, saved: Saved, update: Update, clock: Clock) -> Update:
    """Evaluate on validation, remember the best, keep its checkpoint."""
    if not plan.eval_prompts or plan.evaluation.every <= 0:
        return update
    step = saved.state.step
    at_end = step in (0, plan.num_steps)
    settings = replace(plan.evaluation, limit=plan.evaluation.final_limit) if at_end else plan.evaluation
    fault("evaluate.begin")
    with clock.aside("evaluate"):
        most = min(settings.rows_per_call, settings.samples * len(plan.eval_prompts))
        rows = lambda times: max(1, most >> times)
        attempt = lambda times: evaluate(
            plan.cast,
            plan.eval_prompts,
            replace(settings, rows_per_call=rows(times)) if times else settings,
            update.poll,
            plan.diagrams if at_end else (),
        )
        result = update.ladder.climb("evaluate", rows, attempt)
    with clock.aside("canary"):
        update, facts = sing(plan, folder, update, saved.state)
    fault("evaluate.before_log")
    folder.log(folder.evaluations, {"step": step, **result.summary, **facts})
    folder.write(f"samples/step-{step:06d}.jsonl", result.to_lines())
    if at_end:
        tokens = {"tail": result.tail(), "items": result.heatmaps(plan.cast.student)}
        folder.write(f"tokens/step-{step:06d}.json", to_json(tokens))
    plan.progress({"step": step, "steps": plan.num_steps, **{f"eval/{k}": v for k, v in result.summary.items()}})
    before = saved.state.best
    saved.state.best = best_of(folder.read(folder.evaluations), plan.save)
    if saved.state.best is not None and saved.state.best != before:
        publish(folder, saved, plan.fingerprint, plan.save.keep)
    return update


def preempted(stop: Interrupted, step: int | None) -> Preempted:
    """Exit 75 after SIGTERM or SIGUSR1, 130 after Ctrl-C; before the first step there is no step to name."""
    where = (
        "before the first step; what was written is kept" if step is None else f"after step {step}; checkpoint saved"
    )
    error = Preempted(
        "P075",
        f"stopped by {stop} {where}",
        fix="run the same command again to continue",
    )
    if stop.number == signal.SIGINT:
        error.exit_code = 130  # pyright: ignore[reportAttributeAccessIssue]
    return error
