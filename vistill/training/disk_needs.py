"""Disk space of a run folder: the checkpoints that exist at a time, and the journal. No torch."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vistill.errors import StorageError
from vistill.training.settings import SaveSettings

#: Free space that a save requires, as a multiple of the size of a checkpoint.
SPACE_FACTOR = 1.2
#: Bytes of the journal per response token: an id of up to six digits in JSON.
JOURNAL_BYTES = 8
#: Settings with which a run keeps one checkpoint only.
FEWEST = {"save.keep": "1", "save.keep_best": "none"}


@dataclass(frozen=True)
class DiskNeeds:
    """Bytes that a run folder needs at most; the logs and the evaluated responses come on top."""

    checkpoint: float
    """One checkpoint."""
    save: SaveSettings
    evaluate_every: int = 0
    """Steps between evaluations; without them there is no best checkpoint."""
    steps: int | None = None
    """Steps of the run, if they are known."""
    tokens_of_step: int = 0
    """Response tokens of a step, all as long as they can be."""

    @property
    def keeps_best(self) -> bool:
        """Whether the best checkpoint is kept besides the newest."""
        return self.save.keep_best != "none" and self.evaluate_every > 0

    @property
    def number(self) -> int:
        """Complete checkpoints that exist at a time: the newest and the best."""
        kept = self.save.keep + self.keeps_best
        return kept if self.steps is None else min(kept, self.most_saves(self.steps))

    def most_saves(self, steps: int) -> int:
        """Checkpoints that a run can write: at its intervals, at the end, at best evaluations."""
        every = self.save.every
        saves = -(-steps // every) if every else 1
        return saves + (-(-steps // self.evaluate_every) if self.keeps_best else 0)

    @property
    def checkpoints(self) -> float:
        """Every checkpoint that exists at a time: the kept ones and the next one."""
        return self.checkpoint * (self.number + 1)

    @property
    def journal_steps(self) -> int:
        """Most entries of the journal.

        It goes back to the oldest of the newest checkpoints. While the next one is written in the
        background, that oldest one stays, and another interval of steps can be taken.
        """
        interval = self.save.every * (self.save.keep + self.save.background)
        bounds = [n for n in (self.steps, interval if self.save.every else None) if n is not None]
        return min(bounds, default=0) if self.save.journal else 0

    @property
    def journal(self) -> float:
        """Bytes of the journal."""
        return float(JOURNAL_BYTES * self.journal_steps * self.tokens_of_step)

    @property
    def total(self) -> float:
        """All of it, with the space that a save requires to be free."""
        return self.checkpoint * (self.number + SPACE_FACTOR) + self.journal

    def with_fewest_checkpoints(self) -> "DiskNeeds":
        """The needs with `FEWEST`."""
        return replace(self, save=replace(self.save, keep=1, keep_best="none"))

    def describe(self) -> str:
        """One line: a checkpoint, how many, and what all need."""
        best = ", the best" if self.number > self.save.keep else ""
        kept = min(self.save.keep, self.number)
        return (
            f"{size_text(self.checkpoint)} per checkpoint; the newest {kept}{best} and the next one"
            f" need {size_text(self.checkpoints)}, the journal {size_text(self.journal)}"
        )


def size_text(size: float) -> str:
    """Bytes in GB, or in MB below one GB."""
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def disk_too_small_error(
    needs: DiskNeeds, free: float, run: str, fixes: Sequence[str]
) -> StorageError:
    """C131, with settings that fit if there are any, and then other fixes.

    Args:
        needs: of the run.
        free: bytes of the disk, with those that earlier checkpoints of the run have.
        run: folder of the run.
        fixes: what else helps.
    """
    smaller = []
    if needs.with_fewest_checkpoints().total <= free:
        smaller.append(" ".join(f"{key}={value}" for key, value in FEWEST.items()))
    return StorageError(
        "C131",
        f"the run needs {size_text(needs.total)} of disk, {size_text(free)} are free",
        where=run,
        why=needs.describe(),
        fix="   or   ".join([*smaller, *fixes]),
    )
