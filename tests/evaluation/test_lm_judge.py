"""A language model as judge: forms of answers, the file of verdicts, failures, limits, secrets."""

import json
import re
import socket

import pytest
from judge_stub import own_machine, stub_judge

from vistill.cli.main import entry
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS
from vistill.evaluation.benchmarks.comparing import compare_models
from vistill.evaluation.benchmarks.judge_prompts import JUDGED, prompt_for
from vistill.evaluation.benchmarks.results import task_lines
from vistill.evaluation.benchmarks.sample_log import KIND, VERSION, Sample, read_samples

CHARTQA = BENCHMARKS["chartqa"]
KEY = "sk-vistill-test-0123456789"


def write_log(folder, task="chartqa", replies=("It is 4.", "It is 5."), **row):
    """A log with one sample per reply, all of them wrong in the log."""
    log = folder / "samples" / f"{task}.official.jsonl"
    log.parent.mkdir(parents=True)
    asked = {"rows": len(replies), "samples": {"greedy": 1}}
    header = {"log": KIND, "version": VERSION, "task": task, "model": "m", "protocol": "official",
              "take": "last", "source": "s", "asked": asked}  # fmt: skip
    lines = [header]
    wrong = {"correct": False, "extracted": None, "rule": "", "reason": "", "unparsed": True,
             "checker": "x"}  # fmt: skip
    for number, reply in enumerate(replies):
        values = {"answer": "four", "question": f"How many, {number}?", **row}
        one = BenchmarkRow(id=f"r{number}", **values)
        verdicts = dict.fromkeys(BENCHMARKS[task].rules, wrong)
        sample = Sample(one, "c", "greedy", 0, (), one.question, reply, "stop", 3, 0.1, verdicts)
        lines.append(sample.to_dict())
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return log


def rescore(capsys, log, server, *words):
    """Exit code, results of the one benchmark, and what was printed as an error."""
    url = server if isinstance(server, str) else server.url
    code = 0
    command = ["rescore", log, "--judge", url, "--judge-model", "richter", "--json", *words]
    try:
        entry([*map(str, command)])
    except SystemExit as stop:
        code = stop.code or 0
    shown = capsys.readouterr()
    task = next(iter(json.loads(shown.out)[0]["tasks"].values())) if code == 0 else None
    return code, task, shown.err


def accuracy(task):
    (mode,) = task["modes"].values()
    return mode["metrics"]["accuracy"]["value"]


def says_four(message, number):
    reply = re.search(r"\[Reply\]\n(.*)\n\[End", message)[1]
    return "yes" if "4" in reply else "No."


def test_a_judge_decides_in_place_of_the_rule_and_is_asked_once(tmp_path, capsys):
    log = write_log(tmp_path)
    before = log.read_bytes()
    with stub_judge(says_four) as server:
        code, task, _ = rescore(capsys, log, server)
        assert (code, accuracy(task), task["rule"]) == (0, 0.5, "judge:richter")
        assert task["judge"]["prompts"].keys() == {"equality/1"}
        assert (task["judge"]["requests"], task["judge"]["tokens"]) == (2, 14)
        assert server.keys == [None, None]
        _, again, _ = rescore(capsys, log, server)
        assert (again["judge"]["requests"], again["judge"]["from_file"]) == (0, 2)
        assert (accuracy(again), len(server.requests)) == (0.5, 2)
    assert log.read_bytes() == before


def test_without_a_judge_the_rule_decides_and_is_named(tmp_path, capsys):
    log = write_log(tmp_path)
    with stub_judge(lambda text, n: "no") as server:
        assert accuracy(rescore(capsys, log, server)[1]) == 0
    entry_code = 0
    try:
        entry(["rescore", str(log), "--json"])
    except SystemExit as stop:
        entry_code = stop.code or 0
    (results,) = json.loads(capsys.readouterr().out)
    task = results["tasks"]["chartqa"]
    assert (entry_code, task["rule"], "judge" in task) == (0, "relaxed", False)
    assert accuracy(task) == 0.5


def test_another_reply_model_or_gold_answer_is_another_verdict(tmp_path, capsys):
    log = write_log(tmp_path)
    with stub_judge(says_four) as server:
        rescore(capsys, log, server)
        text = log.read_text()
        log.write_text(text.replace("It is 5.", "It is 4!"))
        assert accuracy(rescore(capsys, log, server)[1]) == 1
        assert len(server.requests) == 3
        log.write_text(text.replace("four", "five"))
        rescore(capsys, log, server)
        assert len(server.requests) == 5
        rescore(capsys, log, server, "--judge-model", "other")
        assert len(server.requests) == 7


def test_nonsense_is_a_failure_that_is_counted_and_left_out(tmp_path, capsys):
    log = write_log(tmp_path, replies=("It is 4.", "It is 5.", "It is 6."))
    with stub_judge(lambda text, n: "purple monkey" if "5" in text else "yes") as server:
        code, task, _ = rescore(capsys, log, server, "--out", tmp_path / "neu")
        assert (code, accuracy(task)) == (0, 1.0)
        assert (task["failures"], task["missing_replies"]) == ({"R432": 1}, 1)
        verdicts = [s.verdicts["relaxed"] for s in read_samples(tmp_path / "neu" / log.name)]
        assert [v.get("failed") for v in verdicts] == [None, "R432", None]
        assert [v["rule"] for v in verdicts] == ["equality/1", "judge failed", "equality/1"]
        rescore(capsys, log, server)
        assert len(server.requests) == 3  # what failed is not asked again by itself
        server.reply = says_four
        rescore(capsys, log, server, "--retry-errors", "R431")
        assert len(server.requests) == 3
        _, task, _ = rescore(capsys, log, server, "--retry-errors", "R431,R432")
        assert (len(server.requests), task["failures"]) == (4, {})


def test_errors_of_the_server_are_repeated_then_counted_and_never_stop_the_rest(tmp_path, capsys):
    log = write_log(tmp_path, replies=("It is 4.", "It is 5.", "It is 6."))

    def busy(text, number):
        if "It is 5" in text:
            return 503
        return 429 if number == 1 else says_four(text, number)

    with stub_judge(busy) as server:
        code, task, _ = rescore(capsys, log, server)
        assert (code, task["failures"], accuracy(task)) == (0, {"R431": 1}, 0.5)
        assert len(server.requests) == 2 + 4 + 1
        assert task["judge"]["requests"] == 7


def test_a_judge_that_dies_is_not_asked_for_every_sample(tmp_path, capsys):
    log = write_log(tmp_path, replies=[f"It is {n}." for n in range(200)])
    with stub_judge(lambda text, n: "yes" if n == 1 else 500) as server:
        code, task, _ = rescore(capsys, log, server)
        assert (code, task["failures"]) == (0, {"R431": 199})
        assert len(server.requests) < 60
        server.reply = says_four
        _, task, _ = rescore(capsys, log, server)  # those that were never asked are asked
        assert 0 < task["failures"]["R431"] < 15
        _, task, _ = rescore(capsys, log, server, "--retry-errors", "all")
        assert task["failures"] == {}


def test_a_limit_of_requests_gives_a_partial_result_that_continues(tmp_path, capsys):
    log = write_log(tmp_path, replies=[f"It is {n}." for n in range(6)])
    with stub_judge(says_four) as server:
        for failed in (4, 2, 0):
            _, task, _ = rescore(capsys, log, server, "--judge-limit", "2")
            assert task["failures"] == ({"R433": failed} if failed else {})
            assert task["missing_replies"] == failed
        assert len(server.requests) == 6


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_judge_that_is_down_is_an_error_at_the_first_request(tmp_path, capsys):
    log = write_log(tmp_path)
    out = tmp_path / "neu"
    url = f"http://127.0.0.1:{free_port()}/v1"
    with own_machine():
        code, _, err = rescore(capsys, log, url, "--out", out)
    assert (code, "error[R430]" in err, "start the server" in err) == (4, True, True)
    assert not (out / log.name).exists()


@pytest.mark.parametrize("status", [401, 404, 302, 500])
def test_a_refusal_of_the_first_request_is_an_error_without_the_key(
    status, tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("VISTILL_JUDGE_KEY", KEY)
    log = write_log(tmp_path)
    with stub_judge(lambda text, n: status) as server:
        code, _, err = rescore(capsys, log, server)
        assert (code, "error[R430]" in err, f"HTTP {status}" in err) == (4, True, True)
        assert KEY not in err
        assert server.keys[0] == f"Bearer {KEY}"
        assert len(server.requests) == (4 if status == 500 else 1)
    kept = "".join(p.read_text() for p in tmp_path.rglob("*.jsonl"))
    assert KEY not in kept


def test_only_one_variable_of_the_environment_is_sent_and_never_written(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other-99887766554433")
    monkeypatch.setenv("VISTILL_JUDGE_KEY", KEY)
    log = write_log(tmp_path)
    with stub_judge(lambda text, n: f"yes {KEY}" if n == 2 else "yes") as server:
        _, task, _ = rescore(capsys, log, server)
        assert set(server.keys) == {f"Bearer {KEY}"}
    kept = "".join(p.read_text() for p in tmp_path.rglob("*.jsonl")) + json.dumps(task)
    assert KEY not in kept
    assert "sk-other" not in kept


ROW = BenchmarkRow("r", "Which?", answer="B", choices=("red", "blue"))


@pytest.mark.parametrize(
    ("task", "answer", "word"),
    [
        ("mmstar", "B", "B"), ("mmstar", "(b).", "b"), ("mmstar", "none", "none"),
        ("mmstar", "C", None), ("mmstar", "I think blue", None),
        ("mmstar", "<think>A? no</think>\nB", "B"), ("mmstar", "", None),
        ("logicvista", "Yes.", "Yes"), ("logicvista", "yes and no", None),
        ("logicvista", "Let me see.\nno", "no"), ("logicvista", "maybe", None),
        ("hallusionbench", "Incorrect", "Incorrect"), ("hallusionbench", "2", None),
    ],
)  # fmt: skip
def test_an_answer_of_another_form_is_no_verdict(task, answer, word):
    row = BenchmarkRow("r", "Is it?", answer="1") if task == "hallusionbench" else ROW
    assert prompt_for(task, row).read(answer, row) == word


def test_what_a_judge_extracts_is_compared_by_the_rule_and_it_sees_no_gold_answer(tmp_path, capsys):
    facts = {"answer_type": "float", "precision": "1", "question_type": "free_form"}
    log = write_log(tmp_path, "mathvista", ("about 1.23 m", "no idea"), answer="1.2", facts=facts)

    def extract(text, number):
        assert "[Correct answer]" not in text
        return "answer: 1.23" if "1.23" in text else "answer: none"

    with stub_judge(extract) as server:
        _, task, _ = rescore(capsys, log, server)
    (mode,) = task["modes"].values()
    assert (accuracy(task), mode["unparsed_share"]) == (0.5, 0.5)


def test_an_option_of_a_judge_is_compared_with_the_gold_answer(tmp_path, capsys):
    log = write_log(tmp_path, "mmstar", ("blue", "red"), answer="B", choices=("red", "blue"))
    with stub_judge(lambda text, n: "B" if "\nblue\n[End" in text else "A") as server:
        _, task, _ = rescore(capsys, log, server)
    assert accuracy(task) == 0.5


def test_a_maze_has_no_judge(tmp_path, capsys):
    log = write_log(tmp_path, "vsp_maze", ("L,R",))
    with stub_judge(says_four) as server:
        code, _, err = rescore(capsys, log, server)
        assert (code, "error[C101]" in err, server.requests) == (2, True, [])


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:80", "http://me:pass@host/v1"])
def test_what_is_no_url_of_a_server_is_refused_without_its_password(url, tmp_path, capsys):
    code, _, err = rescore(capsys, write_log(tmp_path), url)
    assert (code, "error[C002]" in err, "me:pass" in err) == (2, True, False)


def test_a_half_written_verdict_of_a_killed_process_is_asked_again(tmp_path, capsys):
    log = write_log(tmp_path)
    with stub_judge(says_four) as server:
        rescore(capsys, log, server)
        cache = log.parent / "judge.jsonl"
        cache.write_bytes(cache.read_bytes()[:-9])
        _, task, _ = rescore(capsys, log, server)
        assert (task["judge"]["requests"], accuracy(task)) == (1, 0.5)


def test_every_benchmark_that_a_protocol_gives_to_a_judge_exists():
    assert {name for names in JUDGED.values() for name in names} <= set(BENCHMARKS)


def test_what_a_judge_extracts_is_read_by_every_rule_of_a_benchmark(tmp_path, capsys):
    """MMMU's own rule reads `(B)` and no box."""
    choices = {"answer": "B", "choices": ("red", "blue")}
    log = write_log(tmp_path, "mmmu", ("It is the blue one.",), **choices)
    with stub_judge(lambda text, n: "B") as server:
        code, task, err = rescore(capsys, log, server)
    assert code == 0, err
    (mode,) = task["modes"].values()
    assert {name: one["value"] for name, one in mode["metrics"].items()} == {
        "accuracy": 1.0,
        "official": 1.0,
    }


def test_a_small_letter_of_the_judge_is_read_by_every_rule(tmp_path, capsys):
    row = {"answer": "B", "choices": ("a vase", "a bowl")}
    log = write_log(tmp_path, "mmmu", ("It is a bowl.",), **row)
    with stub_judge(lambda text, n: "b") as server:
        _, task, _ = rescore(capsys, log, server)
    (mode,) = task["modes"].values()
    assert {name: one["value"] for name, one in mode["metrics"].items()} == {
        "accuracy": 1.0, "official": 1.0,
    }  # fmt: skip


def test_a_judge_that_names_no_answer_has_no_majority(tmp_path, capsys):
    log = write_log(tmp_path, replies=("It is 4.", "It is 5.", "It is 6."))
    head, *lines = map(json.loads, log.read_text().splitlines())
    head["asked"] = {"rows": 1, "samples": {"sampled": 3}}
    same = {"row": "r0", "mode": "sampled"}
    lines = [head, *({**line, **same, "sample": i} for i, line in enumerate(lines))]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with stub_judge(says_four) as server:
        _, task, _ = rescore(capsys, log, server, "--reduce", "pass@k,majority")
    mode = task["modes"]["sampled"]
    assert (list(mode["reduced"]), list(mode["not_reduced"])) == (["pass@3"], ["majority"])
    assert any("majority: none, the judge" in line for line in task_lines(CHARTQA, task))


def test_differences_of_models_are_of_the_verdicts_of_the_judge(tmp_path, capsys):
    logs = [write_log(tmp_path / name, replies=("It is 4.", reply))
            for name, reply in (("first", "It is 5."), ("second", "It is 4!"))]  # fmt: skip
    results = {}
    with stub_judge(says_four) as server:
        for log in logs:
            task = rescore(capsys, log, server)[1]
            facts = {"protocol": "official", "changed": {}, "data": "", "missing": {}}
            results[log.parent.parent.name] = {**facts, "tasks": {"chartqa": task}}
        asked = len(server.requests)
        pair = compare_models(results)["pairs"]["second"]["tasks"]["chartqa"]
        assert len(server.requests) == asked
    one = pair["modes"]["greedy"]["metrics"]["accuracy"]
    assert (one["first"], one["second"], one["value"], one["units"]) == (1.0, 0.5, 0.5, 2)
    assert pair["settings_differ"] == {}
    own = {**results["second"]["tasks"]["chartqa"], "rule": "relaxed"}
    del own["judge"]
    results["second"]["tasks"] = {"chartqa": own}
    pair = compare_models(results)["pairs"]["second"]["tasks"]["chartqa"]
    assert pair["modes"]["greedy"]["metrics"]["accuracy"]["first"] == 0
    assert pair["settings_differ"] == {"rule of chartqa": ["relaxed", "judge:richter"]}
