"""A second start decodes and measures nothing that it knows, and finds what a first one finds."""

import inspect
import json
import os
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

import vistill
from vistill.data.data_sets import load_data
from vistill.data.decoding import decode_image
from vistill.data.images import FileImage
from vistill.data.judging import judge_response
from vistill.data.known_pictures import KnownPictures, file_state
from vistill.data.settings import DataSettings
from vistill.errors import DataError
from vistill.models.families.base import Family
from vistill.models.known_lengths import KnownLengths, rule_of
from vistill.models.loading import load_encoder
from vistill.runs import start_cache
from vistill.runs.folder import RunFolder
from vistill.runs.start_cache import StartCache, cache_folder, read_entries
from vistill.training.build import START_CHECKS, make_setup
from vistill.training.checks.check import run_checks
from vistill.training.recipe import Recipe, StudentSettings, TeacherSettings
from vistill.training.settings import RewardSettings

ROWS = 24
#: Checks that read rows; those of the weights come after them.
CHECKS = [
    c for c in START_CHECKS if c.name in ("data", "gold answers", "tokenizers", "prompt lengths")
]


@pytest.fixture
def rows(tmp_path):
    """A data file with a picture for each row."""
    folder = tmp_path / "data"
    folder.mkdir()
    lines = []
    for i in range(ROWS):
        draw(folder / f"{i}.png", i)
        lines.append({"question": f"Question {i}?", "images": f"{i}.png", "answer": str(i)})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "rows.jsonl"


def draw(path, number):
    picture = Image.new("RGB", (64 + 8 * (number % 3), 64), (number, 5, 250 - number))
    picture.putpixel((3, 3), (255, 255, 255))
    picture.save(path)


@pytest.fixture
def counts():
    """How often a picture is decoded, a prompt is measured, and a gold answer is judged."""
    names = {decode_image: "decode", Family.lengths: "measure", judge_response: "judge"}
    codes = {inspect.unwrap(function).__code__: name for function, name in names.items()}
    counts = dict.fromkeys(names.values(), 0)

    def count(frame, event, argument):
        if event == "call" and frame.f_code in codes:
            counts[codes[frame.f_code]] += 1

    sys.setprofile(count)
    yield counts
    sys.setprofile(None)


def start(rows, checker="auto", **data):
    """The start checks up to the weights, as a new process makes them."""
    settings = DataSettings(train=str(rows), **{"holdout": 4, "max_bad_share": 0.2, **data})
    recipe = Recipe(
        run=str(rows.parent.parent / "run"),
        student=StudentSettings(model="vistill:student"),
        teacher=TeacherSettings(model="vistill:teacher"),
        method="grpo",
        data=settings,
        reward=RewardSettings(checker=checker),
    )
    setup = make_setup(recipe, RunFolder(Path(recipe.run)), "check")
    run_checks(setup, CHECKS)
    return setup


def facts(setup):
    """What a start knows of its rows."""
    prompts = [*setup.train_prompts, *setup.eval_prompts]
    return [(p, p.content, p.images[0].digest, p.images[0].size) for p in prompts], [
        row.to_dict() for row in setup.train_data.quarantined
    ]


def test_a_second_start_decodes_measures_and_judges_nothing_and_knows_the_same(rows, counts):
    first = facts(start(rows))
    assert counts == {"decode": ROWS, "measure": ROWS, "judge": ROWS}
    second = facts(start(rows))
    assert counts == {"decode": ROWS, "measure": ROWS, "judge": ROWS}
    assert second == first


def test_without_a_cache_every_start_decodes_and_nothing_is_written(
    rows, counts, monkeypatch, start_cache
):
    monkeypatch.setenv("VISTILL_CACHE", "off")
    before = set(rows.parent.iterdir())
    assert facts(start(rows)) == facts(start(rows))
    assert counts["decode"] == 2 * ROWS
    assert not start_cache.exists()
    assert set(rows.parent.iterdir()) == before


def test_nothing_is_written_next_to_the_data_and_no_text_or_path_is_kept(rows, start_cache):
    before = set(rows.parent.iterdir())
    start(rows)
    assert set(rows.parent.iterdir()) == before
    files = sorted(start_cache.iterdir())
    assert [file.name.partition("-")[0] for file in files] == ["golds", "lengths", "pictures"]
    text = "".join(file.read_text() for file in files)
    assert "Question" not in text
    assert "png" not in text


def truncate(path):
    path.write_bytes(path.read_bytes()[:60])


def overwrite_in_place(path):
    """Other bytes of the same number, and the old time of modification."""
    before, data = path.stat(), path.read_bytes()
    path.write_bytes(data[:50] + bytes(len(data) - 50))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size


def remove(path):
    path.unlink()


@pytest.mark.parametrize("damage", [truncate, overwrite_in_place, remove])
def test_a_picture_that_breaks_after_a_start_is_found_by_the_next_one(rows, counts, damage):
    start(rows)
    damage(rows.parent / "3.png")
    bad = start(rows).train_data.quarantined
    code = "D201" if damage is remove else "D202"
    assert [(row.code, row.where.rpartition(":")[2].split()[:2]) for row in bad] == [
        (code, ["4", "images[0]"])
    ]
    assert counts["decode"] == ROWS + (damage is not remove)
    again = start(rows).train_data.quarantined
    assert again == bad  # an error is never kept


def test_a_picture_that_changed_has_its_new_digest_and_size(rows, counts):
    first = start(rows)
    draw(rows.parent / "3.png", 40)
    second = start(rows)
    assert counts["decode"] == ROWS + 1
    changed = {p.id for p in first.train_prompts} ^ {p.id for p in second.train_prompts}
    assert len(changed) <= 4  # the row, and one that the key of the held out rows exchanges
    sizes = {p.images[0].size for p in second.train_prompts if "4" in p.labels["row"]}
    assert (72, 64) in sizes


@pytest.mark.parametrize("damage", [truncate, overwrite_in_place, remove])
def test_a_file_in_another_state_is_read_again_and_one_in_the_same_is_not(rows, counts, damage):
    image = FileImage(rows.parent / "0.png")
    first = KnownPictures(str(rows), settled_ns=0)
    facts = first.facts_of(image)
    first.cache.save()
    again = KnownPictures(str(rows), settled_ns=0)
    assert again.facts_of(replace(image, where="row 1")) == facts
    assert not again.cache.is_changed
    assert counts["decode"] == 1
    damage(image.path)
    with pytest.raises(DataError) as caught:
        again.facts_of(image)
    assert caught.value.code == ("D201" if damage is remove else "D202")


def test_the_state_of_a_file_that_changed_just_now_is_not_kept(rows, counts):
    image = FileImage(rows.parent / "0.png")
    assert file_state(image.path) is None
    assert file_state(image.path, settled_ns=0) is not None
    assert file_state(rows.parent, settled_ns=0) is None
    pictures = KnownPictures(str(rows))
    pictures.facts_of(image)
    assert len(pictures.cache.entries) == 1  # its content alone


def test_pixel_limits_and_another_model_have_entries_of_their_own(rows, counts):
    start(rows)
    smaller = start(rows, max_pixels=1024)
    assert counts["decode"] == counts["measure"] == 2 * ROWS
    assert {p.images[0].size for p in smaller.train_prompts} == {(32, 32), (33, 30), (35, 28)}
    start(rows, max_image_tokens=9)
    assert counts["measure"] == 3 * ROWS
    assert counts["decode"] == 2 * ROWS


def test_prompts_that_are_too_long_are_found_by_every_start(rows):
    for _ in range(3):
        with pytest.raises(DataError) as caught:
            start(rows, max_prompt_tokens=20)
        assert caught.value.code == "D203"


def test_a_rejected_gold_answer_is_judged_again(rows, counts):
    text = rows.read_text()
    rows.write_text(text.replace('"answer": "3"', '"answer": "no number"'))
    for _ in range(2):
        setup = start(rows, checker="number")
        assert [row.code for row in setup.train_data.quarantined] == ["D301"]
    assert counts["judge"] == ROWS + 1


def damaged(kind):
    def write(file):
        head, _, body = file.read_bytes().partition(b"\n")
        contents = {
            "empty": b"",
            "half": file.read_bytes()[: len(body) // 2],
            "another number": head + b"\n" + body.replace(b"64", b"65"),
            "no hash": body,
            "not UTF-8": b"\xff" * 32 + b"\n" + body,
            "a list": hashed(b"[1]"),
            "other types": hashed(json.dumps({k: ["x"] for k in json.loads(body)}).encode()),
        }
        file.write_bytes(contents[kind])

    return write


def hashed(body):
    return start_cache.xxhash.xxh3_128(body).hexdigest().encode() + b"\n" + body


KINDS = ("empty", "half", "another number", "no hash", "not UTF-8", "a list", "other types")


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_file_counts_as_empty_and_is_written_again(rows, counts, start_cache, kind):
    first = facts(start(rows))
    for file in start_cache.iterdir():
        damaged(kind)(file)
    assert facts(start(rows)) == first
    assert counts == {"decode": 2 * ROWS, "measure": 2 * ROWS, "judge": 2 * ROWS}
    assert facts(start(rows)) == first
    assert counts["decode"] == 2 * ROWS


def test_runs_that_write_one_file_at_once_leave_a_valid_one(start_cache):
    def write(number):
        for i in range(20):
            cache = StartCache("test", ["rule"])
            cache.put(f"{number} {i}", i)
            cache.save()

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (file,) = start_cache.iterdir()
    entries = read_entries(file)
    assert entries
    assert all(values == [int(name.split()[1])] for name, values in entries.items())


def test_what_another_run_wrote_in_between_stays(start_cache):
    one, other = StartCache("test", ["rule"]), StartCache("test", ["rule"])
    one.put("a", 1)
    one.save()
    other.put("b", 2)
    other.save()
    assert StartCache("test", ["rule"]).entries == {"a": [1], "b": [2]}
    assert StartCache("test", ["other rule"]).entries == {}


def test_a_folder_that_cannot_be_written_is_said_once_and_stops_nothing(
    rows, monkeypatch, tmp_path
):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VISTILL_CACHE", str(tmp_path / "file" / "cache"))
    records = []
    with vistill.phases.report_phases(records.append):
        assert len(start(rows).train_prompts) == ROWS - 4
    notes = [r["event"] for r in records if "cannot be written" in str(r.get("event"))]
    assert len(notes) >= 1


def test_the_folder_follows_the_usual_conventions(monkeypatch, tmp_path):
    monkeypatch.delenv("VISTILL_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "vistill"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "vistill"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "vistill"
    monkeypatch.setenv("VISTILL_CACHE", "off")
    assert cache_folder() is None


def test_files_that_no_start_used_for_long_are_removed(start_cache):
    old, new = StartCache("test", ["old"]), StartCache("test", ["new"])
    old.put("a", 1)
    old.save()
    os.utime(old.path, (0, 0))
    new.put("a", 1)
    new.save()
    assert list(start_cache.iterdir()) == [new.path]


def test_lengths_are_those_of_the_encoded_prompts(rows, tiny_folder):
    encoder = load_encoder(tiny_folder)
    train, _ = load_data(DataSettings(train=str(rows)))
    for _ in range(2):
        known = KnownLengths(encoder)
        for prompt in train.prompts:
            encoded = encoder.encode(prompt)
            assert known.of(prompt) == (len(encoded.ids), encoded.num_image_tokens)
        known.cache.save()


def test_the_code_of_a_family_that_is_a_plug_in_is_asked_at_every_start(tiny_folder):
    encoder = load_encoder(tiny_folder)
    assert rule_of(encoder) is not None
    encoder.family.__class__ = type("Own", (type(encoder.family),), {"__module__": "own"})
    assert rule_of(encoder) is None


def test_a_second_process_of_the_same_content_under_another_name_decodes_nothing(rows, counts):
    load_data(DataSettings(train=str(rows)))
    copy = rows.parent / "copy.png"
    copy.write_bytes((rows.parent / "0.png").read_bytes())
    pictures = KnownPictures(str(rows))
    image, facts = pictures.with_facts(FileImage(copy))
    assert counts["decode"] == ROWS
    assert image.digest == facts.digest
