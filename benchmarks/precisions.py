"""What the precision of trained weights and the optimizer change: tiny runs, several seeds.

`python benchmarks/precisions.py [LR ...]` trains the shipped tiny student by `opd` with each, and
prints a table, mean and range over seeds: the mean loss of the last steps, and how far the weights
are from those of the fp32 run with the same seed, relative to how far that run moved them.
"""

import json
import sys
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


def main():
    use_one_thread()
    quiet_libraries()
    start = weights_of(vistill.load("vistill:student", device="cpu"))
    print(f"{STEPS} steps of 8 prompts x 2 rollouts, seeds {SEEDS}", flush=True)
    print("| lr | `student.precision` | `train.optimizer` | step | loss | distance of weights |")
    print("|---|---|---|---|---|---|")
    for lr in [float(x) for x in sys.argv[1:]] or [3e-4]:
        exact = {}
        for choice in CHOICES:
            losses, distances = [], []
            for seed in SEEDS:
                with tempfile.TemporaryDirectory() as name:
                    loss, weights = run_once(Path(name) / "run", choice, seed, lr)
                losses.append(loss)
                weights_of_reference = exact.setdefault(seed, weights)
                moved = (weights_of_reference - start).norm()
                distances.append(float((weights - weights_of_reference).norm() / moved))
            cells = [f"{lr:g}", *choice, shown(losses, 4), shown(distances, 2)]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
