"""Compare vistill with TRL's `DistillationTrainer` and transformers' `Trainer`.

One machine, and one rule for all three tools.

    python benchmarks/compare_trainers.py            50 kills per tool, every stop, every mistake
    python benchmarks/compare_trainers.py --quick    3 kills, three stops, five mistakes
    python benchmarks/compare_trainers_table.py      only write the table of README.md again

The same for all: CPU, float32, one thread, no network, tiny models of 77,000 to 114,000 parameters,
8 rows, 2 per step, 3 epochs = 12 steps, AdamW with a learning rate that decays from 3e-3 to 0, a
checkpoint after every step, two of them kept, no evaluation, run folders in memory if there is
/dev/shm. Every run is a forked child of a parent that has imported everything and trained nothing.
"The same command" is the same function on the same folder:

- vistill: on-policy distillation of a tiny Qwen3-VL, two rollouts per prompt; `run` resumes by
  itself. vistill stops after three steps in which every response is truncated; here this is off
  (`rollout.all_truncated`), because six tokens are too few on purpose.
- TRL: `DistillationTrainer` on the same two models, images and prompts (one rollout per prompt,
  it has no more), at its defaults except what is named here and bf16, which is off.
- Trainer: a tiny GPT-2 is trained on the same questions as text; dropout 0.1 is on, so that a lost
  random state would show. TRL and Trainer continue as the official examples do:
  `train(resume_from_checkpoint=True)` if `get_last_checkpoint` finds a checkpoint, else from the
  start. A callback stops them: it sets `should_training_stop` after step k, where a checkpoint is
  saved as after every step. vistill is stopped by `stop_after`.

Rows:

- First, two undisturbed runs. If their weights differ, nothing is counted and the table says so.
- `stop`: stopped after step k, for every k from 1 to 11, and repeated once.
- `kill`: SIGKILL at a random instant, then the command is repeated until it ends, at most three
  times; if it never ends, the run is `stuck`. The instant is drawn uniformly from the first 95 % of
  the time between the first update and the end of an undisturbed run, counted from the child's own
  first update (before it, a kill only means to start again). All tools get the same shares.
- `mistakes`: see `compare_trainers_mistakes.py`, which also says what a useful message is.

The final weights are compared by the SHA-256 of their file.

What this cannot show: how often a kill hits a save depends on the time between saves, which is
short here; the consequence of a hit does not. The authors of vistill chose the mistakes.
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
sys.path.insert(0, str(Path(__file__).parent))

from compare_trainers_setup import (
    EPOCHS,
    KEPT,
    PER_STEP,
    PROMPTS,
    RATE,
    STEPS,
    TOKENS,
    UpdateCallback,
    arguments,
    is_update,
    left_padded,
    small_gpt,
    train_or_resume,
)
from compare_trainers_table import RESULTS, table, write
from compare_trl import Processor
from datasets import Dataset
from transformers import (
    DataCollatorForLanguageModeling,
    Trainer,
)
from transformers import TrainingArguments as Arguments
from trl import DistillationConfig, DistillationTrainer

import vistill
from vistill.data.diagrams import diagram_prompts
from vistill.data.keys import keyed_generator
from vistill.evaluation.settings import EvalSettings
from vistill.models.chat import chat_messages, load_images
from vistill.models.tiny import build_tiny
from vistill.rollouts.settings import RolloutSettings
from vistill.runs.folder import RunFolder
from vistill.runtime import use_one_thread
from vistill.studies.chaos import SIZE, ForkedProcess
from vistill.studies.make_tiny_models import tiny_tokenizer
from vistill.training.build import build, make_setup
from vistill.training.checkpoint import newest_checkpoint
from vistill.training.loop import run
from vistill.training.recipe import Recipe, StudentSettings, TeacherSettings
from vistill.training.settings import SaveSettings, ScheduleSettings, TrainSettings
from vistill.training.setup import ProvidedInputs

TRIES = 3


def train_ours(folder, on_update, stop=None):
    """Train vistill: OPD of a tiny Qwen3-VL."""
    tokenizer = tiny_tokenizer()
    student, teacher = build_tiny(SIZE, tokenizer, 0), build_tiny(SIZE, tokenizer, 1).freeze()
    place = RunFolder(folder)
    recipe = Recipe(
        run=str(folder),
        student=StudentSettings("built here"),
        teacher=TeacherSettings("built here"),
        method="opd",
        train=TrainSettings(
            prompts_per_step=PER_STEP,
            epochs=EPOCHS,
            lr=RATE,
            schedule=ScheduleSettings("linear", 0.0),
        ),
        rollout=RolloutSettings(
            per_prompt=2, temperature=1.0, top_p=1.0, max_new_tokens=TOKENS, all_truncated="go_on"
        ),
        save=SaveSettings(every=1, keep=KEPT, keep_best="none"),
        eval=EvalSettings(every=0),
    )
    provided = ProvidedInputs(
        student, teacher, diagram_prompts("train", PROMPTS, 0), stop_after=stop
    )
    setup = make_setup(recipe, place, given=provided)
    setup.progress = lambda record: on_update() if is_update(record) else None
    run(build(setup), place)


def train_trl(folder, on_update, stop=None):
    """Train TRL: the same models, images and prompts."""
    tokenizer = tiny_tokenizer()
    student, teacher = build_tiny(SIZE, tokenizer, 0), build_tiny(SIZE, tokenizer, 1).freeze()

    def text(message):
        return "".join(part.get("text", "") for part in message["content"])

    rows = [
        {
            "prompt": [{"role": m["role"], "content": text(m)} for m in chat_messages(p)],
            "images": load_images(p),
        }
        for p in diagram_prompts("train", PROMPTS, 0)
    ]
    trainer = DistillationTrainer(
        model=student.model,
        teacher_model=teacher.model,
        args=DistillationConfig(**arguments(folder), max_completion_length=TOKENS, bf16=False),
        processing_class=Processor(
            student.family.processor, left_padded(tokenizer), tokenizer.chat_template
        ),
        train_dataset=Dataset.from_list(rows),
        callbacks=[UpdateCallback(on_update, stop)],
    )
    train_or_resume(trainer, folder)
    if stop is None:
        trainer.save_model(str(folder / "final"))


def train_hf(folder, on_update, stop=None):
    """Train transformers' Trainer: a tiny GPT-2 on the questions' text."""
    tokenizer = tiny_tokenizer()
    rows = [
        {"input_ids": tokenizer(p.text)["input_ids"]} for p in diagram_prompts("train", PROMPTS, 0)
    ]
    trainer = Trainer(
        model=small_gpt(tokenizer),
        args=Arguments(**arguments(folder)),
        train_dataset=Dataset.from_list(rows),
        data_collator=DataCollatorForLanguageModeling(tokenizer, mlm=False),
        callbacks=[UpdateCallback(on_update, stop)],
    )
    train_or_resume(trainer, folder)
    if stop is None:
        trainer.save_model(str(folder / "final"))


@dataclass(frozen=True)
class Tool:
    """One column of the table."""

    name: str
    title: str
    train: Callable

    def child(self, folder, stop=None):
        """Return a forked process that runs the command; its output goes next to the folder."""
        return ForkedProcess(
            lambda: self.train(folder, folder.with_suffix(".begun").touch, stop),
            folder.with_suffix(".console"),
        )

    def start_and_wait(self, folder):
        """Run the command and wait for the first update; return the child's pid."""
        pid, deadline = self.child(folder).start(), time.monotonic() + 120
        while not folder.with_suffix(".begun").exists():
            assert time.monotonic() < deadline, f"{self.name} takes no step: {last_line(folder)}"
            time.sleep(0.001)
        return pid

    def weights(self, folder):
        """Return the SHA-256 of the final weights."""
        ours = self.name == "vistill"
        file = newest_checkpoint(RunFolder(folder)) / "student" if ours else folder / "final"
        return hashlib.sha256((file / "model.safetensors").read_bytes()).hexdigest()


TOOLS = (
    Tool("vistill", f"vistill {vistill.__version__}", train_ours),
    Tool("trl", f"TRL {version('trl')}, `DistillationTrainer`", train_trl),
    Tool("hf", f"transformers {version('transformers')}, `Trainer`", train_hf),
)


def last_line(folder):
    """Return the last line of a run's console, without this machine's paths."""
    lines = folder.with_suffix(".console").read_text(errors="replace").strip().splitlines() or [""]
    return lines[-1].replace(str(folder), "RUN")[:200]


def undisturbed(tool, folder):
    """Run twice without a disturbance.

    Return the hash, the seconds of the second run after its first update, and whether both agree.
    """
    hashes = []
    for number in range(2):
        place = folder / f"{tool.name}-{number}"
        pid, start = tool.start_and_wait(place), time.perf_counter()
        _, status = os.waitpid(pid, 0)
        seconds = time.perf_counter() - start
        assert status == 0, f"{tool.name} does not run at all: {last_line(place)}"
        hashes.append(tool.weights(place))
    return hashes[1], seconds, hashes[0] == hashes[1]


def repeat(tool, place, expected, tries):
    """Repeat the command; return `same`, `different` or `stuck`, and a stuck run's last line."""
    for _ in range(tries):
        if tool.child(place)() == 0:
            return ("same" if tool.weights(place) == expected else "different"), ""
    return "stuck", last_line(place)


def stops(tool, folder, expected, steps):
    """Stop after each step, then repeat the command once."""
    for step in steps:
        place = folder / f"{tool.name}-stop-{step}"
        code = tool.child(place, step)()
        assert code == 0, f"{tool.name} cannot be stopped after step {step}: {last_line(place)}"
        yield f"step {step}", *repeat(tool, place, expected, 1), True


def kills(tool, folder, expected, trials):
    """Send SIGKILL some seconds after the first update; repeat the command until it ends."""
    for number, seconds in enumerate(trials):
        place = folder / f"{tool.name}-kill-{number}"
        pid = tool.start_and_wait(place)
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)  # safe after it has ended too: its pid is not yet reaped
        os.waitpid(pid, 0)
        saved = any(place.glob("checkpoint-*"))
        yield f"after {seconds:.2f} s", *repeat(tool, place, expected, TRIES), saved


def count(name, tool, trials):
    """Count how the trials of one cell ended."""
    start, ends, notes, saved = time.perf_counter(), Counter(), [], 0
    for what, end, words, checkpoint in trials:
        ends[end] += 1
        saved += checkpoint
        if end != "same":
            notes.append(f"{what}: {end} {words}".strip())
    cell = {"name": name, "tool": tool.name, "tried": ends.total(), "with_checkpoint": saved}
    cell |= {end: ends[end] for end in ("same", "different", "stuck")}
    print(
        f"{name:<9} {tool.name:<8} {dict(ends)}   {time.perf_counter() - start:.0f} s", flush=True
    )
    return {**cell, "notes": notes}


def resume_rows(folder, tools, num_kills, steps):
    """Measure both rows about resuming."""
    for tool in tools:
        expected, seconds, agree = undisturbed(tool, folder)
        yield {
            "name": "undisturbed",
            "tool": tool.name,
            "deterministic": agree,
            "seconds_after_first_update": round(seconds, 2),
        }
        if not agree:
            continue
        yield count("stop", tool, stops(tool, folder, expected, steps))
        draws = [
            keyed_generator("next-to", i).uniform(0.0, 0.95) * seconds for i in range(num_kills)
        ]
        yield count("kill", tool, kills(tool, folder, expected, draws))


def facts(args):
    """Return date, command and versions of the measurement."""
    words = " --quick" if args.quick else f" --kills {args.kills}"
    return {
        "command": f"python benchmarks/compare_trainers.py{words}",
        "date": datetime.date.today().isoformat(),
        **{
            name: version(name)
            for name in ("vistill", "torch", "transformers", "trl", "accelerate", "datasets")
        },
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "titles": {tool.name: tool.title for tool in TOOLS},
        "steps": STEPS,
    }


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50, help="SIGKILL trials per tool")
    parser.add_argument("--quick", action="store_true", help="3 kills, three stops, five mistakes")
    parser.add_argument(
        "--only", help="measure one tool (vistill, trl, hf); merge it into the last results"
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    from compare_trainers_mistakes import mistake_rows

    use_one_thread()
    memory = Path("/dev/shm") if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        folder = Path(name)
        steps = (2, 4, 7) if args.quick else range(1, STEPS)
        tools = [tool for tool in TOOLS if args.only in (None, tool.name)]
        rows = [*mistake_rows(folder / "mistakes", tools, args.quick)]
        rows += resume_rows(folder, tools, 3 if args.quick else args.kills, steps)
    if args.only:
        rows = [
            row for row in json.loads(args.out.read_text())["rows"] if row["tool"] != args.only
        ] + rows
    about = facts(args)
    write(args.out, rows, about)
    print("\n".join(table(rows, about)))


if __name__ == "__main__":
    main()
