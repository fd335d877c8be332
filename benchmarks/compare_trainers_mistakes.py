"""Planted mistakes for `compare_trainers.py`: the same mistake for each tool, judged by one rule.

Every tool is used as its documentation shows: vistill by a recipe (`vistill train`), TRL by
`DistillationConfig`, a `Dataset` and `DistillationTrainer` with model folders, transformers by
`from_pretrained`, `TrainingArguments` and `Trainer`. Models and settings are those of
`compare_trainers.py`. The data are eight rows with a question and an image (for Trainer: the
question's tokens). A tool that lacks the thing (images, a teacher, sampling) is not tried.

How a try is judged, for all tools alike:

- It *stopped* if an exception ended it. Only the text of that exception counts, not its type or its
  traceback.
- `useful`: it stopped before the first update (on resume: the first further update). The text
  *names* the cause (the setting, column, file or row; `names` below) and *explains* what is wrong
  with it, what is allowed, or how to fix it (`explains`).
- `only_named`: the same, but the text explains nothing. The row `named` of the table counts both.
- `unnamed`: it stopped before the first update, but the text does not name the cause.
- `warned`: it did not stop before the first update, but a line of the console names the cause
  (without the traceback, and without lines that a run without mistakes prints too).
- `late`: it stopped, with any text, but only after weights had been updated, and no line came
  before. A bad row that is read in the middle of the training ends here; it is the sixth of eight
  for all tools, and each tool shuffles.
- `silent`: it went on, and no such line was printed. A run that still goes on after 60 seconds
  counts as gone on.

`names` and `explains` are patterns; case is ignored. If a tool's own name of a setting differs,
both are listed, and doubts are decided in favour of the tool (`num_samples=0` names an empty data
set; "Repo id must be in the form ..." explains what is wrong with a mistyped folder). Without a
network the message for a mistyped hub id differs from the one with a network, so the mistyped path
is that of a folder. The first 400 characters of each text are stored with the verdict.
"""

import json
import os
import re
import shutil
import signal
import sys

import vistill.models  # isort: skip  # noqa: F401  torchvision, before transformers is imported

from compare_trainers_cases import MISTAKES, Case
from compare_trainers_setup import (
    EPOCHS,
    PER_STEP,
    PROMPTS,
    RATE,
    TOKENS,
    UpdateCallback,
    arguments,
    is_update,
    left_padded,
    small_gpt,
    train_or_resume,
)
from compare_trl import Processor
from datasets import Dataset, Image, Sequence
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
from vistill.studies.chaos import SIZE, ForkedProcess
from vistill.studies.make_tiny_models import tiny_tokenizer
from vistill.studies.stages import run_stages

SECONDS = 60
BAD_ROW = 5


def tokenizer_for(positions):
    """Return the demo's tokenizer with a maximum length, as released tokenizers have."""
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = positions
    return tokenizer


def write_inputs(folder):
    """Write models, images, and a file at the path of a folder."""
    folder.mkdir(parents=True)
    tokenizer = tokenizer_for(8192)
    other_tokenizer = train_tokenizer(
        ("".join(chr(97 + 7 * i % 26) for i in range(k, k + 5)) for k in range(9999)),
        len(tokenizer),
    )
    other_tokenizer.model_max_length = 8192
    other_tokenizer.add_tokens(
        [f"<extra_{i}>" for i in range(len(tokenizer) - len(other_tokenizer))]
    )
    assert len(other_tokenizer) == len(tokenizer)
    for seed, (name, words) in enumerate(
        [("student", tokenizer), ("teacher", tokenizer), ("stranger", other_tokenizer)]
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
    png = (folder / f"{BAD_ROW}.png").read_bytes()
    (folder / "cut.png").write_bytes(png[: len(png) // 2])


def rows_of(folder, kind):
    """Return questions and images; one row is bad."""
    prompts = diagram_prompts("train", PROMPTS, 0)
    rows = [
        {"question": p.text, "images": [f"{i}.png"], "answer": p.answer}
        for i, p in enumerate(prompts)
    ]
    bad_values = {
        "blank": {"question": ""},
        "gone": {"images": ["gone.png"]},
        "cut": {"images": ["cut.png"]},
        "long": {"question": "how many ticks " * 1100},
    }
    rows[BAD_ROW] |= bad_values.get(kind, {})
    return [] if kind == "empty" else rows


def try_vistill(folder, case, on_update, stop=None):
    """Run `vistill train recipe.yaml key=value ...`."""
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows_of(folder, case.rows)))
    recipe = {
        "version": 1,
        "run": str(folder / case.run),
        "method": "opd",
        "data": {"train": str(data)},
        "student": {"model": str(folder / case.student)},
        "teacher": {"model": str(folder / case.teacher)},
        "rollout": {
            "per_prompt": 2,
            "temperature": 1.0,
            "top_p": 1.0,
            "max_new_tokens": TOKENS,
            "all_truncated": "go_on",
        },
        "train": {"prompts_per_step": PER_STEP, "epochs": EPOCHS, "lr": RATE},
        "save": {"every": 1, "keep": 2, "keep_best": "none"},
        "eval": {"every": 0},
    }
    file = folder / "recipe.yaml"
    file.write_text(json.dumps(recipe))  # JSON is YAML
    updates = []

    def progress(record):
        if not is_update(record):
            return
        updates.append(record)
        on_update()
        if len(updates) == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    values = {key: ".nan" if value != value else value for key, value in case.settings.items()}
    run_stages(str(file), [f"{key}={value}" for key, value in values.items()], None, (), progress)


def try_trl(folder, case, on_update, stop=None):
    """Run TRL's trainer on the same model folders, with images as files."""
    column = "promt" if case.rows == "misnamed" else "prompt"
    rows = [
        {
            column: [{"role": "user", "content": row["question"]}],
            "images": [str(folder / name) for name in row["images"]],
        }
        for row in rows_of(folder, case.rows)
    ]
    data = Dataset.from_list(rows) if rows else Dataset.from_dict({"prompt": [], "images": []})
    if rows:
        data = data.cast_column("images", Sequence(Image()))
    tokenizer = left_padded(AutoTokenizer.from_pretrained(folder / "teacher"))
    image_processor = build_tiny(SIZE, tokenizer, 0).family.processor
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
        processing_class=Processor(image_processor, tokenizer, tokenizer.chat_template),
        train_dataset=data,
        callbacks=[UpdateCallback(on_update, stop)],
    )
    train_or_resume(trainer, folder / case.run)


def try_hf(folder, case, on_update, stop=None):
    """Run transformers' trainer on the questions' tokens."""
    place = folder / "hf" / case.student
    model = AutoModelForCausalLM.from_pretrained(place)
    tokenizer = AutoTokenizer.from_pretrained(folder / "hf" / "student")
    column = "input_id" if case.rows == "misnamed" else "input_ids"
    rows = [{column: tokenizer(r["question"])["input_ids"]} for r in rows_of(folder, case.rows)]
    trainer = Trainer(
        model=model,
        args=Arguments(**{**arguments(folder / case.run), **case.settings}),
        train_dataset=Dataset.from_list(rows) if rows else Dataset.from_dict({"input_ids": []}),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[UpdateCallback(on_update, stop)],
    )
    train_or_resume(trainer, folder / case.run)


TRIALS = {"vistill": try_vistill, "trl": try_trl, "hf": try_hf}


def attempt(tool, folder, case):
    """Run one try in a child process.

    Return the number of updates, the exception that ended it, and the console without traceback.
    """
    shutil.copytree(folder.parent / "inputs", folder)
    updates, ending, console = folder / "updates", folder / "ending.json", folder / "console"

    def on_update():
        with updates.open("a") as handle:
            handle.write("x")

    def start(case, stop):
        """Run the command and record how it ends."""
        try:
            TRIALS[tool](folder, case, on_update, stop)
        except BaseException as error:
            ending.write_text(json.dumps({"type": type(error).__name__, "text": str(error)}))
            raise
        finally:
            sys.stdout.flush()
            sys.stderr.flush()

    if case.earlier is not None:
        ForkedProcess(lambda: start(Case(settings=case.earlier), 4), folder / "earlier")()
        assert len(updates.read_text()) == 4, (folder / "earlier").read_text()
        updates.unlink()
        ending.unlink(missing_ok=True)
    ForkedProcess(lambda: (signal.alarm(SECONDS), start(case, None)), console)()
    num_updates = len(updates.read_text()) if updates.exists() else 0
    error = json.loads(ending.read_text()) if ending.exists() else None
    output = console.read_text(errors="replace")
    return num_updates, error, output.partition("Traceback (most recent call last)")[0]


def contains(pattern, text):
    """Return whether a pattern occurs in a text, ignoring case."""
    return re.search(pattern, text, re.IGNORECASE) is not None


def verdict(mistake, result, usual_lines):
    """Judge a try by the rule of this file's docstring."""
    num_updates, error, console = result
    if error is None or num_updates:
        new_lines = [line for line in console.splitlines() if line not in usual_lines]
        if contains(mistake.names, "\n".join(new_lines)):
            return "warned"
        return "silent" if error is None else "late"
    if not contains(mistake.names, error["text"]):
        return "unnamed"
    return "useful" if contains(mistake.explains, error["text"]) else "only_named"


def without_paths(text, folder):
    """Remove the paths of this machine from a text."""
    return re.sub(r"/\S*/site-packages/", "", text.replace(str(folder), "FOLDER"))


def try_mistakes(folder, tool, mistakes):
    """Try the mistakes with one tool, after a run without any, which must succeed."""
    num_updates, error, console = attempt(tool, folder / f"{tool}-none", Case())
    assert (error, num_updates) == (None, 12), (
        f"{tool} stops without a mistake: {error} {console[-2000:]}"
    )
    usual_lines = set(console.splitlines())
    for number, mistake in enumerate(mistakes):
        case = getattr(mistake, tool)
        if case is None:
            continue
        place = folder / f"{tool}-{number}"
        result = attempt(tool, place, case)
        error = result[1] or {"type": None, "text": ""}
        yield {
            "mistake": mistake.name,
            "verdict": verdict(mistake, result, usual_lines),
            "updates": result[0],
            "error": error["type"],
            "message": without_paths(error["text"], place)[:400],
        }


def mistake_rows(folder, tools, quick=False):
    """Measure one row per tool."""
    disable_progress_bar()
    write_inputs(folder / "inputs")
    for tool in tools:
        tries = list(try_mistakes(folder, tool.name, MISTAKES[:5] if quick else MISTAKES))
        verdicts = [t["verdict"] for t in tries]
        row = {"name": "mistakes", "tool": tool.name, "tried": len(verdicts)}
        row |= {
            v: verdicts.count(v)
            for v in ("useful", "only_named", "unnamed", "late", "warned", "silent")
        }
        print(row, flush=True)
        yield {**row, "named": row["useful"] + row["only_named"], "tries": tries}
