"""`vistill eval --tasks` with a language model as judge, and samples without a response."""

import json

import pytest
from judge_stub import stub_judge
from PIL import Image
from test_benchmark_run import run_verb

from vistill.evaluation.benchmarks.sample_failures import read_failures
from vistill.evaluation.benchmarks.sample_log import read_samples


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
def test_a_judge_and_a_broken_picture_give_counted_failures_that_are_asked_again(tmp_path, capsys):
    sets, run = tmp_path / "sets", tmp_path / "run"
    broken, whole = write_mmstar(sets)
    log = run / "samples" / "mmstar.va_opd.jsonl"
    command = ["eval", "vistill:student", "--tasks", "mmstar", "--protocol", "va_opd", "--data",
               sets, "--samples", "2", f"run={run}", "eval.max_new_tokens=4", "--json"]  # fmt: skip

    def ask(*words):
        code, shown, err = run_verb(capsys, *command, *words)
        assert code == 0, err
        return json.loads(shown)["tasks"]["mmstar"]

    with stub_judge(lambda text, n: "hm" if "Which, 0" in text else "B") as server:
        judge = [f"eval.judge={server.url}", "eval.judge_model=richter"]
        task = ask(*judge)
        assert task["rule"] == "judge:richter"
        assert task["failures"] == {"D202": 2, "R432": 2}
        assert task["missing_replies"] == 4
        assert task["modes"]["sampled"]["metrics"]["accuracy"]["value"] == 1.0
        assert {one["code"] for one in read_failures(log).values()} == {"D202"}
        before, asked = log.read_bytes(), len(server.requests)
        assert ask(*judge)["failures"] == {"D202": 2, "R432": 2}
        assert (log.read_bytes(), len(server.requests)) == (before, asked)
        server.reply = lambda text, n: "A"
        assert ask(*judge, "--retry-errors", "all")["failures"] == {"D202": 2}
    broken.write_bytes(whole)  # another content: asked again without an option
    task = ask()
    assert (task["rule"], task["failures"], task["missing_replies"]) == ("choice", {}, 0)
    assert len(list(read_samples(log))) == 6
    assert read_failures(log) == {}


def test_a_judge_without_a_benchmark_that_it_judges_is_refused(tmp_path, capsys):
    write_mmstar(tmp_path)
    words = ["eval", "vistill:student", "--tasks", "mmstar", "--protocol", "vgs", "--data",
             tmp_path, "eval.judge=http://127.0.0.1:9/v1", "eval.judge_model=m"]  # fmt: skip
    code, _, err = run_verb(capsys, *words, f"run={tmp_path / 'run'}")
    assert (code, "error[C101]" in err, "judged by rule" in err) == (2, True, True)
