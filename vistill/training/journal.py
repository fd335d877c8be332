"""Responses of every step, written and synced before they are learnt from: a crash in the update repeats nothing.

After a checkpoint, a step that finds its own responses takes them: an engine that is not reproducible makes no second
history, and `vistill replay` can recompute the update. Entries older than the oldest checkpoint are dropped with it.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vistill.runs.storage import write_synced
from vistill.types import Finish, Prompt, Rollout, RolloutGroup


@dataclass(frozen=True)
class Journal:
    """`journal/000123.json`: prompts and token ids of step 123."""

    path: Path
    fingerprint: str
    """Of the recipe; responses under another one are not taken."""
    writes: bool = True
    """Whether responses are written down, or only looked up."""

    def file(self, step: int) -> Path:
        """The entry of a step, counted from 1."""
        return self.path / f"{step:06d}.json"

    def keep(self, step: int, groups: Sequence[RolloutGroup]) -> None:
        """Write down the responses of a step."""
        if not self.writes:
            return
        plain = lambda r: {"ids": list(r.ids), "sibling": r.sibling, "finish": str(r.finish), "attempt": r.attempt}
        rollouts = [[plain(r) for r in g.rollouts] for g in groups]
        record = {
            "step": step,
            "fingerprint": self.fingerprint,
            "prompts": [g.prompt.id for g in groups],
            "rollouts": rollouts,
        }
        write_synced(self.file(step), json.dumps(record) + "\n")

    def find(self, step: int, prompts: Sequence[Prompt]) -> list[RolloutGroup] | None:
        """The responses of a step to these very prompts, or None; half an entry, from a crash, is none."""
        try:
            record = json.loads(self.file(step).read_text(encoding="utf-8"))
            if record["fingerprint"] != self.fingerprint or record["prompts"] != [p.id for p in prompts]:
                return None
            pairs = zip(prompts, record["rollouts"], strict=True)
            made = lambda r: Rollout(tuple(r["ids"]), r["sibling"], Finish(r["finish"]), r["attempt"])
            return [RolloutGroup(prompt, tuple(made(r) for r in rollouts)) for prompt, rollouts in pairs]
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def forget_other_futures(self, step: int) -> None:
        """Drop later entries of another recipe: a run that comes back to it has another student by then."""
        for file in self.path.glob("*.json"):
            if int(file.stem) > step and f'"fingerprint": "{self.fingerprint}"' not in file.read_text(errors="replace"):
                file.unlink(missing_ok=True)

    def forget_all(self) -> None:
        """Drop every entry: a run that begins anew takes nothing from an earlier beginning."""
        shutil.rmtree(self.path, ignore_errors=True)

    def forget_until(self, step: int) -> None:
        """Drop the entries up to a step; nothing older can be replayed."""
        if self.path.is_dir():
            for file in self.path.glob("*.json"):
                if int(file.stem) <= step:
                    file.unlink(missing_ok=True)
