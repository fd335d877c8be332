"""The GPU benchmark without a GPU: toy sizes, one broken item among others, what to carry to a machine without a network."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch
from conftest import REPO
from packaging.requirements import Requirement

SCRIPT = REPO / "benchmarks" / "gpu.py"


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "benchmarks"))


def run_script(*arguments, code=None):
    """The script in a process of its own, or some code in its place."""
    start = ["-c", code] if code else [str(SCRIPT)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *start, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )


def run_fake(tmp_path, functions, budget=60.0, tiny=True):
    """Items made of plain functions, through the real runner; whether all was well, and the stored results."""
    from gpu_runner import Bench, Item, run_items

    items = [
        function if isinstance(function, Item) else Item(function.__name__, 1, function)
        for function in functions
    ]
    out = tmp_path / "gpu.json"
    good = run_items(items, Bench(tiny, torch.device("cpu")), budget, out, {"torch": "2"})
    assert list(tmp_path.iterdir()) == [out]
    return good, json.loads(out.read_text())


def fine(bench):
    bench.values["seen"] = 1.23456
    bench.row("row_of_fine", 2.0, "s", "nothing")


def test_all_that_is_taken_from_vistill_is_there():
    import gpu_items
    import gpu_setup

    assert all(hasattr(gpu_setup, name) for name in gpu_setup.__all__)
    assert {"build_model", "build_step", "write_rollouts", "plain_step"} <= set(gpu_setup.__all__)
    others = [
        REPO / "benchmarks" / f"{name}.py"
        for name in ("gpu", "gpu_items", "gpu_kernels", "gpu_runner")
    ]
    for file in others:
        assert not re.search(r"^\s*(from|import) vistill", file.read_text(), re.MULTILINE), (
            file.name
        )
    names = [item.name for item in gpu_items.ITEMS]
    assert len(set(names)) == len(names)


def test_an_error_in_one_item_is_recorded_and_the_others_run(tmp_path):
    def broken(bench):
        bench.values["before"] = 1
        raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20 GiB")

    def parts(bench):
        with bench.part("first"):
            bench.values["before"] = 1
            raise AttributeError("renamed")
        with bench.part("second"):
            bench.values["after"] = 2

    good, results = run_fake(tmp_path, [broken, parts, fine])
    assert not good
    items = results["items"]
    assert items["broken"]["status"] == items["parts"]["status"] == "failed"
    assert items["broken"]["error"] == "OutOfMemoryError: CUDA out of memory."
    assert items["broken"]["values"] == {"before": 1}
    assert "raise torch.OutOfMemoryError" in "".join(items["broken"]["traceback"])
    assert items["parts"]["error"] == "first: AttributeError: renamed"
    assert items["parts"]["values"]["first"]["before"] == 1
    assert items["parts"]["values"]["second"]["after"] == 2
    assert items["fine"]["status"] == "ok"
    assert items["fine"]["values"]["seen"] == 1.235
    assert [row["name"] for row in results["rows"]] == ["row_of_fine"]


@pytest.mark.parametrize("value", [0.3, float("nan"), float("inf")])
def test_a_value_beyond_its_bound_fails_its_item_and_stays_in_the_results(tmp_path, value):
    def wrong(bench):
        bench.check("difference", value, 0.1)
        bench.check("other", 0.1, 0.1)

    good, results = run_fake(tmp_path, [wrong, fine])
    assert not good
    assert results["items"]["wrong"]["status"] == "failed"
    assert "difference is" in results["items"]["wrong"]["error"]
    assert "other" not in results["items"]["wrong"]["error"]
    kept = value if value == 0.3 else str(value)
    assert results["items"]["wrong"]["values"]["difference"] == {"value": kept, "bound": 0.1}
    assert results["items"]["fine"]["status"] == "ok"


def test_the_results_are_written_after_every_item(tmp_path):
    seen = []

    def look(bench):
        seen.append(json.loads((tmp_path / "gpu.json").read_text()))

    run_fake(tmp_path, [fine, look, fine])
    statuses = {name: record["status"] for name, record in seen[0]["items"].items()}
    assert statuses == {"fine": "ok", "look": "running"}
    assert seen[0]["about"] == {"torch": "2"}
    assert seen[0]["rows"][0]["value"] == 2.0


def test_what_does_not_fit_into_the_budget_is_skipped_with_the_reason(tmp_path):
    from gpu_runner import Item, Skip

    def not_here(bench):
        raise Skip("no such kernel")

    long, needy = Item("long", 1000, fine), Item("needy", 1, fine, ("teacher",))
    good, results = run_fake(tmp_path, [long, not_here, needy, fine], tiny=False)
    assert good
    assert results["items"]["long"] == {
        "status": "skipped",
        "reason": "needs about 1000 s, 60 s are left",
    }
    assert results["items"]["not_here"]["reason"] == "no such kernel"
    assert results["items"]["needy"]["reason"] == "needs the teacher, which could not be built"
    assert results["items"]["fine"]["status"] == "ok"


def test_an_item_that_overruns_the_budget_is_stopped(tmp_path):
    def slow(bench):
        bench.values["before"] = 1
        with bench.part("long"):
            bench.values["inside"] = 1
            time.sleep(20)

    good, results = run_fake(tmp_path, [slow, fine], budget=0.3)
    assert good
    slow_one = results["items"]["slow"]
    assert (slow_one["status"], slow_one["seconds"] < 10) == ("skipped", True)
    assert slow_one["reason"].endswith("the budget is spent")
    assert slow_one["values"] == {"before": 1, "long": {"inside": 1, "peak_gib": None}}
    assert results["items"]["fine"]["status"] == "skipped"


def test_items_are_chosen_by_name_together_with_the_models_they_need():
    from gpu import chosen

    items = [
        SimpleNamespace(name=n, needs=needs)
        for n, needs in (("a", ()), ("models", ()), ("b", ("student",)))
    ]
    names = lambda wanted: [item.name for item in chosen(items, wanted)]
    assert names(None) == ["a", "models", "b"]
    assert names(["a"]) == ["a"]
    assert names(["b"]) == ["models", "b"]
    with pytest.raises(SystemExit, match="no item c, d; there are: a, models, b"):
        chosen(items, ["c", "a", "d"])


def test_without_a_gpu_it_is_refused_in_one_line(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    done = run_script("--out", tmp_path / "gpu.json")
    assert done.returncode == 1
    assert (
        done.stderr.strip()
        == "no CUDA device here: nothing was measured. --tiny runs the same code at toy sizes."
    )
    assert not (tmp_path / "gpu.json").exists()


def test_packages_that_are_missing_are_named_at_the_start():
    command = [sys.executable, "-S", str(SCRIPT), "--tiny"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 1
    assert re.search(
        r"lacks what vistill needs: torch>=\S+, transformers>=\S+, .*pydantic>=", done.stderr
    )
    assert "make gpu-wheels" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_is_too_old_is_named(monkeypatch):
    import gpu

    real = gpu.version_of
    monkeypatch.setattr(
        gpu, "version_of", lambda name: "5.9.1" if name == "transformers" else real(name)
    )
    (lacking,) = gpu.lacking_packages()
    assert re.fullmatch(r"transformers>=5[\d.]+ \(here: 5\.9\.1\)", lacking)


def closure(name, known):
    """The installed packages that a package needs, itself included."""
    name = re.sub(r"[-_.]+", "-", name).lower()
    if name in known:
        return known
    try:
        lines = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return known
    known.add(name)
    for line in map(Requirement, lines):
        if line.marker is None or line.marker.evaluate({"extra": ""}):
            closure(line.name, known)
    return known


def test_the_wheels_to_carry_are_all_that_vistill_needs_beyond_torch_in_the_tested_versions():
    from gpu import pinned

    pins = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned().items()}
    lines = (REPO / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    tested = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in tested.items()}
    assert pins == {name: tested[name] for name in pins}
    there = closure("torch", set()) | {"numpy", "hf-xet"}
    needed = closure("vistill", set()) - {"vistill"}
    assert needed - there <= set(pins)
    assert set(pins) <= needed


@pytest.mark.slow
@pytest.mark.parametrize("attention", ["blocks", "flex"])
def test_every_item_has_values_at_toy_sizes(tmp_path, attention):
    done = run_script("--tiny", "--attention", attention, "--out", tmp_path / "gpu.json")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    results = json.loads((tmp_path / "gpu.json").read_text())
    skipped = {name for name, item in results["items"].items() if item["status"] == "skipped"}
    assert skipped <= {"loss_triton"}
    for name, item in results["items"].items():
        if name not in skipped:
            assert item["status"] == "ok", name
            assert item["values"], name
            assert item["seconds"] > 0
    rows = {row["name"] for row in results["rows"]}
    assert {
        "G1_loss_time_over_floor_torch",
        "G2_va_step_over_rows_opd",
        "G3_matrix_rate_over_peak",
    } <= rows
    assert results["about"]["torch"] == torch.__version__
    assert results["items"]["models"]["values"]["student"]["attention"] == attention
    checks = json.dumps(results["items"])
    assert checks.count('"bound"') >= 8


BROKEN = """
import sys
sys.path.insert(0, {folder!r})
import gpu, gpu_items
def gone(*_, **__): raise AttributeError("write_rollouts has gone")
gpu_items.write_rollouts = gone
sys.exit(gpu.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_broken_item_leaves_the_others_their_values_and_a_complete_file(tmp_path):
    code = BROKEN.format(folder=str(REPO / "benchmarks"))
    out = tmp_path / "gpu.json"
    done = run_script("--tiny", "--items", "loss_torch,rollouts,saving", "--out", out, code=code)
    assert done.returncode == 1, done.stderr[-2000:]
    items = json.loads(out.read_text())["items"]
    assert {name: item["status"] for name, item in items.items()} == {
        "loss_torch": "ok",
        "models": "ok",
        "rollouts": "failed",
        "saving": "ok",
    }
    assert "write_rollouts has gone" in items["rollouts"]["error"]
    assert "write_rollouts has gone" in json.dumps(items["rollouts"]["values"])
    assert items["rollouts"]["values"]["encode"]["ms_per_prompt"] > 0
    assert items["saving"]["values"]["gigabytes"] > 0
