"""Rows of `make bench` on the engine `vllm`: whole VA-OPD steps, weight syncs included.

The shipped student and teacher on a CPU, in seconds of the clock, because vLLM computes in another
process. Both engines write the same responses; this is asserted.
"""

import json
import os
import tempfile
import time
from pathlib import Path
from statistics import median

import vistill
from vistill.rollouts.vllm_checks import VARIABLE
from vistill.rollouts.vllm_engine import VLLMEngine

STEPS = 12
RECIPE = Path(__file__).parent.parent / "recipes" / "tiny_vllm.yaml"


def vllm_rows(row, quick):
    """Measure steps with `vllm` over steps with `shared`, and one sync. Needs vLLM."""
    if not os.environ.get(VARIABLE):
        print(f"vllm: not measured, {VARIABLE} is not set", flush=True)
        return []
    syncs, original = [], VLLMEngine.sync_weights

    def timed(self, version):
        start = time.perf_counter()
        original(self, version)
        syncs.append(time.perf_counter() - start)

    VLLMEngine.sync_weights = timed
    try:
        ours, lines = steps("shared", quick)
        theirs, other_lines = steps("vllm", quick)
    finally:
        VLLMEngine.sync_weights = original
    assert lines == other_lines, "both engines write the same responses"
    sync = median(syncs[1:])  # the first one starts vLLM
    reference = "rollout.engine=shared; 16 prompts x 4, 96 tokens, tiny models, one thread, clock"
    return [
        row("vllm_step_over_shared", (theirs + sync) / ours, "ratio", reference),
        row("vllm_sync_seconds", sync, "s", "one weight sync with its probe, 0.28 M parameters"),
    ]


def steps(engine, quick):
    """The median seconds of a step, and the log of the run."""
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as name:
        changes = {
            "run": name,
            "rollout.engine": engine,
            "rollout.max_new_tokens": 96,
            "rollout.all_truncated": "go_on",
            "train.prompts_per_step": 16,
            "train.steps": 5 if quick else STEPS,
            "eval.every": 0,
            "save.every": 0,
        }
        vistill.train(RECIPE, overrides=changes)
        timing = (Path(name) / "timing.jsonl").read_text().splitlines()
        seconds = [sum(json.loads(line)["seconds"].values()) for line in timing]
        return median(seconds[1:]), (Path(name) / "metrics.jsonl").read_text()
