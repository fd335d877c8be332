"""Who writes the responses of a step: the student, the data set, or the teacher beforehand."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from vistill.batch import Objective
from vistill.data.keys import keyed_generator
from vistill.errors import DataError
from vistill.models.loading import VLM
from vistill.rollouts.checked_engine import generate_responses
from vistill.rollouts.engine import RolloutEngine, Sampling, make_requests
from vistill.training.step_inputs import Models
from vistill.types import Finish, Prompt, Rollout, RolloutGroup, Writer


@dataclass(frozen=True)
class ResponseSource:
    """What the writing of a step's responses needs."""

    engine: RolloutEngine
    objective: Objective
    per_prompt: int
    written: Mapping[str, tuple[Rollout, ...]] = field(default_factory=dict)
    """The teacher's responses by prompt id, written once before step 1."""


def write_groups(
    models: Models,
    response_source: ResponseSource,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    epochs: Sequence[int] = (),
) -> list[RolloutGroup]:
    """The responses of a step.

    Args:
        models: encodes the prompts.
        response_source: who writes.
        prompts: of the step.
        sampling: noise keyed by (seed, step, prompt, sibling).
        epochs: how often each prompt came before, for methods that take another written response each time.
    """
    objective = response_source.objective
    if objective.writer is Writer.DATA:
        return [
            RolloutGroup(prompt, (response_in_data(models.student, prompt),)) for prompt in prompts
        ]
    taken = [uses_teacher_responses(objective, prompt, sampling) for prompt in prompts]
    own = [prompt for prompt, old in zip(prompts, taken, strict=True) if not old]
    sampled = iter(sample_groups(models, response_source, own, sampling) if own else [])
    epochs = epochs or [0] * len(prompts)
    return [
        RolloutGroup(prompt, pick_teacher_responses(response_source, prompt, epoch))
        if old
        else next(sampled)
        for prompt, old, epoch in zip(prompts, taken, epochs, strict=True)
    ]


def uses_teacher_responses(objective: Objective, prompt: Prompt, sampling: Sampling) -> bool:
    """Whether this prompt uses the teacher's responses in this step: a coin keyed by (seed, step, prompt)."""
    share = objective.off_policy()
    if share in (0.0, 1.0):
        return share == 1.0
    return bool(
        keyed_generator("off-policy", sampling.seed, sampling.step, prompt.id).random() < share
    )


def pick_teacher_responses(
    response_source: ResponseSource, prompt: Prompt, epoch: int
) -> tuple[Rollout, ...]:
    """All written responses, or where only correct ones are kept another one each epoch."""
    rollouts = response_source.written[prompt.id]
    return (
        (rollouts[epoch % len(rollouts)],) if response_source.objective.keep_correct else rollouts
    )


def sample_groups(
    models: Models, response_source: ResponseSource, prompts: Sequence[Prompt], sampling: Sampling
) -> list[RolloutGroup]:
    """K fresh responses each; R403 where one stays empty."""
    view = response_source.objective.writer_view
    encoded = [models.encode(prompt, view) for prompt in prompts]
    requests = make_requests(
        [models.shown(prompt, view) for prompt in prompts],
        encoded,
        range(response_source.per_prompt),
    )
    groups = generate_responses(response_source.engine, requests, sampling)
    return [RolloutGroup(prompt, group) for prompt, group in zip(prompts, groups, strict=True)]


def response_in_data(student: VLM, prompt: Prompt) -> Rollout:
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
