"""A finished run folder without training: its student is a tiny model that was saved before."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

from vistill.config import build_recipe
from vistill.runs.chosen_student import resolve_model
from vistill.runs.storage import to_json, write_json
from vistill.training.run_lock import package_versions

STUDENT = Path(resolve_model("vistill:student"))
BEFORE = {
    "accuracy": 0.25,
    "accuracy_low": 0.2,
    "accuracy_high": 0.3,
    "rows": 400.0,
    "greedy_accuracy": 0.5,
    "greedy_accuracy_low": 0.4,
    "greedy_accuracy_high": 0.6,
    "greedy_rows": 128.0,
    "accuracy/pixelated": 0.1,
    "blind_rows": 64.0,
    "samples": 1.0,
    "va/mean": 0.03,
    "tokens": 8000.0,
    "truncated_share": 0.0,
    "unparsed_share": 0.01,
}
AFTER = {**BEFORE, "accuracy": 0.66, "accuracy_low": 0.6, "accuracy_high": 0.7, "va/mean": 0.05}


def finished_run(run, finished=True, student=STUDENT, **settings):
    """Write the files of a run of two steps that the exported student, card and chat read."""
    tree = {
        "run": str(run),
        "method": "va_opd",
        "student": {"model": "vistill:student"},
        "teacher": {"model": "vistill:teacher"},
        "data": {"train": "diagrams"},
        "rollout": {"temperature": 0.0, "max_new_tokens": 12},
        "va_opd": {"high_share": 0.3},
    }
    tree = {**tree, **settings}
    recipe = replace(build_recipe(tree), run=str(run)).to_dict()
    checkpoint = run / "checkpoint-000002"
    shutil.copytree(student, checkpoint / "student")
    for file in (checkpoint / "student").iterdir():
        file.chmod(0o644)
    write_json(run / "recipe.json", recipe)
    lock = {
        "recipe": recipe,
        "command": "vistill train r.yaml hf_token=hf_abcdefghijklmnopqrstuvwxyz0123",
        "started": "2026-11-27T08:00:00+00:00",
        "versions": package_versions(),
    }
    # as an older version would have written it: the secret is not masked
    (run / "run.lock.json").write_text(json.dumps(lock))
    write_json(run / "data.json", {"train_rows": 1200, "eval_rows": 400, "quarantined": 3})
    rows = {"train": [["a", "q1-r1", "f:1"], ["b", "q2-r2", "f:2"]], "eval": [["c", "q3-r3", ""]]}
    write_json(run / "rows.json", rows)
    records = [{"step": 0, **BEFORE}, {"step": 2, **AFTER}]
    (run / "evaluations.jsonl").write_text("".join(to_json(r) + "\n" for r in records))
    if finished:
        result = {"finished": True, "step": 2, "checkpoint": checkpoint.name}
        write_json(run / "result.json", {**result, "chosen": {"step": 2, "by": "last"}})
        (run / "student").symlink_to(f"{checkpoint.name}/student", target_is_directory=True)
    return run
