"""Compare the verdicts of `auto` with those of the benchmarks on real replies."""

import json
import random
import re
from collections import defaultdict
from pathlib import Path

from vistill import judge

BENCHMARKS = ("mathvision", "blink", "mmmu")


def read(folder: Path, name: str):
    """The replies of a benchmark."""
    return [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]


def listed(page):
    """The disagreements that a page lists: (benchmark, id, model) -> who is right."""
    pattern = (
        r"^\| (mathvision|blink|mmmu) \| (\S+) \| (.+?) \| (?:correct|wrong) \| .* \| (.+?) \|$"
    )
    return {m.group(1, 2, 3): m.group(4) for m in re.finditer(pattern, page, re.MULTILINE)}


def verdict(row, gold=None):
    """The verdict of `auto` on a reply; the last commitment counts."""
    return judge(row["reply"], row["gold"] if gold is None else gold, row["choices"])


def disagreements(rows):
    """Rows on which the verdicts differ, with ours."""
    pairs = [(row, verdict(row)) for row in rows]
    return [(row, v) for row, v in pairs if v.correct != row["official_correct"]]


def plain(text):
    """For equality of official answers and gold answers."""
    return str(text).strip().casefold().replace("$", "").replace(" ", "").strip("().")


def official_equals(row, gold):
    """Whether the official answer equals a gold answer: its letter, its text, or its option."""
    golds = gold if isinstance(gold, list) else [gold]
    answers = row["official_answer"]
    answers = answers if isinstance(answers, list) else [answers]
    if row["benchmark"] == "blink":  # `(B) the third image`
        answers = [str(a)[:3] for a in answers]
    shown = {plain(g) for g in golds}
    for g in golds:
        index = ord(g[0]) - ord("A") if len(g) == 1 and g.isalpha() else -1
        if row["benchmark"] == "mathvision" and 0 <= index < len(row["choices"]):
            shown.add(plain(row["choices"][index]))
    return any(plain(a) in shown for a in answers)


#: What carries no meaning in an official string of MathVision, such as `bfd\\40` for `(D) 40°`.
NO_MEANING = re.compile(
    r"\.theansweris.*|\\(?:text|textbf|mathrm|left|right|cdot)(?![a-z])|^bf(?=[a-e])|\^?\{?\\?circ\}?"
    r"|[\\{}()°~ ]|image(?=[a-e]$)|(?:inches|cm2|cm|km|degrees|m)$"
)


def without_signs(text):
    """An official string or option without wrappers, degree signs and units."""
    return re.sub(r"\^", "", NO_MEANING.sub("", plain(text)))


def official_names(row, gold):
    """Whether an official string names a gold answer: its letter, its text, or both together.

    Only MathVision's official strings have letter and text together, and signs without meaning.
    """
    if official_equals(row, gold) or row["benchmark"] != "mathvision":
        return official_equals(row, gold)
    index = ord(gold[0]) - ord("A") if len(gold) == 1 and gold.isalpha() else -1
    if not 0 <= index < len(row["choices"]):
        return False
    answer, text = without_signs(row["official_answer"]), without_signs(row["choices"][index])
    return bool(answer) and answer in (text, gold.casefold() + text, gold.casefold())


def shuffled_rates(rows, seed, equals=official_equals):
    """Shares accepted with golds shuffled within task and number of choices: ours, theirs."""
    groups = defaultdict(list)
    for row in rows:
        groups[row.get("task"), len(row["choices"])].append(row)
    ours = theirs = 0
    for group in groups.values():
        golds = [row["gold"] for row in group]
        random.Random(seed).shuffle(golds)
        for row, gold in zip(group, golds, strict=True):
            ours += verdict(row, gold).correct
            theirs += equals(row, gold)
    return ours / len(rows), theirs / len(rows)
