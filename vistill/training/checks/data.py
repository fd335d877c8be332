"""Checks of the run folder and the data. They need no torch, so `vistill check --fast` makes them too."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vistill.data.answers import gold_response, judge_answer
from vistill.data.loading import LoadedData, check_overlap, check_rows_per_step, load_train_and_eval
from vistill.data.math_judge import MathJudge
from vistill.data.rows import check_characters, check_special_tokens
from vistill.data.stored_prompts import with_content_hashes
from vistill.errors import DataError
from vistill.runs.storage import to_json, write_json
from vistill.training.checks.check import ALL_PURPOSES, TRAINING_PURPOSES, StartCheck
from vistill.types import ImageRef, Prompt

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup


def load_rows(setup: "RunSetup") -> str:
    """Every row read and every picture decoded; bad rows are set aside with their reason."""
    if setup.given is None:
        train, held = load_train_and_eval(setup.recipe.located().data)
    else:
        given = setup.given
        check_prompts([*given.train_prompts, *given.eval_prompts])
        if not given.train_prompts and setup.purpose != "eval":
            raise no_prompts_error("the data set is empty")
        train = LoadedData(with_content_hashes(given.train_prompts), [], [])
        held = LoadedData(with_content_hashes(given.eval_prompts), [], list(given.diagrams))
    if setup.purpose == "eval" and not held.prompts:
        train, held = replace(train, prompts=[]), train
        setup.evaluates_training_rows = True
    setup.train_data, setup.eval_data = train, held
    setup.train_prompts, setup.eval_prompts = train.prompts, held.prompts
    setup.diagrams = held.diagrams
    bad = [*train.quarantined, *held.quarantined]
    write_data_summary(setup, train, held)
    aside = (
        f"; set aside {len(bad):,}, first: {bad[0].where} {bad[0].code} {bad[0].reason}"
        if bad
        else ""
    )
    return f"{len(train.prompts):,} training rows, {len(held.prompts):,} to evaluate on{aside}"


def write_data_summary(setup: "RunSetup", train: LoadedData, held: LoadedData) -> None:
    """Row counts, where the rows come from, and every row that was set aside."""
    bad = [*train.quarantined, *held.quarantined]
    setup.folder.write("quarantine.jsonl", "".join(to_json(q.to_dict()) + "\n" for q in bad))
    settings = setup.recipe.located().data
    source = settings.train if setup.evaluates_training_rows else settings.eval
    record = {
        "train": settings.train,
        "eval": source
        or ("diagrams" if settings.train == "diagrams" else f"held out of {settings.train}"),
        "train_rows": len(train.prompts),
        "eval_rows": len(held.prompts),
        "eval_rows_with_answer": sum(p.answer is not None for p in held.prompts),
        "quarantined": len(bad),
        "dropped_text_only": train.dropped_text_only + held.dropped_text_only,
    }
    write_json(setup.folder.path / "data.json", record)


def check_prompts(prompts: Sequence[object]) -> None:
    """D102 for something that is no prompt; what a row of a file must hold, a prompt of the caller must hold too."""
    for prompt in prompts:
        if not isinstance(prompt, Prompt):
            raise no_prompts_error("prompts must be vistill.Prompt objects")
        check_prompt_types(prompt)
        where = prompt.labels.get("row", prompt.id)
        texts = [
            prompt.text,
            *prompt.choices,
            prompt.id,
            prompt.answer,
            prompt.response,
            prompt.system,
        ]
        check_characters([text for text in texts if text is not None], where)
        check_special_tokens(prompt.text, where)


def check_prompt_types(prompt: Prompt) -> None:
    """D104 for a number where a text belongs, D202 for a picture that is not wrapped."""
    where = str(prompt.labels.get("row", prompt.id))
    named = [
        ("id", prompt.id),
        ("answer", prompt.answer),
        ("response", prompt.response),
        ("system", prompt.system),
    ]
    for name, value in [*named, *(("choices", choice) for choice in prompt.choices)]:
        if not isinstance(value, str) and (value is not None or name in ("id", "choices")):
            raise DataError(
                "D104",
                f"{name} of a prompt is no text: {value!r:.40}",
                where=where,
                why="it is compared with what a model writes, which is text",
                fix=f'{name}="TEXT"   in vistill.Prompt',
            )
    pictures = [*prompt.images, *prompt.thoughts]
    strange = next((p for p in pictures if not isinstance(p, ImageRef)), None)
    if strange is not None:
        raise DataError(
            "D202",
            f"a picture of a prompt is a bare {type(strange).__name__}",
            where=where,
            why="a picture has a name for messages and is decoded on demand",
            fix="vistill.LoadedImage(PICTURE)   in vistill.Prompt",
        )


def no_prompts_error(what: str) -> DataError:
    """D102."""
    return DataError(
        "D102",
        what,
        fix='vistill.load_prompts("data/train.jsonl", prompt="question"), or vistill.Prompt("id", ("text",))',
    )


def check_no_overlap(setup: "RunSetup") -> str:
    """D308 where an evaluation row asks what a training row asks."""
    check_overlap(setup.train_data, setup.eval_data, setup.recipe.data)
    return (
        f"no evaluation row asks what a training row asks ({setup.recipe.data.overlap} otherwise)"
    )


def check_gold_answers(setup: "RunSetup") -> str:
    """D301 where a gold answer is not accepted by its own checker: its row would count as wrong for ever."""
    prompts = [p for p in setup.eval_prompts if p.answer is not None]
    if setup.diagrams or not prompts:
        return "made with the diagrams" if prompts else "no row to evaluate on has one"
    with MathJudge() as math:
        accepted = lambda p: (
            judge_answer(
                gold_response(p.answer), p.answer, p.choices, setup.recipe.eval.answer, math
            ).correct
        )
        bad = [p for p in prompts if not accepted(p)]
    if bad:
        raise DataError(
            "D301",
            f"{len(bad)} gold answers are not accepted by their own checker",
            where=bad[0].labels.get("row", bad[0].id),
            why=f'first: gold answer "{bad[0].answer}", choices {list(bad[0].choices)}',
            fix="correct the rows, or name the right columns under data.columns",
        )
    return f"{len(prompts):,} of {len(setup.eval_prompts):,} rows have one, all accepted by their own checker"


def check_step_size(setup: "RunSetup") -> str:
    """C101 where a prompt would occur twice in one step."""
    check_rows_per_step(setup.recipe.train.prompts_per_step, len(setup.train_prompts))
    return f"{setup.recipe.train.prompts_per_step} different prompts in each step"


DATA_CHECKS: tuple[StartCheck, ...] = (
    StartCheck("data", "every row and picture can be read, ids differ", load_rows, ALL_PURPOSES),
    StartCheck(
        "overlap",
        "no evaluation row asks what a training row asks",
        check_no_overlap,
        TRAINING_PURPOSES,
    ),
    StartCheck(
        "gold answers", "each gold answer passes its own checker", check_gold_answers, ALL_PURPOSES
    ),
    StartCheck("step size", "no prompt occurs twice in a step", check_step_size, TRAINING_PURPOSES),
)
