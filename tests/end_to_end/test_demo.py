"""A small `vistill demo`: Ctrl-C, then the same command resumes it to the same bits."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: `demo.yaml` in the working folder takes precedence over the shipped recipe.
SMALL = """
run: x
student: {model: "vistill:student"}
teacher: {model: "vistill:teacher"}
data: {train: diagrams, diagrams: {train: 64, eval: 8}}
rollout: {per_prompt: 2, max_new_tokens: 24, all_truncated: go_on}
train: {prompts_per_step: 4, steps: 24, lr: 3.0e-4}
save: {every: 0, keep_best: none}
eval: {every: 24, limit: 8, final_limit: 8, extra_limit: 8, max_new_tokens: 24}
stages:
  opd: {method: opd}
  va_opd: {method: va_opd}
"""


def start(folder, *words):
    command = [sys.executable, "-m", "vistill", "demo", *words]
    with (folder / "output").open("w") as output:
        return subprocess.Popen(
            command, stdout=output, stderr=output, cwd=folder, start_new_session=True
        )


def steps(folder):
    metrics = folder / "metrics.jsonl"
    return len(metrics.read_text().splitlines()) if metrics.exists() else 0


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "demo.yaml").write_text(SMALL)
    return tmp_path


def test_ctrl_c_saves_every_arm_and_the_same_command_ends_with_the_same_bits(folder):
    demo, arms = start(folder, "--run", "a"), [folder / "a" / name for name in ("opd", "va_opd")]
    while demo.poll() is None and not all(steps(arm) > 1 for arm in arms):
        time.sleep(0.05)
    os.killpg(demo.pid, signal.SIGINT)
    assert demo.wait(120) == 130, (folder / "output").read_text()
    assert "run the same command again" in (folder / "output").read_text()
    for arm in arms:
        assert "saved: " in (arm / "console.log").read_text()
        assert 1 < steps(arm) < 24
    assert start(folder, "--run", "a").wait(300) == 0, (folder / "output").read_text()
    printed = (folder / "output").read_text()
    assert "opd: accuracy (T = 1)" in printed
    assert (folder / "a" / "report.html").is_file()
    assert len((folder / "a" / "compare.csv").read_text().splitlines()) == 5
    assert set(json.loads((folder / "a" / "cost.json").read_text())["arms"]) == {"opd", "va_opd"}

    assert start(folder, "--run", "b").wait(300) == 0, (folder / "output").read_text()
    for name in ("opd", "va_opd"):
        for log in ("metrics.jsonl", "evaluations.jsonl"):
            assert (folder / "a" / name / log).read_text() == (
                folder / "b" / name / log
            ).read_text()

    assert start(folder, "--run", "a").wait(60) == 0
    assert (folder / "output").read_text().count("is already finished") == 2


def test_the_demo_ends_with_the_error_and_the_exit_code_of_an_arm(folder):
    recipe = (folder / "demo.yaml").read_text().replace("va_opd}", "va_opd, rollout.top_p: 0.5}")
    (folder / "demo.yaml").write_text(recipe)
    demo = start(folder, "--run", "a")
    assert demo.wait(60) == 2
    assert "error[C301]" in (folder / "output").read_text()
    (folder / "demo.yaml").write_text(SMALL.replace('"vistill:teacher"', "nowhere"))
    demo = start(folder, "--run", "a")
    assert demo.wait(120) == 4
    printed = (folder / "output").read_text()
    assert "error[M103]: arm " in printed
    assert "Traceback" not in printed
