"""Check that the checker accepts each gold answer that a run evaluates, rewards or filters by."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from types import MappingProxyType
from typing import TYPE_CHECKING

from vistill.answers.judge import gold_response, right_answer
from vistill.answers.math_process import shared_judge
from vistill.data.judging import JudgeSettings, judge_response
from vistill.data.mixture import set_of
from vistill.data.set_settings import in_set
from vistill.errors import DataError
from vistill.phases import count_items
from vistill.registry import checkers
from vistill.runs.start_cache import StartCache, hash_text, source_hash
from vistill.training.checks.set_aside import set_aside_rows
from vistill.training.settings import rewards_of_sets
from vistill.types import Prompt

if TYPE_CHECKING:
    from vistill.training.recipe import Recipe
    from vistill.training.setup import RunSetup

#: Modules whose source decides what the checkers of vistill accept. An answer that one accepted is
#: kept for the next start; the code of a plug-in is asked again.
RULE = ("answers", "answers/checkers", "answers/languages", "data/judging.py")
#: What is said of procedural diagrams, whose gold answers are computed.
DRAWN = "computed with the diagrams"


def check_gold_answers(setup: "RunSetup") -> str:
    """D301 if the checker rejects a row's own gold answer: that row could never count as right.

    Evaluation rows stop the run. Training rows, if the method rewards or filters by answers, are
    set aside up to `data.max_bad_share`.
    """
    drawn = setup.train_data.diagrams or setup.eval_data.diagrams or setup.diagrams
    if drawn and not setup.recipe.data.sets:
        return DRAWN
    answers = setup.objective.requirements.answers
    judged = judge_gold_answers(setup.recipe, setup.train_prompts, setup.eval_prompts, answers)
    if judged.error is not None:
        set_aside_rows(setup, judged.refused, judged.error)
    return judged.summary


@dataclass(frozen=True)
class JudgedGolds:
    """What the checkers say to the gold answers of a run."""

    summary: str
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why a training row cannot be used, by its id."""
    error: DataError | None = None
    """The error that names the first of them."""


def judge_gold_answers(
    recipe: "Recipe", train: Sequence[Prompt], evaluation: Sequence[Prompt], answers: str
) -> JudgedGolds:
    """Ask the checkers about the gold answers of a run.

    Args:
        recipe: names the checkers.
        train: training rows.
        evaluation: evaluation rows.
        answers: which training rows need a gold answer (`RowNeeds.answers`); empty asks about none.

    Raises:
        DataError: D301, the checker rejects the gold answer of an evaluation row.
    """
    evaluated = [p for p in evaluation if p.answer is not None]
    if not evaluated and not answers:
        return JudgedGolds("no evaluation row has one")
    bad = rejected(evaluated, recipe.eval)
    if bad:
        what = f"the checker rejects {len(bad)} gold answers"
        raise rejected_error(bad, what, "eval", recipe.eval)
    counted = f"{len(evaluated):,} of {len(evaluation):,} rows have one"
    if not answers:
        return JudgedGolds(f"{counted}, the checker accepts all")
    rows = [p for p in train if p.answer is not None]
    summary = f"{counted}, and {len(rows):,} training rows, whose answers the method uses"
    bad = rejected(rows, recipe.reward, rewards_of_sets(recipe.reward, recipe.data.sets))
    if not bad:
        return JudgedGolds(summary)
    what = f"the checker rejects {len(bad)} of {len(rows)} gold answers of training rows"
    reasons = {p.id: f"the checker rejects {' | '.join(p.golds)!r:.80}" for p in bad}
    return JudgedGolds(summary, reasons, rejected_error(bad, what, "reward", recipe.reward))


def rejected(
    prompts: Sequence[Prompt],
    settings: JudgeSettings,
    by_set: Mapping[str, JudgeSettings] = MappingProxyType({}),
) -> list[Prompt]:
    """The prompts whose gold answer the checker takes for wrong in every accepted form.

    Args:
        prompts: rows with a gold answer.
        settings: name the checker.
        by_set: the settings of data sets that have their own.
    """
    known = StartCache(
        "golds",
        [source_hash(*RULE), *map(version, ("math-verify", "latex2sympy2_extended", "sympy"))],
    )
    with shared_judge() as math:

        def is_accepted(prompt: Prompt, gold: str) -> bool:
            own = by_set.get(set_of(prompt), settings)
            checker = prompt.labels.get("checker") or own.checker
            key = hash_text(checker, own.answer, gold, *prompt.choices)
            if checker in checkers.builtin and known.get(key, bool):
                return True
            question = replace(prompt, answer=gold)
            right = gold_response(right_answer(checker, gold))
            accepted = judge_response(right, question, own, math).correct
            if accepted and checker in checkers.builtin:
                known.put(key, True)
            return accepted

        counted = count_items("checking gold answers", prompts)
        bad = [p for p in counted if not any(is_accepted(p, gold) for gold in p.golds)]
    known.save()
    return bad


def rejected_error(
    bad: Sequence[Prompt], what: str, group: str, settings: JudgeSettings
) -> DataError:
    """D301 with the first row; `group` is the group of the recipe that names the checker."""
    columns = "correct the rows, or name the right columns: data.columns.answer=COLUMN"
    is_own = settings.checker != "auto" and not bad[0].labels.get("checker")
    error = DataError(
        "D301",
        what,
        where=bad[0].labels.get("row", bad[0].id),
        why=f'first: gold answer "{bad[0].gold_text:.80}", choices {list(bad[0].choices)}'
        + (f", checker {settings.checker}" if is_own else ""),
        fix=f"{group}.checker=auto   or   {columns}" if is_own else columns,
    )
    return in_set(error, set_of(bad[0]))
