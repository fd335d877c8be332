"""`vistill report` over benchmark runs that were copied or moved after they ran."""

import json
import shutil

from vistill.cli.main import entry
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow
from vistill.evaluation.benchmarks.sample_log import KIND, VERSION, Sample

ASKED = {"rows": 1, "samples": {"greedy": 1}}
HEADER = {"log": KIND, "version": VERSION, "task": "ai2d", "model": "m", "protocol": "official",
          "take": "last", "source": "s", "asked": ASKED}  # fmt: skip


def write_log(run, right):
    """A log with one response, right or wrong."""
    row = BenchmarkRow("r", "Which?", answer="A", choices=("leaf", "root"))
    verdicts = {"choice": {"correct": right, "extracted": "A", "unparsed": False}}
    sample = Sample(row, "c", "greedy", 0, (), "Which?", "A", "stop", 1, 0.1, verdicts)
    log = run / "samples" / "ai2d.official.jsonl"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("".join(json.dumps(line) + "\n" for line in (HEADER, sample.to_dict())))
    return log


def call(capsys, *words):
    code = 0
    try:
        entry([*map(str, words)])
    except SystemExit as stop:
        code = stop.code or 0
    shown = capsys.readouterr()
    assert code == 0, shown.err
    return shown.out


def test_each_run_is_compared_by_the_log_in_its_own_folder(tmp_path, capsys):
    first, second = tmp_path / "first", tmp_path / "second"
    log = write_log(first, True)
    (results,) = json.loads(call(capsys, "rescore", log, "--json"))
    (first / "results.json").write_text(json.dumps(results))
    shutil.copytree(first, second)
    write_log(second, False)
    page = tmp_path / "page.html"
    call(capsys, "report", first, second, "--out", page)
    assert "-100.0" in page.read_text()
    shutil.move(first, tmp_path / "third")
    call(capsys, "report", tmp_path / "third", second, "--out", page)
    assert "-100.0" in page.read_text()
