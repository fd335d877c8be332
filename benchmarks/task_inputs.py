"""Rows and replies for comparing scores of whole tasks with those of other programs.

Needs neither vistill nor a package, so both sides read exactly the same. Rows are those of the
real data where they are here, else made in the documented columns from a key. Replies are made
from a key too, in the forms in which models answer; no text of another set is stored.
"""

import hashlib
import json
import random
from pathlib import Path

SHARED = Path(__file__).parent.parent.parent / "shared"
LETTERS = "ABCDEFGH"
#: How a letter is given. `{}` is the letter, `{text}` the option.
FORMS = (
    "{}",
    "({})",
    "{}.",
    "The answer is ({}).",
    "The correct answer is {}.",
    "Answer: {}",
    "({}) {text}",
    "I compare the parts one by one.\nAnswer: {}",
    "I compare the parts one by one.\nSo the answer is ({}).",
)
REFUSAL = "I cannot tell from this picture."
REAL = {
    "wemath": "wemath",
    "mathverse": "mathverse",
    "hallusionbench": "annotations_hallusionbench",
    "ocrbench": "annotations_ocrbench",
    "mathvision_testmini": "mathvision_testmini",
    "blink_jigsaw": "blink_jigsaw",
    "vlms_are_blind": "vlms_are_blind",
}
MADE = ("mathvista", "blink", "chartqa", "vstar", "mmvp", "cv_bench", "mmstar", "visualpuzzles")
TASKS = (*REAL, *MADE)
BLINK = ("Counting", "Relative_Depth", "Spatial_Relation", "Art_Style", "IQ_Test")
COUNT = 120


def key(*parts):
    """A random generator of a key: the same on every machine."""
    return random.Random(":".join(map(str, parts)))


def inputs(name):
    """(row for vistill, document for the other program, reply) of a task, in order."""
    if name in REAL:
        path = SHARED / "data" / REAL[name] / "data.jsonl"
        raws = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        pairs = [(raw, DOCUMENTS[name](raw)) for raw in raws]
    else:
        rows = [MAKERS[name](i, key(name, i)) for i in range(COUNT)]
        pairs = [(row, row) for row in rows]
    return [(raw, document, reply_to(name, raw, document)) for raw, document in pairs]


def digest(triples):
    """A hash of everything that both sides read."""
    text = json.dumps([[document, reply] for _, document, reply in triples], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def reply_to(name, raw, document):
    """A reply by key: six in ten right, three wrong, one refused."""
    draw = key(name, raw.get("id") or json.dumps(document, sort_keys=True), "reply")
    kind = draw.random()
    if kind < 0.1:
        return REFUSAL
    return REPLIES.get(name, letter_reply)(raw, document, kind < 0.7, draw)


def letter_reply(raw, document, is_right, draw):
    """A letter in one of the forms."""
    options = options_of(document, raw)
    names = LETTERS[: len(options)]
    gold = gold_letter(document, raw)
    letter = gold if is_right else draw.choice([one for one in names if one != gold])
    return draw.choice(FORMS).format(letter, text=options[names.index(letter)])


def options_of(document, raw):
    """The options of a row."""
    return raw.get("choices") or document.get("choices") or document.get("options") or list("ABCD")


def gold_letter(document, raw):
    """The letter of the right option."""
    gold = document.get("answer") or document.get("label") or document.get("Correct Answer")
    return str(gold if gold else raw["answer"]).strip("() ").upper()


def yes_no_reply(raw, document, is_right, draw):
    """Yes or no, with a sentence."""
    is_yes = (document["gt_answer"] == "1") == is_right
    return draw.choice(["{}.", "{}, that is what the chart shows.", "{}"]).format(
        "Yes" if is_yes else "No"
    )


def text_reply(raw, document, is_right, draw):
    """The text that is read in a picture."""
    gold = document["answer"][0] if is_right else "zzz"
    return draw.choice(["{}", "It says {}.", "The text reads: {}"]).format(gold)


def value_reply(raw, document, is_right, draw):
    """A value or a letter in a box."""
    gold = str(document["answer"])
    if not is_right:
        is_letter = bool(document["options"])
        gold = draw.choice([c for c in "ABCDE" if c != gold]) if is_letter else "987654"
    return draw.choice(["\\boxed{{{}}}", "We count.\nThe final answer is \\boxed{{{}}}."]).format(
        gold
    )


def braced_reply(raw, document, is_right, draw):
    """What each prompt of VLMs-are-blind asks for."""
    gold, task = document["groundtruth"], document["task"].lower()
    if task.startswith("touching"):
        return gold if is_right else {"Yes": "No", "No": "Yes"}[gold]
    numbers = [int(n) + (not is_right) for n in gold.split(",")]
    if len(numbers) == 2:
        return "rows={{{}}} columns={{{}}}".format(*numbers)
    return draw.choice(["{{{}}}", "{}"]).format(numbers[0])


def number_reply(raw, document, is_right, draw):
    """A number near the gold one, or its word."""
    gold = document["answer"]
    if not gold.replace(".", "").isdigit():
        return gold if is_right else "purple"
    factor = draw.choice([1.0, 1.04, 0.96]) if is_right else draw.choice([1.1, 0.9, 2.0])
    return f"{float(gold) * factor:.4g}"


def mathverse_reply(raw, document, is_right, draw):
    """A letter in one of the forms, or a formula in a box, or a number as plain text."""
    gold = document["answer"]
    if document["question_type"] == "multi-choice" and gold in LETTERS:
        letter = gold if is_right else draw.choice([c for c in "ABCD" if c != gold])
        return draw.choice(FORMS[:6]).format(letter)
    value = gold.strip("$") if is_right else draw.choice(["987654", "-3.25"])
    return draw.choice(["\\boxed{{{}}}", "We add.\nThe final answer is $\\boxed{{{}}}$."]).format(
        value
    )


def mathvista_reply(raw, document, is_right, draw):
    """A letter, an option or a number; `stated` is what a model extracts from it."""
    choices = document["choices"]
    if choices:
        text = document["answer"]
        if not is_right:
            text = draw.choice([one for one in choices if one != text])
        letter = LETTERS[choices.index(text)]
        form = draw.choice(FORMS)
        document["stated"] = letter if "{text}" not in form else f"({letter}) {text}"
        return form.format(letter, text=text)
    gold, digits = document["answer"], int(document["precision"] or 0)
    if document["answer_type"] == "list":
        value = gold if is_right else "[1, 2]"
    else:
        number = float(gold) + (0 if is_right else draw.choice([1, -1, 10]))
        more = draw.choice([0, 0, 2]) if digits else 0  # more decimals than the question asks for
        value = f"{number + (10**-digits * 0.3 if more else 0):.{digits + more}f}"
    document["stated"] = value
    return draw.choice(["{}", "The answer is {}.", "We add.\nAnswer: {}", "\\boxed{{{}}}"]).format(
        value
    )


REPLIES = {
    "mathverse": mathverse_reply,
    "mathvista": mathvista_reply,
    "hallusionbench": yes_no_reply,
    "ocrbench": text_reply,
    "mathvision_testmini": value_reply,
    "vlms_are_blind": braced_reply,
    "chartqa": number_reply,
}


def wemath_document(raw):
    """A row of We-Math/We-Math."""
    extra = raw["extra"]
    return {"ID": extra["ID"], "key": extra["key"], "answer": raw["answer"]}


def mathverse_document(raw):
    """A row of AI4Math/MathVerse."""
    extra = raw["extra"]
    own = {"sample_index": raw["id"], "problem_version": extra["problem_version"]}
    kind = extra["question_type"].replace("_", "-")
    return {**own, "question_type": kind, "answer": raw["answer"]}


def hallusionbench_document(raw):
    """A row of lmms-lab/HallusionBench."""
    extra = raw["extra"]
    names = ("category", "subcategory", "visual_input", "set_id", "figure_id", "question_id")
    return {**{name: extra[name] for name in names}, "gt_answer": raw["answer"]}


def ocrbench_document(raw):
    """A row of echo840/OCRBench."""
    extra = raw["extra"]
    own = {"dataset": extra["dataset_name"], "question_type": extra["type"]}
    return {**own, "answer": extra["answers"]}


def mathvision_document(raw):
    """A row of MathLLMs/MathVision."""
    return {"id": raw["id"], "answer": raw["answer"], "options": raw["choices"] or []}


def blink_document(raw):
    """A row of BLINK-Benchmark/BLINK."""
    own = {"idx": raw["id"], "sub_task": "Jigsaw", "choices": raw["choices"]}
    return {**own, "answer": f"({raw['answer']})"}


def vlms_are_blind_document(raw):
    """A row of XAI/vlmsareblind."""
    return {"task": raw["extra"]["task"], "groundtruth": raw["answer"], "prompt": raw["question"]}


DOCUMENTS = {
    "wemath": wemath_document,
    "mathverse": mathverse_document,
    "hallusionbench": hallusionbench_document,
    "ocrbench": ocrbench_document,
    "mathvision_testmini": mathvision_document,
    "blink_jigsaw": blink_document,
    "vlms_are_blind": vlms_are_blind_document,
}


def made_mathvista(i, draw):
    """A row of MathVista: options, a whole number, one or two decimals, or a list."""
    kind = ("text", "integer", "float", "float", "list")[i % 5]
    choices = ["equal to", "less than", "3 cm", "none of these"] if kind == "text" else None
    answers = {
        "text": lambda: draw.choice(choices), "integer": lambda: str(draw.randint(2, 99)),
        "float": lambda: f"{draw.random() * 20 + 1:.{i % 5 - 1}f}",
        "list": lambda: f"[{draw.randint(3, 9)}, {draw.randint(10, 19)}]",
    }  # fmt: skip
    return {
        "pid": str(i), "question": "What is the value?", "decoded_image": "a.png", "unit": None,
        "query": "", "choices": choices, "precision": i % 5 - 1.0 if kind == "float" else None,
        "answer": answers[kind](), "answer_type": kind,
        "question_type": "multi_choice" if choices else "free_form",
        "metadata": {"split": "testmini", "source": "made", "task": "figure question answering"},
    }  # fmt: skip


def made_blink(i, draw):
    """A row of BLINK with two to four options."""
    options = ["the left one", "the right one", "both", "neither"][: 2 + i % 3]
    return {
        "idx": f"val_{i}", "sub_task": BLINK[i % len(BLINK)], "question": "Which one is nearer?",
        "choices": options, "prompt": "Which?", "image_1": "a.png",
        "answer": f"({draw.choice(LETTERS[: len(options)])})",
    }  # fmt: skip


def made_chartqa(i, draw):
    """A row of ChartQA: a number, a year or a word."""
    gold = draw.choice([str(draw.randint(3, 900)), f"{draw.random() * 50:.2f}", "blue", "Norway"])
    kind = draw.choice(["human_test", "augmented_test"])
    return {"question": f"What is value {i}?", "answer": gold, "type": kind, "image": "a.png"}


def made_vstar(i, draw):
    """A row of V* with four options."""
    text = "What colour is the cup?\n(A) red\n(B) blue\n(C) green\n(D) white"
    category = draw.choice(["direct_attributes", "relative_position"])
    label = draw.choice("ABCD")
    own = {"question_id": i, "text": text, "image": "a.png"}
    return {**own, "label": label, "category": category}


def made_mmvp(i, draw):
    """A row of MMVP; two rows in order are a pair."""
    first = key("mmvp pair", i // 2).choice("ab")
    gold = first if i % 2 == 0 else {"a": "b", "b": "a"}[first]
    return {
        "Index": i + 1, "Question": "Is the window open?", "Options": "(a) Open (b) Closed",
        "Correct Answer": f"({gold})", "image": "a.png", "options": ["Open", "Closed"],
    }  # fmt: skip


def made_cv_bench(i, draw):
    """A row of CV-Bench."""
    source, kind = (("ADE20K", "2D"), ("COCO", "2D"), ("Omni3D", "3D"))[i % 3]
    options = ["2", "3", "4", "5"]
    return {
        "idx": i, "type": kind, "task": "Count", "source": source, "question": "How many?",
        "choices": options, "prompt": "How many?", "answer": f"({draw.choice('ABCD')})",
        "image": "a.png",
    }  # fmt: skip


def made_mmstar(i, draw):
    """A row of MMStar."""
    area = i % 4
    question = "Which one?\nOptions: A: red, B: blue, C: green, D: grey"
    own = {"index": i, "question": question, "image": "a.png", "answer": draw.choice("ABCD")}
    return {**own, "category": f"c{area // 2}", "l2_category": f"l{area}"}


def made_visualpuzzles(i, draw):
    """A row of VisualPuzzles; every third has its options in the picture."""
    options = None if i % 3 == 0 else [f"form {n}{n}" for n in range(4)]
    own = {"id": i, "category": "Spatial", "question": "Which follows?", "image": "a.png"}
    return {**own, "options": options, "answer": draw.choice("ABCD")}


MAKERS = {
    "mathvista": made_mathvista,
    "blink": made_blink,
    "chartqa": made_chartqa,
    "vstar": made_vstar,
    "mmvp": made_mmvp,
    "cv_bench": made_cv_bench,
    "mmstar": made_mmstar,
    "visualpuzzles": made_visualpuzzles,
}
