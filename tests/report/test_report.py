"""The report page: offline, without scripts, safe with hostile text, complete in its caveats."""

import html
import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from tiers import few

from vistill.errors import StorageError
from vistill.redaction import escape_control_characters
from vistill.report.charts import Axes, Series, line_chart, nice_ticks, scale_of, tokens_html
from vistill.report.comparison import comparison_table, describe_checkpoint
from vistill.report.headline import comparison_sentence, headline, run_warnings
from vistill.report.page import heatmap_comparisons, render, write_report
from vistill.report.run_data import describe_rows, read_run

HARMLESS = "plain words"
PAYLOADS = (
    *("<script>alert(1)</script>", "<img src=x onerror=alert(1)>", '"><svg onload=alert(1)>'),
    *("'><b>", "</style><script>x</script>", "{{ 7*7 }}", "{% raw %}", "javascript:alert(1)"),
    *("<!-- -->", "&lt;script&gt;", "</pre><h1>x</h1>", "\x1b[31mred", "\u202eevil"),
    *("]]><a href=//x>", "<iframe src=//x>", "<math><mi//xlink:href=x>", "`${x}`", "\x00<b>"),
    *("<details open ontoggle=x>", "<base href=//x>"),
)


def write_answers(folder, step, correct, rows=100, samples=1, first=0, **changes):
    """Write a per-sample file in which the first `correct` questions are answered correctly."""
    (folder / "samples").mkdir(exist_ok=True)
    lines = []
    for i in range(first, first + rows):
        question = {
            "prompt": f"q{i}",
            "asked": f"digest-{i}",
            "question": f"Question {i}?",
            "gold": "7",
            "view": "full",
        }
        for sample in range(samples):
            is_correct = i - first < correct
            judged = {**question, "sample": sample, "correct": is_correct, **changes}
            lines += [{**judged, "mode": mode} for mode in ("sampled", "greedy")]
    (folder / "samples" / f"step-{step:06d}.jsonl").write_text(
        "".join(json.dumps(x) + "\n" for x in lines)
    )


def set_last(folder, **values):
    """Change the record of the last evaluation."""
    lines = [json.loads(x) for x in (folder / "evaluations.jsonl").read_text().splitlines()]
    lines[-1] |= values
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))


def set_correct(folder, correct, rows=100, **changes):
    """Set the number of correct answers of the last evaluation, in summary and samples."""
    step = json.loads((folder / "evaluations.jsonl").read_text().splitlines()[-1])["step"]
    set_last(folder, accuracy=correct / rows, rows=float(rows))
    write_answers(folder, step, correct, rows, **changes)


def write_run(folder, text=HARMLESS, steps=3):
    folder.mkdir(parents=True, exist_ok=True)
    lock = {
        "recipe": {
            "method": text,
            "seed": text,
            "student": {"model": text},
            "teacher": {"model": text},
        },
        "versions": {text: text},
        "accepted": [text],
    }
    (folder / "run.lock.json").write_text(json.dumps(lock))
    lines = [
        {
            "step": s,
            "loss": 1 / (s + 1),
            "grad_norm": 1.0,
            "rollout/length_mean": 5.0,
            "rollout/truncated_share": 0.0,
            "rollout/tokens": 40,
        }
        for s in range(1, steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in lines))
    (folder / "timing.jsonl").write_text(
        '{"step": 1, "seconds": {"rollout": 0.5, "learn": 0.5}, "tokens": 40, "peak_mib": 100.0}\n'
    )
    evaluations = [
        {
            "step": s,
            "accuracy": 0.4 + 0.1 * s,
            "accuracy_low": 0.3,
            "accuracy_high": 0.8,
            "rows": 100.0,
            "gap/pixelated": 0.2,
            "va/mean": 0.1 + 0.01 * s,
            "accuracy/pixelated": 0.2,
        }
        for s in (0, steps)
    ]
    (folder / "evaluations.jsonl").write_text("".join(json.dumps(r) + "\n" for r in evaluations))
    write_answers(folder, 0, 40)
    write_answers(folder, steps, 40 + 10 * steps)
    (folder / "quarantine.jsonl").write_text(
        json.dumps({"where": text, "code": text, "reason": text}) + "\n"
    )
    item = {
        "prompt": text,
        "question": text,
        "gold": text,
        "tokens": [text, "b"],
        "advantage": [1.0, 0.0],
        "log_prob_full": [-1.0, -1.0],
        "log_prob_degraded": [-2.0, -1.0],
        "kl": [0.1, 0.2],
    }
    for name in ("step-000000", f"step-{steps:06d}"):
        (folder / "tokens").mkdir(exist_ok=True)
        (folder / "tokens" / f"{name}.json").write_text(
            json.dumps({"tail": [[0.1, 0.9], [1.0, 1.0]], "items": [item]})
        )
    (folder / "rollouts").mkdir(exist_ok=True)
    record = {
        "prompt": text,
        "sibling": 0,
        "tokens": [text],
        "visual_advantage": [1.0],
        "rollout_weight": 1.0,
    }
    (folder / "rollouts" / "000003.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "result.json").write_text(json.dumps({"finished": True, "weights_sha256": text}))
    (folder / "data.json").write_text(json.dumps({"train_rows": text}))
    return folder


class TagCollector(HTMLParser):
    """Elements and attribute names of a page."""

    def __init__(self):
        super().__init__()
        self.tags = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, tuple(sorted(name for name, _ in attrs))))


def tags_of(page):
    parser = TagCollector()
    parser.feed(page)
    return parser.tags


def test_the_page_is_offline_without_script_and_forbids_both(tmp_path):
    page = render([read_run(write_run(tmp_path / "a"))])
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:|//)", page)
    assert len(page) < 3_000_000


def test_replaced_rows_are_listed_with_their_step_among_the_quarantined_rows(tmp_path):
    folder = write_run(tmp_path / "a")
    replaced = {"step": 4, "id": "x", "where": "d.jsonl:7", "code": "D208", "reason": "changed"}
    (folder / "replaced.jsonl").write_text(json.dumps(replaced) + "\n")
    page = render([read_run(folder)])
    assert "d.jsonl:7, step 4" in page
    assert "2 rows were quarantined" in page


@pytest.mark.parametrize("payload", few(PAYLOADS, 0, 7, 14))
def test_hostile_text_in_any_field_adds_no_element_and_no_attribute(tmp_path, payload):
    harmless = tags_of(render([read_run(write_run(tmp_path / "a"))]))
    assert tags_of(render([read_run(write_run(tmp_path / "b", payload))])) == harmless


def test_control_and_direction_characters_are_made_visible():
    assert escape_control_characters("a\x1b[0m\u202eb\x00") == "a\\x1b[0m\\x202eb\\x00"
    assert escape_control_characters("a\nb") == "a⏎b"


@pytest.mark.parametrize(
    "missing",
    [
        "metrics.jsonl",
        "evaluations.jsonl",
        "timing.jsonl",
        "tokens",
        "rollouts",
        "samples",
        "result.json",
        "data.json",
        "quarantine.jsonl",
    ],
)
def test_a_report_works_if_a_file_of_the_run_is_missing(tmp_path, missing):
    folder = write_run(tmp_path / "a")
    target = folder / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert (
        "Does the student use the image?" in write_report([folder], tmp_path / "r.html").read_text()
    )


def test_an_incomplete_last_line_is_left_out(tmp_path):
    folder = write_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 4, "lo')
    assert len(read_run(folder).metrics) == 3


def test_an_empty_folder_is_a_coded_error(tmp_path):
    with pytest.raises(StorageError) as caught:
        read_run(tmp_path)
    assert caught.value.code == "S605"


def test_the_headline_states_measured_numbers_and_does_not_call_noise_a_gain(tmp_path):
    a, b = write_run(tmp_path / "opd"), write_run(tmp_path / "va_opd")
    text = headline([read_run(a), read_run(b)])
    assert "opd: accuracy (T = 1) 40.0 % → 70.0 % [30.0, 80.0] on 100 questions" in text
    assert "do not differ significantly" in text
    set_correct(b, 30)
    assert "va_opd is 40.0 points below opd" in headline([read_run(a), read_run(b)])
    assert headline([]) == "No evaluation yet."


def set_temperature(folder, value):
    lock = json.loads((folder / "run.lock.json").read_text())
    lock["recipe"]["eval"] = {**lock["recipe"].get("eval", {}), "temperature": value}
    (folder / "run.lock.json").write_text(json.dumps(lock))


def test_many_responses_without_an_answer_are_the_headline(tmp_path):
    runs = [write_run(tmp_path / name) for name in "abcde"]
    set_last(runs[0], unparsed_share=0.19)
    set_last(runs[1], unparsed_share=0.72)
    begin = "b: 72.0 % of the responses contain no answer and count as wrong"
    for some in (runs[:2], runs):  # the headline of many runs is another one
        assert headline([read_run(run) for run in some]).startswith(begin)
    assert begin in html.unescape(render([read_run(runs[1])]))


def test_the_page_states_the_temperature_and_the_number_of_rows_of_each_figure(
    tmp_path,
):
    """The page stated T = 1 for every run and no denominator for the greedy accuracy."""
    a, b = write_run(tmp_path / "opd"), write_run(tmp_path / "va_opd")
    set_temperature(a, 0.7)
    set_last(
        a, **{"greedy_accuracy": 0.9, "greedy_rows": 12.0, "gap/pixelated": 0.5, "blind_rows": 12.0}
    )
    text = headline([read_run(a)])
    assert "opd: accuracy (T = 0.7)" in text
    assert "greedy 90.0 % on 12 of them" in text
    assert "opd loses 50.0 points with the pixelated image (on 12 questions" in text
    page = html.unescape(render([read_run(a)]))
    assert "accuracy, T = 0.7" in page
    assert "Accuracy at T = 0.7" in page
    assert "T = 1" not in page
    assert "the first rows" not in page
    assert "90.0 % on 12" in page
    assert "accuracy, T = 0.7 (opd), 1 (va_opd)" in html.unescape(
        render([read_run(a), read_run(b)])
    )


@pytest.mark.parametrize(
    "values",
    [(0.0, 1e-14), (-3e-12, 0.0), (0.0, 0.0), (-1e-7, 2e-7), (5.0, 5.0 + 1e-9), (-4.0, -1.0)],
)
def test_a_chart_of_rounding_errors_can_be_drawn(values):
    """GRPO with equal rewards: every loss is 0 up to 1e-14."""
    ticks = nice_ticks(min(values), max(values))
    assert ticks[-1] > ticks[0]
    assert "<svg" in line_chart([Series("x", list(enumerate(values)))], Axes("T", "x", "y"))


def test_no_label_of_a_chart_is_cut_off_at_the_right_edge():
    points = [(0.0479, 0.1), (0.0638, 0.2)]
    svg = line_chart([Series("x", points)], Axes("T", "x", "y"))
    for x, anchor, text in re.findall(r'<text x="([\d.]+)" [^>]*anchor="(\w+)">([\d.]+)<', svg):
        width = 7 * len(text) * {"middle": 0.5, "end": 0}[anchor]
        assert float(x) + width <= 460, text


def test_charts_have_round_ticks_and_a_note_without_data():
    assert nice_ticks(0.0, 0.97) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.mark.parametrize("last", [1, 2, 3, 5, 10, 64, 6550])
def test_steps_have_whole_numbers_at_their_axis(last):
    ticks = nice_ticks(0.0, float(last), count=4, whole=True)
    assert all(tick.is_integer() for tick in map(float, ticks))
    assert ticks[0] == 0
    assert ticks[-1] >= last
    svg = str(line_chart([Series("a", [(0, 0.1), (last, 0.2)])], Axes("t", "step", "accuracy")))
    assert ">0.5</text>" not in svg
    assert ">2.5</text>" not in svg
    assert "no data" in line_chart([Series("x", [])], Axes("T", "x", "y"))
    assert "<b>" not in line_chart([Series("<b>", [(0, 1), (1, 2)])], Axes("<b>", "x", "y"))


def test_all_panels_share_a_scale_and_darker_means_more():
    assert scale_of([[0.0, 2.0], [1.0]]) == 2.0
    assert scale_of([[0.0]]) == 1.0
    html = tokens_html(["a", "b"], [2.0, 0.2], 2.0)
    strong, weak = re.findall(r"rgba\(213,94,0,([\d.]+)\)", html)
    assert float(strong) > float(weak)


@pytest.mark.browser
def test_the_page_opens_in_headless_chromium(tmp_path):
    chromium = shutil.which("chromium")
    if chromium is None:
        assert not os.environ.get("VISTILL_NEEDS_BROWSER"), "CI must have chromium"
        pytest.skip("chromium is not installed")
    page = write_report(
        [
            write_run(tmp_path / "opd"),
            write_run(tmp_path / "va_opd", "<script>document.title='owned'</script>"),
        ],
        tmp_path / "r.html",
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}",
        "--window-size=1100,2400",
    ]
    shot = tmp_path / "shot.png"
    subprocess.run(
        [chromium, *flags, f"--screenshot={shot}", f"file://{page}"],
        check=True,
        capture_output=True,
        timeout=120,
    )
    dom = subprocess.run(
        [chromium, *flags, "--dump-dom", f"file://{page}"],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert "owned</title>" not in dom
    assert "Does the student use the image?" in dom
    from PIL import Image

    colours = Image.open(shot).convert("RGB").getcolors(1 << 24)
    assert len(colours) > 100


def test_a_page_of_many_runs_names_only_significant_differences_between_equal_starts(
    tmp_path,
):
    runs = []
    for i, correct in enumerate((50, 51, 90, 50, 49, 10)):
        runs.append(write_run(tmp_path / f"r{i}"))
        set_correct(runs[-1], correct)
    lock = json.loads((runs[5] / "run.lock.json").read_text())
    lock["recipe"]["student"] = {"model": "another"}
    (runs[5] / "run.lock.json").write_text(json.dumps(lock))
    text = headline([read_run(run) for run in runs])
    assert "6 runs" in text
    assert "r2 is 40.0 points above r0" in text
    assert "The other 3 do not differ significantly from r0" in text
    assert "r5 started from another student" in text
    assert "Corrected for 4 comparisons (Holm)" in text


def test_a_chance_difference_among_many_runs_is_not_named(tmp_path):
    """p = 0.016 is significant alone, but not among ten comparisons."""
    runs = [write_run(tmp_path / f"r{i:02d}") for i in range(11)]
    set_correct(runs[7], 77)
    pair = comparison_table([read_run(runs[0]), read_run(runs[7])])[-1].pair
    assert pair.p == pytest.approx(2 / 2**7)
    text = headline([read_run(run) for run in runs])
    assert "r07" not in text
    assert "The other 10 do not differ" in text


def test_a_difference_uses_the_questions_that_both_runs_answered(tmp_path):
    """`b` has a higher accuracy on fewer questions, but a lower one on the common questions."""
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    set_correct(a, 70)
    set_correct(b, 20, rows=25)
    assert read_run(b).last["accuracy"] > read_run(a).last["accuracy"]
    text = comparison_sentence(read_run(b), read_run(a))
    assert "b and a do not differ significantly (-20.0 points, 95 % [" in text
    assert "on the 25 questions both answered; 75 only in a" in text


def test_runs_on_other_data_are_not_compared_and_the_page_states_why(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    set_correct(b, 25, rows=25, first=500)
    text = headline([read_run(a), read_run(b)])
    assert (
        "b and a are not compared: b and a have no question in common (25 and 100 questions)"
        in text
    )
    assert "points above" not in text
    set_correct(b, 100, gold="8")
    text = headline([read_run(a), read_run(b)])
    assert "have different questions under the same ids (100 differ, 0 are equal)" in text
    assert "not compared: b and a have different questions" in render([read_run(a), read_run(b)])


def test_runs_without_stored_answers_are_not_compared(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    set_last(b, accuracy=0.1)
    shutil.rmtree(b / "samples")
    text = headline([read_run(a), read_run(b)])
    assert "no answers are stored for b" in text
    assert "points below" not in text


def test_pairing_two_runs_reveals_a_difference_that_separate_errors_hide(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    set_correct(a, 50)
    set_correct(b, 60)
    assert "b is 10.0 points above a (95 % [" in comparison_sentence(read_run(b), read_run(a))


def test_runs_with_different_measurement_settings_are_marked(tmp_path):
    runs = [write_run(tmp_path / name) for name in "ab"]
    for run, tokens in zip(runs, (64, 512), strict=True):
        lock = json.loads((run / "run.lock.json").read_text())
        lock["recipe"]["eval"] = {"max_new_tokens": tokens, "temperature": 1.0}
        (run / "run.lock.json").write_text(json.dumps(lock))
    text = comparison_sentence(read_run(runs[1]), read_run(runs[0]))
    assert "measured with eval.max_new_tokens 512 and 64" in text
    assert "temperature" not in text


def test_before_and_after_use_the_same_questions(tmp_path):
    """The first evaluation has 100 rows and the last 25: the arrow compares the 25."""
    a = write_run(tmp_path / "a")
    set_correct(a, 20, rows=25)
    text = headline([read_run(a)])
    assert "40.0 %" not in text
    assert "100.0 % → 80.0 % on the 25 questions of the first and the last evaluation" in text


def test_evaluations_without_training_are_compared_for_different_models_too(tmp_path):
    runs = [write_run(tmp_path / name) for name in "ab"]
    set_correct(runs[1], 30)
    for run in runs:
        lock = json.loads((run / "run.lock.json").read_text())
        lock["recipe"]["student"] = {"model": run.name}
        (run / "run.lock.json").write_text(json.dumps(lock))
        (run / "result.json").write_text(json.dumps({"finished": True, "kind": "evaluation"}))
    assert "b is 40.0 points below a" in headline([read_run(run) for run in runs])


def test_heatmaps_are_joined_by_question_and_not_by_position(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    item = json.loads((a / "tokens" / "step-000003.json").read_text())["items"][0]

    def items(*names):
        return [item | {"prompt": n, "question": f"Q {n}?", "tokens": [n, "b"]} for n in names]

    for run, names in ((a, "xyz"), (b, "zyw")):
        for step in (0, 3):
            content = {"tail": [], "items": items(*names)}
            (run / "tokens" / f"step-{step:06d}.json").write_text(json.dumps(content))
    panels_of = {
        c["question"]: c["panels"] for c in heatmap_comparisons([read_run(a), read_run(b)])
    }
    assert [len(panels_of[f"Q {n}?"]) for n in "xyzw"] == [2, 3, 3, 1]
    assert [*panels_of][:2] == ["Q y?", "Q z?"]
    for question, panels in panels_of.items():
        for _, tokens in panels:
            assert f">{question[2]}</span>" in tokens


def test_heatmaps_of_different_questions_under_one_id_are_not_joined(tmp_path):
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    content = json.loads((b / "tokens" / "step-000003.json").read_text())
    content["items"][0]["gold"] = "another"
    (b / "tokens" / "step-000003.json").write_text(json.dumps(content))
    (comparison,) = heatmap_comparisons([read_run(a), read_run(b)])
    assert [name.split(":")[0] for name, _ in comparison["panels"]] == ["before training", "a"]


def test_an_image_of_another_question_under_the_same_id_is_not_shown(tmp_path):
    run = write_run(tmp_path / "a")
    (run / "pictures").mkdir()
    (run / "pictures" / "000-full.png").write_bytes(b"png")
    index = {"q": {"file": "000", "question": "Mine?"}}
    (run / "pictures" / "index.json").write_text(json.dumps(index))
    assert read_run(run).image_uri("q", "full", "Mine?")
    assert read_run(run).image_uri("q", "full", "Another?") is None


def test_heatmaps_of_an_evaluation_before_a_resume_are_not_shown(tmp_path):
    run = write_run(tmp_path / "a")
    shutil.copy(run / "tokens" / "step-000003.json", run / "tokens" / "step-000009.json")
    assert [*read_run(run).tokens] == ["000000", "000003"]


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (
            {"checkpoint": "checkpoint-000003", "step": 3},
            "gives checkpoint-000003 (step 3), the last one",
        ),
        (
            {"checkpoint": "checkpoint-000002", "step": 3, "best": {"step": 2, "value": 0.5}},
            "gives checkpoint-000002 (step 2), selected by the accuracy during the run: 50.0 %."
            " The last evaluation is of step 3, not of this checkpoint",
        ),
        (
            {
                "checkpoint": "checkpoint-000002",
                "step": 3,
                "chosen": {
                    "step": 2,
                    "by": "accuracy on 200 fixed rows x 8 samples",
                    "value": 0.4125,
                },
            },
            "(step 2), selected by accuracy on 200 fixed rows x 8 samples: 41.2 %.",
        ),
        (
            {
                "checkpoint": "checkpoint-000003",
                "step": 3,
                "chosen": {"step": 3, "by": "last", "value": None},
            },
            "(step 3), the last one",
        ),
    ],
)
def test_the_page_names_the_checkpoint_and_how_it_was_selected(tmp_path, result, expected):
    run = write_run(tmp_path / "a")
    (run / "result.json").write_text(json.dumps({"finished": True, **result}))
    assert expected in describe_checkpoint(read_run(run))
    assert expected in html.unescape(render([read_run(run)]))


def test_warnings_name_rows_and_answers_missing_from_the_accuracy(tmp_path):
    run = write_run(tmp_path / "a")
    set_last(run, unparsed_share=0.975, unanswered_rows=6.0, blind_rows=8.0, swapped_rows=5.0)
    text = " ".join(run_warnings(read_run(run)))
    assert "97.5 % of the responses contain no answer" in text
    assert "6 rows have no gold answer and count in no accuracy" in text
    assert "`swapped` uses 5 of 8 rows" in text
    assert "8 / 5" in render([read_run(run)])


def test_a_chart_of_evaluations_with_different_rows_is_marked(tmp_path):
    run = write_run(tmp_path / "a")
    assert "points on" not in render([read_run(run)])
    set_last(run, rows=25.0)
    assert "(95 % interval; points on 25 to 100 rows)" in render([read_run(run)])


def test_the_page_names_the_source_of_the_rows():
    assert describe_rows({"train": "a.jsonl", "eval": "b.jsonl"}, "eval") == "b.jsonl"
    assert (
        describe_rows({"train": "a.jsonl", "eval": "", "holdout": 1200}, "eval")
        == "1,200 held out of a.jsonl"
    )
    assert describe_rows({"train": "diagrams"}, "eval") == "the built-in diagrams"
    assert describe_rows({"train": "a.jsonl", "eval": ""}, "eval") == ""


def test_the_signal_of_any_method_is_drawn_over_its_siblings(tmp_path):
    from vistill.report.page import drawn_signal, rollout_label

    record = {"prompt": "p", "sibling": 0, "ids": [1], "tokens": ["a"], "token_weight": [0.5]}
    record |= {"gate": [1.0], "visual_dependency": [0.2]}
    record |= {"group_advantage": -1.0, "trajectory_scale": 0.9}
    assert drawn_signal(record) == "visual_dependency"
    assert rollout_label(record) == "group advantage -1.000, trajectory scale 0.900"
    assert drawn_signal({"tokens": ["a"], "ids": [1], "token_weight": [1.0]}) is None
