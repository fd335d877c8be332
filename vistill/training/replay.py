"""Recompute steps of a run from a checkpoint and its journal, and hold them against what was logged."""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from vistill.errors import DataError, StorageError
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in
from vistill.runs.storage import read_json, to_json
from vistill.training.build import build
from vistill.training.checkpoint import TrainedObjects, reason_to_reject, restore
from vistill.training.clock import Clock
from vistill.training.interrupt import Interrupt
from vistill.training.journal import Journal, chain_after, chain_key, no_entry_error
from vistill.training.loop import (
    borrow_from_present,
    deterministic,
    prompts_of_step,
    rewards_of,
    step_context,
    trainable,
)
from vistill.training.plan import Plan
from vistill.training.run_state import RunState
from vistill.training.setup import RunSetup
from vistill.training.step import train_step
from vistill.training.student_copies import copies_to_save
from vistill.types import Prompt, Writer

#: What a start needs of a run folder beside its checkpoints.
NEEDED = (
    "run.lock.json",
    "rows.json",
    "memory.json",
    "metrics.jsonl",
    "gate.json",
    "teacher_responses.jsonl",
    "teacher_responses.settings.json",
)


@dataclass
class Replayed:
    """Steps recomputed one after the other."""

    start: int
    """The step of the checkpoint it began from; 0 is the student the run found."""
    differences: dict[int, dict[str, tuple[Any, Any]]] = field(default_factory=dict)
    """By step the values that differ: logged, recomputed."""
    compared: dict[int, int] = field(default_factory=dict)
    """By step how many values were compared."""
    accepted: list[str] = field(default_factory=list)
    """Keys of the recipe whose change was accepted at some resume: earlier steps were taken under other values."""
    from_journal: list[int] = field(default_factory=list)
    """Steps whose responses came from the journal; those of the others were written again."""

    @property
    def same(self) -> bool:
        """Whether every value of every step is the same to the last bit."""
        return not any(self.differences.values())


def replay_step(
    setup: RunSetup, folder: RunFolder, step: int, say: Callable[[str], None] = lambda text: None
) -> Replayed:
    """Recompute a step from the newest valid checkpoint before it. Nothing is written into the run folder.

    Args:
        setup: the run's own settings; its folder is one that starts as the run's did (`aside`).
        folder: the run.
        step: to recompute.
        say: is told about each step.

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
            why=f"logged are steps 1 to {last}" if last else "no step is logged",
            fix=f"vistill replay {folder.path} --step {last}" if last else "train first",
        )
    place = setup.folder
    with deterministic(setup.train.deterministic):
        plan, optimizer = trainable(build(setup))
        state = state_before(plan, folder, optimizer, step)
        journal = Journal(folder.journal, plan.fingerprint, writes=False)
        made = Replayed(state.step, accepted=accepted_changes(folder))
        with rewards_of(plan) as rewards:
            saved = TrainedObjects(
                plan.models.student, optimizer, state, copies_to_save(plan.models)
            )
            context = step_context(plan, place, saved, rewards, Interrupt(), Clock())
            context.journal = journal
            borrow_from_present(plan, context, state.gone)
            replaced = folder.read(folder.replaced)
            context.response_source.engine.sync_weights(state.step)
            while state.step < step:
                state.gone |= {r["id"]: r["code"] for r in replaced if r["step"] <= state.step + 1}
                borrow_from_present(plan, context, state.gone)
                prompts, epochs = prompts_of_step(plan, state.step, state.gone)
                check_present(plan, prompts, state.step + 1)
                if (
                    journal.find(state.step + 1, prompts, chain_key(state.chain, state.gone))
                    is not None
                ):
                    made.from_journal.append(state.step + 1)
                elif (
                    plan.objective.writer is not Writer.DATA
                    and not context.response_source.engine.follows_keyed_noise
                ):
                    raise no_entry_error(journal, folder, state.step + 1)
                result = train_step(context, prompts, state, epochs)
                state.step += 1
                state.memory = result.memory
                context.response_source.engine.sync_weights(state.step)
                state.chain = chain_after(
                    state.chain, logged[state.step], state.gone, plan.fingerprint
                )
                compare(made, state.step, logged[state.step], result.metrics)
                say(f"step {state.step}: {len(made.differences[state.step])} values differ")
    return made


def accepted_changes(folder: RunFolder) -> list[str]:
    """Keys whose change was accepted since the run began."""
    if not folder.lock_file.exists():
        return []
    return list(dict.fromkeys(read_json(folder.lock_file).get("accepted", [])))


def check_present(plan: Plan, prompts: Sequence[Prompt], step: int) -> None:
    """D307 where a step learnt from rows that are missing now."""
    absent = [p.id for p in prompts if p.id in plan.gone]
    if absent:
        raise DataError(
            "D307",
            f"step {step} learnt from a row that is missing now: {absent[0]}",
            why=plan.gone[absent[0]],
            fix="put the data back and run the same command again",
        )


@contextmanager
def copied_run_folder(folder: RunFolder):  # noqa: ANN201  a generator of one run folder
    """A folder that starts as the run's did, removed at the end."""
    with tempfile.TemporaryDirectory() as name:
        for file in NEEDED:
            if (folder.path / file).exists():
                shutil.copy(folder.path / file, Path(name) / file)
        yield RunFolder(Path(name))


def state_before(
    plan: Plan, folder: RunFolder, optimizer: torch.optim.Optimizer, step: int
) -> RunState:
    """The newest valid checkpoint before a step, restored; the student as the run found it where there is none."""
    for path in reversed(checkpoints_in(folder.path)):
        if checkpoint_step(path) < step and reason_to_reject(path) is None:
            return restore(path, plan.models.student, optimizer, copies_to_save(plan.models))
    return RunState()


def compare(made: Replayed, step: int, logged: dict[str, Any], metrics: dict[str, float]) -> None:
    """Note which values differ, as they would stand in the log."""
    found = json.loads(to_json({"step": step, **metrics}))
    names = sorted(logged)  # a value that another version did not log can be compared with nothing
    differ = {n: (logged[n], found.get(n)) for n in names if logged[n] != found.get(n)}
    made.compared[step], made.differences[step] = len(names) - 1, differ


def format_replay(made: Replayed, step: int) -> str:
    """What a replay found, in a few lines."""
    start = f"checkpoint-{made.start:06d}" if made.start else "the student the run found"
    count = sum(made.compared.values())
    steps = f"steps {made.start + 1} to {step}" if step > made.start + 1 else f"step {step}"
    journal, all_of_them = len(made.from_journal), step - made.start
    source = f"{journal} of {all_of_them} steps from the journal, the others written again"
    source = {all_of_them: "from the journal", 0: "written again"}.get(journal, source)
    lines = [f"{steps} recomputed from {start}; responses: {source}"]
    if made.same:
        return "\n".join([*lines, f"all {count} logged values are the same to the last bit"])
    first = min(s for s, differ in made.differences.items() if differ)
    differ = made.differences[first]
    lines.append(
        f"step {first} is the first that differs, in {len(differ)} of {made.compared[first]} values:"
    )
    if made.accepted:
        lines.append(
            f"accepted since the run began: {', '.join(made.accepted)}; steps before that had other values"
        )
    shown = [
        f"  {name:<28} logged {a!r}, recomputed {b!r}" for name, (a, b) in list(differ.items())[:6]
    ]
    return "\n".join(
        [*lines, *shown, *([f"  and {len(differ) - 6} more"] if len(differ) > 6 else [])]
    )
