"""Where the responses of a step come from: the student, the data set, or the teacher."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from vistill.batch import Objective
from vistill.data.keys import keyed_generator
from vistill.models.loading import VLM
from vistill.rollouts.checked_engine import generate_responses
from vistill.rollouts.engine import RolloutEngine, RolloutRequest, Sampling, make_requests
from vistill.training.checks.rows import check_response
from vistill.training.models_of_run import Models
from vistill.types import Finish, Prompt, Rollout, RolloutGroup, Writer

ReceiveGroup = Callable[[RolloutGroup], None]
"""Called with a finished group."""


@dataclass(frozen=True)
class ResponseSource:
    """What a step needs to get its responses."""

    engine: RolloutEngine
    objective: Objective
    per_prompt: int
    """Responses per prompt."""
    teacher_responses: Mapping[str, tuple[Rollout, ...]] = field(default_factory=dict)
    """The teacher's responses by prompt id, written once before step 1."""


def write_groups(
    models: Models,
    response_source: ResponseSource,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    epochs: Sequence[int] = (),
    receive: ReceiveGroup | None = None,
) -> list[RolloutGroup]:
    """The responses of a step.

    Args:
        models: encodes the prompts.
        response_source: who writes.
        prompts: of the step.
        sampling: noise keyed by (seed, step, prompt, sibling).
        epochs: of each prompt, from 0; methods may use another teacher response in each epoch.
        receive: gets finished groups while the engine writes others, if it can say so.
    """
    objective = response_source.objective
    if objective.requirements.writer is Writer.DATA:
        return [
            RolloutGroup(prompt, (response_in_data(models.student, prompt),)) for prompt in prompts
        ]
    uses_teacher = [uses_teacher_responses(objective, prompt, sampling) for prompt in prompts]
    on_policy = [p for p, teacher in zip(prompts, uses_teacher, strict=True) if not teacher]
    epochs = epochs or [0] * len(prompts)
    groups = {
        prompt.id: RolloutGroup(prompt, pick_teacher_responses(response_source, prompt, epoch))
        for prompt, teacher, epoch in zip(prompts, uses_teacher, epochs, strict=True)
        if teacher
    }
    if on_policy:
        if receive is not None:
            for group in groups.values():
                receive(group)
        sampled = sample_groups(models, response_source, on_policy, sampling, receive)
        groups |= {group.prompt.id: group for group in sampled}
    return [groups[prompt.id] for prompt in prompts]


def uses_teacher_responses(objective: Objective, prompt: Prompt, sampling: Sampling) -> bool:
    """Whether a prompt uses teacher responses: a coin keyed by (seed, step, prompt)."""
    share = objective.requirements.teacher_share
    if share in (0.0, 1.0):
        return share == 1.0
    coin = keyed_generator("off-policy", sampling.seed, sampling.step, prompt.id).random()
    return bool(coin < share)


def pick_teacher_responses(
    response_source: ResponseSource, prompt: Prompt, epoch: int
) -> tuple[Rollout, ...]:
    """All responses of the teacher; one per epoch in turn where only correct ones are used."""
    rollouts = response_source.teacher_responses[prompt.id]
    if response_source.objective.requirements.keep_correct:
        return (rollouts[epoch % len(rollouts)],)
    return rollouts


def sample_groups(
    models: Models,
    response_source: ResponseSource,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    receive: ReceiveGroup | None = None,
) -> list[RolloutGroup]:
    """K new responses per prompt (R403 where one stays empty)."""
    view = response_source.objective.requirements.writer_view
    requests = make_requests(
        [models.prompt_under(prompt, view) for prompt in prompts],
        [models.encode(prompt, view) for prompt in prompts],
        range(response_source.per_prompt),
    )
    by_id = {prompt.id: prompt for prompt in prompts}

    def pass_on(request: RolloutRequest, rollouts: tuple[Rollout, ...]) -> None:
        if receive is not None:
            receive(RolloutGroup(by_id[request.key], rollouts))

    engine = response_source.engine
    groups = generate_responses(engine, requests, sampling, pass_on if receive else None)
    return [RolloutGroup(prompt, group) for prompt, group in zip(prompts, groups, strict=True)]


def response_in_data(student: VLM, prompt: Prompt) -> Rollout:
    """The response that the data set holds, as token ids."""
    return Rollout(student.response_ids(check_response(prompt)), 0, Finish.STOP)
