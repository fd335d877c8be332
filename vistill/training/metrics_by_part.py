"""Metrics of a step by teacher and by data set, where there are several."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vistill.batch import Counts, LossTerm, ScoredBatch, Signals
from vistill.data.mixture import set_of
from vistill.types import RolloutGroup

#: Signals per token whose mean is logged for each teacher, and the name of the metric.
MEANS = {"visual_advantage": "va/mean", "visual_dependency": "vds/mean"}
#: The signal [N] that carries the number of a rollout's teacher into the parts of a step.
TEACHER_NUMBER = "teacher_number"


@dataclass
class TermsByTeacher:
    """The loss terms of a step, reduced over the rows of each teacher apart."""

    names: tuple[str, ...]
    numbers: Tensor
    """Number of the teacher of each rollout of the step, [N]."""
    counts: tuple[Counts, ...]
    """Prompts, rollouts and tokens of each teacher in the step."""
    sums: dict[tuple[str, str], Tensor] = field(default_factory=dict)
    """By term and what it is divided by, the weighted sums of all teachers."""

    @classmethod
    def of(
        cls, groups: Sequence[RolloutGroup], teacher_names: Mapping[str, str], device: torch.device
    ) -> "TermsByTeacher":
        """Without a sum; without a name if there are not several teachers."""
        taught = [teacher_names.get(group.prompt.id, "") for group in groups]
        names = tuple(sorted({*taught} - {""}))
        numbers = [
            names.index(name)
            for name, group in zip(taught, groups, strict=True)
            if name
            for _ in group.rollouts
        ]
        counts = []
        for name in names:
            own = [group for group, other in zip(groups, taught, strict=True) if other == name]
            rollouts = [rollout for group in own for rollout in group.rollouts]
            counts.append(Counts(len(own), len(rollouts), sum(len(r.ids) for r in rollouts)))
        return cls(names, torch.tensor(numbers, dtype=torch.long, device=device), tuple(counts))

    def carried(self, signals: Signals) -> Signals:
        """The signals of a step with the number of each rollout's teacher."""
        return {**signals, TEACHER_NUMBER: self.numbers} if self.names else signals

    @torch.no_grad()
    def add(self, part: ScoredBatch, terms: Sequence[LossTerm], numbers: Tensor | None) -> None:
        """Add the terms of a part of the step."""
        if numbers is None:
            return
        of_token = numbers[part.responses.rollout]
        for term in terms:
            kept = torch.where(term.weights != 0, term.values, torch.zeros_like(term.values))
            weighted = (term.weights * kept).detach().double()
            key = (term.name, term.per)
            if key not in self.sums:
                self.sums[key] = weighted.new_zeros(len(self.names))
            self.sums[key].index_add_(0, of_token, weighted)

    def metrics(self) -> dict[str, float]:
        """`teacher/NAME/loss/TERM`: each term, reduced over the rows of the teacher in the step."""
        return {
            f"teacher/{name}/loss/{term}": float(sums[number]) / self.counts[number].of(per)
            for (term, per), sums in self.sums.items()
            for number, name in enumerate(self.names)
        }


def metrics_by_part(
    batch: ScoredBatch,
    groups: Sequence[RolloutGroup],
    signals: Signals,
    teacher_names: Mapping[str, str],
) -> dict[str, float]:
    """Metrics by teacher and by data set; empty if a run has one of each."""
    taught = [teacher_names.get(group.prompt.id, "") for group in groups]
    sets = [set_of(group.prompt) for group in groups]
    metrics: dict[str, float] = {}
    for name in sorted({*taught} - {""}):
        rollouts = rollouts_of(batch, [other == name for other in taught])
        tokens = rollouts[batch.responses.rollout]
        metrics[f"teacher/{name}/prompts"] = float(taught.count(name))
        for signal, short in MEANS.items():
            if signal in signals:
                metrics[f"teacher/{name}/{short}"] = float(signals[signal][tokens].mean())
    for name in sorted({*sets} - {""}):
        of_set = [group for group, other in zip(groups, sets, strict=True) if other == name]
        rollouts = [rollout for group in of_set for rollout in group.rollouts]
        metrics[f"set/{name}/prompts"] = float(len(of_set))
        length = sum(len(rollout.ids) for rollout in rollouts) / len(rollouts)
        metrics[f"set/{name}/length_mean"] = length
        cut = sum(rollout.finish.is_truncated() for rollout in rollouts)
        metrics[f"set/{name}/truncated_share"] = cut / len(rollouts)
        if batch.responses.reward is not None:
            chosen = rollouts_of(batch, [other == name for other in sets])
            metrics[f"set/{name}/reward"] = float(batch.responses.reward[chosen].mean())
    return metrics


def rollouts_of(batch: ScoredBatch, groups: Sequence[bool]) -> Tensor:
    """A mask [N] of the rollouts of some groups."""
    group = batch.responses.group
    return torch.tensor(groups, dtype=torch.bool, device=group.device)[group]
