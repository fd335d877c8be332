"""What a step writes into the run folder: metrics, seconds, rollouts, skipped updates."""

from collections.abc import Sequence

import torch

from vistill.batch import Signals
from vistill.errors import NonFiniteError
from vistill.faults import fault
from vistill.models.loading import VLM
from vistill.runs.folder import RunFolder
from vistill.runs.recipe_changes import in_new_folder
from vistill.runs.storage import to_json
from vistill.training.clock import Clock, peak_mib
from vistill.training.journal import chain_after
from vistill.training.plan import Plan
from vistill.training.precision import training_dtype
from vistill.training.progress_records import step_record
from vistill.training.run_state import RunState
from vistill.training.step import StepResult
from vistill.types import RolloutGroup

#: Prompts of a step whose rollouts are written.
MAX_GROUPS = 8
#: Updates in a row that may be non-finite before the run stops.
MAX_NON_FINITE = 3
#: Share of all updates that may be non-finite before the run stops.
MAX_SKIPPED_SHARE = 0.01


def is_due(step: int, every: int, last: int) -> bool:
    """Whether something happens at this step that happens every `every` steps and at the last."""
    return step == last or (every > 0 and step % every == 0)


def log_step(
    plan: Plan, folder: RunFolder, state: RunState, result: StepResult, clock: Clock
) -> None:
    """Write metrics and seconds of a step, and at evaluations its rollouts."""
    fault("log.before_metrics")
    record = {"step": state.step, **result.metrics}
    folder.log(folder.metrics, record)
    state.chain = chain_after(state.chain, record, state.replaced_rows, plan.fingerprint)
    fault("log.after_metrics")
    seconds = log_timing(plan, folder, state.step, result.metrics["rollout/tokens"], clock)
    if is_due(state.step, plan.evaluation.every, plan.num_steps):
        path = folder.rollouts(state.step)
        records = rollout_records(plan.models.student, result.groups, result.signals)
        folder.write(str(path.relative_to(folder.path)), records)
    plan.progress(step_record(plan, state.step, result.metrics, seconds))


def log_timing(plan: Plan, folder: RunFolder, step: int, tokens: float, clock: Clock) -> float:
    """Write the seconds of a step, with a profile also its counts; return their sum."""
    seconds, counts = clock.take(), clock.take_counts()
    peak = max((phase["peak_mib"] for phase in counts.values()), default=0.0)
    record = {
        "step": step,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / max(1e-9, sum(seconds.values())),
        "peak_mib": peak or peak_mib(plan.models.student.device),
        **({"work": counts} if counts else {}),
    }
    folder.log(folder.timing, record)
    return sum(seconds.values())


def count_non_finite(plan: Plan, folder: RunFolder, state: RunState, result: StepResult) -> None:
    """Count skipped updates and write what they were made of.

    Raises:
        NonFiniteError: N701, several in a row were skipped, or too many of the run.
    """
    if result.finite:
        state.non_finite_in_a_row = 0
        return
    state.skipped += 1
    state.non_finite_in_a_row += 1
    place = f"nonfinite/step-{state.step:06d}"
    records = rollout_records(plan.models.student, result.groups, result.signals)
    folder.write(f"{place}/rollouts.jsonl", records)
    folder.write(f"{place}/metrics.json", to_json({"step": state.step, **result.metrics}, indent=2))
    others = (
        f"; the other updates of the step were made: {result.updates_made}"
        if result.updates_made
        else ""
    )
    folder.event(
        f"step {state.step} skipped: a pass, signal, loss or gradient is not finite"
        f"{others}; see {place}"
    )
    several = state.non_finite_in_a_row >= MAX_NON_FINITE
    if several or state.skipped > max(MAX_NON_FINITE, MAX_SKIPPED_SHARE * state.step):
        raise too_many_non_finite_error(plan, folder, state, several)


def too_many_non_finite_error(
    plan: Plan, folder: RunFolder, state: RunState, several: bool
) -> NonFiniteError:
    """N701; `several` in a row, or too many of the run."""
    lower = f"train.lr={plan.train.lr / 10:g}"
    in_bf16 = training_dtype(plan.train, plan.models.student.device) is torch.bfloat16
    change = "train.precision=fp32" if in_bf16 else lower
    what = (
        f"{MAX_NON_FINITE} updates in a row"
        if several
        else f"{state.skipped} of {state.step} updates"
    )
    return NonFiniteError(
        "N701",
        f"{what} were not finite",
        where=f"step {state.step}",
        why="a pass, signal, loss or gradient is NaN or infinite; these updates were "
        "skipped and changed no weight",
        fix=f"{lower} --accept train.lr   or in a new run:   {change} {in_new_folder(folder.path)}",
        note="prompts, responses, signals and the values that are not finite: "
        f"{folder.path / 'nonfinite'}",
    )


def rollout_records(vlm: VLM, groups: Sequence[RolloutGroup], signals: Signals) -> str:
    """One JSON line per rollout: prompt, sibling, token ids, texts, and every signal.

    `drawn` names the signal that the report colours tokens by.
    """
    lines = []
    token, index = 0, 0
    num_tokens = sum(len(r.ids) for group in groups for r in group.rollouts)
    drawn = drawn_signal(signals, num_tokens)
    for number, group in enumerate(groups):
        for rollout in group.rollouts:
            rows = slice(token, token + len(rollout.ids))
            record: dict[str, object] = {
                "prompt": group.prompt.id,
                "sibling": rollout.sibling,
                "finish": str(rollout.finish),
                "ids": list(rollout.ids),
                "tokens": vlm.tokens(rollout.ids),
            }
            for name, value in signals.items():
                part = value[rows] if len(value) == num_tokens else value[index]
                record[name] = (
                    [round(float(x), 6) for x in part] if part.ndim else round(float(part), 6)
                )
            record |= {"drawn": drawn} if drawn else {}
            if number < MAX_GROUPS:
                lines.append(to_json(record))
            token += len(rollout.ids)
            index += 1
    return "".join(line + "\n" for line in lines)


def drawn_signal(signals: Signals, num_tokens: int) -> str | None:
    """The signal that the report colours tokens by.

    It is the first of real numbers per token that is not called `token_weight`.
    """
    for name, values in signals.items():
        is_per_token = len(values) == num_tokens and values.ndim == 1
        if is_per_token and values.is_floating_point() and name != "token_weight":
            return name
    return None
