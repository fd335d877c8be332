"""Checks of the data. They need no torch, so `vistill check --fast` runs them too."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vistill.data.data_sets import count_by_set, load_data
from vistill.data.loading import LoadedData, check_overlap, check_rows_per_step
from vistill.data.mixture import check_mixture, mixture_of
from vistill.data.rows import check_characters, check_texts
from vistill.data.settings import DataSettings
from vistill.data.stored_prompts import with_content_hashes
from vistill.errors import ConfigError, DataError
from vistill.runs.storage import to_json, write_json
from vistill.training.checks.benchmarks import (
    CONTAMINATION_CHECK,
    EVALUATION_ONLY_CHECK,
    find_evaluation_sets,
)
from vistill.training.checks.check import ALL_PURPOSES, TRAINING_PURPOSES, StartCheck
from vistill.training.checks.gold import check_gold_answers
from vistill.training.checks.notes import check_notes
from vistill.training.teachers import TeacherRules, describe_teachers
from vistill.types import ImageRef, Prompt

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup


def load_rows(setup: "RunSetup") -> str:
    """Read every row and decode every image; quarantine bad rows with their reason."""
    if setup.provided is None:
        train, held_out = load_data(setup.recipe.located().data)
    else:
        provided = setup.provided
        check_no_limits(setup.recipe.data)
        check_no_sets(setup.recipe.data)
        check_prompts([*provided.train_prompts, *provided.eval_prompts])
        if not provided.train_prompts and setup.purpose != "eval":
            raise no_prompts_error("the data set is empty")
        train = LoadedData(with_content_hashes(provided.train_prompts), [], [])
        eval_prompts = with_content_hashes(provided.eval_prompts)
        held_out = LoadedData(eval_prompts, [], list(provided.diagrams))
    if setup.purpose == "eval" and not held_out.prompts:
        train, held_out = replace(train, prompts=[]), train
        setup.evaluates_training_rows = True
    elif setup.purpose == "eval" and train.prompts:
        known = {prompt.question_key for prompt in train.prompts}
        setup.evaluates_training_rows = all(p.question_key in known for p in held_out.prompts)
    setup.train_data, setup.eval_data = train, held_out
    setup.train_prompts, setup.eval_prompts = train.prompts, held_out.prompts
    setup.diagrams = held_out.diagrams
    assign_teachers(setup)
    bad = [*train.quarantined, *held_out.quarantined]
    write_data_summary(setup, train, held_out)
    quarantined = (
        f"; quarantined {len(bad):,}, first: {bad[0].where} {bad[0].code} {bad[0].reason}"
        if bad
        else ""
    )
    sets = rows_by_set(train.prompts, held_out.prompts)
    teachers = describe_teachers(setup.teacher_names, train.prompts)
    taught = f"; teachers: {teachers}" if teachers else ""
    return (
        f"{len(train.prompts):,} training rows, {len(held_out.prompts):,} evaluation rows"
        f"{sets}{taught}{quarantined}"
    )


def assign_teachers(setup: "RunSetup") -> None:
    """Which of several teachers each row has (D310, D311)."""
    recipe, provided = setup.recipe, setup.provided
    if not recipe.teachers:
        return
    rules = TeacherRules(recipe.teachers, provided is not None)
    names: dict[str, str] = {}
    if setup.purpose != "eval":
        names |= rules.assign(setup.train_prompts, "training")
        rules.check_used(names, setup.train_prompts)
    if recipe.eval.advantage and (recipe.eval.every or setup.purpose == "eval"):
        names |= rules.assign(setup.eval_prompts, "evaluation")
    setup.teacher_names = names


def rows_by_set(train: Sequence[Prompt], held_out: Sequence[Prompt]) -> str:
    """Training and evaluation rows of each data set, in words; empty for a single one."""
    trained, held = count_by_set(train), count_by_set(held_out)
    parts = [
        f"{name} {trained.get(name, 0):,} and {held.get(name, 0):,}"
        for name in sorted({*trained, *held})
    ]
    return f" ({'; '.join(parts)})" if parts else ""


def write_data_summary(setup: "RunSetup", train: LoadedData, held_out: LoadedData) -> None:
    """Write `data.json` (row counts and sources) and `quarantine.jsonl` (each bad row)."""
    bad = [*train.quarantined, *held_out.quarantined]
    setup.folder.write("quarantine.jsonl", "".join(to_json(q.to_dict()) + "\n" for q in bad))
    settings = setup.recipe.located().data
    source = settings.eval or (settings.train if setup.evaluates_training_rows else "")
    record = {
        "train": settings.train,
        "eval": source
        or ("diagrams" if settings.train == "diagrams" else f"held out of {settings.train}"),
        "train_rows": len(train.prompts),
        "eval_rows": len(held_out.prompts),
        "eval_rows_with_answer": sum(p.answer is not None for p in held_out.prompts),
        "quarantined": len(bad),
        "dropped_text_only": train.dropped_text_only + held_out.dropped_text_only,
    }
    if settings.evaluation_only == "allow" and setup.purpose == "train":
        record["evaluation_only"] = find_evaluation_sets(settings)
    if settings.sets:
        record |= sources_of_sets(settings, train.prompts, held_out.prompts)
    write_json(setup.folder.path / "data.json", record)


def sources_of_sets(
    settings: DataSettings, train: Sequence[Prompt], held_out: Sequence[Prompt]
) -> dict[str, object]:
    """The entries of `data.json` for several data sets."""
    rows, held = count_by_set(train), count_by_set(held_out)
    sets = {
        name: {
            "train": one.train,
            "weight": one.weight,
            "train_rows": rows.get(name, 0),
            "eval_rows": held.get(name, 0),
        }
        for name, one in sorted(settings.sets.items())
    }
    return {
        "train": settings.sources,
        "eval": f"evaluation rows of {', '.join(sets)}",
        "sets": sets,
    }


def check_no_sets(settings: DataSettings) -> None:
    """C101 for data sets of a recipe next to prompts that are passed in."""
    if settings.sets:
        raise ConfigError(
            "C101",
            "data.sets does not act on prompts that are passed in",
            why="data sets are read and mixed where a recipe names them",
            fix="vistill.train(RECIPE)   or   leave sets out of the settings of the data",
            note='labels={"data_set": NAME} of a prompt gives metrics by data set',
        )


def check_no_limits(settings: DataSettings) -> None:
    """C101 for pixel limits next to prompts that are passed in: they are normalised already."""
    for name in ("min_pixels", "max_pixels"):
        limit = getattr(settings, name)
        if limit is not None:
            raise ConfigError(
                "C101",
                f"data.{name} = {limit:,} does not act on prompts that are passed in",
                why="pixel limits act where a row is read",
                fix=f'vistill.load_prompts("data/train.jsonl", {name}={limit})',
            )


def check_prompts(prompts: object, name: str = "prompts") -> None:
    """Check the caller's prompts like the rows of a file (D102 for anything but a list of them)."""
    if isinstance(prompts, str) or not isinstance(prompts, Sequence):
        kind = type(prompts).__name__
        raise no_prompts_error(f"{name} must be a list of vistill.Prompt objects, not a {kind}")
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            raise no_prompts_error(f"{name} must be vistill.Prompt objects")
        check_prompt_types(prompt)
        where = prompt.labels.get("row", prompt.id)
        texts = {
            "question": (prompt.text, *prompt.choices),
            "answer": prompt.golds,
            "response": (prompt.response,),
            "system message": (prompt.system,),
        }
        check_texts(texts, where)
        check_characters([prompt.id], where)


def check_prompt_types(prompt: Prompt) -> None:
    """D104 for a field that must be text but is not, D202 for an image that is no `ImageRef`."""
    where = str(prompt.labels.get("row", prompt.id))
    text_fields = [
        ("id", prompt.id),
        *(("answer", gold) for gold in prompt.golds),
        ("response", prompt.response),
        ("system", prompt.system),
    ]
    for name, value in [*text_fields, *(("choices", choice) for choice in prompt.choices)]:
        if not isinstance(value, str) and (value is not None or name in ("id", "choices")):
            raise DataError(
                "D104",
                f"{name} of a prompt is not text: {value!r:.40}",
                where=where,
                why="vistill compares it with a model's response, which is text",
                fix=f'vistill.Prompt(..., {name}="TEXT")',
            )
    images = [*prompt.images, *prompt.thoughts]
    other = next((image for image in images if not isinstance(image, ImageRef)), None)
    if other is not None:
        raise DataError(
            "D202",
            f"an image of a prompt is a bare {type(other).__name__}",
            where=where,
            why="an image needs a name for messages and is decoded on demand",
            fix="vistill.types.LoadedImage(IMAGE)   in vistill.Prompt",
        )


def no_prompts_error(what: str) -> DataError:
    """D102."""
    return DataError(
        "D102",
        what,
        fix='vistill.load_prompts("data/train.jsonl", prompt="question")   or   '
        'vistill.Prompt("id", ("text",))',
    )


def no_answers_error(prompts: Sequence[Prompt]) -> DataError:
    """D302 for an evaluation without a single gold answer."""
    return DataError(
        "D302",
        f"none of the {len(prompts):,} rows has a gold answer, so nothing can be judged",
        why="the column data.columns.answer is empty or missing in every row",
        fix="data.columns.answer=COLUMN   or, for visual advantage alone,   vistill probe TARGET",
    )


def check_no_overlap(setup: "RunSetup") -> str:
    """D308 if an evaluation row asks the same question as a training row."""
    check_overlap(setup.train_data, setup.eval_data, setup.recipe.data)
    return (
        "no evaluation row asks the same question as a training row"
        f" (otherwise {setup.recipe.data.overlap})"
    )


def check_step_size(setup: "RunSetup") -> str:
    """C101 if a prompt would occur twice in one step."""
    recipe = setup.recipe
    rows = len(setup.train_prompts)
    check_rows_per_step(recipe.train.prompts_per_step, rows, recipe.data.holdout)
    mixture = mixture_of(setup.train_prompts, recipe.data.sets)
    if mixture is not None:
        check_mixture(mixture, recipe.train.prompts_per_step)
    return f"{setup.recipe.train.prompts_per_step} different prompts in each step"


DATA_CHECKS: tuple[StartCheck, ...] = (
    EVALUATION_ONLY_CHECK,
    StartCheck(
        "data",
        "every row and image can be read, ids differ",
        load_rows,
        ALL_PURPOSES,
        phase="checking rows",
    ),
    StartCheck(
        "overlap",
        "no evaluation row asks the same question as a training row",
        check_no_overlap,
        TRAINING_PURPOSES,
    ),
    CONTAMINATION_CHECK,
    StartCheck(
        "gold answers", "the checker accepts each gold answer", check_gold_answers, ALL_PURPOSES
    ),
    StartCheck("notes", "what the data were read as is said", check_notes, ALL_PURPOSES),
    StartCheck("step size", "no prompt occurs twice in a step", check_step_size, TRAINING_PURPOSES),
)
