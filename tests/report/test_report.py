"""The page: offline, without script, safe with hostile text, honest about gaps."""

import json
import os
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest

from vistill.errors import StorageError
from vistill.report.charts import Axes, Series, line_chart, nice_ticks
from vistill.report.heatmap import scale_of, tokens_html, visible
from vistill.report.page import render, write_report
from vistill.report.reading import read_run
from vistill.report.verdict import sentence

HARMLESS = "plain words"
PAYLOADS = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\"><svg onload=alert(1)>", "'><b>", "</style><script>x</script>",
    "{{ 7*7 }}", "{% raw %}", "javascript:alert(1)", "<!-- -->", "&lt;script&gt;", "</pre><h1>x</h1>", "\x1b[31mred", "\u202eevil",
    "]]><a href=//x>", "<iframe src=//x>", "<math><mi//xlink:href=x>", "`${x}`", "\x00<b>", "<details open ontoggle=x>", "<base href=//x>",
)  # fmt: skip


def write_run(folder, text=HARMLESS, steps=3):
    folder.mkdir(parents=True, exist_ok=True)
    lock = {
        "recipe": {"method": text, "seed": text, "student": {"model": text}, "teacher": {"model": text}},
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
    (folder / "quarantine.jsonl").write_text(json.dumps({"where": text, "code": text, "reason": text}) + "\n")
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
        (folder / "tokens" / f"{name}.json").write_text(json.dumps({"tail": [[0.1, 0.9], [1.0, 1.0]], "items": [item]}))
    (folder / "rollouts").mkdir(exist_ok=True)
    record = {"prompt": text, "sibling": 0, "tokens": [text], "visual_advantage": [1.0], "rollout_weight": 1.0}
    (folder / "rollouts" / "000003.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "result.json").write_text(json.dumps({"finished": True, "weights_sha256": text}))
    (folder / "data.json").write_text(json.dumps({"train_rows": text}))
    return folder


class Census(HTMLParser):
    """Elements and attribute names of a page."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, tuple(sorted(name for name, _ in attrs))))


def census(page):
    parser = Census()
    parser.feed(page)
    return parser.seen


def test_the_page_is_offline_without_script_and_says_so(tmp_path):
    page = render([read_run(write_run(tmp_path / "a"))])
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=[\"']?(?:https?:|//)", page)
    assert len(page) < 3_000_000


def test_rows_that_were_replaced_stand_with_their_step_among_the_quarantined(tmp_path):
    folder = write_run(tmp_path / "a")
    gone = {"step": 4, "id": "x", "where": "d.jsonl:7", "code": "D208", "reason": "changed"}
    (folder / "replaced.jsonl").write_text(json.dumps(gone) + "\n")
    page = render([read_run(folder)])
    assert "d.jsonl:7, step 4" in page
    assert "2 rows were quarantined" in page


@pytest.mark.parametrize("payload", PAYLOADS)
def test_hostile_text_in_any_field_adds_no_element_and_no_attribute(tmp_path, payload):
    harmless = census(render([read_run(write_run(tmp_path / "a"))]))
    assert census(render([read_run(write_run(tmp_path / "b", payload))])) == harmless


def test_control_and_direction_characters_are_made_visible():
    assert visible("a\x1b[0m\u202eb\x00") == "a\\x1b[0m\\x202eb\\x00"
    assert visible("a\nb") == "a⏎b"


@pytest.mark.parametrize(
    "missing",
    [
        "metrics.jsonl",
        "evaluations.jsonl",
        "timing.jsonl",
        "tokens",
        "rollouts",
        "result.json",
        "data.json",
        "quarantine.jsonl",
    ],
)
def test_a_page_is_made_whatever_part_of_a_run_is_missing(tmp_path, missing):
    folder = write_run(tmp_path / "a")
    target = folder / missing
    shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert "Does the student look?" in write_report([folder], tmp_path / "r.html").read_text()


def test_a_half_written_last_line_is_left_out(tmp_path):
    folder = write_run(tmp_path / "a")
    with (folder / "metrics.jsonl").open("a") as handle:
        handle.write('{"step": 4, "lo')
    assert len(read_run(folder).metrics) == 3


def test_an_empty_folder_is_explained(tmp_path):
    with pytest.raises(StorageError) as caught:
        read_run(tmp_path)
    assert caught.value.code == "S605"


def test_the_sentence_states_measured_numbers_and_does_not_call_noise_a_win(tmp_path):
    a, b = write_run(tmp_path / "opd"), write_run(tmp_path / "va_opd")
    text = sentence([read_run(a), read_run(b)])
    assert "opd: accuracy (T = 1) 40.0 % → 70.0 % [30.0, 80.0] on 100 questions" in text
    assert "do not differ beyond chance" in text
    lines = [json.loads(x) for x in (b / "evaluations.jsonl").read_text().splitlines()]
    lines[-1]["accuracy"] = 0.3
    (b / "evaluations.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    assert "va_opd is 40.0 points below opd" in sentence([read_run(a), read_run(b)])
    assert sentence([]) == "Nothing has been evaluated yet."


@pytest.mark.parametrize(
    "values", [(0.0, 1e-14), (-3e-12, 0.0), (0.0, 0.0), (-1e-7, 2e-7), (5.0, 5.0 + 1e-9), (-4.0, -1.0)]
)
def test_a_loss_that_is_nothing_but_rounding_error_can_be_drawn(values):
    """GRPO with equal rewards: every loss is 0 up to 1e-14."""
    ticks = nice_ticks(min(values), max(values))
    assert ticks[-1] > ticks[0]
    assert "<svg" in line_chart([Series("x", list(enumerate(values)))], Axes("T", "x", "y"))


def test_charts_have_round_ticks_and_admit_when_there_is_nothing():
    assert nice_ticks(0.0, 0.97) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert "nothing measured" in line_chart([Series("x", [])], Axes("T", "x", "y"))
    assert "<b>" not in line_chart([Series("<b>", [(0, 1), (1, 2)])], Axes("<b>", "x", "y"))


def test_one_scale_for_all_panels_and_darker_means_more():
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
        [write_run(tmp_path / "opd"), write_run(tmp_path / "va_opd", "<script>document.title='owned'</script>")],
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
        [chromium, *flags, f"--screenshot={shot}", f"file://{page}"], check=True, capture_output=True, timeout=120
    )
    dom = subprocess.run(
        [chromium, *flags, "--dump-dom", f"file://{page}"], check=True, capture_output=True, text=True, timeout=120
    ).stdout
    assert "owned</title>" not in dom
    assert "Does the student look?" in dom
    from PIL import Image

    colours = Image.open(shot).convert("RGB").getcolors(1 << 24)
    assert len(colours) > 100


def test_a_page_over_many_runs_names_only_differences_beyond_chance_and_compares_equal_starts(tmp_path):
    runs = []
    for i, accuracy in enumerate((0.5, 0.51, 0.9, 0.5, 0.49, 0.1)):
        runs.append(write_run(tmp_path / f"r{i}"))
        lines = [json.loads(x) for x in (runs[-1] / "evaluations.jsonl").read_text().splitlines()]
        lines[-1]["accuracy"] = accuracy
        (runs[-1] / "evaluations.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    lock = json.loads((runs[5] / "run.lock.json").read_text())
    lock["recipe"]["student"] = {"model": "another"}
    (runs[5] / "run.lock.json").write_text(json.dumps(lock))
    text = sentence([read_run(run) for run in runs])
    assert "6 runs" in text
    assert "r2 is 40.0 points above r0" in text
    assert "The other 3 do not differ" in text
    assert "r5 began from another student" in text


def test_any_methods_own_signal_is_drawn_over_its_siblings(tmp_path):
    from vistill.report.page import drawn_signal, label_of

    record = {"prompt": "p", "sibling": 0, "ids": [1], "tokens": ["a"], "token_weight": [0.5], "gate": [1.0],
              "visual_dependency": [0.2], "group_advantage": -1.0, "trajectory_scale": 0.9}  # fmt: skip
    assert drawn_signal(record) == "visual_dependency"
    assert label_of(record) == "group advantage -1.000, trajectory scale 0.900"
    assert drawn_signal({"tokens": ["a"], "ids": [1], "token_weight": [1.0]}) is None
