"""Does the student read? On procedural diagrams: change one drawn digit and see whether the stated one follows."""

from collections.abc import Sequence

from vistill.data.diagrams import Diagram
from vistill.data.keys import keyed_generator
from vistill.data.wording import stated_values
from vistill.evaluation.answering import Answered, Answering
from vistill.types import Prompt, View

#: Items that are asked twice.
MAX_ITEMS = 128


def stated_share(answered: Sequence[Answered]) -> dict[str, float]:
    """Share of the drawn labels that a response states correctly, in reading order."""
    right = total = 0
    for item in answered:
        labels = item.prompt.labels
        if "drawn" not in labels:
            continue
        values, stated = labels["values"].split(), stated_values(labels["kind"], item.text)
        for index in (int(i) for i in labels["drawn"].split()):
            total += 1
            right += stated[index] == values[index]
    return {"reading/stated": right / total, "reading/labels": float(total)} if total else {}


def counterfactual_prompt(item: Diagram, key: object) -> tuple[Diagram, int]:
    """The counterfactual twin of a diagram: one drawn label changed, everything else the same."""
    rng = keyed_generator("twin", key)
    drawn = [i for i, seen in enumerate(item.visible) if seen]
    index = drawn[int(rng.integers(len(drawn)))]
    low, high = (10, 99) if item.settings.two_digits else (1, 9)
    others = [v for v in range(low, high + 1) if v != item.values[index]]
    return item.with_value(index, others[int(rng.integers(len(others)))]), index


def counterfactual(answering: Answering, items: Sequence[Diagram]) -> dict[str, float]:
    """Reading accuracy by counterfactual digit swap, greedy: the stated label must be right before AND after.

    A student that guesses states the same label twice and fails one of them.
    """
    chosen = list(items)[:MAX_ITEMS]
    twins = [counterfactual_prompt(item, item.key) for item in chosen]
    before = answering.answer(
        [prompt(item, i, "a") for i, item in enumerate(chosen)], View.FULL, "greedy"
    )
    after = answering.answer(
        [prompt(item, i, "b") for i, (item, _) in enumerate(twins)], View.FULL, "greedy"
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


def prompt(item: Diagram, index: int, side: str) -> Prompt:
    """A diagram as a prompt of this protocol."""
    return item.prompt(f"twin-{index}-{side}")
