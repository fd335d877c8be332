"""The folder that starts lmms-eval or VLMEvalKit on a model, under the decoding of a protocol.

Prompts and rules are those of the program, and so is the name of the numbers.
"""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vistill.errors import ConfigError, StorageError, closest, quote_command
from vistill.evaluation.benchmarks.benchmark import Benchmark
from vistill.evaluation.benchmarks.protocols import SAMPLED, Protocol
from vistill.evaluation.harness.programs import LMMS_EVAL, PROGRAMS, HarnessTask, Program
from vistill.runs.storage import write_json, write_text

FACTS = "vistill.json"
OUT = "results"
#: Stands in a task for the folder of lmms-eval's own tasks.
PLACE = "@LMMS_EVAL_TASKS@"
READ_ME = """# {package} for {title}

vistill wrote this folder. The numbers are those of {name}, with its prompts and rules, under the
decoding of the protocol `{protocol}`: no paper's protocol and not vistill's either.

    python3 -m venv environment && environment/bin/pip install -r requirements.txt
    sh run.sh
    vistill harness read {folder}

Another interpreter: `PYTHON=... sh run.sh`. Gated data sets need HF_TOKEN.
"""


@dataclass(frozen=True)
class HarnessRequest:
    """What to write."""

    program: Program
    model: str
    benchmarks: Sequence[Benchmark]
    protocol: Protocol
    model_class: str = ""
    """The program's name of the model's class; by default that of Qwen3-VL."""


def find_program(name: str) -> Program:
    """The program of a name (C105)."""
    if name in PROGRAMS:
        return PROGRAMS[name]
    near = next(iter(closest(name, PROGRAMS)), LMMS_EVAL.name)
    raise ConfigError(
        "C105",
        f"there is no harness {name!r:.40}",
        why=f"{', '.join(PROGRAMS)}; `read` reads the results in a folder",
        fix=f"{near}   in place of {shlex.quote(name)}",
    )


def check_tasks(request: HarnessRequest) -> None:
    """C101 for benchmarks that the program cannot run, or not with several samples."""
    program, protocol = request.program, request.protocol
    count = max(protocol.samples.values())
    names = [benchmark.name for benchmark in request.benchmarks]
    absent = [name for name in names if name not in program.tasks]
    single = [n for n in names if n not in absent and count > 1 and not program.tasks[n].is_mean]
    if not (absent or single):
        return
    rest = [name for name in names if name not in (*absent, *single)]
    what = f"{program.name} has no task without a judge for {', '.join(absent)}"
    why = f"it has: {', '.join(program.tasks)}"
    fix = f"--tasks {','.join(rest or list(program.tasks)[:1])}"
    if not absent:
        what = f"{program.name} scores only the first of {count} samples of {', '.join(single)}"
        why = f"{protocol.name} is a mean over samples; a score of one would have its name"
        fix = f"--tasks {','.join(rest)}" if rest else "--protocol official"
    raise ConfigError("C101", what, why=why, fix=fix)


def write_folder(request: HarnessRequest, folder: Path) -> Path:
    """Write requirements, environment, tasks, command and a page that says how to run them.

    Raises:
        ConfigError: C101, the program cannot run a benchmark under the protocol.
        StorageError: S608, the folder exists and is not empty.
    """
    check_tasks(request)
    if folder.exists() and any(folder.iterdir()):
        raise StorageError(
            "S608",
            f"{folder} exists already",
            where=str(folder.parent),
            why="it may hold results of another model",
            fix="--to FOLDER",
        )
    program = request.program
    tasks = lmms_tasks(request) if program is LMMS_EVAL else kit_tasks(request)
    facts = {
        "harness": program.name,
        "package": program.package,
        "model": request.model,
        "protocol": request.protocol.name,
        "tasks": tasks,
    }
    write_text(folder / "requirements.txt", "\n".join(program.requirements) + "\n")
    lines = [f"export {k}=${{{k}:-{value}}}" for k, value in program.variables.items()]
    write_text(folder / "environment.sh", "\n".join(["# variables of the run", *lines]) + "\n")
    if program is LMMS_EVAL:
        for name, task in tasks.items():
            write_text(folder / "tasks" / f"{name}.yaml", yaml_text(task["overlay"]))
    else:
        write_json(folder / "config.json", kit_config(request))
    write_text(folder / "run.sh", lmms_command(request, tasks) if program is LMMS_EVAL else KIT_RUN)
    title = ", ".join(benchmark.title for benchmark in request.benchmarks)
    page = {"package": program.package, "title": title, "name": program.name}
    page |= {"protocol": request.protocol.name, "folder": quote_command(folder)}
    write_text(folder / "README.md", READ_ME.format(**page))
    write_json(folder / FACTS, facts)
    return folder


def lmms_tasks(request: HarnessRequest) -> dict[str, dict[str, Any]]:
    """An overlay task for each benchmark and mode."""
    tasks: dict[str, dict[str, Any]] = {}
    for benchmark in request.benchmarks:
        own = request.program.tasks[benchmark.name]
        for mode, count in request.protocol.samples.items():
            name = f"vistill_{benchmark.name}_{request.protocol.name}_{mode}"
            overlay = lmms_overlay(own, name, request.protocol, mode, count)
            facts = {"benchmark": benchmark.name, "mode": mode, "samples": count}
            tasks[name] = {**facts, "metrics": dict(own.metrics), "overlay": overlay}
    return tasks


def lmms_overlay(
    task: HarnessTask, name: str, protocol: Protocol, mode: str, count: int
) -> dict[str, Any]:
    """Settings of a task that are added to lmms-eval's own."""
    is_sampled = mode == SAMPLED
    generation: dict[str, Any] = {
        "max_new_tokens": protocol.max_new_tokens,
        "temperature": protocol.temperature if is_sampled else 0,
        "top_p": protocol.top_p if is_sampled else 1.0,
        "do_sample": is_sampled,
    }
    overlay: dict[str, Any] = {
        "include": f"{PLACE}/{task.name}",
        "task": name,
        "output_type": "generate_until",
        "generation_kwargs": generation,
        **task.changes,
    }
    if count > 1:
        take = [{"function": "take_first_k", "k": count}]
        overlay |= {"repeats": count, "filter_list": [{"name": f"avg@{count}", "filter": take}]}
    return overlay


def yaml_text(record: dict[str, Any]) -> str:
    """A record as YAML; JSON is YAML."""
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in record.items()) + "\n"


def lmms_command(request: HarnessRequest, tasks: dict[str, Any]) -> str:
    """`run.sh`: fill in the place of lmms-eval's tasks, and start it."""
    system = request.protocol.system
    words = [
        "-m", "lmms_eval", "--model", request.model_class or "qwen3_vl",
        "--model_args", f"pretrained={request.model},attn_implementation=sdpa",
        "--tasks", ",".join(tasks), "--include_path", "overlay", "--batch_size", "8",
        "--process-docs-parallel", "1", "--log_samples", "--output_path", OUT,
        *(["--system_instruction", system] if system else []),
    ]  # fmt: skip
    return f"""#!/bin/sh
set -eu
cd "$(dirname "$0")"
. ./environment.sh
PYTHON=${{PYTHON:-environment/bin/python}}
FIND='import importlib.util as u; print(u.find_spec("lmms_eval").submodule_search_locations[0])'
TASKS=$("$PYTHON" -c "$FIND")/tasks
mkdir -p overlay
for file in tasks/*.yaml; do
    sed "s|{PLACE}|$TASKS|" "$file" > "overlay/$(basename "$file")"
done
# more than one process for documents scores equal mathematics 0
"$PYTHON" {shlex.join(words)}
"""


KIT_RUN = f"""#!/bin/sh
set -eu
cd "$(dirname "$0")"
. ./environment.sh
PYTHON=${{PYTHON:-environment/bin/python}}
"$PYTHON" -m vlmeval.run --config config.json --work-dir {OUT} --judge exact_matching
"""


def kit_tasks(request: HarnessRequest) -> dict[str, dict[str, Any]]:
    """The data set of each benchmark."""
    (mode,) = request.protocol.samples
    tasks: dict[str, dict[str, Any]] = {}
    for benchmark in request.benchmarks:
        own = request.program.tasks[benchmark.name]
        facts = {"benchmark": benchmark.name, "mode": mode, "samples": 1}
        facts |= {"metrics": dict(own.metrics), "is_percent": own.is_percent}
        tasks[own.name] = facts
    return tasks


def kit_config(request: HarnessRequest) -> dict[str, Any]:
    """The model with its decoding, and the data sets."""
    protocol = request.protocol
    decoding = {"temperature": 0.0, "top_p": 1.0, "top_k": -1, "presence_penalty": 0.0}
    model = {
        "class": request.model_class or "Qwen3VLChat",
        "model_path": request.model,
        "use_custom_prompt": False,
        "use_vllm": True,
        **decoding,
        "max_new_tokens": protocol.max_new_tokens,
        **({"system_prompt": protocol.system} if protocol.system else {}),
    }
    data = {}
    for benchmark in request.benchmarks:
        own = request.program.tasks[benchmark.name]
        data[own.name] = {"class": own.kind, "dataset": own.name}
    return {"model": {"student": model}, "data": data}
