"""Check that the checker accepts each gold answer that a run evaluates, rewards or filters by."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vistill.answers.judge import gold_response
from vistill.answers.math_process import shared_judge
from vistill.batch import Need
from vistill.data.judging import JudgeSettings, judge_response
from vistill.errors import DataError
from vistill.phases import count_items
from vistill.training.checks.set_aside import set_aside_rows
from vistill.types import Prompt

if TYPE_CHECKING:
    from vistill.training.setup import RunSetup


def check_gold_answers(setup: "RunSetup") -> str:
    """D301 if the checker rejects a row's own gold answer: that row could never count as right.

    Evaluation rows stop the run. Training rows, if the method rewards or filters by answers, are
    set aside up to `data.max_bad_share`.
    """
    drawn = bool(setup.train_data.diagrams or setup.eval_data.diagrams or setup.diagrams)
    evaluated = [p for p in setup.eval_prompts if p.answer is not None]
    if drawn or (not evaluated and not uses_training_answers(setup)):
        return "computed with the diagrams" if drawn else "no evaluation row has one"
    bad = rejected(evaluated, setup.recipe.eval)
    if bad:
        raise rejected_error(bad, f"the checker rejects {len(bad)} gold answers")
    counted = f"{len(evaluated):,} of {len(setup.eval_prompts):,} rows have one"
    if not uses_training_answers(setup):
        return f"{counted}, the checker accepts all"
    rows = [p for p in setup.train_prompts if p.answer is not None]
    bad = rejected(rows, setup.recipe.reward)
    if bad:
        what = f"the checker rejects {len(bad)} of {len(rows)} gold answers of training rows"
        reasons = {p.id: f"the checker rejects {' | '.join(p.golds)!r:.80}" for p in bad}
        set_aside_rows(setup, reasons, rejected_error(bad, what))
    return f"{counted}, and {len(rows):,} training rows, whose answers the method uses"


def uses_training_answers(setup: "RunSetup") -> bool:
    """Whether the method rewards responses, keeps correct ones, or has a gate by accuracy."""
    wanted = setup.objective.requirements
    return Need.REWARD in wanted.needs or wanted.keep_correct or wanted.entry_gate is not None


def rejected(prompts: Sequence[Prompt], settings: JudgeSettings) -> list[Prompt]:
    """The prompts whose gold answer the checker takes for wrong in every accepted form."""
    with shared_judge() as math:

        def is_accepted(prompt: Prompt, gold: str) -> bool:
            question = replace(prompt, answer=gold)
            return judge_response(gold_response(gold), question, settings, math).correct

        counted = count_items("checking gold answers", prompts)
        return [p for p in counted if not any(is_accepted(p, gold) for gold in p.golds)]


def rejected_error(bad: Sequence[Prompt], what: str) -> DataError:
    """D301 with the first row."""
    return DataError(
        "D301",
        what,
        where=bad[0].labels.get("row", bad[0].id),
        why=f'first: gold answer "{bad[0].gold_text}", choices {list(bad[0].choices)}',
        fix="correct the rows, or name the right columns: data.columns.answer=COLUMN",
    )
