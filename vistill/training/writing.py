"""Who writes the responses of a step: the student, the data set, or the teacher beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vistill.batch import Objective
from vistill.data.keys import keyed_generator
from vistill.errors import DataError, RolloutError
from vistill.models.loading import VLM
from vistill.rollouts.engine import RolloutEngine, RolloutRequest, Sampling
from vistill.training.reading import Cast
from vistill.types import Finish, Prompt, Rollout, RolloutGroup, Writer

#: How often an empty response is drawn again.
EMPTY_ATTEMPTS = 3


@dataclass(frozen=True)
class Desk:
    """What the writing of a step's responses needs."""

    engine: RolloutEngine
    objective: Objective
    per_prompt: int
    written: Mapping[str, tuple[Rollout, ...]] = field(default_factory=dict)
    """The teacher's responses by prompt id, written once before step 1."""


def write_groups(
    cast: Cast, desk: Desk, prompts: Sequence[Prompt], sampling: Sampling, epochs: Sequence[int] = ()
) -> list[RolloutGroup]:
    """The responses of a step.

    Args:
        cast: encodes the prompts.
        desk: who writes.
        prompts: of the step.
        sampling: noise keyed by (seed, step, prompt, sibling).
        epochs: how often each prompt came before, for methods that take another written response each time.
    """
    objective = desk.objective
    if objective.writer is Writer.DATA:
        return [RolloutGroup(prompt, (written_response(cast.student, prompt),)) for prompt in prompts]
    taken = [takes_written(objective, prompt, sampling) for prompt in prompts]
    own = [prompt for prompt, old in zip(prompts, taken, strict=True) if not old]
    sampled = iter(sample_groups(cast, desk, own, sampling) if own else [])
    epochs = epochs or [0] * len(prompts)
    return [
        RolloutGroup(prompt, pick_written(desk, prompt, epoch)) if old else next(sampled)
        for prompt, old, epoch in zip(prompts, taken, epochs, strict=True)
    ]


def takes_written(objective: Objective, prompt: Prompt, sampling: Sampling) -> bool:
    """Whether this prompt uses the teacher's responses in this step: a coin keyed by (seed, step, prompt)."""
    share = objective.off_policy()
    if share in (0.0, 1.0):
        return share == 1.0
    return bool(keyed_generator("off-policy", sampling.seed, sampling.step, prompt.id).random() < share)


def pick_written(desk: Desk, prompt: Prompt, epoch: int) -> tuple[Rollout, ...]:
    """All written responses, or where only correct ones are kept another one each epoch."""
    rollouts = desk.written[prompt.id]
    return (rollouts[epoch % len(rollouts)],) if desk.objective.keep_correct else rollouts


def sample_groups(cast: Cast, desk: Desk, prompts: Sequence[Prompt], sampling: Sampling) -> list[RolloutGroup]:
    """K fresh responses each; an empty one is drawn again with a new key."""
    siblings = tuple(range(desk.per_prompt))
    encoded = [cast.encode(prompt, desk.objective.writer_view) for prompt in prompts]
    requests = [RolloutRequest(p.id, e, siblings) for p, e in zip(prompts, encoded, strict=True)]
    groups = [list(group) for group in desk.engine.write(requests, sampling)]
    for attempt in range(1, EMPTY_ATTEMPTS + 1):
        again = [(g, s) for g, group in enumerate(groups) for s, rollout in enumerate(group) if not rollout.ids]
        if not again:
            break
        fresh = [RolloutRequest(prompts[g].id, encoded[g], (s,), attempt) for g, s in again]
        for (g, s), (rollout,) in zip(again, desk.engine.write(fresh, sampling), strict=True):
            groups[g][s] = rollout
    empty = [p for p, group in zip(prompts, groups, strict=True) if any(not rollout.ids for rollout in group)]
    if empty:
        error = RolloutError(
            "R403",
            f"a response stayed empty after {EMPTY_ATTEMPTS} new attempts",
            where=empty[0].labels.get("row", f"prompt {empty[0].id}"),
            why="a response without tokens has no visual advantage and no loss",
            fix="data.max_bad_share=0.05   or in a new run: rollout.temperature=1.0 run=NEW",
        )
        error.rows = [p.id for p in empty]
        raise error
    return [RolloutGroup(p, tuple(g)) for p, g in zip(prompts, groups, strict=True)]


def written_response(student: VLM, prompt: Prompt) -> Rollout:
    """The data set's own response as token ids."""
    return Rollout(student.response_ids(check_response(prompt)), 0, Finish.STOP)


def check_response(prompt: Prompt) -> str:
    """The row's written response, or D303 where it has none."""
    if prompt.response is None:
        raise DataError(
            "D303",
            "the row has no written response to learn from",
            where=f"prompt {prompt.id}",
            why="`sft` learns from text in the data",
            fix="data.columns.response=COLUMN   or   data.response_template='The answer is \\boxed{{answer}}.'",
            note="or let the teacher write: sft.responses=teacher",
        )
    return prompt.response
