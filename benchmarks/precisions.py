"""What the precision of trained weights and the optimizer change: tiny runs, several seeds.

`python benchmarks/precisions.py [LR ...]` trains the shipped tiny student by `opd` with each, and
prints a table, mean and range over seeds: the mean loss of the last steps; how far the weights are
from those of the fp32 run with the same seed, relative to how far that run moved them; and the
share of that move which the run made (its own move, projected on that of the fp32 run). `--only
bf16_stochastic` measures that precision next to the fp32 run, and none of the others.
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import mean

import torch

import vistill
from vistill.config import build_recipe
from vistill.runtime import quiet_libraries, use_one_thread

STEPS, SEEDS, LAST = 40, (0, 1, 2), 10
#: Student's precision, optimizer, precision of a step. The first is the reference.
CHOICES = [
    ("auto", "adamw", "fp32"),
    ("auto", "adamw", "bf16"),
    ("auto", "adamw_8bit", "bf16"),
    ("bf16", "adamw", "bf16"),
    ("bf16_stochastic", "adamw", "bf16"),
    ("bf16_stochastic", "adamw_8bit", "bf16"),
]


def weights_of(vlm):
    """All weights of a model in one tensor."""
    return torch.cat([p.detach().float().flatten() for p in vlm.model.parameters()])


def run_once(folder, choice, seed, lr):
    """Train one run; return its loss at the end and its weights."""
    student, optimizer, step = choice
    tree = {
        "run": str(folder),
        "seed": seed,
        "method": "opd",
        "student": {"model": "vistill:student", "precision": student, "device": "cpu"},
        "teacher": {"model": "vistill:teacher", "precision": "fp32", "device": "cpu"},
        "data": {"train": "diagrams", "diagrams": {"train": 512, "eval": 8}},
        "rollout": {"per_prompt": 2, "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 96},
        "train": {
            "prompts_per_step": 8,
            "steps": STEPS,
            "lr": lr,
            "weight_decay": 0.0,
            "optimizer": optimizer,
            "precision": step,
        },
        "save": {"every": 0},
        "eval": {"every": 0},
    }
    run = vistill.train(build_recipe(tree))
    lines = [json.loads(line) for line in run.folder.metrics.read_text().splitlines()]
    trained = vistill.load(str(run.path / "student"), device="cpu")
    return mean(x["loss"] for x in lines[-LAST:]), weights_of(trained)


def shown(values, digits):
    """Mean and range of some values."""
    low, high = min(values), max(values)
    return f"{mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def measure(start, lr, choices):
    """Print a row per choice; the first one is the reference."""
    exact = {}
    for choice in choices:
        losses, distances, shares = [], [], []
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as name:
                loss, weights = run_once(Path(name) / "run", choice, seed, lr)
            losses.append(loss)
            moved = exact.setdefault(seed, weights) - start
            distances.append(float((weights - start - moved).norm() / moved.norm()))
            shares.append(float((weights - start).dot(moved) / moved.dot(moved)))
        cells = [f"{lr:g}", *choice, shown(losses, 4), shown(distances, 2), shown(shares, 2)]
        print(f"| {' | '.join(cells)} |", flush=True)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("lr", type=float, nargs="*", default=[3e-4])
    parser.add_argument("--only", action="append", help="a value of student.precision")
    options = parser.parse_args()
    use_one_thread()
    quiet_libraries()
    start = weights_of(vistill.load("vistill:student", device="cpu"))
    chosen = [c for c in CHOICES[1:] if options.only is None or c[0] in options.only]
    print(f"{STEPS} steps of 8 prompts x 2 rollouts, seeds {SEEDS}", flush=True)
    columns = ["lr", "`student.precision`", "`train.optimizer`", "step", "loss", "distance", "move"]
    print(f"| {' | '.join(columns)} |")
    print("|---" * len(columns) + "|")
    for lr in options.lr:
        measure(start, lr, [CHOICES[0], *chosen])


if __name__ == "__main__":
    main()
