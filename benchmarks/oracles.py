"""Ask the answer checkers of other packages about real replies and about our pairs.

Runs in an environment of its own (`make oracles`), without vistill. Writes one character per
question and oracle to benchmarks/results/oracles.json, and no text of a reply:

1  correct
0  wrong
u  the oracle finds no answer in the reply (or guesses one)
g  it cannot read the gold answer
t  it reached its time limit or failed
-  not asked
"""

import datetime
import hashlib
import importlib.metadata
import json
import platform
import re
import signal
import sys
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

from oracles_imports import load, put_empty_modules

REPO = Path(__file__).parent.parent
SHARED = REPO.parent / "shared"
OUT = REPO / "benchmarks" / "results" / "oracles.json"
REPLIES = {
    name: SHARED / "data" / "official_replies" / f"{name}.jsonl"
    for name in ("mathvision", "blink", "mmmu")
}
PAIRS = {
    "pairs": REPO / "tests" / "answers" / "pairs.jsonl",
    "cases": SHARED / "cases" / "answer_pairs.jsonl",
}
PACKAGES = ("evalscope", "mathruler", "ms-vlmeval", "lmms_eval", "math-verify", "sympy")
SECONDS = 30

put_empty_modules()
evalscope = load("evalscope.metrics.math.parser")
mathruler = load("mathruler.grader")
matching = load("vlmeval.utils.matching_util")
multiple_choice = load("vlmeval.dataset.utils.multiple_choice")
vqa = load("vlmeval.dataset.utils.vqa_eval")
yorn = load("vlmeval.dataset.utils.yorn")
yorn.process_punctuation = load("vlmeval.smp.misc").process_punctuation
ocrbench = load("vlmeval.dataset.utils.ocrbench")
mmmu = load("lmms_eval.tasks.mmmu.utils")
# MMMU's parser picks an option at random where it finds none; here that is no answer.
load("lmms_eval.tasks._task_utils.mmmu_mcq_utils").random = SimpleNamespace(choice=lambda _: "")


class TimeLimitError(BaseException):
    """An oracle took too long."""


@contextmanager
def time_limit(seconds):
    """Raise in the main thread after some seconds of wall-clock time."""
    expired = []

    def stop(*_):
        expired.append(True)
        raise TimeLimitError

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
    if expired:  # a bare except of the oracle kept the error
        raise TimeLimitError


def gold_letter(row):
    """The gold letter of a question with options, or None."""
    gold = row["gold"]
    return gold if isinstance(gold, str) and re.fullmatch(r"[A-Z]", gold) else None


def options(row):
    """The options by letter; where the row shows none, A to D as BLINK's questions do."""
    texts = row["choices"] or [f"(shown) {c}" for c in "ABCD"]
    return {chr(ord("A") + i): str(text) for i, text in enumerate(texts)}


def ask_evalscope(reply, gold, row):
    """The state of `compare_answers`."""
    result = evalscope.compare_answers(
        reply, gold, prediction_mode="output", validate_reference=False
    )
    if result.matched:
        return "1"
    if not result.reference_valid:
        return "g"
    return "0" if result.prediction_valid else "u"


def ask_mathruler(reply, gold, row):
    """The state of `grade_answer` on the content of the last box, as its own `evaluate` does."""
    content = mathruler.extract_boxed_content(reply)
    if content == "None":
        return "u"
    return "1" if mathruler.grade_answer(content, gold) else "0"


def state_of_letter(letter, gold, none):
    """The state of an option letter."""
    return "u" if letter in none else "1" if letter == gold else "0"


def ask_can_infer(reply, gold, row):
    """The state of `can_infer`; `Z` is its sign for a refusal."""
    return state_of_letter(matching.can_infer(reply, options(row)), gold, (False, "Z"))


def ask_characters(reply, gold, row):
    """The state of `extract_characters_regex`."""
    return state_of_letter(multiple_choice.extract_characters_regex(reply), gold, ("",))


def ask_mmmu(reply, gold, row):
    """The state of MMMU's parsers and `evaluate`, in lmms-eval's copy."""
    letters = options(row)
    is_choice = gold_letter(row) is not None
    if is_choice:
        parsed = mmmu.parse_multi_choice_response(reply, list(letters), letters)
        if not parsed:
            return "u"
    else:
        parsed = mmmu.parse_open_response(reply)
    sample = {
        "id": "0",
        "answer": gold,
        "parsed_pred": [parsed],
        "question_type": "multiple-choice" if is_choice else "short-answer",
    }
    return "1" if mmmu.evaluate_mmmu([sample])[0]["0"] == "Correct" else "0"


def ask_yorn(reply, gold, row):
    """The state of `YOrN_Extraction`."""
    return state_of_letter(yorn.YOrN_Extraction(reply).lower(), gold.lower(), ("unknown",))


def ask_relaxed(reply, gold, row):
    """The state of ChartQA's `relaxed_correctness` on the whole reply, as `process_line` does."""
    return "1" if vqa.relaxed_correctness(gold, reply.strip()) else "0"


class OneRow:
    """A table with one row, as `OCRBench_eval` reads one."""

    def __init__(self, line):
        self.iloc = [line]

    def __len__(self):
        return 1


def ask_ocrbench(reply, gold, row):
    """The state of `OCRBench_eval` on a table with one row."""
    line = {"prediction": reply, "answer": repr([gold]), "category": "Doc-oriented VQA"}
    scores = []
    ocrbench.tqdm = list
    ocrbench.load = lambda _: OneRow(line)
    ocrbench.dump = lambda result, _: scores.append(result["Doc-oriented VQA"])
    ocrbench.OCRBench_eval("")
    return "1" if scores == [1] else "0"


def has_letter(row):
    """Whether the gold answer is an option letter."""
    return gold_letter(row) is not None


def has_value(row):
    """Whether the gold answer is a value: no options, and a digit or LaTeX in it."""
    return not has_letter(row) and not row["choices"] and re.search(r"[\d\\]", str(row["gold"]))


def asks_for_box(row):
    """Whether a box may be expected: not in BLINK and MMMU, whose replies have none."""
    return row.get("benchmark") not in ("blink", "mmmu") and not is_pair_of("contains")(row)


def is_pair_of(*names):
    """Whether the row is one of our pairs with one of these checkers."""
    return lambda row: row.get("checker") in names


#: Name -> (function, package and name of the function, questions that it is asked).
ORACLES = {
    "evalscope": (
        ask_evalscope,
        "evalscope: metrics.math.parser.compare_answers",
        lambda row: has_value(row) and not is_pair_of("contains")(row),
    ),
    "mathruler": (
        ask_mathruler,
        "mathruler: grader.extract_boxed_content, grade_answer",
        lambda row: (has_letter(row) or has_value(row)) and asks_for_box(row),
    ),
    "can_infer": (ask_can_infer, "ms-vlmeval: utils.matching_util.can_infer", has_letter),
    "characters": (
        ask_characters,
        "ms-vlmeval: dataset.utils.multiple_choice.extract_characters_regex",
        has_letter,
    ),
    "mmmu": (
        ask_mmmu,
        "lmms_eval: tasks.mmmu.utils.parse_multi_choice_response, parse_open_response, "
        "evaluate_mmmu",
        lambda row: (has_letter(row) or not row["choices"]) and not is_pair_of("contains")(row),
    ),
    "yorn": (
        ask_yorn,
        "ms-vlmeval: dataset.utils.yorn.YOrN_Extraction",
        lambda row: str(row["gold"]).lower() in ("yes", "no"),
    ),
    "relaxed": (
        ask_relaxed,
        "ms-vlmeval: dataset.utils.vqa_eval.relaxed_correctness",
        is_pair_of("relaxed"),
    ),
    "ocrbench": (
        ask_ocrbench,
        "ms-vlmeval: dataset.utils.ocrbench.OCRBench_eval",
        is_pair_of("contains"),
    ),
}


def ask(function, row, gold):
    """The state of one oracle for one gold answer."""
    try:
        with time_limit(SECONDS):
            return function(row["reply"], gold, row)
    except TimeLimitError:
        return "t"
    except Exception as error:  # noqa: BLE001  (an oracle's failure is a result)
        print(f"{function.__name__}: {type(error).__name__}: {error!s:.80}", file=sys.stderr)
        return "t"


def states(row):
    """One character per oracle; several gold answers mean any of them."""
    golds = row["gold"] if isinstance(row["gold"], list) else [row["gold"]]
    characters = ""
    for function, _, applies in ORACLES.values():
        if not applies(row):
            characters += "-"
            continue
        asked = [ask(function, row, str(gold)) for gold in golds]
        characters += next((s for s in "10ugt" if s in asked), "-")
    return characters


def key_of_pair(pair):
    """A short name of a pair: a hash of what it asks."""
    text = json.dumps([pair["reply"], pair["gold"], pair["choices"], pair.get("checker")])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def read(path):
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main():
    """Ask every oracle about every reply and pair, and write the file."""
    missing = [path for path in [*REPLIES.values(), *PAIRS.values()] if not path.is_file()]
    if missing:
        sys.exit(f"these files are missing: {', '.join(map(str, missing))}")
    replies = {}
    for name, path in REPLIES.items():
        models = replies.setdefault(name, {})
        for row in read(path):
            models.setdefault(row["model"], {})[row["id"]] = states(row)
        print(name, sum(map(len, models.values())), flush=True)
    pairs = {
        name: {key_of_pair(pair): states(pair) for pair in read(path)}
        for name, path in PAIRS.items()
    }
    result = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
        "oracles": {name: text for name, (_, text, _) in ORACLES.items()},
        "states": __doc__.strip().split("\n\n")[-1].splitlines(),
    }
    write(result, replies, pairs)


def write(result, replies, pairs):
    """Write the file, one line per model."""
    head = json.dumps(result, indent=1)[:-2]
    parts = [head + ',\n "replies": {']
    parts.append(
        ",\n".join(
            f'  "{name}": {{\n'
            + ",\n".join(f"   {json.dumps(m)}: {compact(ids)}" for m, ids in models.items())
            + "\n  }"
            for name, models in replies.items()
        )
    )
    parts.append(' },\n "pairs": {')
    parts.append(",\n".join(f'  "{name}": {compact(keys)}' for name, keys in pairs.items()))
    parts.append(" }\n}\n")
    OUT.write_text("\n".join(parts), encoding="utf-8")


def compact(mapping):
    """JSON without spaces."""
    return json.dumps(mapping, separators=(",", ":"))


if __name__ == "__main__":
    main()
