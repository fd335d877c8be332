"""Planted mistakes for `next_to_trainers.py`: the same mistake in each tool's own words, judged by one rule in code.

Every tool is used as its documentation shows: vistill by a recipe (`vistill train`), TRL by `DistillationConfig`, a
`Dataset` and `DistillationTrainer` with model folders, transformers by `from_pretrained`, `TrainingArguments` and
`Trainer`. Models and settings are those of `next_to_trainers.py`; data are eight rows with a question and a picture
(Trainer: the question's tokens). A tool that has no such thing (pictures, a teacher, sampling) is not asked.

How a try is judged, for all tools alike:

- It *stopped* where an exception ended it; only the text of that exception counts, not its type, not its traceback.
- `useful`: stopped before the first update (on resume: the first further update), its text *names* the culprit (the
  setting, column, file or row; `names` below) and *tells* what is wrong with it, what is allowed, or how to mend it
  (`tells`).
- `only_named`: the same, but it tells nothing more. The row `named` of the table counts both.
- `unnamed`: stopped before the first update, but the text does not even name the culprit.
- `warned`: not stopped before the first update, but a line of the console names the culprit (traceback left out, and
  lines that a run without mistakes prints too).
- `late`: stopped, whatever it said, but only after weights had been updated, and nothing had been said before. A bad row
  that is met in the middle of the training ends here; it is the sixth of eight for all, and each tool shuffles.
- `silent`: it went on, and no such line was printed. A run that is still going on after 60 seconds has gone on.

`names` and `tells` are patterns, case ignored; where a tool's own name of a setting differs, both are listed, and doubts
are decided for the tool (`num_samples=0` names an empty data set; "Repo id must be in the form ..." tells what is wrong
with a mistyped folder). Without a network a mistyped hub id reads differently from what it would online, so the mistyped
path is that of a folder. The first 400 characters of each text are stored beside the verdict.
"""

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass, field

from beside_trl import Processor
from datasets import Dataset, Image, Sequence
from next_to_trainers import (
    EPOCHS,
    PER_STEP,
    PROMPTS,
    RATE,
    TOKENS,
    Watch,
    arguments,
    carry_on,
    is_update,
    left_padded,
    small_gpt,
)
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForLanguageModeling,
    Trainer,
)
from transformers import TrainingArguments as Arguments
from transformers.utils.logging import disable_progress_bar
from trl import DistillationConfig, DistillationTrainer

from vistill.data.diagrams import diagram_prompts
from vistill.models.chat import load_images
from vistill.models.tiny import build_tiny, train_tokenizer
from vistill.studies.chaos import SIZE, Child
from vistill.studies.make_tiny_models import tiny_tokenizer
from vistill.studies.stages import run_stages

SECONDS = 60
BAD_ROW = 5


@dataclass(frozen=True)
class Case:
    """What differs from a run without mistakes."""

    rows: str = "good"
    settings: dict = field(default_factory=dict)
    student: str = "student"
    teacher: str = "teacher"
    run: str = "run"
    earlier: dict | None = None
    """Settings of an earlier start that was stopped after step 4."""


@dataclass(frozen=True)
class Mistake:
    """One mistake, for each tool that can make it, and what its message should say."""

    name: str
    names: str
    tells: str
    vistill: Case
    trl: Case | None
    hf: Case | None


def everywhere(name, names, tells, case, hf=True):
    """A mistake that is the same for all tools."""
    return Mistake(name, names, tells, case, case, case if hf else None)


def setting(name, names, tells, value, keys):
    """A bad value of one setting, under each tool's name for it."""
    made = [Case(settings={key: value}) if key else None for key in keys]
    return Mistake(name, names, tells, *made)


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
    everywhere(
        "the data set is empty",
        r"data.?set|data\.train|num_samples",
        r"empty|at least one|positive",
        Case("empty"),
    ),
    everywhere(
        "a row has an empty question",
        r"question|\bprompt\b|\brow\b|jsonl:\d|input_ids",
        r"empty|blank|at least",
        Case("blank"),
    ),
    everywhere(
        "a picture's file is missing",
        r"gone\.png",
        r"missing|no such file|not exist|not found",
        Case("gone"),
        hf=False,
    ),
    everywhere(
        "a picture's file is cut in half",
        r"cut\.png|jsonl:\d",
        r"truncated|cannot (be )?(decode|identif)|damaged|broken",
        Case("cut"),
        hf=False,
    ),
    everywhere(
        "the path of the model is mistyped",
        r"studnt",
        r"no such (file|folder|director)|not (a valid|found|exist)|did you mean|correct path|local (folder|path|dir)|must be in the form",
        Case(student="studnt"),
    ),
    everywhere(
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
    setting("the learning rate is negative", LR, RANGE, -RATE, RATES),
    setting("the learning rate is not a number", LR, RANGE, float("nan"), RATES),
    setting(
        "a setting is misspelt",
        r"\blrr\b|learning_rat\b",
        r"did you mean|known|\blearning_rate\b|\blr\b",
        RATE,
        ("train.lrr", "learning_rat", "learning_rat"),
    ),
    everywhere(
        "a file stands where the output folder should be",
        r"occupied",
        r"exists|not a (folder|directory)|is a file|another folder",
        Case(run="occupied"),
    ),
    setting(
        "the sampling temperature is negative",
        r"temperature",
        RANGE,
        -1.0,
        ("rollout.temperature", "temperature", None),
    ),
    everywhere(
        "a row is longer than the model's positions",
        r"jsonl:\d|max_prompt_tokens|max_position_embeddings|n_positions|sequence length|input_ids|\brow\b",
        r"longer|exceed|limit|at most",
        Case("long"),
    ),
    setting(
        "responses may be longer than the model's positions",
        r"max_new_tokens|max_completion_length|max_position_embeddings",
        r"longer|exceed|limit|at most",
        20_000,
        ("rollout.max_new_tokens", "max_completion_length", None),
    ),
)


def tokenizer_for(positions):
    """The demo's tokenizer, which knows how long its model's rows may be, as a released one does."""
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = positions
    return tokenizer


def lay_out(folder):
    """Models, pictures and a file in the way of a folder."""
    folder.mkdir(parents=True)
    tokenizer = tokenizer_for(8192)
    strange = train_tokenizer(
        ("".join(chr(97 + 7 * i % 26) for i in range(k, k + 5)) for k in range(9999)),
        len(tokenizer),
    )
    strange.model_max_length = 8192
    strange.add_tokens([f"<extra_{i}>" for i in range(len(tokenizer) - len(strange))])
    assert len(strange) == len(tokenizer)
    for seed, (name, words) in enumerate(
        [("student", tokenizer), ("teacher", tokenizer), ("stranger", strange)]
    ):
        vlm = build_tiny(SIZE, words, seed)
        vlm.model.save_pretrained(folder / name)
        vlm.tokenizer.save_pretrained(folder / name)
        vlm.family.processor.save_pretrained(folder / name)
    small_gpt(tokenizer).save_pretrained(folder / "hf" / "student")
    tokenizer_for(1024).save_pretrained(folder / "hf" / "student")
    (folder / "occupied").write_text("a file\n")
    for number, prompt in enumerate(diagram_prompts("train", PROMPTS, 0)):
        load_images(prompt)[0].save(folder / f"{number}.png")
    whole = (folder / f"{BAD_ROW}.png").read_bytes()
    (folder / "cut.png").write_bytes(whole[: len(whole) // 2])


def rows_of(folder, kind):
    """Questions and pictures, one of them spoilt."""
    prompts = diagram_prompts("train", PROMPTS, 0)
    rows = [
        {"question": p.text, "images": [f"{i}.png"], "answer": p.answer}
        for i, p in enumerate(prompts)
    ]
    spoilt = {
        "blank": {"question": ""}, "gone": {"images": ["gone.png"]}, "cut": {"images": ["cut.png"]},
        "long": {"question": "how many ticks " * 1100},
    }  # fmt: skip
    rows[BAD_ROW] |= spoilt.get(kind, {})
    return [] if kind == "empty" else rows


def try_vistill(folder, case, done, stop=None):
    """`vistill train recipe.yaml key=value ...`."""
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(folder, case.rows)))
    recipe = {
        "version": 1, "run": str(folder / case.run), "method": "opd", "data": {"train": str(data)},
        "student": {"model": str(folder / case.student)}, "teacher": {"model": str(folder / case.teacher)},
        "rollout": {"per_prompt": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": TOKENS, "all_truncated": "go_on"},
        "train": {"prompts_per_step": PER_STEP, "epochs": EPOCHS, "lr": RATE},
        "save": {"every": 1, "keep": 2, "keep_best": "none"}, "eval": {"every": 0},
    }  # fmt: skip
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe))  # JSON is YAML
    seen = []

    def progress(record):
        if not is_update(record):
            return
        seen.append(record)
        done()
        if len(seen) == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    values = {key: ".nan" if value != value else value for key, value in case.settings.items()}
    run_stages(str(file), [f"{key}={value}" for key, value in values.items()], None, (), progress)


def try_trl(folder, case, done, stop=None):
    """TRL's trainer on the same model folders, pictures as files."""
    kept = lambda row: [str(folder / name) for name in row["images"]]
    column = "promt" if case.rows == "misnamed" else "prompt"
    rows = [
        {column: [{"role": "user", "content": r["question"]}], "images": kept(r)}
        for r in rows_of(folder, case.rows)
    ]
    data = Dataset.from_list(rows) if rows else Dataset.from_dict({"prompt": [], "images": []})
    if rows:
        data = data.cast_column("images", Sequence(Image()))
    tokenizer = left_padded(AutoTokenizer.from_pretrained(folder / "teacher"))
    pictures = build_tiny(SIZE, tokenizer, 0).family.processor
    config = {
        **arguments(folder / case.run),
        "max_completion_length": TOKENS,
        "bf16": False,
        **case.settings,
    }
    trainer = DistillationTrainer(
        model=str(folder / case.student),
        teacher_model=str(folder / case.teacher),
        args=DistillationConfig(**config),
        processing_class=Processor(pictures, tokenizer, tokenizer.chat_template),
        train_dataset=data,
        callbacks=[Watch(done, stop)],
    )
    carry_on(trainer, folder / case.run)


def try_hf(folder, case, done, stop=None):
    """transformers' trainer on the questions' tokens."""
    place = folder / "hf" / case.student
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(place),
        AutoTokenizer.from_pretrained(folder / "hf" / "student"),
    )
    column = "input_id" if case.rows == "misnamed" else "input_ids"
    rows = [{column: tokenizer(r["question"])["input_ids"]} for r in rows_of(folder, case.rows)]
    trainer = Trainer(
        model=model,
        args=Arguments(**{**arguments(folder / case.run), **case.settings}),
        train_dataset=Dataset.from_list(rows) if rows else Dataset.from_dict({"input_ids": []}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[Watch(done, stop)],
    )
    carry_on(trainer, folder / case.run)


TRIALS = {"vistill": try_vistill, "trl": try_trl, "hf": try_hf}


def attempt(tool, folder, case):
    """One try in a child of its own: updates taken, the exception that ended it, the console without its traceback."""
    shutil.copytree(folder.parent / "things", folder)
    updates, ending, console = folder / "updates", folder / "ending.json", folder / "console"

    def done():
        with updates.open("a") as handle:
            handle.write("x")

    def start(case, stop):
        """The command, its ending written down."""
        try:
            TRIALS[tool](folder, case, done, stop)
        except BaseException as error:
            ending.write_text(json.dumps({"type": type(error).__name__, "text": str(error)}))
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    if case.earlier is not None:
        Child(lambda: start(Case(settings=case.earlier), 4), folder / "earlier")()
        assert len(updates.read_text()) == 4, (folder / "earlier").read_text()
        updates.unlink()
        ending.unlink(missing_ok=True)
    Child(lambda: (signal.alarm(SECONDS), start(case, None)), console)()
    taken = len(updates.read_text()) if updates.exists() else 0
    ended = json.loads(ending.read_text()) if ending.exists() else None
    return (
        taken,
        ended,
        console.read_text(errors="replace").partition("Traceback (most recent call last)")[0],
    )


def verdict(mistake, tried, usual):
    """The rule of this file's docstring."""
    taken, ended, console = tried
    says = lambda pattern, text: re.search(pattern, text, re.IGNORECASE) is not None
    if ended is None or taken:
        fresh = "\n".join(line for line in console.splitlines() if line not in usual)
        missed = "silent" if ended is None else "late"
        return "warned" if says(mistake.names, fresh) else missed
    if not says(mistake.names, ended["text"]):
        return "unnamed"
    return "useful" if says(mistake.tells, ended["text"]) else "only_named"


def without_paths(text, folder):
    """No path of this machine."""
    return re.sub(r"/\S*/site-packages/", "", text.replace(str(folder), "FOLDER"))


def one_tool(folder, tool, mistakes):
    """The mistakes of one tool; first a run without any, which must go through."""
    taken, ended, console = attempt(tool, folder / f"{tool}-none", Case())
    assert (ended, taken) == (None, 12), (
        f"{tool} stops without a mistake: {ended} {console[-2000:]}"
    )
    usual = set(console.splitlines())
    for number, mistake in enumerate(mistakes):
        case = getattr(mistake, tool)
        if case is None:
            continue
        place = folder / f"{tool}-{number}"
        tried = attempt(tool, place, case)
        ended = tried[1] or {"type": None, "text": ""}
        yield {
            "mistake": mistake.name,
            "verdict": verdict(mistake, tried, usual),
            "updates": tried[0],
            "error": ended["type"],
            "message": without_paths(ended["text"], place)[:400],
        }


def mistake_rows(folder, tools, quick=False):
    """One row a tool."""
    disable_progress_bar()
    lay_out(folder / "things")
    for tool in tools:
        tries = list(one_tool(folder, tool.name, MISTAKES[:5] if quick else MISTAKES))
        found = [t["verdict"] for t in tries]
        row = {"name": "mistakes", "tool": tool.name, "tried": len(found)}
        row |= {
            v: found.count(v)
            for v in ("useful", "only_named", "unnamed", "late", "warned", "silent")
        }
        print(row, flush=True)
        yield {**row, "named": row["useful"] + row["only_named"], "tries": tries}
