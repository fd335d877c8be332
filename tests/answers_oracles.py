"""Compare our verdicts with those of other packages, which `make oracles` has committed.

`python tests/answers_oracles.py docs/answers.md` renews the tables of the page.
"""

import hashlib
import json
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from answers_official import BENCHMARKS, listed, read
from oracle_kinds import KINDS, Case, Kind, kind_of

from vistill import judge
from vistill.answers import Verdict

REPO = Path(__file__).parent.parent
SHARED = REPO.parent / "shared"
RESULTS = REPO / "benchmarks" / "results" / "oracles.json"
PAGE = REPO / "docs" / "answers.md"
REPLIES = SHARED / "data" / "official_replies"
PAIRS = {
    "pairs": REPO / "tests" / "answers" / "pairs.jsonl",
    "cases": SHARED / "cases" / "answer_pairs.jsonl",
}
BEGIN = "<!-- oracles: make oracles -->"
END = "<!-- end of oracles -->"
#: Who is right where `auto` differs from the official verdict and the page does not list it.
UNKNOWN = "not listed"


@dataclass(frozen=True)
class Answered:
    """One question that an oracle was asked, and both verdicts."""

    source: str
    """`mathvision`, `blink`, `mmmu`, `pairs` or `cases`."""
    key: str
    oracle: str
    case: Case
    reference: bool
    """The official verdict, or what the pair expects."""
    right: str
    """Who is right where the oracle and `auto` differ."""

    @property
    def agrees(self) -> bool:
        """Whether both verdicts are the same."""
        return self.case.ours.correct == self.case.accepts

    @property
    def kind(self) -> Kind | None:
        """The kind of the disagreement; None without explanation."""
        return kind_of(self.oracle, self.case)


def key_of_pair(pair: dict) -> str:
    """The name of a pair in the file, as in benchmarks/oracles.py: a hash of what it asks."""
    text = json.dumps([pair["reply"], pair["gold"], pair["choices"], pair.get("checker")])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def rows_by_source() -> dict[str, list[dict]]:
    """All questions: the real replies, our pairs, the reviewers' pairs."""
    rows = {source: read(REPLIES, source) for source in BENCHMARKS}
    for source, path in PAIRS.items():
        rows[source] = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return rows


def states_of(results: dict, source: str, row: dict) -> str | None:
    """The states of all oracles on a question; None if it was not asked."""
    if source in PAIRS:
        return results["pairs"][source].get(key_of_pair(row))
    return results["replies"][source].get(row["model"], {}).get(row["id"])


def not_asked(results: dict, rows: dict[str, list[dict]]) -> int:
    """How many questions are not in the committed file."""
    return sum(states_of(results, s, row) is None for s, every in rows.items() for row in every)


def our_verdict(source: str, row: dict) -> Verdict:
    """The verdict of `auto`, or of the pair's checker."""
    if source in PAIRS:
        checker = row.get("checker", "auto")
        return judge(row["reply"], row["gold"], row["choices"], checker, row["take"])
    return judge(row["reply"], row["gold"], row["choices"])


def right_of(source: str, row: dict, ours: Verdict, page: dict) -> str:
    """Who is right where an oracle differs.

    `auto` where the official verdict, or what the pair expects, is the same; else what the page's
    list of official disagreements says, where `official` means the oracle.
    """
    if source in PAIRS:
        return "`auto`" if ours.correct == row["correct"] else "oracle"
    if ours.correct == row["official_correct"]:
        return "`auto`"
    right = page.get((source, row["id"], row["model"]), UNKNOWN)
    return "oracle" if right == "official" else right


def compare(results: dict, rows: dict[str, list[dict]], page: str) -> list[Answered]:
    """What the oracles and our checkers say to every question that an oracle was asked."""
    rights = listed(page)
    answered = []
    for source, every in rows.items():
        for row in every:
            ours = our_verdict(source, row)
            right = right_of(source, row, ours, rights)
            reference = row["correct" if source in PAIRS else "official_correct"]
            key = key_of_pair(row) if source in PAIRS else f"{row['id']}/{row['model']}"
            states = states_of(results, source, row) or ""
            answered += [
                Answered(source, key, oracle, Case(row, ours, state), reference, right)
                for oracle, state in zip(results["oracles"], states, strict=bool(states))
                if state != "-"
            ]
    return answered


def share(part: int, whole: int) -> str:
    """A share in percent."""
    return f"{100 * part / whole:.2f} %" if whole else "-"


def is_reply(answered: Answered) -> bool:
    """Whether the question is a real reply."""
    return answered.source in BENCHMARKS


def agreement_table(answered: list[Answered], results: dict) -> list[str]:
    """One row per oracle: agreement with `auto`, and of both with the official verdict."""
    rows = [
        "| oracle | function | replies | agrees with `auto` | oracle and official | `auto` and"
        " official | pairs | agrees |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for oracle, function in results["oracles"].items():
        asked = [a for a in answered if a.oracle == oracle]
        replies = [a for a in asked if is_reply(a)]
        pairs = [a for a in asked if not is_reply(a)]
        cells = [
            oracle,
            function,
            f"{len(replies):,}",
            share(sum(a.agrees for a in replies), len(replies)),
            share(sum(a.case.accepts == a.reference for a in replies), len(replies)),
            share(sum(a.case.ours.correct == a.reference for a in replies), len(replies)),
            f"{len(pairs):,}",
            share(sum(a.agrees for a in pairs), len(pairs)),
        ]
        rows.append("| " + " | ".join(cells) + " |")
    return rows


def kind_table(answered: list[Answered]) -> list[str]:
    """One row per kind: what the oracle does, how often, and who is right."""
    rows = ["| kind | the oracle | replies | pairs | right |", "|---|---|---|---|---|"]
    differing = [a for a in answered if not a.agrees]
    for kind in KINDS:
        of_kind = [a for a in differing if a.kind is kind]
        if not of_kind:
            continue
        replies = sum(is_reply(a) for a in of_kind)
        rights = Counter(a.right for a in of_kind)
        right = ", ".join(f"{who} {count:,}" for who, count in sorted(rights.items()))
        rows.append(
            f"| {kind.name} | `{kind.oracle}` {kind.reason} | {replies:,}"
            f" | {len(of_kind) - replies:,} | {right} |"
        )
    return rows


def unexplained(answered: list[Answered]) -> list[tuple[str, str, str]]:
    """Disagreements without a kind, or without a decision who is right."""
    open_ones = [a for a in answered if not a.agrees and (a.kind is None or a.right == UNKNOWN)]
    return [(a.oracle, a.source, a.key) for a in open_ones]


def tables(answered: list[Answered], results: dict) -> str:
    """The tables for the page."""
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    differing = sum(not a.agrees for a in answered)
    lines = [
        f"Asked on {results['date']} ({versions}).",
        "",
        *agreement_table(answered, results),
        "",
        f"Disagreements: {differing:,}; without explanation: {len(unexplained(answered))}.",
        "",
        *kind_table(answered),
    ]
    return "\n".join(lines)


def shown(page: str) -> str:
    """What the page shows between its marks."""
    return page.partition(BEGIN)[2].partition(END)[0].strip()


def main(path: str) -> None:
    """Renew the tables of the page."""
    page = Path(path).read_text(encoding="utf-8")
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    answered = compare(results, rows_by_source(), page)
    if rest := unexplained(answered):
        sys.exit("\n".join(map(str, [*rest, f"{len(rest)} disagreements without explanation"])))
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    text = f"{before}{BEGIN}\n\n{tables(answered, results)}\n\n{END}{after}"
    Path(path).write_text(text, encoding="utf-8")
    print(tables(answered, results))


if __name__ == "__main__":
    main(sys.argv[1])
