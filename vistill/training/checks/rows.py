"""What a method needs of the training rows. Needs no torch, so `vistill check --fast` asks too."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vistill.data.mixture import set_of
from vistill.data.set_settings import in_set
from vistill.errors import DataError
from vistill.registry import methods, thoughts
from vistill.types import Prompt
from vistill.views import has_thoughts


@dataclass(frozen=True)
class RowNeeds:
    """What a method needs of the training rows."""

    method: str
    """Name of the method's class, for messages."""
    needs: Collection[str]
    """Any of `image`, `thoughts`, `reward`, `siblings`."""
    answers: str = ""
    """Rows that need a gold answer: `all` for rewards and for filters by correctness, `some` for a
    gate by accuracy, empty for none."""
    writer: str = "student"
    """Who writes the responses."""


def needs_of_schema(name: str, schema: Mapping[str, Any]) -> RowNeeds:
    """What a method needs, by its schema under the knobs of the recipe."""
    kind = methods.entry(name).target.rpartition(":")[2]
    return RowNeeds(kind, schema["x-needs"], schema["x-answers"], schema["x-writer"])


def needs_in_words(needs: RowNeeds) -> str:
    """`GRPO needs reward, siblings`."""
    named = ", ".join(sorted(map(str, needs.needs))) or "nothing beyond its passes"
    return f"{needs.method} needs {named}"


def usable_rows(
    needs: RowNeeds, prompts: Sequence[Prompt], thought: str, is_drawn: bool
) -> list[Prompt]:
    """The rows that the method can use: those with visual thoughts if it needs them.

    Args:
        needs: of the method.
        prompts: training rows.
        thought: source of the visual thoughts.
        is_drawn: the rows are procedural diagrams.

    Raises:
        DataError: D305, no row has an image; D302, a row has no gold answer; D303, a row has no
            response; D304, no row has visual thoughts.
    """
    if "image" in needs.needs and not any(p.images for p in prompts):
        raise DataError(
            "D305",
            f"{needs.method} needs images, and no row has one",
            fix="method=opd   or   data.columns.images=COLUMN",
        )
    if needs.answers == "all":
        check_answers(prompts, needs.method)
    if needs.writer == "data":
        for prompt in prompts:
            check_response(prompt)
    kept = list(prompts)
    if "thoughts" in needs.needs:
        kept = [p for p in prompts if has_thoughts(p, thought)]
        if not kept:
            raise no_thoughts_error(needs.method, thought, is_drawn)
    if needs.answers == "some" and not any(p.golds for p in kept):
        check_answers(kept, f"the gate of {needs.method}")
    return kept


def check_answers(prompts: Sequence[Prompt], name: str) -> None:
    """D302 for the first row without a gold answer."""
    without = [p for p in prompts if p.answer is None]
    if without:
        error = DataError(
            "D302",
            f"{name} scores answers, and {len(without)} of {len(prompts)} rows have no gold answer",
            where=without[0].labels.get("row", without[0].id),
            why="the reward of such a row would be 0 for every response",
            fix="data.columns.answer=COLUMN, or remove these rows",
        )
        raise in_set(error, set_of(without[0]))


def check_response(prompt: Prompt) -> str:
    """The response of a row (D303 where it has none)."""
    if prompt.response is None:
        error = DataError(
            "D303",
            "the row has no response to learn from",
            where=f"prompt {prompt.id}",
            why="the method learns from responses in the data",
            fix="data.columns.response=COLUMN   or   "
            "data.response_template='The answer is \\boxed{{{answer}}}.'",
            note="with method=sft the teacher can write the responses: sft.responses=teacher",
        )
        raise in_set(error, set_of(prompt))
    return prompt.response


def no_thoughts_error(name: str, source: str, drawn: bool) -> DataError:
    """D304; `drawn` for rows that are procedural diagrams."""
    column = thoughts.get(source).column or "thoughts"
    return DataError(
        "D304",
        f"{name} needs visual thoughts, and no row has any",
        why=f"views.thought={source} takes them from the column data.columns.{column};"
        "\nwithout them the teacher's prompt would differ from the student's in two sentences only",
        fix="data.diagrams.options.thoughts=true" if drawn else f"data.columns.{column}=COLUMN",
        note="to draw them from boxes: data.columns.boxes=COLUMN views.thought=crop"
        if source == "data" and not drawn
        else "",
    )
