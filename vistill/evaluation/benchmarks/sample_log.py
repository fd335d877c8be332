"""The log of the samples of one benchmark: a line of facts, then one line per response.

A start that asks other rows or more samples adds a line with the facts that changed.

Each line says everything that a rule needs, so `vistill rescore` judges it again without the rows.
"""

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistill.answers.verdict import Verdict
from vistill.errors import ConfigError, StorageError, quote_command, quote_setting
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow, ScoredReply
from vistill.runs.storage import append_line, read_lines
from vistill.types import Finish, Rollout

#: Kind and version of the file, in its first line.
KIND, VERSION = "vistill samples", 1
#: The key of a line about a sample that has no response.
FAILURE = "failure"
#: The key of the normal form of an answer, where it is not the answer itself.
FORM = "form"
#: Facts that may differ between two starts that continue one log.
NOT_COMPARED = ("model", "versions", "source", "title", "asked")


@dataclass(frozen=True)
class Sample:
    """One response with its verdicts, as the log has it."""

    row: BenchmarkRow
    content: str
    """Hash of question and pictures as they were asked."""
    mode: str
    sample: int
    pictures: tuple[str, ...]
    question: str
    response: str
    finish: str
    tokens: int
    seconds: float
    verdicts: Mapping[str, Mapping[str, Any]]
    signals: Mapping[str, float | None] | None = None
    """Means over the response's tokens in nats (`eval.signals`); None if they were not measured."""

    @property
    def key(self) -> tuple[str, str, int]:
        """Row, mode and sample: once in a log."""
        return self.row.id, self.mode, self.sample

    def to_dict(self) -> dict[str, Any]:
        """One line."""
        row = self.row
        signals = {} if self.signals is None else {"signals": dict(self.signals)}
        return {
            "row": row.id,
            "content": self.content,
            "mode": self.mode,
            "sample": self.sample,
            "group": row.group,
            "facts": dict(row.facts),
            "pictures": list(self.pictures),
            "question": self.question,
            "gold": list(row.answer) if isinstance(row.answer, tuple) else row.answer,
            "choices": list(row.choices),
            "response": self.response,
            "finish": self.finish,
            "tokens": self.tokens,
            "seconds": self.seconds,
            "verdicts": {rule: dict(verdict) for rule, verdict in self.verdicts.items()},
            **signals,
        }

    def scored(self) -> ScoredReply:
        """What metrics read of it."""
        credit = {
            rule: float(v["correct"]) if v.get("score") is None else float(v["score"])
            for rule, v in self.verdicts.items()
        }
        first = next(iter(self.verdicts.values()))
        is_cut = self.finish == Finish.LENGTH
        unparsed, extracted = bool(first["unparsed"]), first.get("extracted")
        form = first.get(FORM, extracted or "")
        own = self.row, self.sample, credit, unparsed, is_cut, self.tokens, extracted, form
        return ScoredReply(*own)


def verdict_dict(verdict: Verdict) -> dict[str, Any]:
    """A verdict as the log has it."""
    values = verdict.to_dict()
    kept = ("correct", "extracted", "rule", "reason", "unparsed", "checker", "score")
    own = {name: values[name] for name in kept if name in values}
    is_other = verdict.reply_form and verdict.reply_form != verdict.extracted
    return {**own, FORM: verdict.reply_form} if is_other else own


def new_sample(
    asked: tuple[BenchmarkRow, str, str],
    pictures: Sequence[str],
    mode: str,
    answered: tuple[Rollout, str, float],
    verdicts: Mapping[str, Verdict],
) -> Sample:
    """The sample of a response.

    Args:
        asked: row, content hash and text of the question.
        pictures: their hashes.
        mode: `greedy` or `sampled`.
        answered: tokens, text and seconds of the response.
        verdicts: by rule.
    """
    row, content, question = asked
    rollout, text, seconds = answered
    judged = {rule: verdict_dict(verdict) for rule, verdict in verdicts.items()}
    return Sample(
        row, content, mode, rollout.sibling, tuple(pictures), question, text, str(rollout.finish),
        len(rollout.ids), round(seconds, 4), judged,
    )  # fmt: skip


def sample_of(record: Mapping[str, Any]) -> Sample:
    """The sample of a line."""
    gold = record["gold"]
    row = BenchmarkRow(
        id=record["row"],
        question=record["question"],
        answer=tuple(gold) if isinstance(gold, list) else gold,
        choices=tuple(record["choices"]),
        group=record["group"],
        facts=record["facts"],
    )
    names = ("content", "mode", "sample", "response", "finish", "tokens", "seconds", "verdicts")
    values = {name: record[name] for name in names}
    pictures, question = tuple(record["pictures"]), record["question"]
    signals = record.get("signals")
    return Sample(row=row, pictures=pictures, question=question, signals=signals, **values)


def read_header(path: Path) -> dict[str, Any]:
    """The facts of a log: those of its first line, with what later lines of facts changed.

    Raises:
        StorageError: S605, the file is no log of this version.
    """
    check_log(path)
    header: dict[str, Any] = {}
    for record in read_lines(path):
        if "log" in record:
            header.update(record)
    return header


def check_log(path: Path) -> None:
    """S605 if the first line of a file is not that of a log of this version."""
    header = next(read_lines(path), {}) if path.is_file() else {}
    if header.get("log") != KIND or header.get("version") != VERSION:
        raise StorageError(
            "S605",
            f"{path.name} is no log of samples of version {VERSION}",
            where=str(path.parent),
            why="the first line of one names kind, version and benchmark",
            fix="name a log of samples: RUN/samples/TASK.PROTOCOL.jsonl",
        )


def read_samples(path: Path, rules: Collection[str] = ()) -> Iterator[Sample]:
    """The samples of a log, one at a time.

    Args:
        path: of the log.
        rules: whose verdicts will be read of each sample.

    Raises:
        StorageError: S605, the file is no log of this version, a line cannot be read, or it has no
            verdict of a rule, because the version that judged it did not have that rule.
    """
    check_log(path)
    for number, record in enumerate(read_lines(path), 1):
        if "log" in record or FAILURE in record:
            continue
        try:
            sample = sample_of(record)
        except (KeyError, TypeError) as error:
            raise StorageError(
                "S605",
                f"line {number} of {path.name} is no sample",
                where=str(path.parent),
                why=f"it changed after it was written: {error!r}",
                fix="remove the line; what is missing is asked again",
            ) from error
        check_verdicts(path, sample, rules)
        yield sample


def check_verdicts(path: Path, sample: Sample, rules: Collection[str]) -> None:
    """S605 for a sample without the verdict of a rule."""
    missing = [rule for rule in rules if rule not in sample.verdicts]
    if missing:
        raise StorageError(
            "S605",
            f"{path.name} has no verdict of the rule {missing[0]}",
            where=str(path.parent),
            why="another version of vistill judged it",
            fix=f"{quote_command('vistill', 'rescore', path)} --out judged-again",
        )


def open_log(path: Path, facts: Mapping[str, Any]) -> None:
    """Begin a log, or check that an existing one continues with these facts.

    A half-written last line, of a process that was killed, is removed.

    Raises:
        ConfigError: C203, the log has replies of another model or of other settings.
    """
    if not path.is_file() or not path.stat().st_size:
        append_line(path, {"log": KIND, "version": VERSION, **facts})
        return
    content = path.read_bytes()
    if not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)
        if not path.stat().st_size:
            append_line(path, {"log": KIND, "version": VERSION, **facts})
            return
    before = read_header(path)
    for name, value in facts.items():
        if name not in NOT_COMPARED and before.get(name) != value:
            why = f"{name} is {value!r:.80} now and was {before.get(name)!r:.80}"
            raise other_log_error(path, why)


def change_facts(path: Path, facts: Mapping[str, Any]) -> None:
    """Add a line with facts that differ from those of the log, if any does."""
    before = read_header(path)
    changed = {name: value for name, value in facts.items() if before.get(name) != value}
    if changed:
        append_line(path, {"log": KIND, "version": VERSION, **changed})


def other_log_error(path: Path, why: str) -> ConfigError:
    """C203."""
    run = path.parent.parent
    numbers = (f"{run}-{number}" for number in range(2, 1000))
    free = next(name for name in numbers if not Path(name).exists())
    return ConfigError(
        "C203",
        "the folder holds samples of another model, of other settings or of other rows",
        where=str(path),
        why=f"{why}; one score would mix both",
        fix=quote_setting("run", free),
    )
