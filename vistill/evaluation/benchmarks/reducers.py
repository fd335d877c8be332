"""Several samples of a question as one value: the mean, pass@k, the majority.

The mean is what every metric is. `pass@k` is unbiased: the chance that k of the n samples, drawn
without replacement, have a right one, 1 - C(n - c, k) / C(n, k) with c right samples (arXiv
2107.03374). `majority` takes the answer that most samples commit to; of answers with equally many
samples the one that came first. Answers are equal if their normal forms are, or their numbers.
"""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from vistill.answers.values import parse_value
from vistill.errors import ConfigError, closest, in_place_of
from vistill.evaluation.benchmarks.benchmark import Benchmark, ScoredReply, Unit
from vistill.evaluation.benchmarks.scores import score_units

MEAN, PASS, MAJORITY = "mean", "pass", "majority"
NAMES = (MEAN, "pass@k", MAJORITY)
PASS_AT = re.compile(r"pass@(k|[1-9][0-9]{0,5})")


@dataclass(frozen=True)
class Reducer:
    """What becomes of the samples of a question."""

    kind: str
    k: int | None = None
    """Of `pass@k`; None is the number of samples."""


def parse_reducers(text: str) -> list[str]:
    """The names of `--reduce mean,pass@4`."""
    return [name.strip() for name in text.split(",")] if text else []


def find_reducers(
    names: Sequence[str], samples: Mapping[str, int], fix: str = ""
) -> tuple[Reducer, ...]:
    """The reducers of names: `mean`, `pass@k` (or `pass@4`), `majority`; each once.

    Args:
        names: as given.
        samples: responses per question, by mode.
        fix: of too few samples, where none more are written; by default it asks for more.

    Raises:
        ConfigError: C105, a name is unknown; C101, k is larger than the number of samples, or
            nothing is sampled more than once.
    """
    most = max(samples.values(), default=1)
    reducers: dict[Reducer, None] = {}
    for name in names:
        match = PASS_AT.fullmatch(name)
        if match is None and name not in NAMES:
            near = next(iter(closest(name, NAMES)), MEAN)
            right = ",".join(dict.fromkeys(near if one == name else one for one in names))
            raise ConfigError(
                "C105",
                f"there is no reducer {name!r:.40}",
                why=f"reducers: {', '.join(NAMES)}; pass@4 gives k",
                fix=in_place_of(right, ",".join(names)),
            )
        k = None if match is None or match[1] == "k" else int(match[1])
        if name != MEAN and most < max(2, k or 0):
            raise ConfigError(
                "C101",
                f"--reduce {name} needs more samples than {most}",
                why="of one response per question nothing is to be reduced, and k of fewer than k"
                " cannot be drawn",
                fix=fix or f"--protocol va_opd --samples {max(2, k or 0)}",
            )
        reducers[Reducer(MEAN if name == MEAN else PASS if match else MAJORITY, k)] = None
    return tuple(reducers)


def reduced_scores(
    benchmark: Benchmark, replies: Sequence[ScoredReply], count: int, reducers: Sequence[Reducer]
) -> dict[str, dict[str, Any]]:
    """The scores of one mode by reducer, with k in the name: `pass@8`, `majority@8`.

    `pass@k` has one value per row (`rows`) by the rule that decides, over the rows that count.
    `majority` has every metric of the benchmark, on one reply per row; it is left out where a
    judge says whether a reply is right and not what it answers.

    Args:
        benchmark: its metrics.
        replies: of one mode.
        count: samples of each row.
        reducers: without effect for one sample.
    """
    by_row: dict[str, list[ScoredReply]] = {}
    for reply in replies:
        by_row.setdefault(reply.row.id, []).append(reply)
    reduced: dict[str, dict[str, Any]] = {}
    for reducer in reducers if count > 1 else ():
        k = reducer.k or count
        if reducer.kind == PASS and k <= count:
            counted = [part for part in by_row.values() if benchmark.is_counted(part[0].row)]
            units = [pass_unit(part, k) for part in counted if len(part) >= k]
            scores = score_units({"rows": units})
            reduced[f"pass@{k}"] = {name: score.to_dict() for name, score in scores.items()}
        elif reducer.kind == MAJORITY and not lacks_answers(replies):
            chosen = [majority(part) for part in by_row.values()]
            scores = score_units(benchmark.score(chosen), benchmark.means)
            reduced[f"majority@{count}"] = {name: s.to_dict() for name, s in scores.items()}
    return reduced


def lacks_answers(replies: Sequence[ScoredReply]) -> bool:
    """Whether a judge decided without an answer, so that there is nothing to count."""
    return any(reply.form is None for reply in replies)


def pass_unit(samples: Sequence[ScoredReply], k: int) -> Unit:
    """The unbiased pass@k of one row; a sample is right if the rule gives it full credit."""
    right = sum(reply.main >= 1 for reply in samples)
    return Unit(samples[0].row.id, samples[0].row.cluster, pass_at(len(samples), right, k))


def pass_at(n: int, right: int, k: int) -> float:
    """1 - C(n - right, k) / C(n, k)."""
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def majority(samples: Sequence[ScoredReply]) -> ScoredReply:
    """The first reply with the answer that most samples have, as sample 0.

    Replies that commit to nothing do not vote, unless all are such. Answers are compared in the
    normal form of the checker (`(B)` and `B. 40` are B) or as numbers with their units (`1/2` is
    0.5), without regard to case and white space.
    """
    ordered = sorted(samples, key=lambda reply: reply.sample)
    votes = [(answer_key(reply), reply) for reply in ordered]
    counts = Counter(key for key, _ in votes if key is not None)
    if not counts:
        return numbered(ordered[0])
    most = max(counts.values())
    return numbered(next(reply for key, reply in votes if key is not None and counts[key] == most))


def answer_key(reply: ScoredReply) -> str | None:
    """The answer of a reply as votes count it; None without one."""
    if reply.unparsed or reply.extracted is None:
        return None
    value = parse_value(reply.form or reply.extracted)
    text = value.form if value.number is None else f"{value.number} {value.unit}"
    return " ".join(text.split()).casefold()


def numbered(reply: ScoredReply) -> ScoredReply:
    """The reply as sample 0, so that the rows of a group belong together."""
    return replace(reply, sample=0)
