"""Hostile text in every field of a run folder adds no element, attribute or comment to the page."""

import json
import random
import re
import shutil
from dataclasses import replace

import html5lib
import pytest
from jinja2 import DictLoader
from payloads import markup_payloads
from PIL import Image
from tiers import few

from vistill.report import charts, page
from vistill.report.run_data import read_run

PAYLOADS = markup_payloads()
UNCHANGED = ("checkpoint-*/student/*", "*.html", "*.png", "*.safetensors", ".owner")
#: Number of renders in the fast test; each puts other payloads into all texts.
SAMPLED = 40


@pytest.fixture(scope="module")
def run_folder(tiny_folder, tmp_path_factory, without_canary):
    """A run of two steps with images, a bad row, an evaluation, heatmaps and a profile."""
    import vistill

    root = tmp_path_factory.mktemp("injection")
    rows = [
        {"id": f"row {i}", "question": f"How long is it? {i}", "images": "a.png", "answer": str(i)}
        for i in range(6)
    ]
    rows.append(rows[0] | {"id": "bad", "images": "gone.png"})
    (root / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Image.new("RGB", (64, 64), "teal").save(root / "a.png")
    recipe = root / "recipe.yaml"
    recipe.write_text(
        f"run: {root / 'run'}\nmethod: va_opd\nprofile: true\n"
        f"student: {{model: {tiny_folder}}}\nteacher: {{model: {tiny_folder}}}\n"
        f"data: {{train: {root / 'data.jsonl'}, holdout: 2, max_bad_share: 0.5,\n"
        "       columns: {id: id}}\n"
        "rollout: {per_prompt: 2, max_new_tokens: 5}\n"
        "train: {steps: 2, prompts_per_step: 2, lr: 1.0e-4}\n"
        "eval: {every: 2, limit: 2, extra_limit: 2, max_new_tokens: 5}\n"
    )
    folder = vistill.train(recipe).path
    lock = json.loads((folder / "run.lock.json").read_text())
    (folder / "run.lock.json").write_text(json.dumps(lock | {"accepted": ["train.lr"]}))
    return folder


def text_files(folder):
    """Every file of a run folder that contains text."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(name.match(pattern) for pattern in UNCHANGED):
            yield path


class TextReplacer:
    """Replaces equal texts equally and adds a key to every group; records the fields it sees."""

    def __init__(self, replacement):
        self.replacement, self.known, self.fields = replacement, {}, set()

    def text(self, value, field):
        self.fields.add(field)
        return self.replacement(self.known.setdefault(value, len(self.known)))

    def tree(self, value, field):
        if isinstance(value, str):
            return self.text(value, field)
        if isinstance(value, list):
            return [self.tree(item, f"{field}[]") for item in value]
        if not isinstance(value, dict):
            return value
        ids = field == "pictures/index.json"
        result = {
            (self.text(key, f"{field}:keys") if ids else key): (
                inner if key == "file" else self.tree(inner, f"{field}.{'*' if ids else key}")
            )
            for key, inner in value.items()
        }
        return self.added_key(result, field) | result

    def added_key(self, result, field):
        """One more entry, a copy of another: pages that list the keys of a group show it."""

        def is_list_of_floats(v):
            return isinstance(v, list) and bool(v) and all(isinstance(x, float) for x in v)

        kinds = (
            lambda v: isinstance(v, dict),
            is_list_of_floats,
            lambda v: isinstance(v, float),
            lambda v: isinstance(v, str),
        )
        for has_kind in kinds:
            values = [v for v in result.values() if has_kind(v)]
            if values:
                key = self.text("an added key", f"{field}:added")
                return {f"visual {key}" if has_kind is is_list_of_floats else key: values[0]}
        return {}

    def file(self, path, name):
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            return json.dumps(self.tree(json.loads(text), name))
        if path.suffix == ".jsonl":
            return "".join(
                json.dumps(self.tree(json.loads(line), name)) + "\n" for line in text.splitlines()
            )
        return "".join(
            re.sub(r"[\r\n\ud800-\udfff]", " ", self.text(line, name)) + "\n"
            for line in text.splitlines()
        )


def make_hostile_run(folder, replacement, out):
    """A copy of a run folder with every text replaced, as the page reads it; and the fields."""
    replacer = TextReplacer(replacement)
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder / "pictures", out / "pictures")
    for path in text_files(folder):
        name = path.relative_to(folder)
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text(
            replacer.file(path, re.sub(r"\d{6}", "N", str(name))), encoding="utf-8"
        )
    run = replace(read_run(out), name=replacer.text("name of the run", "name of the folder"))
    return run, replacer.fields


def harmless_text(number):
    return f"plain words {number}"


def count_elements(text):
    """Elements, their attributes' names and comments, as a browser builds them."""
    tree = html5lib.parse(text, treebuilder="etree", namespaceHTMLElements=False)
    return [
        (
            e.tag if isinstance(e.tag, str) else "comment",
            tuple(sorted(e.attrib)) if isinstance(e.tag, str) else (),
        )
        for e in tree.iter()
    ]


def payload_shifted_by(shift):
    return lambda number: PAYLOADS[(number + shift) % len(PAYLOADS)]


def payload_shifts(number=None):
    """Shifts such that every text meets every payload, or a sample of such shifts."""
    shifts = list(range(len(PAYLOADS)))
    return shifts if number is None else random.Random(0).sample(shifts, number)


def differing_shifts(folder, shifts, out):
    """The shifts whose page has other elements than the harmless page."""

    def elements(make_text):
        return count_elements(page.render([make_hostile_run(folder, make_text, out)[0]]))

    harmless = elements(harmless_text)
    return [shift for shift in shifts if elements(payload_shifted_by(shift)) != harmless]


def test_there_are_more_than_500_payloads_for_every_kind_of_field(run_folder, tmp_path):
    assert len(set(PAYLOADS)) == len(PAYLOADS) >= 500
    _, fields = make_hostile_run(run_folder, harmless_text, tmp_path / "h")
    required = {
        "name of the folder",
        "run.lock.json.command",
        "run.lock.json.accepted[]",
        "run.lock.json.recipe.student.model",
        "run.lock.json.versions:added",
        "rollouts/N.jsonl.tokens[]",
        "rollouts/N.jsonl.prompt",
        "rollouts/N.jsonl:added",
        "tokens/step-N.json.items[].question",
        "tokens/step-N.json.items[].gold",
        "quarantine.jsonl.reason",
        "timing.jsonl.seconds:added",
        "pictures/index.json:keys",
        "pictures/index.json.*.question",
        "result.json.weights_sha256",
        "events.log",
    }
    assert required <= fields, required - fields
    assert len(fields) > 80


def test_the_harmless_page_shows_its_texts(run_folder, tmp_path):
    text = page.render([make_hostile_run(run_folder, harmless_text, tmp_path / "h")[0]])
    assert len(set(re.findall(r"plain words \d+", text))) > 40
    assert "visual plain words" in text, "the name of a signal reaches the page"


@pytest.mark.more
def test_a_sample_of_payloads_in_every_field_adds_no_element_and_no_attribute(run_folder, tmp_path):
    assert differing_shifts(run_folder, payload_shifts(SAMPLED), tmp_path / "h") == []


@pytest.mark.slow
def test_every_payload_in_every_field_adds_no_element_and_no_attribute(run_folder, tmp_path):
    assert differing_shifts(run_folder, payload_shifts(), tmp_path / "h") == []


@pytest.mark.more
def test_hostile_names_of_many_runs_add_no_element(run_folder, tmp_path):
    run = read_run(run_folder)

    def elements(names):
        return count_elements(page.render([replace(run, name=name) for name in names]))

    harmless = elements([harmless_text(i) for i in range(6)])
    for start in range(0, len(PAYLOADS), len(PAYLOADS) // 8):
        assert elements([PAYLOADS[(start + i) % len(PAYLOADS)] for i in range(6)]) == harmless


def break_template(monkeypatch, old, new):
    """Put a mistake into the template of the page."""
    source, *_ = page.PackageLoader("vistill.report").get_source(
        page.Environment(), "report.html.jinja"
    )
    assert old in source
    monkeypatch.setattr(
        page,
        "PackageLoader",
        lambda package: DictLoader({"report.html.jinja": source.replace(old, new)}),
    )


TEMPLATE_MISTAKES = [
    ("{{ item.question }}", "{{ item.question | safe }}"),
    ("{{ run.name }}: {{ run.method }}", "{{ run.name | safe }}: {{ run.method }}"),
    ("<td>{{ row.reason }}</td>", "<td title={{ row.reason }}>{{ row.reason }}</td>"),
    ("{{ run.lock.get('command', 'unknown') }}", "{{ run.lock.get('command', 'unknown') | safe }}"),
    ("{{ group.signal }}", "{{ group.signal | safe }}"),
    (
        "<h2>Terms</h2>",
        "{{ runs[0].lock.get('started') | safe }}<h2>Terms</h2>",
    ),  # a field that no page shows yet
    (
        "<h2>Data</h2>",
        "{% for key in runs[0].lock.recipe.data %}{{ key | safe }}{% endfor %}<h2>Data</h2>",
    ),
]


@pytest.mark.more
@pytest.mark.parametrize(
    ("old", "new"), few(TEMPLATE_MISTAKES, 0, 2), ids=[old for old, _ in TEMPLATE_MISTAKES]
)
def test_one_field_that_is_not_escaped_or_not_quoted_is_detected(
    run_folder, tmp_path, monkeypatch, old, new
):
    break_template(monkeypatch, old, new)
    assert differing_shifts(run_folder, payload_shifts(6), tmp_path / "h")


@pytest.mark.more
def test_a_page_without_escaping_is_detected(run_folder, tmp_path, monkeypatch):
    result = page.Environment
    # a planted defect
    monkeypatch.setattr(
        page, "Environment", lambda **options: result(**(options | {"autoescape": False}))
    )
    assert differing_shifts(run_folder, payload_shifts(3), tmp_path / "h")


@pytest.mark.more
def test_charts_that_do_not_escape_are_detected(run_folder, tmp_path, monkeypatch):
    # a planted defect
    monkeypatch.setattr(charts, "escape_text", str)
    assert differing_shifts(run_folder, payload_shifts(6), tmp_path / "h")


def test_the_page_fetches_nothing_runs_nothing_and_forbids_both(run_folder, tmp_path):
    text = page.render([make_hostile_run(run_folder, payload_shifted_by(7), tmp_path / "h")[0]])
    tree = html5lib.parse(text, treebuilder="etree", namespaceHTMLElements=False)
    elements = [e for e in tree.iter() if isinstance(e.tag, str)]
    assert not {
        "script",
        "iframe",
        "object",
        "embed",
        "link",
        "base",
        "form",
        "a",
        "use",
        "animate",
    } & {e.tag for e in elements}
    for e in elements:
        for name, value in e.attrib.items():
            assert not name.startswith("on"), (e.tag, name)
            assert name not in ("src", "href") or value.startswith("data:image/png;base64,"), (
                e.tag,
                name,
                value,
            )
            assert name != "style" or re.fullmatch(
                r"background:(rgba\([\d.,]+\)|#\w{6})(;border-bottom:2px solid #7a2e00)?", value
            ), value
    style = "".join(e.text or "" for e in elements if e.tag == "style")
    assert "url(" not in style
    assert "@import" not in style
    policy = [
        e.attrib["content"]
        for e in elements
        if e.attrib.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == [
        "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
        " base-uri 'none'; form-action 'none'"
    ]


def test_control_and_direction_characters_never_reach_the_page(run_folder, tmp_path):
    run, _ = make_hostile_run(
        run_folder,
        lambda number: f"\x1b[3{number}m\x00\x85\u202e\u2066\u200f\ud800x",
        tmp_path / "h",
    )
    text = page.render([run])
    assert not re.search(
        "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text
    )
    assert "\\x1b[3" in text
    assert page.write_report([run.path], tmp_path / "r.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "name", ["../../secret", "/etc/secret", "a/../../../secret", "x" * 5000, "a\0b", "..", ""]
)
def test_the_image_index_cannot_name_files_elsewhere(run_folder, tmp_path, name):
    Image.new("RGB", (9, 9)).save(tmp_path / "secret-full.png")
    shutil.copytree(run_folder, tmp_path / "runs" / "run")
    run = read_run(tmp_path / "runs" / "run")
    key = next(iter(run.images))
    assert run.image_uri(key, "full")
    assert replace(run, images={key: {"file": name}}).image_uri(key, "full") is None
