"""The teacher's responses: written once before step 1, stored in the run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vistill.answers.math_process import shared_judge
from vistill.data.judging import judge_response
from vistill.errors import DataError
from vistill.phases import RESPONSES, count_items, open_phase
from vistill.rollouts.engine import sampling_for_step
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.runs.storage import damaged_file_error, move_lines, read_json, write_json
from vistill.training.models_of_run import Models
from vistill.training.response_source import ResponseSource, sample_groups
from vistill.training.settings import RewardSettings
from vistill.types import Finish, Prompt, Reader, Rollout, RolloutGroup

FILE, SETTINGS_FILE = "teacher_responses.jsonl", "teacher_responses.settings.json"
#: Step in the noise key of the teacher's responses: before the first.
STEP_BEFORE_RUN = -1
#: Prompts that are sampled together; their lines go to disk before the next ones are sampled.
PROMPTS_PER_CALL = 16


@dataclass(frozen=True)
class TeacherWriter:
    """A teacher that writes responses, and the prompts that are its own."""

    models: Models
    """With this teacher as the only one."""
    response_source: ResponseSource
    prompts: Sequence[Prompt]


def write_teacher_responses(
    folder: RunFolder, writers: Sequence[TeacherWriter], rollout: RolloutSettings, seed: int
) -> dict[str, tuple[Rollout, ...]]:
    """K teacher responses to every prompt; those in the run folder are not written again."""
    path = folder.path / FILE
    sources = [writer.models.reader(Reader.TEACHER).source for writer in writers]
    teacher = sources[0] if len(sources) == 1 else sources
    discard_stale_responses(folder, {"teacher": teacher, "seed": seed, **asdict(rollout)})
    prompts = [prompt for writer in writers for prompt in writer.prompts]
    responses = read_responses(folder, prompts)
    missing = sum(prompt.id not in responses for prompt in prompts)
    per_prompt = writers[0].response_source.per_prompt
    sampling = sampling_for_step(rollout, seed, STEP_BEFORE_RUN)
    with open_phase("teacher responses", missing * per_prompt, RESPONSES):
        for writer in writers:
            models, own = writer.models, [p for p in writer.prompts if p.id not in responses]
            for start in range(0, len(own), PROMPTS_PER_CALL):
                batch = own[start : start + PROMPTS_PER_CALL]
                with models.reader(Reader.TEACHER).on_device():
                    groups = sample_groups(models, writer.response_source, batch, sampling)
                for group in groups:
                    folder.log(path, to_record(models, group), exact=True)
                    responses[group.prompt.id] = group.rollouts
    return {prompt.id: responses[prompt.id] for prompt in prompts}


def read_responses(folder: RunFolder, prompts: Sequence[Prompt]) -> dict[str, tuple[Rollout, ...]]:
    """The stored responses to these prompts; removes lines of other or changed prompts."""
    path: Path = folder.path / FILE
    contents = {prompt.id: prompt.content for prompt in prompts}

    def is_current(record: Mapping[str, Any]) -> bool:
        return record.get("content", "") == contents.get(record.get("prompt", ""))

    move_lines(path, is_current, path.with_suffix(".lost.jsonl"))
    try:
        return {record["prompt"]: from_record(record) for record in folder.read(path)}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_file_error(path, f"{type(error).__name__}: {error}") from error


def discard_stale_responses(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Move away responses of another teacher, seed or sampling."""
    unrelated = ("rows_per_call", "all_truncated")
    settings = {name: value for name, value in settings.items() if name not in unrelated}
    path, settings_file = folder.path / FILE, folder.path / SETTINGS_FILE
    if path.exists() and (not settings_file.exists() or read_json(settings_file) != settings):
        path.replace(path.with_suffix(".lost.jsonl"))
        folder.event("teacher responses were written with other settings; writing them again")
    write_json(settings_file, settings, exact=True)


def to_record(models: Models, group: RolloutGroup) -> dict[str, Any]:
    """The line of a prompt: ids for the loss, text for people."""
    return {
        "prompt": group.prompt.id,
        "content": group.prompt.content,
        "ids": [list(r.ids) for r in group.rollouts],
        "finish": [str(r.finish) for r in group.rollouts],
        "text": [models.student.decode(r.ids) for r in group.rollouts],
    }


def from_record(record: Mapping[str, Any]) -> tuple[Rollout, ...]:
    """The rollouts of a line."""
    pairs = zip(record["ids"], record["finish"], strict=True)
    return tuple(
        Rollout(tuple(ids), sibling, Finish(finish)) for sibling, (ids, finish) in enumerate(pairs)
    )


def keep_correct_responses(
    models: Models,
    prompts: Sequence[Prompt],
    responses: Mapping[str, tuple[Rollout, ...]],
    reward: RewardSettings,
) -> dict[str, tuple[Rollout, ...]]:
    """The correct responses by prompt id, without prompts that have none (D306: all have none)."""
    correct: dict[str, tuple[Rollout, ...]] = {}
    with shared_judge() as math:
        for prompt in count_items("judging teacher responses", prompts):
            rollouts = []
            for rollout in responses[prompt.id]:
                text = models.student.decode(rollout.ids)
                if judge_response(text, prompt, reward, math).correct:
                    rollouts.append(rollout)
            if rollouts:
                correct[prompt.id] = tuple(rollouts)
    if not correct:
        raise no_correct_response_error([r for p in prompts for r in responses[p.id]], len(prompts))
    return correct


def no_correct_response_error(rollouts: Sequence[Rollout], num_prompts: int) -> DataError:
    """D306; longer responses are advised only where some were cut off."""
    cut_off = [len(rollout.ids) for rollout in rollouts if rollout.finish is Finish.LENGTH]
    longer = f"rollout.max_new_tokens={4 * max(cut_off)}   or " if cut_off else ""
    return DataError(
        "D306",
        f"none of the teacher's responses to {num_prompts} prompts is correct",
        why="the method learns from correct ones; see teacher_responses.jsonl in the run folder",
        fix=f"{longer}a stronger teacher:   teacher.model=FOLDER_OR_HUB_ID",
    )
