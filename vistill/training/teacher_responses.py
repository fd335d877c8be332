"""The teacher's responses: written once before step 1, stored in the run folder, resumed where they stopped."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from vistill.data.answers import judge_answer
from vistill.data.math_judge import MathJudge
from vistill.errors import DataError
from vistill.rollouts.engine import sampling_for_step
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.runs.storage import damaged_file_error, move_lines, read_json, write_json
from vistill.training.response_source import ResponseSource, sample_groups
from vistill.training.settings import RewardSettings
from vistill.training.step_inputs import Models
from vistill.types import Finish, Prompt, Rollout, RolloutGroup

FILE, SETTINGS_FILE = "teacher_responses.jsonl", "teacher_responses.settings.json"
#: Step in the noise key of the teacher's responses: before the first.
BEFORE = -1
#: Prompts written between two lines on disk.
PROMPTS_PER_CALL = 16


def write_teacher_responses(
    models: Models,
    folder: RunFolder,
    response_source: ResponseSource,
    prompts: Sequence[Prompt],
    rollout: RolloutSettings,
    seed: int,
) -> dict[str, tuple[Rollout, ...]]:
    """K responses of the teacher (the response_source's engine) to every prompt, from the run folder as far as they are there."""
    assert models.teacher is not None, "check_together asks for a teacher"
    path = folder.path / FILE
    forget_others(folder, {"teacher": models.teacher.source, "seed": seed, **asdict(rollout)})
    known = {prompt.id: prompt.content for prompt in prompts}
    same = lambda record: record.get("content", "") == known.get(record.get("prompt", ""))
    move_lines(path, same, path.with_suffix(".lost.jsonl"))
    try:
        found = {record["prompt"]: from_record(record) for record in folder.read(path)}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_file_error(path, f"{type(error).__name__}: {error}") from error
    missing = [prompt for prompt in prompts if prompt.id not in found]
    sampling = sampling_for_step(rollout, seed, BEFORE)
    for start in range(0, len(missing), PROMPTS_PER_CALL):
        with models.teacher.on_device():
            groups = sample_groups(
                models, response_source, missing[start : start + PROMPTS_PER_CALL], sampling
            )
        for group in groups:
            folder.log(path, to_record(models, group), exact=True)
            found[group.prompt.id] = group.rollouts
    return {prompt.id: found[prompt.id] for prompt in prompts}


def forget_others(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Set responses aside that another teacher, seed or way of sampling wrote before the run's first step."""
    settings = {
        key: value
        for key, value in settings.items()
        if key not in ("rows_per_call", "all_truncated")
    }
    path, note = folder.path / FILE, folder.path / SETTINGS_FILE
    if path.exists() and (not note.exists() or read_json(note) != settings):
        path.replace(path.with_suffix(".lost.jsonl"))
        folder.event("teacher responses were written with other settings; writing them again")
    write_json(note, settings, exact=True)


def to_record(models: Models, group: RolloutGroup) -> dict[str, Any]:
    """One line a prompt: ids for the loss, text for people."""
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
    written: Mapping[str, tuple[Rollout, ...]],
    reward: RewardSettings,
) -> dict[str, tuple[Rollout, ...]]:
    """The correct responses of each prompt that has any (D306 where none has)."""
    kept: dict[str, tuple[Rollout, ...]] = {}
    with MathJudge() as math:
        for prompt in prompts:
            assert prompt.answer is not None, "rows without an answer were refused before"
            right = tuple(
                rollout
                for rollout in written[prompt.id]
                if judge_answer(
                    models.student.decode(rollout.ids),
                    prompt.answer,
                    prompt.choices,
                    reward.answer,
                    math,
                ).correct
            )
            if right:
                kept[prompt.id] = right
    if not kept:
        raise DataError(
            "D306",
            f"none of the teacher's responses to {len(prompts)} prompts is correct",
            why="`sft` learns from correct ones only; look at teacher_responses.jsonl in the run folder",
            fix="rollout.max_new_tokens=4096, or a stronger teacher: teacher.model=FOLDER_OR_HUB_ID",
        )
    return kept
