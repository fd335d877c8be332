"""What a benchmark is: where its rows come from, its prompts, its rules and its metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vistill.answers.extract import Take
from vistill.answers.judge import Question, verdict_of
from vistill.answers.math_process import MathJudge
from vistill.answers.verdict import Verdict


@dataclass(frozen=True)
class BenchmarkRow:
    """One question of a benchmark."""

    id: str
    question: str
    """As published; placeholders such as `<image1>` are kept."""
    images: tuple[Any, ...] = ()
    """Paths or encoded pictures, as stored; None is an empty place of a numbered placeholder."""
    answer: str | tuple[str, ...] = ""
    """The gold answer; several texts if any of them is right."""
    choices: tuple[str, ...] = ()
    group: str = ""
    """Rows that are scored or resampled together, such as the versions of one problem."""
    facts: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Categories, and what prompt and metric need to know."""

    @property
    def cluster(self) -> str:
        """What the bootstrap draws: the group, or the row itself."""
        return self.group or self.id


@dataclass(frozen=True)
class ScoredReply:
    """The verdict on one reply to one row."""

    row: BenchmarkRow
    sample: int
    """Index among the samples of the row."""
    credit: Mapping[str, float]
    """By rule: 1 for a correct answer, 0 for a wrong one, a part where the metric gives parts."""
    unparsed: bool = False
    truncated: bool = False
    tokens: int = 0
    extracted: str | None = None
    """The answer that the first rule read."""
    form: str | None = ""
    """Its normal form, such as the letter of an option; None if nothing read an answer."""

    @property
    def main(self) -> float:
        """The credit by the first rule of the benchmark."""
        return next(iter(self.credit.values()))


@dataclass(frozen=True)
class Unit:
    """What a metric averages: a row, a group of rows, a figure; once per sample."""

    key: str
    """Equal for the samples of one unit: different keys are the denominator."""
    cluster: str
    """Units of one cluster are resampled together."""
    value: float


Units = dict[str, list[Unit]]
"""By metric: its units. The value of a metric is their mean."""
Rule = Callable[[str, BenchmarkRow, Take, MathJudge], Verdict]
"""The verdict on a reply to a row."""


def by_checker(name: str) -> Rule:
    """The rule that is one of the checkers (`vistill list checkers`)."""

    def judge(reply: str, row: BenchmarkRow, take: Take, math: MathJudge) -> Verdict:
        return verdict_of(name, reply, row.answer, Question(row.choices, take), math)

    return judge


def accuracy(replies: Sequence[ScoredReply]) -> Units:
    """`accuracy`: the mean over rows and samples (avg@k)."""
    return {"accuracy": row_units(replies)}


def accuracy_and_official(replies: Sequence[ScoredReply]) -> Units:
    """`accuracy` by the rule `auto`, and by the authors' rule (`official`)."""
    return {"accuracy": row_units(replies, "auto"), "official": row_units(replies, "official")}


def row_units(replies: Sequence[ScoredReply], rule: str = "") -> list[Unit]:
    """One unit per reply, by a rule; by default the first one."""
    return [
        Unit(reply.row.id, reply.row.cluster, reply.credit[rule] if rule else reply.main)
        for reply in replies
    ]


def units_by_fact(replies: Sequence[ScoredReply], fact: str) -> Units:
    """The rows of each value of a fact, by the first rule."""
    parts: dict[str, list[ScoredReply]] = {}
    for reply in replies:
        parts.setdefault(reply.row.facts.get(fact, ""), []).append(reply)
    return {name: row_units(part) for name, part in sorted(parts.items()) if name}


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: rows, prompts, rules, metrics, and what is known about its source."""

    name: str
    title: str
    rows: int
    """Rows of the whole benchmark, as its metric uses them."""
    hub: str
    """`owner/name[split]`, or `owner/name:config[split]`; empty if the hub has no copy."""
    from_hub: Callable[[Mapping[str, Any]], BenchmarkRow]
    """A row in the columns of the hub's data set."""
    prompt: Callable[[BenchmarkRow, str], str]
    """The question as a protocol words it."""
    rules: Mapping[str, Rule]
    """The first one decides; the others are reported too."""
    licence: str
    source: str
    """The paper, and what the rule was checked with."""
    from_folder: Callable[[Mapping[str, Any]], BenchmarkRow] | None = None
    """A row in the form of `FOLDER/NAME/data.jsonl`; by default `read_plain_row`."""
    score: Callable[[Sequence[ScoredReply]], Units] = accuracy
    means: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Metrics that are the mean of others."""
    headline: str = "accuracy"
    """The metric that stands for the benchmark."""
    categories: tuple[str, ...] = ()
    """Facts of a row by which the accuracy is split."""
    configs: tuple[str, ...] = ()
    """What `*` in `hub` stands for, if its rows are in several configs."""
    paper_rows: Mapping[str, int] = field(default_factory=dict)
    """By protocol: rows of the paper's own part of the benchmark."""
    is_asked: Callable[[BenchmarkRow], bool] = lambda row: True
    """Whether a row of the source belongs to the benchmark; others are left out."""
    is_counted: Callable[[BenchmarkRow], bool] = lambda row: True
    """Whether a row is one of `rows`; others are asked and reported apart."""
    has_no_picture: Callable[[BenchmarkRow], bool] = lambda row: False
    """Whether the benchmark itself has a row without a picture; any other such row is unusable."""
    asks_in_pictures: bool = False
    """Whether the picture of a row may hold its question."""
    note: str = ""
    """What a reader of the numbers must know."""
    may_train: bool = False
    """Whether it is part of a training set, so that its licence allows training."""

    @property
    def hub_sources(self) -> list[str]:
        """The sources of the hub, as `data.train` names them."""
        names = [self.hub.replace("*", one) for one in self.configs] or [self.hub]
        return [f"hf:{name}" for name in names if name]

    def read_row(self, raw: Mapping[str, Any]) -> BenchmarkRow:
        """A row of a file: in our form if it has `extra`, else in the columns of the hub."""
        if "extra" not in raw:
            return self.from_hub(raw)
        return (self.from_folder or read_plain_row)(raw)


def read_plain_row(raw: Mapping[str, Any]) -> BenchmarkRow:
    """A row in our form: id, images, question, answer, choices, group, extra."""
    extra = raw.get("extra") or {}
    facts = {name: str(value) for name, value in extra.items() if isinstance(value, str | int)}
    answer = raw["answer"]
    golds = tuple(map(str, answer)) if isinstance(answer, list) else str(answer)
    return BenchmarkRow(
        id=str(raw["id"]),
        question=str(raw["question"]),
        images=tuple(raw.get("images") or ()),
        answer=golds,
        choices=tuple(map(str, raw.get("choices") or ())),
        group=str(raw.get("group") or ""),
        facts=facts,
    )
