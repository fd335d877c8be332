"""What `vistill init` reads off gold answers: the checker, and the sentence that asks for one."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistill.answers.checkers.maze import is_maze
from vistill.answers.checkers.yes_no import GOLD
from vistill.data.gold import gold_texts
from vistill.data.option_indices import IndexCounts
from vistill.data.rows import PEOPLE
from vistill.errors import DataError

Row = Mapping[str, Any]

#: Checkers of benchmarks that a path or a column names: the letters and digits of the name.
NAMED = {
    "chartqa": "relaxed",
    "plotqa": "relaxed",
    "docvqa": "anls",
    "infographicvqa": "anls",
    "infovqa": "anls",
    "ocrbench": "contains",
}
#: Relatives of these benchmarks with rules of their own.
OTHERS = ("chartqapro", "ocrbenchv2")
#: Columns that say where a row comes from.
ORIGINS = ("source", "dataset", "dataset_name", "data_source", "benchmark")
#: The verb that begins a question with the answer yes or no.
ASKS_YES_NO = re.compile(
    r"\byes or no\b|\byes/no\b|(?:^|[.,:;!?]\s*)(?:and |or |then )?(?:is|are|was|were|do|does|did"
    r"|has|have|had|can|could|will|would|should|may|might|whether)\b",
    re.IGNORECASE,
)
#: Words of a question that say in which form the answer is wanted.
INSTRUCTED = re.compile(
    r"\\boxed|<answer>|\bfinal answer\b|\baction plan\b|\bcurly brackets?\b|\boption'?s? letter\b"
    r"|\banswer (?:the question |this question |it )?"
    r"(?:with|by|only|directly|in (?:one|a single|the form)|using (?:a single|one|only)|yes\b)"
    r"|\b(?:yes or no|yes/no)\b|\b(?:only|just) (?:the|a) (?:letter|number|option|word)\b"
    r"|\b(?:output|reply|respond)\b.{0,20}\b(?:only|letter|number|answer)\b",
    re.IGNORECASE,
)
BOXED = r"\boxed{{}}"  # braces of a template are doubled
INSTRUCTIONS = {
    "choice": f"Put the letter of the right option in {BOXED}.",
    "mixed": f"Put the final answer in {BOXED}. If there are options, put the letter there.",
    "auto": f"Put the final answer in {BOXED}.",
    "relaxed": f"Put the final answer in {BOXED}.",
    "yes_no": f"Answer with yes or no in {BOXED}.",
    "vqa": "Answer the question using a single word or phrase.",
    "anls": "Answer the question using a single word or phrase.",
    "contains": "",
    "maze": f"Put the moves, such as L,R,U,D, in {BOXED}.",
}


@dataclass(frozen=True)
class AnswerFacts:
    """How the rows of a source are judged, and how they ask for an answer."""

    checker: str = "auto"
    checker_note: str = ""
    """Why this checker, for the user."""
    instruction: str = ""
    """The sentence behind the question, with the braces of a template; empty for none."""
    instruction_note: str = ""
    """What the instruction is, or why there is none."""


@dataclass(frozen=True)
class AskedRow:
    """What decides about the checker of a row."""

    question: str
    gold: Any
    """The cell of the gold answer."""
    choices: tuple[str, ...]

    @property
    def texts(self) -> list[str]:
        """The accepted forms, repeats included; none where the cell cannot be read."""
        try:
            return gold_texts(self.gold, "")
        except DataError:
            return []


def answer_facts(source: str, rows: Sequence[Row], asked: Sequence[AskedRow]) -> AnswerFacts:
    """The checker and the instruction for the rows of a source.

    Args:
        source: as the recipe names it.
        rows: as they are stored.
        asked: their questions, gold answers and options.
    """
    answered = [row for row in asked if row.texts]
    if not answered:
        return AnswerFacts()
    checker, note = checker_for(answered, names_of(source, rows))
    kind = checker
    if checker == "auto":
        lettered = sum(bool(row.choices) or is_letter(row.texts[0]) for row in answered)
        kind = "choice" if lettered == len(answered) else "mixed" if lettered else "auto"
    sentence = INSTRUCTIONS[kind]
    instructed = sum(INSTRUCTED.search(row.question) is not None for row in answered)
    if not sentence:
        about = "none: the gold answer counts anywhere in a reply"
    elif 2 * instructed > len(answered):
        sentence, about = (
            "",
            f"none added: {instructed} of {len(answered)} questions have their own",
        )
    else:
        about = sentence.replace("{{}}", "{}")
        own = f"; {instructed} of {len(answered)} questions have their own" if instructed else ""
        about = f"{about}   (added to data.template{own})"
    return AnswerFacts(checker, note, sentence, about)


def checker_for(rows: Sequence[AskedRow], names: Sequence[str]) -> tuple[str, str]:
    """The checker of answered rows, and why: a special one only where it is clearly right."""
    count = len(rows)
    with_options = sum(bool(row.choices) for row in rows)
    if with_options:
        return "auto", f"{with_options} of {count} rows have options; each row is judged by its own"
    if all(is_maze_gold(row.gold) for row in rows):
        return "maze", "the gold answers are mazes, through which it walks the plan of a reply"
    named = next((key for name in names for key in NAMED if key in name), "")
    if named and not any(other in name for name in names for other in OTHERS):
        return NAMED[named], f"the data are named {named}, and this is its rule"
    if 2 * sum(len(row.texts) >= PEOPLE for row in rows) > count:
        return "vqa", (
            f"{PEOPLE} people answered each question, and 3 equal answers give the full score"
        )
    yes_no = why_yes_no(rows)
    if yes_no:
        return "yes_no", yes_no
    several = sum(len(set(row.texts)) > 1 for row in rows)
    any_of = f"; {several} of {count} rows have several gold answers, any of them is right"
    return "auto", "by row: a letter, a number, a formula or words" + (any_of if several else "")


def why_yes_no(rows: Sequence[AskedRow]) -> str:
    """Why the gold answers are yes or no; empty if they are not.

    `1` and `0` are only if most questions ask yes or no.
    """
    words = {text.strip().casefold() for row in rows for text in row.texts}
    if words <= {"yes", "no"}:
        return "the gold answers are yes and no"
    questions = sum(ASKS_YES_NO.search(row.question) is not None for row in rows)
    if not words <= {*GOLD} or 2 * questions <= len(rows):
        return ""
    shown = " and ".join(sorted(words)[:4])
    return f"the gold answers are {shown}, and {questions} of {len(rows)} questions ask yes or no"


def is_letter(gold: str) -> bool:
    """Whether a gold answer without options is the letter of an option."""
    return re.fullmatch(r"\(?[A-H]\)?", gold.strip()) is not None


def is_maze_gold(gold: Any) -> bool:
    """Whether a cell holds a maze: its rows as a list, or as one text."""
    if isinstance(gold, str):
        gold = gold.replace("/", "\n").split("\n")
    return isinstance(gold, list) and is_maze(gold)


def names_of(source: str, rows: Sequence[Row]) -> list[str]:
    """Names of a source in letters and digits: of file, folder, and in the rows themselves."""
    path = Path(source)
    names = {path.stem.lower(), path.parent.name.lower()}
    for column in ORIGINS:
        values = {row.get(column) for row in rows if isinstance(row.get(column), str)}
        names |= {str(value).lower() for value in values} if len(values) <= 20 else set()
    return sorted(re.sub(r"[^a-z0-9]", "", name) for name in names)


def template_for(columns: Mapping[str, str], rows: Sequence[AskedRow]) -> tuple[str, list[str]]:
    """The question's wording, and why: choices are added unless the questions hold them already.

    Where the gold answers are letters, a question must show the letters too.
    """
    if "choices" not in columns:
        return "{prompt}", []
    asked = [row for row in rows if row.choices]
    lettered = sum(bool(row.texts) and is_letter(row.texts[0]) for row in asked)
    needs_letters = 2 * lettered > len(asked)
    inside = sum(shows_options(row, needs_letters) for row in asked)
    if 2 * inside > len(asked):
        return "{prompt}", ["template  {prompt}: the questions list their choices already"]
    return "{prompt}\n{choices}", [
        "template  {prompt}\\n{choices}: the choices are listed below the question"
    ]


def shows_options(row: AskedRow, needs_letters: bool) -> bool:
    """Whether a question lists its options, with their letters where those are the answer."""
    if not all(option.strip() in row.question for option in row.choices):
        return False
    letters = (chr(ord("A") + i) for i in range(len(row.choices)))
    marks = (re.search(rf"\b{letter}\s?[).:]|\({letter}\)", row.question) for letter in letters)
    return not needs_letters or all(marks)


def index_base(asked: Sequence[AskedRow]) -> tuple[int, list[str]]:
    """The index of the first option, and a note where it is 1 or uncertain."""
    counts = IndexCounts()
    for row in asked:
        counts.add(row.gold, row.choices, "")
    if counts.base() == 1:
        reason = f"none is 0, and {counts.ends} equal the number of options"
        return 1, [f"data.index_base  1: gold answers count the options from 1 ({reason})"]
    note = counts.note(0)
    return 0, [note] if note else []
