"""The GPU benchmark without a GPU: toy sizes, one broken item, the wheels for offline machines."""

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
    """Run the script, or some code instead, in a separate process."""
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
    """Run functions as items through the real runner; return its status and the stored results."""
    from gpu_runner import Bench, Item, run_items

    items = [
        function if isinstance(function, Item) else Item(function.__name__, 1, function)
        for function in functions
    ]
    out = tmp_path / "gpu.json"
    good = run_items(items, Bench(tiny, torch.device("cpu")), budget, out, {"torch": "2"})
    assert list(tmp_path.iterdir()) == [out]
    return good, json.loads(out.read_text())


def good_item(bench):
    bench.values["seen"] = 1.23456
    bench.row("row_of_good_item", 2.0, "s", "nothing")


def test_all_names_imported_from_vistill_exist():
    import gpu_items
    import gpu_setup

    assert all(hasattr(gpu_setup, name) for name in gpu_setup.__all__)
    assert {"build_model", "build_step", "make_rollouts", "transformers_step"} <= set(
        gpu_setup.__all__
    )
    others = [
        REPO / "benchmarks" / f"{name}.py"
        for name in ("gpu", "gpu_attention", "gpu_items", "gpu_kernels", "gpu_runner", "gpu_runs")
    ]
    for file in others:
        assert not re.search(r"^\s*(from|import) vistill", file.read_text(), re.MULTILINE), (
            file.name
        )
    names = [item.name for item in gpu_items.ITEMS]
    assert len(set(names)) == len(names)


@pytest.mark.more
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

    good, results = run_fake(tmp_path, [broken, parts, good_item])
    assert not good
    items = results["items"]
    assert items["broken"]["status"] == items["parts"]["status"] == "failed"
    assert items["broken"]["error"] == "OutOfMemoryError: CUDA out of memory."
    assert items["broken"]["values"] == {"before": 1}
    assert "raise torch.OutOfMemoryError" in "".join(items["broken"]["traceback"])
    assert items["parts"]["error"] == "first: AttributeError: renamed"
    assert items["parts"]["values"]["first"]["before"] == 1
    assert items["parts"]["values"]["second"]["after"] == 2
    assert items["good_item"]["status"] == "ok"
    assert items["good_item"]["values"]["seen"] == 1.235
    assert [row["name"] for row in results["rows"]] == ["row_of_good_item"]


@pytest.mark.more
@pytest.mark.parametrize("value", [0.3, float("nan"), float("inf")])
def test_a_value_beyond_its_bound_fails_its_item_and_stays_in_the_results(tmp_path, value):
    def wrong(bench):
        bench.check("difference", value, 0.1)
        bench.check("other", 0.1, 0.1)

    good, results = run_fake(tmp_path, [wrong, good_item])
    assert not good
    assert results["items"]["wrong"]["status"] == "failed"
    assert "difference is" in results["items"]["wrong"]["error"]
    assert "other" not in results["items"]["wrong"]["error"]
    stored = value if value == 0.3 else str(value)
    assert results["items"]["wrong"]["values"]["difference"] == {"value": stored, "bound": 0.1}
    assert results["items"]["good_item"]["status"] == "ok"


@pytest.mark.more
def test_the_results_are_written_after_every_item(tmp_path):
    snapshots = []

    def read_results(bench):
        snapshots.append(json.loads((tmp_path / "gpu.json").read_text()))

    run_fake(tmp_path, [good_item, read_results, good_item])
    statuses = {name: record["status"] for name, record in snapshots[0]["items"].items()}
    assert statuses == {"good_item": "ok", "read_results": "running"}
    assert snapshots[0]["about"] == {"torch": "2"}
    assert snapshots[0]["rows"][0]["value"] == 2.0


@pytest.mark.more
def test_an_item_that_does_not_fit_into_the_budget_is_skipped_with_the_reason(tmp_path):
    from gpu_runner import Item, Skip

    def unavailable(bench):
        raise Skip("no such kernel")

    long, dependent = Item("long", 1000, good_item), Item("dependent", 1, good_item, ("teacher",))
    good, results = run_fake(tmp_path, [long, unavailable, dependent, good_item], tiny=False)
    assert good
    assert results["items"]["long"] == {
        "status": "skipped",
        "reason": "needs about 1000 s, 60 s are left",
    }
    assert results["items"]["unavailable"]["reason"] == "no such kernel"
    assert results["items"]["dependent"]["reason"] == "needs the teacher, which could not be built"
    assert results["items"]["good_item"]["status"] == "ok"


@pytest.mark.more
def test_an_item_that_overruns_the_budget_is_stopped(tmp_path):
    def slow(bench):
        bench.values["before"] = 1
        with bench.part("long"):
            bench.values["inside"] = 1
            time.sleep(20)

    good, results = run_fake(tmp_path, [slow, good_item], budget=0.3)
    assert good
    slow_record = results["items"]["slow"]
    assert (slow_record["status"], slow_record["seconds"] < 10) == ("skipped", True)
    assert slow_record["reason"].endswith("the budget is spent")
    assert slow_record["values"] == {"before": 1, "long": {"inside": 1, "peak_gib": None}}
    assert results["items"]["good_item"]["status"] == "skipped"


def test_items_are_selected_by_name_together_with_the_models_they_need():
    from gpu import select_items

    items = [
        SimpleNamespace(name=n, needs=needs)
        for n, needs in (("a", ()), ("models", ()), ("b", ("student",)))
    ]

    def names(wanted):
        return [item.name for item in select_items(items, wanted)]

    assert names(None) == ["a", "models", "b"]
    assert names(["a"]) == ["a"]
    assert names(["b"]) == ["models", "b"]
    with pytest.raises(SystemExit, match="no item c, d; there are: a, models, b"):
        select_items(items, ["c", "a", "d"])


@pytest.mark.more
def test_without_a_gpu_it_is_refused_in_one_line(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
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
        r"lacks what vistill needs: torch>=\S+, transformers>=\S+, .*typer>=", done.stderr
    )
    assert "make gpu-wheels" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_package_that_is_too_old_is_named(monkeypatch):
    import gpu

    real = gpu.version_of
    monkeypatch.setattr(
        gpu, "version_of", lambda name: "5.9.1" if name == "transformers" else real(name)
    )
    (missing,) = gpu.missing_packages()
    assert re.fullmatch(r"transformers>=5[\d.]+ \(here: 5\.9\.1\)", missing)


def closure(name, known):
    """Collect the installed packages that a package needs, including itself."""
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


def test_the_wheels_are_all_packages_that_vistill_needs_beyond_torch_in_the_tested_versions():
    from gpu import pinned_versions

    pins = {
        re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pinned_versions().items()
    }
    lines = (REPO / "constraints.txt").read_text().splitlines()
    tested = dict(line.split("==") for line in lines if "==" in line)
    tested = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in tested.items()}
    assert pins == {name: tested[name] for name in pins}
    on_the_machine = closure("torch", set()) | {"numpy", "hf-xet"}
    needed = closure("peft", closure("vistill", set())) - {"vistill"}
    assert needed - on_the_machine <= set(pins)
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
        "checkpoint_blocking_over_whole",
    } <= rows
    assert results["items"]["resume"]["values"] == {"same_weights": True, "same_metrics": True}
    assert results["items"]["memory"]["values"]["va_opd"]["planned_peak_gib"] > 0
    assert results["items"]["lora_step"]["values"]["va_opd, lora"]["trained_parameters"] > 0
    assert results["about"]["torch"] == torch.__version__
    assert results["items"]["models"]["values"]["student"]["attention"] == attention
    checks = json.dumps(results["items"])
    assert checks.count('"bound"') >= 8


BROKEN = """
import sys
sys.path.insert(0, {folder!r})
import gpu, gpu_items
def removed(*_, **__): raise AttributeError("make_rollouts was removed")
gpu_items.make_rollouts = removed
sys.exit(gpu.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_broken_item_does_not_change_the_values_of_the_others(tmp_path):
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
    assert "make_rollouts was removed" in items["rollouts"]["error"]
    assert "make_rollouts was removed" in json.dumps(items["rollouts"]["values"])
    assert items["rollouts"]["values"]["encode"]["ms_per_prompt"] > 0
    assert items["saving"]["values"]["gigabytes"] > 0
