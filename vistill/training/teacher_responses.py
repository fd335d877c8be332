"""The teacher's responses: written once before step 1, stored in the run folder."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from vistill.answers.math_process import shared_judge
from vistill.data.judging import judge_response
from vistill.data.mixture import set_of
from vistill.errors import DataError
from vistill.phases import RESPONSES, count_items, open_phase
from vistill.rollouts.engine import sampling_for_step
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.runs.storage import damaged_file_error, move_lines, read_json, write_json
from vistill.training.models_of_run import Models
from vistill.training.recipe import TeacherSettings
from vistill.training.response_source import ResponseSource, sample_groups
from vistill.training.settings import RewardSettings
from vistill.types import Finish, Prompt, Reader, Rollout, RolloutGroup

FILE, SETTINGS_FILE = "teacher_responses.jsonl", "teacher_responses.settings.json"
#: Step in the noise key of the teacher's responses: before the first.
STEP_BEFORE_RUN = -1
#: Prompts that are sampled together; their lines go to disk before the next ones are sampled.
PROMPTS_PER_CALL = 16
#: Settings without effect on the responses.
UNRELATED = ("rows_per_call", "all_truncated", "vllm", "server")
#: Settings that files of earlier versions do not name, with the value that they had.
ADDED = {"noise": "generator", "weights": "auto", "cuda_graph": False}
#: Facts of a teacher that these files do not name either. They had those of the recipe.
UNNAMED = ("revision", "precision", "view", "max_image_tokens")


@dataclass(frozen=True)
class TeacherWriter:
    """A teacher that writes responses, and the prompts that are its own."""

    models: Models
    """With this teacher as the only one."""
    response_source: ResponseSource
    prompts: Sequence[Prompt]
    settings: TeacherSettings = TeacherSettings()
    """As the recipe has them: their revision and precision change what the teacher writes."""
    name: str = ""
    """Of one of several teachers."""

    @property
    def facts(self) -> dict[str, Any]:
        """What decides the responses to a prompt, besides seed and sampling."""
        teacher = self.models.reader(Reader.TEACHER)
        return {
            "teacher": teacher.source,
            "revision": self.settings.revision,
            "precision": self.settings.precision,
            "view": str(self.response_source.objective.requirements.writer_view),
            "max_image_tokens": teacher.family.image_token_limit,
        }


def write_teacher_responses(
    folder: RunFolder, writers: Sequence[TeacherWriter], rollout: RolloutSettings, seed: int
) -> dict[str, tuple[Rollout, ...]]:
    """K teacher responses to every prompt; those in the run folder are not written again."""
    path = folder.path / FILE
    facts = {writer.name: writer.facts for writer in writers}
    of_teachers = writers[0].facts if len(writers) == 1 else {"teachers": facts}
    discard_stale_responses(folder, {**of_teachers, "seed": seed, **asdict(rollout)})
    prompts = [prompt for writer in writers for prompt in writer.prompts]
    responses = read_responses(folder, writers)
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
                    folder.log(path, to_record(writer, group), exact=True)
                    responses[group.prompt.id] = group.rollouts
    return {prompt.id: responses[prompt.id] for prompt in prompts}


def read_responses(
    folder: RunFolder, writers: Sequence[TeacherWriter]
) -> dict[str, tuple[Rollout, ...]]:
    """The stored responses to the prompts of the writers.

    Removes lines of other or changed prompts, and those that another teacher wrote.
    """
    path: Path = folder.path / FILE
    current = {p.id: (p.content, writer.name) for writer in writers for p in writer.prompts}

    def is_current(record: Mapping[str, Any]) -> bool:
        content, teacher = current.get(record.get("prompt", ""), (None, ""))
        # lines of earlier versions do not name one of several teachers
        return (record.get("content", ""), record.get("teacher", teacher)) == (content, teacher)

    move_lines(path, is_current, path.with_suffix(".lost.jsonl"))
    try:
        return {record["prompt"]: from_record(record) for record in folder.read(path)}
    except (KeyError, TypeError, ValueError) as error:
        raise damaged_file_error(path, f"{type(error).__name__}: {error}") from error


def discard_stale_responses(folder: RunFolder, settings: dict[str, Any]) -> None:
    """Before step 1, move away responses of another teacher, seed or sampling."""
    settings = {name: value for name, value in settings.items() if name not in UNRELATED}
    path, settings_file = folder.path / FILE, folder.path / SETTINGS_FILE
    earlier = read_json(settings_file) if settings_file.exists() else {}
    # a run that has started keeps its responses: changes that may not be were refused before
    if path.exists() and not folder.has_started() and not is_same(earlier, settings):
        path.replace(path.with_suffix(".lost.jsonl"))
        folder.event("teacher responses were written with other settings; writing them again")
    write_json(settings_file, settings, exact=True)


def is_same(earlier: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Whether responses with earlier settings are those that these settings ask for."""
    if isinstance(earlier.get("teacher"), list):  # the form of one version for several teachers
        sources = [one["teacher"] for one in settings.get("teachers", {}).values()]
        settings = {key: value for key, value in settings.items() if key != "teachers"}
        settings = {"teacher": sources, **settings}
    unnamed = {key: settings[key] for key in UNNAMED if key in settings}
    return {**ADDED, **unnamed, **earlier} == {**ADDED, **settings}


def to_record(writer: TeacherWriter, group: RolloutGroup) -> dict[str, Any]:
    """The line of a prompt: ids for the loss, text for people."""
    return {
        "prompt": group.prompt.id,
        "content": group.prompt.content,
        **({"teacher": writer.name} if writer.name else {}),
        "ids": [list(r.ids) for r in group.rollouts],
        "finish": [str(r.finish) for r in group.rollouts],
        "text": [writer.models.student.decode(r.ids) for r in group.rollouts],
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
    by_set: Mapping[str, RewardSettings],
) -> dict[str, tuple[Rollout, ...]]:
    """The correct responses by prompt id, without prompts that have none.

    Args:
        models: of the run.
        prompts: training rows.
        responses: by prompt id.
        reward: how they are judged.
        by_set: the settings of data sets that have their own (`rewards_of_sets`).

    Raises:
        DataError: D306, all prompts have none.
    """
    correct: dict[str, tuple[Rollout, ...]] = {}
    with shared_judge() as math:
        for prompt in count_items("judging teacher responses", prompts):
            rollouts, settings = [], by_set.get(set_of(prompt), reward)
            for rollout in responses[prompt.id]:
                text = models.student.decode(rollout.ids)
                if judge_response(text, prompt, settings, math).correct:
                    rollouts.append(rollout)
            if rollouts:
                correct[prompt.id] = tuple(rollouts)
    if not correct:
        every = [r for p in prompts for r in responses[p.id]]
        raise no_correct_response_error(
            every, len(prompts), [name for name, _ in models.by_teacher()]
        )
    return correct


def no_correct_response_error(
    rollouts: Sequence[Rollout], num_prompts: int, names: Sequence[str] = ("",)
) -> DataError:
    """D306; longer responses are advised only where some were cut off.

    Args:
        rollouts: all responses.
        num_prompts: prompts that they answer.
        names: of several teachers.
    """
    cut_off = [len(rollout.ids) for rollout in rollouts if rollout.finish is Finish.LENGTH]
    longer = f"rollout.max_new_tokens={4 * max(cut_off)}   or " if cut_off else ""
    models = [f"teachers.{name}.model" if name else "teacher.model" for name in names]
    stronger = "   or   ".join(f"{model}=FOLDER_OR_HUB_ID" for model in models)
    whose = (
        f"the teachers' responses ({', '.join(names)})" if names[1:] else "the teacher's responses"
    )
    return DataError(
        "D306",
        f"none of {whose} to {num_prompts} prompts is correct",
        why="the method learns from correct ones; see teacher_responses.jsonl in the run folder",
        fix=f"{longer}a stronger teacher:   {stronger}",
    )
