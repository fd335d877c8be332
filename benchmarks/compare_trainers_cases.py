"""The mistakes made on purpose: what differs for each tool, and the patterns of a good message.

`names` and `explains` are explained in `compare_trainers_mistakes.py`.
"""

from dataclasses import dataclass, field

from compare_trainers_setup import RATE


@dataclass(frozen=True)
class Case:
    """The differences from a run without mistakes."""

    rows: str = "good"
    settings: dict = field(default_factory=dict)
    student: str = "student"
    teacher: str = "teacher"
    run: str = "run"
    earlier: dict | None = None
    """Settings of an earlier start that is stopped after step 4."""


@dataclass(frozen=True)
class Mistake:
    """One mistake, for each tool that can make it, and patterns for its message."""

    name: str
    names: str
    explains: str
    vistill: Case
    trl: Case | None
    hf: Case | None


def same_for_all(name, names, explains, case, hf=True):
    """Make a mistake that is the same for all tools."""
    return Mistake(name, names, explains, case, case, case if hf else None)


def bad_setting(name, names, explains, value, keys):
    """Make a bad value of one setting, under each tool's name for it."""
    cases = [Case(settings={key: value}) if key else None for key in keys]
    return Mistake(name, names, explains, *cases)


RATES = ("train.lr", "learning_rate", "learning_rate")
RANGE = r"at least|must be|has to be|should be|positive|non-negative|greater|>="
LR = r"\blr\b|learning.rate"
MISTAKES = (
    Mistake(
        "a column has another name",
        r"promt|\bprompt\b|input_id\b",
        r"columns|signature|did you mean|expected",
        Case(settings={"data.columns.prompt": "promt"}),
        Case(rows="misnamed"),
        Case(rows="misnamed"),
    ),
    same_for_all(
        "the data set is empty",
        r"data.?set|data\.train|num_samples",
        r"empty|at least one|positive",
        Case("empty"),
    ),
    same_for_all(
        "a row has an empty question",
        r"question|\bprompt\b|\brow\b|jsonl:\d|input_ids",
        r"empty|blank|at least",
        Case("blank"),
    ),
    same_for_all(
        "a picture's file is missing",
        r"gone\.png",
        r"missing|no such file|not exist|not found",
        Case("gone"),
        hf=False,
    ),
    same_for_all(
        "a picture's file is cut in half",
        r"cut\.png|jsonl:\d",
        r"truncated|cannot (be )?(decode|identif)|damaged|broken",
        Case("cut"),
        hf=False,
    ),
    same_for_all(
        "the path of the model is mistyped",
        r"studnt",
        r"no such (file|folder|director)|not (a valid|found|exist)|did you mean|correct path"
        r"|local (folder|path|dir)|must be in the form",
        Case(student="studnt"),
    ),
    same_for_all(
        "the teacher's tokenizer has as many, but other, words",
        r"teacher|tokenizer|vocabular",
        r"share|same|differ",
        Case(teacher="stranger"),
        hf=False,
    ),
    Mistake(
        "the learning rate is changed on resume",
        LR,
        r"accept|another|new (run|folder)|checkpoint|recipe",
        Case(settings={"train.lr": 10 * RATE}, earlier={}),
        Case(settings={"learning_rate": 10 * RATE}, earlier={}),
        Case(settings={"learning_rate": 10 * RATE}, earlier={}),
    ),
    bad_setting("the learning rate is negative", LR, RANGE, -RATE, RATES),
    bad_setting("the learning rate is not a number", LR, RANGE, float("nan"), RATES),
    bad_setting(
        "a setting is misspelt",
        r"\blrr\b|learning_rat\b",
        r"did you mean|known|\blearning_rate\b|\blr\b",
        RATE,
        ("train.lrr", "learning_rat", "learning_rat"),
    ),
    same_for_all(
        "a file stands where the output folder should be",
        r"occupied",
        r"exists|not a (folder|directory)|is a file|another folder",
        Case(run="occupied"),
    ),
    bad_setting(
        "the sampling temperature is negative",
        r"temperature",
        RANGE,
        -1.0,
        ("rollout.temperature", "temperature", None),
    ),
    same_for_all(
        "a row is longer than the model's positions",
        r"jsonl:\d|max_prompt_tokens|max_position_embeddings|n_positions|sequence length"
        r"|input_ids|\brow\b",
        r"longer|exceed|limit|at most",
        Case("long"),
    ),
    bad_setting(
        "responses may be longer than the model's positions",
        r"max_new_tokens|max_completion_length|max_position_embeddings",
        r"longer|exceed|limit|at most",
        20_000,
        ("rollout.max_new_tokens", "max_completion_length", None),
    ),
)
