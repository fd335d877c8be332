"""Which of several teachers each row has. Needs no torch, so `vistill check --fast` asks too."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from vistill.data.mixture import set_of
from vistill.errors import DataError, VistillError, quote_setting
from vistill.training.recipe import NamedTeacherSettings, rows_of_teacher
from vistill.types import Prompt


def row_key(prompt: Prompt) -> str:
    """What a row is matched by: its value of `data.columns.teacher`, else its data set."""
    return prompt.labels.get("teacher") or set_of(prompt)


@dataclass(frozen=True)
class TeacherRules:
    """The rules of `teachers:`."""

    teachers: Mapping[str, NamedTeacherSettings]
    is_python: bool = False
    """Whether the rows are prompts that are passed in: a fix names labels then."""

    def assign(self, prompts: Sequence[Prompt], part: str) -> dict[str, str]:
        """The teacher of each row by id (D310 for a row that has none).

        Args:
            prompts: the rows.
            part: `training` or `evaluation`, for the message.
        """
        takes = {
            key: name for name, one in self.teachers.items() for key in rows_of_teacher(name, one)
        }
        other = next((name for name, one in self.teachers.items() if one.others), "")
        names = {p.id: takes.get(row_key(p), other) for p in prompts}
        without = [p for p in prompts if not names[p.id]]
        if without:
            raise self.no_teacher_error(without, names, part)
        return names

    def no_teacher_error(
        self, rows: Sequence[Prompt], names: Mapping[str, str], part: str
    ) -> DataError:
        """D310; a teacher that has no row yet is proposed first."""
        total, keys, used = len(names), Counter(map(row_key, rows)), {*names.values()}
        first = next(
            (name for name in self.teachers if name not in used), next(iter(self.teachers))
        )
        named = ", ".join(
            f"{key!r:.40} ({count:,} rows)" if key else f"no value ({count:,} rows)"
            for key, count in keys.most_common(4)
        )
        known = "; ".join(
            f"{name}: {', '.join(rows_of_teacher(name, one)) or 'the others'}"
            for name, one in self.teachers.items()
        )
        fixes = [f"teachers.{first}.others=true"]
        fixes += ["eval.advantage=false"] if part == "evaluation" else []
        labelled = f'vistill.Prompt(..., labels={{"teacher": "{first}"}})'
        return DataError(
            "D310",
            f"{len(rows):,} of {total:,} {part} rows have no teacher",
            where=rows[0].labels.get("row", rows[0].id),
            why=f"their keys: {named}\nthe teachers take: {known}",
            fix=labelled if self.is_python else "   or   ".join(fixes),
            note="the key of a row is its value of data.columns.teacher, else its data set",
        )

    def check_used(self, names: Mapping[str, str], prompts: Sequence[Prompt]) -> None:
        """D311 for a teacher that no training row has."""
        used = Counter(names[p.id] for p in prompts)
        unused = [name for name in self.teachers if name not in used]
        if not unused:
            return
        keys = Counter(map(row_key, prompts))
        listed = ", ".join(f"{key or 'no value'} ({n:,})" for key, n in keys.most_common(6))
        raise DataError(
            "D311",
            f"no training row has the teacher {unused[0]}",
            why=f"it takes: {', '.join(rows_of_teacher(unused[0], self.teachers[unused[0]]))};"
            f" the rows have: {listed}",
            fix=f"leave {unused[0]} out of the teachers"
            if self.is_python
            else quote_setting(f"teachers.{unused[0]}", "null"),
            note=f"or name its rows: teachers.{unused[0]}.rows",
        )


def describe_teachers(names: Mapping[str, str], prompts: Sequence[Prompt]) -> str:
    """Training rows of each teacher, in words; empty without several teachers."""
    counts = Counter(names[p.id] for p in prompts if p.id in names)
    return ", ".join(f"{name} {count:,} rows" for name, count in sorted(counts.items()))


@contextmanager
def naming_teacher(role: str) -> Iterator[None]:
    """Name one of several teachers in an error that is raised inside, and in its fix."""
    try:
        yield
    except VistillError as error:
        if role != "teacher":
            name = role.removeprefix("teachers.")
            error.what = re.sub(
                r"\b(?:the )?teacher\b(?!\.)", f"teacher {name}", error.what, count=1
            )
            for part in ("what", "why", "fix"):
                named = re.sub(r"(?<![\w.])teacher(?=\.\w+)", role, getattr(error, part))
                setattr(error, part, named)
            error.note = error.note.replace("teacher.model=", "teachers=null")
            error.args = (error.render(),)
        raise
