"""Recompute steps of a run from a checkpoint and its journal, and compare them with the log."""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vistill.errors import DataError, StorageError, quote_command
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in
from vistill.runs.storage import read_json, to_json
from vistill.training.build import build
from vistill.training.checkpoint import reason_to_reject, restore_checkpoint
from vistill.training.checkpoint_content import TrainedObjects
from vistill.training.clock import Clock
from vistill.training.context import StepContext
from vistill.training.determinism import deterministic_kernels
from vistill.training.interrupt import Interrupt
from vistill.training.journal import Journal, chain_after, chain_key, no_entry_error
from vistill.training.loop import (
    make_rewards,
    make_step_context,
    pick_prompts,
    prepare_student,
    update_partners,
)
from vistill.training.plan import Plan
from vistill.training.run_state import RunState
from vistill.training.setup import RunSetup
from vistill.training.step import StepResult, train_step
from vistill.training.student_copies import copies_to_save
from vistill.types import Prompt, Writer

#: Files of a run folder that a start reads, in addition to checkpoints.
NEEDED = (
    "run.lock.json",
    "rows.json",
    "memory.json",
    "metrics.jsonl",
    "gate.json",
    "text_only.json",
    "teacher_responses.jsonl",
    "teacher_responses.settings.json",
    "verdicts.jsonl",
)


@dataclass
class Replayed:
    """Steps recomputed one after the other."""

    start: int
    """The step of the first checkpoint; 0 is the student before step 1."""
    differences: dict[int, dict[str, tuple[Any, Any]]] = field(default_factory=dict)
    """By step the values that differ: (logged, recomputed)."""
    compared: dict[int, int] = field(default_factory=dict)
    """By step the number of compared values."""
    accepted: list[str] = field(default_factory=list)
    """Keys of the recipe that changed at a resume: earlier steps had other values."""
    from_journal: list[int] = field(default_factory=list)
    """Steps with responses from the journal; those of the other steps were written again."""
    from_older_version: list[int] = field(default_factory=list)
    """Steps that a version without unscaled loss terms logged (`is_of_older_version`)."""

    @property
    def same(self) -> bool:
        """Whether every value of every step is the same to the last bit."""
        return not any(self.differences.values())


def replay_step(
    setup: RunSetup,
    folder: RunFolder,
    step: int,
    report: Callable[[str], None] = lambda text: None,
) -> Replayed:
    """Recompute a step from the newest valid checkpoint before it; the run folder stays as it is.

    Args:
        setup: of the run, with a copy of its folder (`copied_run_folder`).
        folder: of the run.
        step: to recompute.
        report: called with a line about each step.

    Raises:
        StorageError: S605, the step was never logged.
    """
    logged = {record["step"]: record for record in folder.read(folder.metrics)}
    if step not in logged:
        last = max(logged, default=0)
        raise StorageError(
            "S605",
            f"step {step} is not in metrics.jsonl",
            where=str(folder.path),
            why=f"the log has steps 1 to {last}" if last else "the log is empty",
            fix=quote_command("vistill", "replay", folder.path, "--step", last)
            if last
            else "train first",
        )
    built = build(setup)
    with deterministic_kernels(setup.train.deterministic, built.models.student.device):
        plan, optimizer = prepare_student(built)
        state = restore_before(plan, folder, optimizer, step)
        replayed = Replayed(state.step, accepted=accepted_changes(folder))
        with make_rewards(plan) as rewards:
            saved = TrainedObjects(
                plan.models.student, optimizer, state, copies_to_save(plan.models)
            )
            context = make_step_context(plan, setup.folder, saved, rewards, Interrupt(), Clock())
            context.journal = Journal(folder.journal, plan.fingerprint, writes=False)
            update_partners(plan, context, state.replaced_rows)
            context.response_source.engine.sync_weights(state.step)
            replaced = folder.read(folder.replaced)
            while state.step < step:
                number = state.step + 1
                state.replaced_rows |= {r["id"]: r["code"] for r in replaced if r["step"] <= number}
                result = recompute_step(plan, folder, context, state, replayed)
                state.chain = chain_after(
                    state.chain, logged[number], state.replaced_rows, plan.fingerprint
                )
                compare_metrics(replayed, number, logged[number], result.metrics)
                report(f"step {number}: {len(replayed.differences[number])} values differ")
    return replayed


def recompute_step(
    plan: Plan, folder: RunFolder, context: StepContext, state: RunState, replayed: Replayed
) -> StepResult:
    """Take the next step again, with the responses of the journal where it holds them.

    Raises:
        DataError: D307, a row of the step is missing now.
        StorageError: S607, the engine would write other responses than the ones of the run.
    """
    number, engine = state.step + 1, context.response_source.engine
    update_partners(plan, context, state.replaced_rows)
    prompts, epochs = pick_prompts(plan, state.step, state.replaced_rows)
    check_rows_present(plan, prompts, number)
    assert context.journal is not None, "replay_step opens the journal"
    past = chain_key(state.chain, state.replaced_rows)
    if context.journal.find(number, prompts, past) is not None:
        replayed.from_journal.append(number)
        if context.teacher_scores is not None and not context.journal.scores(number):
            raise no_entry_error(context.journal, folder, number, "scores")
    elif context.teacher_scores is not None or (
        plan.objective.requirements.writer is not Writer.DATA and not engine.follows_keyed_noise
    ):
        raise no_entry_error(context.journal, folder, number)
    result = train_step(context, prompts, state, epochs)
    state.step += 1
    state.memory = result.memory
    engine.sync_weights(state.step)
    return result


def accepted_changes(folder: RunFolder) -> list[str]:
    """Keys of the recipe whose change was accepted since the run began."""
    if not folder.lock_file.exists():
        return []
    return list(dict.fromkeys(read_json(folder.lock_file).get("accepted", [])))


def check_rows_present(plan: Plan, prompts: Sequence[Prompt], step: int) -> None:
    """D307 where a step used a row that is missing now."""
    missing = [p.id for p in prompts if p.id in plan.missing_rows]
    if missing:
        raise DataError(
            "D307",
            f"step {step} used a row that is missing now: {missing[0]}",
            why=plan.missing_rows[missing[0]],
            fix="put the data back and run the same command again",
        )


@contextmanager
def copied_run_folder(folder: RunFolder) -> Iterator[RunFolder]:
    """A temporary folder with the files that a start reads, so that a start changes nothing."""
    with tempfile.TemporaryDirectory() as name:
        for file in NEEDED:
            if (folder.path / file).exists():
                shutil.copy(folder.path / file, Path(name) / file)
        yield RunFolder(Path(name))


def restore_before(
    plan: Plan, folder: RunFolder, optimizer: torch.optim.Optimizer, step: int
) -> RunState:
    """Restore the newest valid checkpoint before a step; where there is none, begin with step 1."""
    student, copies = plan.models.student, copies_to_save(plan.models)
    for path in reversed(checkpoints_in(folder.path)):
        if checkpoint_step(path) < step and reason_to_reject(path) is None:
            return restore_checkpoint(path, student, optimizer, copies)
    return RunState()


def is_of_older_version(logged: dict[str, Any]) -> bool:
    """Whether a version up to commit f223428 logged a step: it logged no coefficients of terms."""
    groups = {name.split("/")[0] for name in logged if "/" in name}
    return "loss" in groups and "coefficient" not in groups


def compare_metrics(
    replayed: Replayed, step: int, logged: dict[str, Any], metrics: dict[str, float]
) -> None:
    """Record which values differ from the log, in the form that the log has.

    Values that only this version logs are left out: there is nothing to compare them with.
    """
    if is_of_older_version(logged):
        replayed.from_older_version.append(step)
    recomputed = json.loads(to_json({"step": step, **metrics}))
    replayed.compared[step] = len(logged) - 1
    replayed.differences[step] = {
        name: (logged[name], recomputed.get(name))
        for name in sorted(logged)
        if logged[name] != recomputed.get(name)
    }


def format_replay(replayed: Replayed, step: int) -> str:
    """The result of a replay in a few lines."""
    first = replayed.start + 1
    steps = f"steps {first} to {step}" if step > first else f"step {step}"
    start = f"checkpoint-{replayed.start:06d}" if replayed.start else "the student before step 1"
    count, total = len(replayed.from_journal), step - replayed.start
    source = f"{count} of {total} steps from the journal, the others written again"
    source = {total: "from the journal", 0: "written again"}.get(count, source)
    lines = [f"{steps} recomputed from {start}; responses: {source}"]
    if replayed.same:
        values = sum(replayed.compared.values())
        return "\n".join([*lines, f"all {values} logged values are the same to the last bit"])
    first = min(number for number, differ in replayed.differences.items() if differ)
    differ = replayed.differences[first]
    lines.append(
        f"step {first} is the first that differs, "
        f"in {len(differ)} of {replayed.compared[first]} values:"
    )
    if replayed.accepted:
        lines.append(
            f"accepted since the run began: {', '.join(replayed.accepted)}; "
            "steps before that had other values"
        )
    if first in replayed.from_older_version:
        lines.append(
            "an earlier version of vistill logged this step: its learning rate warmed up above "
            "train.lr, and its loss/* are times their coefficients; only that version gives the "
            "same values"
        )
    for name, (logged, recomputed) in list(differ.items())[:6]:
        lines.append(f"  {name:<28} logged {logged!r}, recomputed {recomputed!r}")
    if len(differ) > 6:
        lines.append(f"  and {len(differ) - 6} more")
    return "\n".join(lines)
