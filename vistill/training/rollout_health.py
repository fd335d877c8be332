"""Warn about rollouts that teach little; stop if no response ever ends (R401)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

from vistill.errors import RolloutError
from vistill.evaluation.unparsed import MUCH_UNPARSED
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.recipe_changes import in_new_folder
from vistill.types import RolloutGroup

#: Share of truncated responses above which the run warns.
MUCH_TRUNCATED = 0.2
#: Steps in a row with nothing but truncated responses after which the run stops.
MAX_ALL_TRUNCATED = 3


@dataclass
class RolloutHealth:
    """What the run knows about its rollouts so far; part of every checkpoint."""

    all_truncated_in_a_row: int = 0
    """Steps since the last one in which a response ended by itself."""
    warned: list[str] = field(default_factory=list)
    """Names of the warnings that were given."""

    def update(
        self,
        metrics: Mapping[str, float],
        groups: Sequence[RolloutGroup],
        rollout: RolloutSettings,
        method_warnings: Mapping[str, str] = MappingProxyType({}),
    ) -> list[str]:
        """Count a step and return the warnings that are new.

        Args:
            metrics: of the step.
            groups: its responses.
            rollout: how they were sampled.
            method_warnings: the method's own warnings by name (`Objective.warnings`).
        """
        truncated = metrics["rollout/truncated_share"]
        self.all_truncated_in_a_row = self.all_truncated_in_a_row + 1 if truncated == 1.0 else 0
        warnings = {
            "truncated": (
                truncated >= MUCH_TRUNCATED,
                f"{100 * truncated:.1f} % of the responses were cut off at "
                f"rollout.max_new_tokens={rollout.max_new_tokens}",
            ),
            "identical": (
                has_identical_siblings(groups),
                "all siblings of every prompt are the same: a method that compares them "
                "has nothing to compare",
            ),
            "unparsed": (
                (unparsed := metrics.get("reward/unparsed_share", 0.0)) > MUCH_UNPARSED,
                f"{100 * unparsed:.1f} % of the responses contain no answer and get no reward for "
                "it: read some in rollouts/",
            ),
            **{name: (True, text) for name, text in method_warnings.items()},
        }
        new = [name for name, (holds, _) in warnings.items() if holds and name not in self.warned]
        self.warned += new
        return [warnings[name][1] for name in new]

    def never_ends(self, rollout: RolloutSettings) -> bool:
        """Whether the run must stop because every response of several steps was truncated."""
        several = self.all_truncated_in_a_row >= MAX_ALL_TRUNCATED
        return several and rollout.all_truncated == "stop"


def has_identical_siblings(groups: Sequence[RolloutGroup]) -> bool:
    """Whether every prompt with several responses has the same one several times."""
    several = [g for g in groups if len(g.rollouts) > 1]
    return bool(several) and all(len({r.ids for r in g.rollouts}) == 1 for g in several)


def always_truncated_error(
    health: RolloutHealth, rollout: RolloutSettings, step: int, run: str, most: int
) -> RolloutError:
    """R401. `most` tokens of a response fit into the positions of the models."""
    now, larger = rollout.max_new_tokens, min(2 * rollout.max_new_tokens, most)
    fix = f"rollout.max_new_tokens={larger} {in_new_folder(run)}"
    note = "for short responses on purpose: rollout.all_truncated=go_on"
    if larger <= now:
        fix = "rollout.all_truncated=go_on"
        note = f"no longer response fits: the models have positions for {most:,} of its tokens"
    return RolloutError(
        "R401",
        f"every response of {health.all_truncated_in_a_row} steps in a row was cut off "
        "at the length limit",
        where=f"step {step}",
        why="the student never ends a response by itself, so it never learns how a response ends",
        fix=fix,
        note=note,
    )
