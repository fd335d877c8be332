"""Counterfactual reading test on procedural diagrams.

Change one drawn digit and check whether the stated one follows.
"""

from collections.abc import Sequence

from vistill.data.diagrams import Diagram
from vistill.data.keys import keyed_generator
from vistill.data.wording import stated_values
from vistill.evaluation.responses import AnswerEvaluator, JudgedResponse
from vistill.types import Prompt, View

#: Diagrams that are evaluated twice.
MAX_ITEMS = 128


def measure_stated_labels(responses: Sequence[JudgedResponse]) -> dict[str, float]:
    """Share of the drawn labels that a response states correctly, in reading order."""
    right = total = 0
    for item in responses:
        labels = item.prompt.labels
        if "drawn" not in labels:
            continue
        values, stated = labels["values"].split(), stated_values(labels["kind"], item.text)
        for index in (int(i) for i in labels["drawn"].split()):
            total += 1
            right += stated[index] == values[index]
    return {"reading/stated": right / total, "reading/labels": float(total)} if total else {}


def counterfactual_prompt(item: Diagram, key: object) -> tuple[Diagram, int]:
    """The diagram with one drawn label changed, and the index of that label."""
    rng = keyed_generator("twin", key)
    drawn = [i for i, seen in enumerate(item.visible) if seen]
    index = drawn[int(rng.integers(len(drawn)))]
    low, high = (10, 99) if item.settings.two_digits else (1, 9)
    others = [v for v in range(low, high + 1) if v != item.values[index]]
    return item.with_value(index, others[int(rng.integers(len(others)))]), index


def measure_counterfactual(
    evaluator: AnswerEvaluator, items: Sequence[Diagram]
) -> dict[str, float]:
    """Reading accuracy by a counterfactual digit swap, with greedy responses.

    The stated label must be right before AND after the change. A student that guesses states the
    same label twice and fails one of them.
    """
    chosen = list(items)[:MAX_ITEMS]
    twins = [counterfactual_prompt(item, item.key) for item in chosen]
    before = evaluator.answer(
        [diagram_prompt(item, i, "a") for i, item in enumerate(chosen)],
        View.FULL,
        "greedy",
        "labels",
    )
    after = evaluator.answer(
        [diagram_prompt(item, i, "b") for i, (item, _) in enumerate(twins)],
        View.FULL,
        "greedy",
        "changed labels",
    )
    follows = both = 0
    for item, (changed, index), first, second in zip(chosen, twins, before, after, strict=True):
        old = stated_values(item.kind, first.text)[index]
        new = stated_values(changed.kind, second.text)[index]
        follows += new == str(changed.values[index])
        both += old == str(item.values[index]) and new == str(changed.values[index])
    n = max(1, len(chosen))
    return {
        "reading/follows_swap": follows / n,
        "reading/counterfactual": both / n,
        "reading/items": float(len(chosen)),
    }


def diagram_prompt(item: Diagram, index: int, side: str) -> Prompt:
    """A diagram as a prompt of this test."""
    return item.prompt(f"twin-{index}-{side}")
