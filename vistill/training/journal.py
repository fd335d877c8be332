"""The responses of every step, on disk before the update: no crash samples a response again.

A repeated step takes its own responses again, also from an engine that would write others, and
`vistill replay` can recompute the update. An entry is used only after the same past: it carries a
key that chains the logged metrics and the replaced rows of every step before it.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vistill.errors import StorageError, quote_command
from vistill.runs.folder import RunFolder, checkpoint_step, checkpoints_in, journal_files
from vistill.runs.recipe_changes import in_new_folder
from vistill.runs.storage import to_json, write_synced
from vistill.types import Finish, Prompt, Rollout, RolloutGroup

#: Why an entry is not used.
NO_ENTRY, UNREADABLE = "it has no entry", "its entry cannot be read"
OLDER_VERSION = "its entry is of an older version"
OTHER_PAST = "its entry continues other steps, other rows or another recipe"


def hash_values(*values: object) -> str:
    """A short hash of values that JSON can hold."""
    return hashlib.blake2b(json.dumps(values).encode(), digest_size=16).hexdigest()


def chain_after(
    chain: str, record: Mapping[str, Any], replaced_rows: Collection[str], fingerprint: str
) -> str:
    """The hash that identifies a run up to and including a step.

    Args:
        chain: the same hash before the step; empty before the first.
        record: the step's line of `metrics.jsonl`, as it goes to the log or comes from it.
        replaced_rows: ids of the rows that the step could not use.
        fingerprint: of the recipe.
    """
    return hash_values(chain, to_json(record), sorted(replaced_rows), fingerprint)


def chain_key(chain: str, replaced_rows: Collection[str]) -> str:
    """The hash that identifies the past of the next step, with the rows that it cannot use."""
    return hash_values(chain, sorted(replaced_rows))


@dataclass(frozen=True)
class Journal:
    """`journal/000123.json`: prompts and token ids of step 123."""

    path: Path
    fingerprint: str
    """Of the recipe; responses of another recipe are not used."""
    writes: bool = True
    """Whether responses are written, or only read."""
    report: Callable[[str], None] = field(default=lambda text: None)
    """Called when entries are dropped."""

    def file(self, step: int) -> Path:
        """The entry of a step, counted from 1."""
        return self.path / f"{step:06d}.json"

    def steps(self) -> list[int]:
        """The steps that have an entry, in order."""
        return list(journal_files(self.path))

    def write(
        self,
        step: int,
        groups: Sequence[RolloutGroup],
        chain: str,
        counts: Mapping[str, float] | None = None,
    ) -> None:
        """Write the responses of a step, with the `chain_key` of its past.

        `counts` is what the sampling cost (`flops_counter`), where a profile counts it.

        If the step has an entry that does not fit, that entry and all later ones belong to another
        past: they are dropped.
        """
        if not self.writes:
            return
        earlier = self.read(step, [g.prompt for g in groups], chain)
        if isinstance(earlier, str):
            self.drop_from(step, earlier)
        rollouts = [[rollout_to_json(r) for r in g.rollouts] for g in groups]
        record = {
            "step": step,
            "fingerprint": self.fingerprint,
            "chain": chain,
            "prompts": [g.prompt.id for g in groups],
            "rollouts": rollouts,
            "digest": hash_values(rollouts),
            **({"counts": counts} if counts else {}),
        }
        write_synced(self.file(step), json.dumps(record) + "\n")

    def find(self, step: int, prompts: Sequence[Prompt], chain: str) -> list[RolloutGroup] | None:
        """The responses of a step to these prompts after this past, or None.

        Entries are dropped only when other responses are written (`write`). A repeated step in
        which a row was replaced first looks for responses to that row and finds none; that must not
        drop its entry.
        """
        groups = self.read(step, prompts, chain)
        return None if isinstance(groups, str) else groups

    def read(self, step: int, prompts: Sequence[Prompt], chain: str) -> list[RolloutGroup] | str:
        """The same; where there are no such responses, the reason."""
        try:
            record = json.loads(self.file(step).read_bytes())
            if "chain" not in record:
                return OLDER_VERSION
            past = (record["step"], record["fingerprint"], record["chain"], record["prompts"])
            if past != (step, self.fingerprint, chain, [p.id for p in prompts]):
                return OTHER_PAST
            if record["digest"] != hash_values(record["rollouts"]):
                raise ValueError("its responses were changed")
            pairs = zip(prompts, record["rollouts"], strict=True)
            return [
                RolloutGroup(prompt, tuple(rollout_from_json(r) for r in rollouts))
                for prompt, rollouts in pairs
            ]
        except FileNotFoundError:
            return NO_ENTRY
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return UNREADABLE

    def counts(self, step: int) -> dict[str, float]:
        """What it cost to sample the responses of an entry that `find` returned.

        Empty where no profile counted it.
        """
        return dict(json.loads(self.file(step).read_bytes()).get("counts", {}))

    def add_scores(self, step: int, scores: Mapping[str, Sequence[float]]) -> None:
        """Store log-probabilities that a server gave, by pass, with the responses of a step."""
        if not self.writes:
            return
        record = json.loads(self.file(step).read_bytes())
        record |= {"scores": scores, "scores_digest": hash_values(scores)}
        write_synced(self.file(step), json.dumps(record) + "\n")

    def scores(self, step: int) -> dict[str, list[float]]:
        """The scores of an entry that `find` returned; empty where none, or others, are stored."""
        try:
            record = json.loads(self.file(step).read_bytes())
            scores = dict(record.get("scores", {}))
            return scores if record.get("scores_digest") == hash_values(scores) else {}
        except (OSError, ValueError, TypeError):
            return {}

    def drop_from(self, step: int, reason: str) -> None:
        """Drop the entries from a step on, and report the reason."""
        dropped = [file for number, file in journal_files(self.path).items() if number >= step]
        for file in dropped:
            file.unlink(missing_ok=True)
        if dropped:
            self.report(
                f"step {step}: {reason}: {len(dropped)} entries of the journal dropped, "
                "responses written again"
            )

    def drop_all(self) -> None:
        """Drop every entry: a run that starts over uses nothing of an earlier start."""
        shutil.rmtree(self.path, ignore_errors=True)

    def drop_until(self, step: int) -> None:
        """Drop the entries up to a step."""
        for number, file in journal_files(self.path).items():
            if number <= step:
                file.unlink(missing_ok=True)


def no_entry_error(
    journal: Journal, folder: RunFolder, step: int, part: str = "responses"
) -> StorageError:
    """S607, with a step that can be recomputed where there is one.

    `part` is what is missing: `responses`, or `scores` of a server.
    """
    steps, saved = journal.steps(), [checkpoint_step(path) for path in checkpoints_in(folder.path)]
    entries = f"it holds steps {steps[0]} to {steps[-1]}" if steps else "it is empty"

    def is_possible(number: int) -> bool:
        start = max((s for s in saved if s < number), default=0)
        return set(range(start + 1, number + 1)) <= set(steps)

    possible = [number for number in steps if is_possible(number)]
    return StorageError(
        "S607",
        f"the {part} of step {step} are not in the journal",
        where=str(journal.path),
        why=f"{entries}, and asked again, engine or server would give other {part}; "
        "without the first ones the step cannot be recomputed",
        fix=quote_command("vistill", "replay", folder.path, "--step", possible[-1])
        if possible
        else f"a new run that keeps more:   {in_new_folder(folder.path)} save.keep=10",
        note="the journal goes back to the oldest of the save.keep newest checkpoints; "
        "save.journal=false turns it off",
    )


def rollout_to_json(rollout: Rollout) -> dict[str, Any]:
    """A rollout as JSON."""
    return {
        "ids": list(rollout.ids),
        "sibling": rollout.sibling,
        "finish": str(rollout.finish),
        "attempt": rollout.attempt,
    }


def rollout_from_json(record: Mapping[str, Any]) -> Rollout:
    """A rollout from JSON."""
    return Rollout(
        tuple(record["ids"]), record["sibling"], Finish(record["finish"]), record["attempt"]
    )
