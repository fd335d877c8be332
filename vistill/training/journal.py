"""Responses of every step, written and synced before they are learnt from: a crash in the update repeats nothing.

A repeated step takes its own responses again, so that an engine that is not reproducible writes no second history, and
`vistill replay` can recompute the update. An entry is taken only where the whole past is the one it was written in: it
carries a key that chains the logged metrics and the missing rows of every step before it.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistill.errors import StorageError
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in, journal_files
from vistill.runs.storage import to_json, write_synced
from vistill.types import Finish, Prompt, Rollout, RolloutGroup

#: Why an entry is not taken.
NO_ENTRY, UNREADABLE = "it has no entry", "its entry cannot be read"
OLDER_VERSION = "its entry is of an older version"
OTHER_PAST = "its entry continues other steps, other rows or another recipe"


def digest_of(*parts: object) -> str:
    """A short hash of some plain values."""
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()


def chain_after(
    chain: str, record: Mapping[str, Any], gone: Collection[str], fingerprint: str
) -> str:
    """What identifies a run up to and including a step.

    Args:
        chain: the same before the step; empty before the first.
        record: the step's line of `metrics.jsonl`, as handed to the log or as read from it.
        gone: ids of the rows that were replaced in the step.
        fingerprint: of the recipe.
    """
    return digest_of(chain, to_json(record), sorted(gone), fingerprint)


def chain_key(chain: str, gone: Collection[str]) -> str:
    """What identifies the past of the step that comes next, the rows that are replaced in it included."""
    return digest_of(chain, sorted(gone))


@dataclass(frozen=True)
class Journal:
    """`journal/000123.json`: prompts and token ids of step 123."""

    path: Path
    fingerprint: str
    """Of the recipe; responses under another one are not taken."""
    writes: bool = True
    """Whether responses are written down, or only looked up."""
    say: Callable[[str], None] = field(default=lambda text: None)
    """Told when entries are dropped."""

    def file(self, step: int) -> Path:
        """The entry of a step, counted from 1."""
        return self.path / f"{step:06d}.json"

    def steps(self) -> list[int]:
        """The steps that have an entry, in order."""
        return list(journal_files(self.path))

    def keep(self, step: int, groups: Sequence[RolloutGroup], chain: str) -> None:
        """Write down the responses of a step, under the `chain_key` of its past.

        Where they are not those of its entry, that entry and later ones belong to another past and are dropped.
        """
        if not self.writes:
            return
        earlier = self.read(step, [g.prompt for g in groups], chain)
        if isinstance(earlier, str):
            self.drop_from(step, earlier)
        rollouts = [[to_plain_rollout(r) for r in g.rollouts] for g in groups]
        record = {
            "step": step,
            "fingerprint": self.fingerprint,
            "chain": chain,
            "prompts": [g.prompt.id for g in groups],
            "rollouts": rollouts,
            "digest": digest_of(rollouts),
        }
        write_synced(self.file(step), json.dumps(record) + "\n")

    def find(self, step: int, prompts: Sequence[Prompt], chain: str) -> list[RolloutGroup] | None:
        """The responses of a step to these very prompts after this very past, or None; half an entry is none.

        Nothing is dropped before other responses are written (`keep`): a row that was replaced in the step is asked
        for first when the step is repeated, and that look-up finds no entry either.
        """
        groups = self.read(step, prompts, chain)
        return None if isinstance(groups, str) else groups

    def read(self, step: int, prompts: Sequence[Prompt], chain: str) -> list[RolloutGroup] | str:
        """The same; a sentence where there are none."""
        try:
            record = json.loads(self.file(step).read_bytes())
            if "chain" not in record:
                return OLDER_VERSION
            past = (record["step"], record["fingerprint"], record["chain"], record["prompts"])
            if past != (step, self.fingerprint, chain, [p.id for p in prompts]):
                return OTHER_PAST
            if record["digest"] != digest_of(record["rollouts"]):
                raise ValueError("its responses were changed")
            pairs = zip(prompts, record["rollouts"], strict=True)
            return [
                RolloutGroup(prompt, tuple(rollout_of(r) for r in rollouts))
                for prompt, rollouts in pairs
            ]
        except FileNotFoundError:
            return NO_ENTRY
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return UNREADABLE

    def drop_from(self, step: int, reason: str) -> None:
        """Drop the entries from a step on, and say why."""
        dropped = [file for number, file in journal_files(self.path).items() if number >= step]
        for file in dropped:
            file.unlink(missing_ok=True)
        if dropped:
            self.say(
                f"step {step}: {reason}: {len(dropped)} entries of the journal dropped, responses written again"
            )

    def forget_all(self) -> None:
        """Drop every entry: a run that begins anew takes nothing from an earlier beginning."""
        shutil.rmtree(self.path, ignore_errors=True)

    def forget_until(self, step: int) -> None:
        """Drop the entries up to a step."""
        for number, file in journal_files(self.path).items():
            if number <= step:
                file.unlink(missing_ok=True)


def no_entry_error(journal: Journal, folder: RunFolder, step: int) -> StorageError:
    """S607, with a step that can be recomputed where there is one."""
    steps, saved = journal.steps(), checkpoints_in(folder.path)
    held = f"it holds steps {steps[0]} to {steps[-1]}" if steps else "it holds none"
    starts = [
        max((checkpoint_step(path) for path in saved if checkpoint_step(path) < number), default=0)
        for number in steps
    ]
    possible = [
        n
        for n, start in zip(steps, starts, strict=True)
        if set(range(start + 1, n + 1)) <= set(steps)
    ]
    return StorageError(
        "S607",
        f"the responses of step {step} are not in the journal",
        where=str(journal.path),
        why=f"{held}, and this rollout engine would write others; without them the step cannot be recomputed",
        fix=f"vistill replay {folder.path} --step {possible[-1]}"
        if possible
        else f"a new run that keeps more: run={folder.path}-2 save.keep=10",
        note="it goes back to the oldest of the save.keep newest checkpoints; save.journal=false writes none",
    )


def to_plain_rollout(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON."""
    return {
        "ids": list(rollout.ids),
        "sibling": rollout.sibling,
        "finish": str(rollout.finish),
        "attempt": rollout.attempt,
    }


def rollout_of(record: Mapping[str, Any]) -> Rollout:
    """A rollout from JSON."""
    return Rollout(
        tuple(record["ids"]), record["sibling"], Finish(record["finish"]), record["attempt"]
    )
