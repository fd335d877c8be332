"""`vistill eval --tasks` with a language model as judge, and samples without a response."""

import json

import pytest
from judge_stub import stub_judge
from PIL import Image
from test_benchmark_run import run_verb

from vistill.errors import RolloutError
from vistill.evaluation.benchmarks.sample_failures import read_failures
from vistill.evaluation.benchmarks.sample_log import read_samples
from vistill.studies.benchmark_asker import Asker


def write_mmstar(folder):
    """Three rows of MMStar, made for this test; the picture of the second does not decode."""
    rows = [
        {"index": n, "question": f"Which, {n}?\nOptions: A: red, B: blue", "image": f"{n}.png",
         "answer": "B", "category": "colour", "l2_category": "hue"}
        for n in range(3)
    ]  # fmt: skip
    (folder / "mmstar").mkdir(parents=True)
    for n in range(3):
        picture = Image.effect_noise((48, 48), 60 + n).convert("RGB")
        picture.save(folder / "mmstar" / f"{n}.png")
    broken = folder / "mmstar" / "1.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[: len(whole) // 2])
    (folder / "mmstar" / "data.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return broken, whole


@pytest.mark.more
def test_failures_of_pictures_engine_and_judge_are_counted_and_asked_again_by_class(
    tmp_path, capsys, monkeypatch
):
    sets, run = tmp_path / "sets", tmp_path / "run"
    broken, whole = write_mmstar(sets)
    log = run / "samples" / "mmstar.va_opd.jsonl"
    command = ["eval", "vistill:student", "--tasks", "mmstar", "--protocol", "va_opd", "--data",
               sets, "--samples", "2", f"run={run}", "eval.max_new_tokens=4", "--json"]  # fmt: skip
    generate, stays_empty = Asker.generate_together, [True]

    def fail_on_the_third_row(self, asked, *rest):
        if stays_empty[0] and any("Which, 2" in prompt.text for prompt, _ in asked):
            raise RolloutError("R403", "a response stayed empty")
        return generate(self, asked, *rest)

    # no engine of ours fails for one prompt alone
    monkeypatch.setattr(Asker, "generate_together", fail_on_the_third_row)

    def ask(*words):
        code, shown, err = run_verb(capsys, *command, *words)
        assert code == 0, err
        return json.loads(shown)["tasks"]["mmstar"]

    with stub_judge(lambda text, n: "B") as server:
        judge = [f"eval.judge={server.url}", "eval.judge_model=richter"]
        task = ask(*judge)
        assert [one["code"] for one in task["failed"]] == ["D202"]
        assert (task["rule"], task["failures"]) == ("judge:richter", {"R403": 2})
        assert task["missing_replies"] == 2
        assert task["modes"]["sampled"]["metrics"]["accuracy"]["value"] == 1.0
        stays_empty[0] = False
        before = log.read_bytes()
        assert ask(*judge, "--retry-errors", "R432")["failures"] == {"R403": 2}
        assert log.read_bytes() == before
        server.reply = lambda text, n: "hm"
        task = ask(*judge, "--retry-errors", "all")
        assert len(list(read_samples(log))) == 4
        assert set(task["failures"]) == {"R432"}
        server.reply = lambda text, n: "A"
        task = ask(*judge, "--retry-errors", "R432")
        assert (task["failures"], task["missing_replies"]) == ({}, 0)
    broken.write_bytes(whole)
    task = ask()
    assert (task["rule"], task["failed"], task["failures"]) == ("choice", [], {})
    assert len(list(read_samples(log))) == 6
    assert read_failures(log) == {}


def test_a_judge_without_a_benchmark_that_it_judges_is_refused(tmp_path, capsys):
    write_mmstar(tmp_path)
    words = ["eval", "vistill:student", "--tasks", "mmstar", "--protocol", "vgs", "--data",
             tmp_path, "eval.judge=http://127.0.0.1:9/v1", "eval.judge_model=m"]  # fmt: skip
    code, _, err = run_verb(capsys, *words, f"run={tmp_path / 'run'}")
    assert (code, "error[C101]" in err, "judged by rule" in err) == (2, True, True)
