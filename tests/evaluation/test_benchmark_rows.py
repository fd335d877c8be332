"""Rows in the documented columns of every benchmark: prompt, verdicts, groups, refusals."""

import json

import pytest
from benchmark_rows import ROWS
from PIL import Image

from vistill.answers.math_process import shared_judge
from vistill.data.settings import DataSettings
from vistill.data.sources import HUB
from vistill.errors import DataError
from vistill.evaluation.benchmarks import mathverse
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS
from vistill.evaluation.benchmarks.protocols import PROTOCOLS
from vistill.evaluation.benchmarks.rescoring import judge_again
from vistill.evaluation.benchmarks.results import task_results
from vistill.evaluation.benchmarks.sample_log import Sample, new_sample, sample_of
from vistill.evaluation.benchmarks.sources import (
    choose_groups,
    find_present,
    make_prompts,
    read_benchmark,
)
from vistill.types import Finish, Rollout


def verdicts(name, row, text, take="last"):
    rules = BENCHMARKS[name].rules
    return {rule: judge(text, row, take, shared_judge()) for rule, judge in rules.items()}


def write(folder, name, rows):
    (folder / name).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (32, 32), (9, 90, 200)).save(folder / name / "bild.png")
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / name / "data.jsonl").write_text(text)


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_row_of_every_benchmark_is_asked_and_judged(name, tmp_path):
    raw, right, wrong = ROWS[name]
    write(tmp_path, name, [raw])
    for protocol in PROTOCOLS.values():
        part = read_benchmark(BENCHMARKS[name], tmp_path, protocol.name, None)
        assert (part.subset, part.failed, part.available) == ("ours", [], 1)
        pairs, failed = make_prompts(part, protocol, DataSettings())
        assert failed == []
        (row, prompt), = pairs  # fmt: skip
        assert len(prompt.images) == len([i for i in row.images if i is not None]) >= 1
        assert prompt.text.strip()
        assert prompt.system == (protocol.system or None)
    assert all(v.correct for v in verdicts(name, row, right).values())
    assert not any(v.correct for v in verdicts(name, row, wrong).values())
    assert not any(v.correct for v in verdicts(name, row, "I cannot help with that.").values())
    kinds = {fact for fact in BENCHMARKS[name].categories if not row.facts.get(fact)}
    assert kinds == set()


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_stored_reply_is_judged_as_when_it_was_asked(name, tmp_path):
    raw, right, wrong = ROWS[name]
    write(tmp_path, name, [raw])
    for protocol in PROTOCOLS.values():
        part = read_benchmark(BENCHMARKS[name], tmp_path, protocol.name, None)
        (row, prompt), = make_prompts(part, protocol, DataSettings())[0]  # fmt: skip
        for text in (right, wrong, f"{right}\n{wrong}", f"{wrong}\n{right}"):
            judged = verdicts(name, row, text, protocol.take)
            answered = Rollout((1,), Finish.STOP, 0), text, 0.0
            asked = row, prompt.content, prompt.text
            sample = new_sample(asked, [], "greedy", answered, judged)
            stored = sample_of(json.loads(json.dumps(sample.to_dict())))
            again = judge_again(BENCHMARKS[name], stored, "", protocol.take, shared_judge())
            assert again.verdicts == sample.verdicts


@pytest.mark.parametrize("name", list(BENCHMARKS))
def test_a_missing_column_is_named(name, tmp_path):
    raw = dict(ROWS[name][0])
    names = ("extra", "prompt", "text", "question", "Question", "problem")
    key = next(key for key in names if key in raw and (key != "prompt" or "question" not in raw))
    del raw[key]
    write(tmp_path, name, [raw])
    with pytest.raises(DataError, match="D101"):
        read_benchmark(BENCHMARKS[name], tmp_path, "official", None)


def test_an_absent_set_is_an_error_by_name_and_listed_in_a_suite(tmp_path):
    with pytest.raises(DataError, match="mmmu is not here"):
        read_benchmark(BENCHMARKS["mmmu"], tmp_path, "official", None)
    write(tmp_path, "ai2d", [ROWS["ai2d"][0]])
    names = [BENCHMARKS["ai2d"], BENCHMARKS["mmmu"]]
    present, missing = find_present(names, tmp_path, "official", None)
    assert [one.benchmark.name for one in present] == ["ai2d"]
    assert list(missing) == ["mmmu"]


def test_a_damaged_set_of_a_suite_is_an_error_not_absent(tmp_path):
    write(tmp_path, "ai2d", [])
    with pytest.raises(DataError, match="D102"):
        find_present([BENCHMARKS["ai2d"]], tmp_path, "official", None)


def test_two_rows_with_one_id_are_refused(tmp_path):
    write(tmp_path, "mmstar", [ROWS["mmstar"][0]] * 2)
    with pytest.raises(DataError, match="2 rows of mmstar have the id"):
        read_benchmark(BENCHMARKS["mmstar"], tmp_path, "official", None)


def test_a_row_whose_picture_is_missing_is_counted_and_the_others_are_asked(tmp_path):
    good, bad = dict(ROWS["ai2d"][0]), dict(ROWS["ai2d"][0]) | {"image": "fehlt.png"}
    write(tmp_path, "ai2d", [good, bad, "no row"])
    part = read_benchmark(BENCHMARKS["ai2d"], tmp_path, "official", None)
    pairs, failed = make_prompts(part, PROTOCOLS["official"], DataSettings())
    assert [prompt.id for _, prompt in pairs] == ["ai2d_00000"]
    assert [one["code"] for one in failed] == ["D201"]
    assert len(part.failed) == 1


def test_a_limit_takes_whole_groups_and_a_smaller_one_a_part_of_them():
    rows = [BenchmarkRow(f"{g}.{i}", "?", group=str(g)) for g in range(30) for i in range(3)]
    large, small = choose_groups(rows, 20), choose_groups(rows, 10)
    assert (len(large), len(small)) == (18, 9)
    assert {row.id for row in small} <= {row.id for row in large}
    assert [row.id for row in large] == [row.id for row in rows if row in large]
    assert len(choose_groups(rows, 1)) == 3
    assert choose_groups(rows, 90) == rows


def test_a_part_that_a_paper_takes_is_ours_and_of_its_size(tmp_path):
    rows = [dict(ROWS["vispuzzle"][0]) | {"pid": str(i)} for i in range(400)]
    write(tmp_path, "vispuzzle", rows)
    part = read_benchmark(BENCHMARKS["vispuzzle"], tmp_path, "visual_opsd", None)
    assert (len(part.rows), part.subset) == (200, "ours")
    whole = read_benchmark(BENCHMARKS["vispuzzle"], tmp_path, "official", None)
    assert (len(whole.rows), whole.subset) == (400, "")


@pytest.mark.more
def test_all_rows_of_a_source_are_asked_if_no_paper_and_no_limit_takes_a_part(tmp_path):
    raw = dict(ROWS["vlms_are_blind"][0])
    rows = [raw | {"id": str(i)} for i in range(8020)]
    write(tmp_path, "vlms_are_blind", rows)
    part = read_benchmark(BENCHMARKS["vlms_are_blind"], tmp_path, "vgs", None)
    assert (len(part.rows), part.subset) == (8020, "")
    part = read_benchmark(BENCHMARKS["vlms_are_blind"], tmp_path, "vgs", 100)
    assert (len(part.rows), part.subset) == (100, "ours")


@pytest.mark.more
def test_mathverse_asks_text_only_too_and_counts_its_five_versions(tmp_path):
    raw = dict(ROWS["mathverse"][0])
    rows = [
        raw | {"problem_index": str(i), "problem_version": name, "sample_index": f"{i} {name}"}
        for i in range(788)
        for name in (*mathverse.VERSIONS, mathverse.TEXT_ONLY)
    ]
    write(tmp_path, "mathverse", rows)
    part = read_benchmark(BENCHMARKS["mathverse"], tmp_path, "official", None)
    assert (len(part.rows), part.subset) == (4728, "")
    write(tmp_path, "mathverse", [row for row in rows if row["problem_index"] != "0"])
    part = read_benchmark(BENCHMARKS["mathverse"], tmp_path, "official", None)
    assert (len(part.rows), part.subset) == (4722, "ours")
    counted = task_results(BENCHMARKS["mathverse"], [wrong_sample(r) for r in part.rows[:6]],
                           {"greedy": 1})  # fmt: skip
    assert (counted["rows"], counted["other_rows"]) == (5, 1)


def wrong_sample(row):
    verdict = {"auto": {"correct": False, "unparsed": False}}
    return Sample(row, "", "greedy", 0, (), "", "", "stop", 1, 0.0, verdict)


def test_hallusionbench_is_its_rows_with_a_figure(tmp_path):
    raw = dict(ROWS["hallusionbench"][0])
    shown = [raw | {"set_id": str(i)} for i in range(951)]
    bare = [
        raw | {"category": "VS", "figure_id": "0", "set_id": str(i), "image": None}
        for i in range(178)
    ]
    write(tmp_path, "hallusionbench", [*bare, *shown])
    part = read_benchmark(BENCHMARKS["hallusionbench"], tmp_path, "official", None)
    assert (len(part.rows), part.available, part.subset) == (951, 1129, "")
    assert {row.images for row in part.rows} == {("bild.png",)}
    write(tmp_path, "hallusionbench", [*bare, *shown[1:]])
    part = read_benchmark(BENCHMARKS["hallusionbench"], tmp_path, "official", None)
    assert (len(part.rows), part.subset) == (950, "ours")


def test_every_source_of_the_hub_names_data_set_config_and_split():
    named = {
        name: [HUB.match(source) for source in benchmark.hub_sources]
        for name, benchmark in BENCHMARKS.items()
    }
    assert all(match is not None for matches in named.values() for match in matches)
    assert [name for name, matches in named.items() if not matches] == ["vsp_maze"]
    pro = named["mmmu_pro"][0]
    assert (pro["name"], pro["config"]) == ("MMMU/MMMU_Pro", "standard (4 options)")
    assert len({match["config"] for match in named["blink"]}) == 14
    assert (named["wemath"][0]["config"], named["wemath"][0]["split"]) == (None, "testmini")


def test_numbers_of_mathvista_are_compared_with_the_published_precision():
    def row(answer, kind, precision):
        facts = {"answer_type": kind, "precision": precision}
        return BenchmarkRow("m", "?", answer=answer, facts=facts)

    def is_right(text, one):
        return verdicts("mathvista", one, text)["mathvista"].correct

    assert is_right("\\boxed{7.6}", row("7", "integer", ""))
    assert not is_right("\\boxed{8}", row("7", "integer", ""))
    assert is_right("The answer is 3.14159.", row("3.14", "float", "2"))
    assert not is_right("The answer is 3.15.", row("3.14", "float", "2"))


def test_vlms_are_blind_reads_the_brackets_that_its_prompt_asks_for():
    count = BenchmarkRow("a", "Answer with a number in curly brackets, e.g., {5}.", answer="2")
    assert verdicts("vlms_are_blind", count, "They touch at {2} points.")["braces"].correct
    both = "First {1}, no, {2}."
    assert verdicts("vlms_are_blind", count, both)["braces"].correct
    assert not verdicts("vlms_are_blind", count, both, "first")["braces"].correct
    thought = "<think>{4} no</think> It is {2}."
    assert verdicts("vlms_are_blind", count, thought, "first")["braces"].correct
    formulas = ("{2}, or \\frac{1}{7}", "{2} of x_{7}", "{2}, 3^{7}", "{2}, \\sqrt{7}")
    for text in formulas:
        assert verdicts("vlms_are_blind", count, text)["braces"].correct, text
    assert not verdicts("vlms_are_blind", count, "\\frac{1}{2}")["braces"].correct
    assert verdicts("vlms_are_blind", count, "\\boxed{2}")["braces"].correct
    circles = BenchmarkRow("b", "Are they touching? Answer with Yes/No.", answer="No")
    assert verdicts("vlms_are_blind", circles, "No, there is a gap.")["braces"].correct


def test_formulas_of_ocrbench_are_compared_without_blanks_and_with_case():
    formula = BenchmarkRow("f", "?", answer=("F = m a",), facts={"set": "HME100k"})
    words = BenchmarkRow("w", "?", answer=("Main St",), facts={"set": "svt"})
    assert verdicts("ocrbench", formula, "$F=ma$")["ocr"].correct
    assert not verdicts("ocrbench", formula, "$f=ma$")["ocr"].correct
    assert verdicts("ocrbench", words, "it reads MAIN\nST")["ocr"].correct
    assert not verdicts("ocrbench", words, "<think>Main St</think>It reads Mine.")["ocr"].correct


@pytest.mark.parametrize(
    "error",
    [
        ValueError('Unknown split "val". Should be one of ["test"].'),
        FileNotFoundError("Dataset 'x/y' is a gated dataset on the Hub. Visit the page to ask."),
        ConnectionError("the hub does not answer"),
    ],
)
def test_a_moved_split_and_a_gated_set_are_coded_and_no_error_of_a_suite(error, monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load(*args, **options):
        raise error

    monkeypatch.setattr(datasets, "load_dataset", load)  # no hub here
    with pytest.raises(DataError, match="D102") as caught:
        read_benchmark(BENCHMARKS["mmstar"], None, "official", None)
    assert str(error)[:20] in caught.value.why
    present, missing = find_present([BENCHMARKS["mmstar"]], None, "official", None)
    assert (present, list(missing)) == ([], ["mmstar"])
