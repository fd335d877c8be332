"""`make bench`: measure steps, rollouts, memory and checkpoints; compare with a naive reference.

The first rows use the demo's sizes. One thread, both sides in one process, alternating order,
best of several. Quote the ratios, not the seconds.
"""

import argparse
import datetime
import json
import platform
import resource
import subprocess
import sys
import tempfile
import textwrap
import time
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from answers import answer_rows
from checkpointing import checkpointing_rows
from counted import counted_rows
from demo_before import demo_rows
from families import family_rows
from limits import limit_rows
from naive import naive_step
from progress import progress_rows
from rollouts import rollout_rows
from safety import safety_rows
from saving import saving_rows
from scaling import curves
from starting import starting_rows
from vllm_steps import vllm_rows
from weight_transfer import transfer_rows

import vistill
from vistill.batch import reduce_terms
from vistill.data.diagrams import diagram_prompts
from vistill.objectives import OPD, VAOPD
from vistill.rollouts.engine import Sampling
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.shared import SharedEngine
from vistill.runs.folder import RunFolder
from vistill.runtime import keep_large_allocations, quiet_libraries, use_one_thread
from vistill.training.checkpoint import CheckpointTarget, write_checkpoint
from vistill.training.checkpoint_content import TrainedObjects, content_to_save
from vistill.training.models_of_run import Models
from vistill.training.optim import make_optimizer
from vistill.training.response_source import ResponseSource, write_groups
from vistill.training.run_state import RunState
from vistill.training.settings import TrainSettings
from vistill.training.step_inputs import (
    encode_step,
    flatten_responses,
    parts_with_gradient,
    score_without_gradient,
)

PROMPTS, SIBLINGS = 16, 4
RESULTS = Path(__file__).parent / "results" / "latest.json"
DOCS = Path(__file__).parent.parent / "docs" / "performance.md"
BEGIN, END = "<!-- measured by make bench -->", "<!-- end of what make bench measured -->"


def our_step(models, objective, groups):
    """Run everything after the rollouts; return the loss and the seconds of each part."""
    parts, start = {}, time.perf_counter()
    models.student.model.zero_grad()
    responses = flatten_responses(groups, 0, 0, models.student.device)
    inputs = encode_step(models, groups, objective.passes(), responses)
    parts["encode"] = time.perf_counter() - start
    start = time.perf_counter()
    batch = score_without_gradient(models, inputs, objective.passes())
    signals = objective.signals(batch)
    parts["score"] = time.perf_counter() - start
    start = time.perf_counter()
    total = 0.0
    for micro, cut in parts_with_gradient(models, inputs, batch, objective.passes(), signals):
        loss, _ = reduce_terms(objective.terms(micro, cut), responses.counts())
        loss.backward()
        total += loss.item()
    parts["learn"] = time.perf_counter() - start
    return total, parts


def timed(function, times):
    """Call the function once and append its seconds to `times`."""
    start = time.perf_counter()
    value = function()
    times.append(time.perf_counter() - start)
    return value


def measure(repeats):
    """Measure steps, rollouts, checkpoint, help and memory at the demo's sizes."""
    student = vistill.load("vistill:student", device="cpu")
    teacher = vistill.load("vistill:teacher", frozen=True, device="cpu")
    models = Models(student, teacher, student.vocabulary_size)
    prompts = diagram_prompts("train", PROMPTS, 0)
    sampling = Sampling(0, 0, 1.0, 1.0, 96)
    rollouts, generated = [], []
    for _ in range(repeats):
        for engine, times in ((SharedEngine(student), rollouts), (HFEngine(student), generated)):
            response_source = ResponseSource(engine, OPD(), SIBLINGS)
            groups = timed(
                lambda d=response_source: write_groups(models, d, prompts, sampling), times
            )
    tokens = sum(len(r.ids) for g in groups for r in g.rollouts)
    student.model.train()
    times = {name: [] for name in ("ours_opd", "ours_va_opd", "naive_opd", "naive_va_opd")}
    parts, losses = {}, {}
    for _ in range(repeats):
        for name, objective in (("opd", OPD()), ("va_opd", VAOPD())):
            losses[f"ours_{name}"], step_parts = timed(
                lambda o=objective: our_step(models, o, groups), times[f"ours_{name}"]
            )
            if times[f"ours_{name}"][-1] == min(times[f"ours_{name}"]):
                parts[name] = step_parts
            losses[f"naive_{name}"] = timed(
                lambda va=name == "va_opd": naive_step(student, teacher, groups, va),
                times[f"naive_{name}"],
            )
    t = {name: min(values) for name, values in times.items()}
    for name in ("opd", "va_opd"):
        assert abs(losses[f"ours_{name}"] - losses[f"naive_{name}"]) < 1e-4, losses
    roll = min(rollouts)
    rows = [
        row(
            "va_opd_step_over_naive",
            t["ours_va_opd"] / t["naive_va_opd"],
            "ratio",
            "naive VA-OPD step after the rollouts",
        ),
        row(
            "opd_step_over_naive",
            t["ours_opd"] / t["naive_opd"],
            "ratio",
            "naive OPD step after the rollouts",
        ),
        row(
            "va_over_opd_after_rollouts", t["ours_va_opd"] / t["ours_opd"], "ratio", "our OPD step"
        ),
        row(
            "va_over_opd_with_rollouts",
            (t["ours_va_opd"] + roll) / (t["ours_opd"] + roll),
            "ratio",
            "our OPD step",
        ),
        row(
            "demo_rollout_over_generate",
            min(generated) / roll,
            "ratio",
            "transformers' generate, same responses",
        ),
        row("rollout_tokens_per_second", tokens / roll, "tokens/s", "-"),
        row(
            "va_opd_step_seconds_with_rollouts",
            t["ours_va_opd"] + roll,
            "s",
            "this machine, one thread",
        ),
        row("rollout_seconds", roll, "s", "this machine, one thread"),
    ]
    rows += [
        row(f"va_opd_{name}_seconds", value, "s", "part of the step")
        for name, value in parts["va_opd"].items()
    ]
    rows += [save_row(student), help_row()]
    ours, naive = (peak_memory(side) for side in ("ours", "naive"))
    rows.append(
        row(
            "va_opd_peak_over_naive",
            ours / naive,
            "ratio",
            "peak memory of a naive VA-OPD step, one process each",
        )
    )
    return [*rows, row("peak_memory_mib", ours, "MiB", f"naive: {naive:.0f} MiB")]


def peak_memory(side):
    """Measure the peak resident memory of a fresh process that takes two VA-OPD steps."""
    done = subprocess.run(
        [sys.executable, __file__, "--side", side], capture_output=True, text=True, check=True
    )
    return float(done.stdout)


def print_peak_memory(side):
    """Take two VA-OPD steps of one side; print this process's peak memory in MiB."""
    student = vistill.load("vistill:student", device="cpu")
    teacher = vistill.load("vistill:teacher", frozen=True, device="cpu")
    models = Models(student, teacher, student.vocabulary_size)
    prompts = diagram_prompts("train", PROMPTS, 0)
    groups = write_groups(
        models,
        ResponseSource(SharedEngine(student), OPD(), SIBLINGS),
        prompts,
        Sampling(0, 0, 1.0, 1.0, 96),
    )
    for _ in range(2):
        our_step(models, VAOPD(), groups) if side == "ours" else naive_step(
            student, teacher, groups, va=True
        )
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def save_row(student):
    """Measure one checkpoint with fsync and hashes."""
    optimizer = make_optimizer(student.model, TrainSettings())
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        saved = TrainedObjects(student, optimizer, RunState(step=1))
        write_checkpoint(
            CheckpointTarget(RunFolder(Path(folder)), "bench", 1), content_to_save(saved)
        )
        return row("save_seconds", time.perf_counter() - start, "s", "one checkpoint of the demo")


def help_row():
    """Measure `vistill --help` from a cold process."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "vistill", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    return row("help_seconds", min(times), "s", "TRL 1.16: 10.2 s for trl distillation --help")


def row(name, value, unit, reference):
    return {
        "name": name,
        "value": float(f"{float(value):.4g}"),
        "unit": unit,
        "reference": reference,
    }


def measure_trl(quick, repeats):
    """Measure the rows that compare with TRL, if it is installed."""
    if not find_spec("trl"):
        print("rows with TRL left out: pip install -c constraints.txt -e '.[oracle]'")
        return []
    from compare_trl import Sizes, trl_rows

    return trl_rows(row, repeats, Sizes(2, 2, 16, 2048, 64) if quick else Sizes())


def points(c):
    return ", ".join(f"{x:,}: {value:.3g}" for x, value in c["values"])


def with_tables(text, rows, drawn, about):
    """Return `docs/performance.md` with new tables."""
    lines = ["| row | value | unit | compared with |", "|---|---|---|---|"]
    lines += [
        f"| `{r['name']}` | {r['value']:.4g} | {r['unit']} | {r['reference']} |" for r in rows
    ]
    lines += ["", "| curve | against | values | unit | compared with |", "|---|---|---|---|---|"]
    lines += [
        f"| `{c['name']}` | {c['x']} | {points(c)} | {c['unit']} | {c['reference']} |"
        for c in drawn
    ]
    versions = ", ".join(f"{name} {about[name]}" for name in ("torch", "transformers", "trl"))
    note = (
        f"{about['date']}, `{about['command']}`, {versions}, Python {about['python']}. "
        "Seconds belong to one shared machine; quote the ratios."
    )
    lines += ["", *textwrap.wrap(note, 100, break_long_words=False, break_on_hyphens=False)]
    before, _, rest = text.partition(BEGIN)
    _, marker, after = rest.partition(END)
    assert marker, f"{DOCS.name} has lost its markers"
    return "\n".join([before + BEGIN, *lines, END]) + after


def write(out, rows, drawn, about):
    """Write the results; if they go to the repository's own file, write the page too."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps({"rows": rows, "curves": drawn, "about": about}, indent=2) + "\n")
    if out == RESULTS:
        DOCS.write_text(with_tables(DOCS.read_text(), rows, drawn, about))


def parts_of(quick):
    """What is measured, by the names for `--only`, in order."""
    repeats = 2 if quick else 5
    parts = {
        "steps": lambda: measure(repeats),
        "limits": lambda: limit_rows(row, repeats, 32_768 if quick else 151_936),
        "rollouts": lambda: rollout_rows(row, repeats, 32_768 if quick else 151_669),
        "safety": lambda: safety_rows(row, quick),
        "checkpointing": lambda: checkpointing_rows(row, repeats),
        "saving": lambda: saving_rows(row, quick),
        "counted": lambda: counted_rows(row),
        "vllm": lambda: vllm_rows(row, quick),
        "weights": lambda: transfer_rows(row, repeats),
        "answers": lambda: answer_rows(row, repeats),
        "families": lambda: family_rows(row, repeats),
        "progress": lambda: progress_rows(row),
        "starting": lambda: starting_rows(row, 200 if quick else 10_000),
        "trl": lambda: measure_trl(quick, repeats),
        "curves": lambda: curves(repeats, quick),
        "demo": lambda: demo_rows(row, 2),
    }
    return {name: part for name, part in parts.items() if name != "demo" or not quick}


def replaced(old, new):
    """Entries with those of the same name replaced; new names come last."""
    names = {entry["name"] for entry in new}
    return [entry for entry in old if entry["name"] not in names] + list(new)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="two repeats instead of five")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument(
        "--only",
        default="",
        help=f"measure only these parts and merge them into the results: {', '.join(parts_of(0))}",
    )
    parser.add_argument(
        "--side", choices=("ours", "naive"), help="only measure one side's peak memory"
    )
    args = parser.parse_args()
    use_one_thread()
    quiet_libraries()
    if args.side:
        print_peak_memory(args.side)
        return
    keep_large_allocations()
    parts = parts_of(args.quick)
    chosen = [name for name in args.only.split(",") if name] or list(parts)
    last = json.loads(args.out.read_text()) if args.only and args.out.exists() else {}
    rows, drawn = last.get("rows", []), last.get("curves", [])
    about = {
        "command": "make bench",
        "date": datetime.date.today().isoformat(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "trl": version("trl") if find_spec("trl") else last.get("about", {}).get("trl"),
        "python": platform.python_version(),
        "sizes": f"{PROMPTS} prompts x {SIBLINGS} rollouts, shipped tiny models",
    }
    for name in chosen:  # written after each part, so that a run that is killed leaves the others
        new = parts[name]()
        rows, drawn = (
            (rows, replaced(drawn, new)) if name == "curves" else (replaced(rows, new), drawn)
        )
        write(args.out if args.only else args.out.with_suffix(".partial.json"), rows, drawn, about)
    if not args.only:
        write(args.out, rows, drawn, about)
        args.out.with_suffix(".partial.json").unlink()
    width = max(len(r["name"]) for r in rows)
    for c in drawn:
        print(f"{c['name']} against {c['x']}: {points(c)} {c['unit']}; {c['reference']}")
    for r in rows:
        print(f"{r['name']:<{width}}  {r['value']:>10.4g} {r['unit']:<9} {r['reference']}")
    print(f"written to {args.out}")


if __name__ == "__main__":
    main()
