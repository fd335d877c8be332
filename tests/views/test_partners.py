"""The partner of a row is the next row with another image, in small and in real data."""

import numpy as np
import pytest
from PIL import Image

from vistill.data.loading import load_rows
from vistill.data.settings import Columns, DataSettings
from vistill.types import DrawnImage, LoadedImage, Prompt, View
from vistill.views import Partners, ViewContext, apply_view


def plain(colour, size=(8, 6), mode="RGB"):
    return LoadedImage(Image.new("RGB", size, colour).convert(mode))


def row(name, *colours, thoughts=(), boxes=()):
    return Prompt(
        name, (*map(plain, colours), "?"), thoughts=tuple(map(plain, thoughts)), boxes=boxes
    )


def partners(*rows, views=(View.SWAPPED,), thought="data"):
    partner_of = Partners(rows, views, thought)
    return {p.id: other.id if (other := partner_of.get(p.id)) else None for p in rows}


def test_the_partner_is_the_next_row_with_another_picture_around_the_end():
    rows = [row("a", "red"), row("b", "red"), row("c", "blue"), row("d", "blue"), row("e", "green")]
    assert partners(*rows) == {"a": "c", "b": "c", "c": "e", "d": "e", "e": "a"}


def test_where_neighbours_differ_the_partner_is_the_next_row_as_ever():
    rows = [
        row(name, colour)
        for name, colour in zip("abcd", ("red", "blue", "green", "white"), strict=True)
    ]
    assert partners(*rows) == {"a": "b", "b": "c", "c": "d", "d": "a"}


def test_pictures_are_compared_by_their_pixels_and_not_by_how_they_are_stored():
    same = [
        row("a", "red"),
        Prompt("b", (plain("red", mode="P"), "?")),
        Prompt("c", (plain("red", mode="RGBA"), "?")),
    ]
    same.append(Prompt("d", (DrawnImage(lambda: Image.new("RGB", (8, 6), "red")), "?")))
    assert set(partners(*same).values()) == {None}
    assert partners(*same, row("e", "blue")) == {"a": "e", "b": "e", "c": "e", "d": "e", "e": "a"}


def test_a_row_alone_and_rows_of_one_picture_have_no_partner():
    assert partners(row("a", "red")) == {"a": None}
    one = Partners([row("a", "red"), row("b", "red")])
    assert one.lacking()
    assert len(one) == 0
    assert not Partners([row("a", "red"), row("b", "red"), row("c", "blue")]).lacking()


def test_rows_without_a_picture_lend_none_and_need_none():
    assert partners(row("a", "red"), row("words"), row("b", "blue")) == {
        "a": "b",
        "words": None,
        "b": "a",
    }


def test_a_row_of_several_pictures_is_shown_at_least_one_that_is_not_its_own():
    """Figures that rows share next to one of the row; and the same images in another order."""
    assert partners(row("a", "red", "blue"), row("b", "red", "green")) == {"a": "b", "b": "a"}
    assert partners(row("a", "red", "blue"), row("b", "blue", "red")) == {"a": None, "b": None}
    # only the first of b's pictures would be shown in the place of a's
    assert partners(row("a", "red"), row("b", "red", "blue"), row("c", "blue"))["a"] == "c"
    assert partners(row("a", "red", "blue"), row("b", "red"))["a"] is None


def test_of_a_partner_that_shares_images_only_the_others_are_shown():
    rows = [row("a", "red", "blue"), row("b", "red", "green")]
    partner = Partners(rows)["a"]
    shown = pixels(apply_view(rows[0], View.SWAPPED, ViewContext(partner=partner)))
    assert [tuple(int(v) for v in image[0, 0]) for image in shown] == [(0, 128, 0)] * 2
    view = View.PRIVILEGED_MISMATCHED
    rows = [
        row(name, "white", thoughts=("red", other)) for name, other in (("a", "blue"), ("b", "tan"))
    ]
    partner = Partners(rows, (view,))["b"]
    mismatched = apply_view(rows[1], view, ViewContext(partner=partner))
    assert [tuple(int(v) for v in image[0, 0]) for image in pixels(mismatched)[1:]] == [
        (0, 0, 255)
    ] * 2


def test_mismatched_thoughts_are_never_the_rows_own():
    view = (View.PRIVILEGED_MISMATCHED,)
    rows = [
        row("a", "red", thoughts=("red",)),
        row("b", "blue", thoughts=("red",)),
        row("c", "red", thoughts=("tan",)),
    ]
    assert partners(*rows, views=view) == {"a": "c", "b": "c", "c": "a"}
    boxed = [
        row(name, "white", boxes=(box,)) for name, box in (("a", (0, 0, 4, 4)), ("b", (0, 0, 4, 4)))
    ]
    assert set(partners(*boxed, views=view, thought="box").values()) == {None}
    other = row("c", "white", boxes=((0, 0, 7, 5),))
    assert partners(*boxed, other, views=view, thought="box") == {"a": "c", "b": "c", "c": "a"}


def test_a_method_that_borrows_nothing_decodes_nothing():
    def never():
        raise AssertionError("decoded")

    rows = [Prompt(name, (DrawnImage(never), "?")) for name in "ab"]
    assert partners(*rows, views=(View.FULL, View.PIXELATED)) == {"a": None, "b": None}
    Partners(rows)  # and one that borrows only when it is asked


def test_a_file_is_decoded_once_however_many_rows_show_it(tmp_path, monkeypatch):
    for name in ("red", "blue"):
        Image.new("RGB", (9, 9), name).save(tmp_path / f"{name}.png")
    lines = [
        f'{{"question": "Q{i}?", "images": "{"red" if i < 9 else "blue"}.png", "answer": "1"}}'
        for i in range(10)
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    rows = load_rows(str(tmp_path / "d.jsonl"), DataSettings(), None).prompts
    decoded, decode = [], Image.open
    monkeypatch.setattr(
        Image, "open", lambda file, **options: decoded.append(file) or decode(file, **options)
    )
    partner_of = Partners(rows)
    assert {partner_of[p.id].id for p in rows[:9]} == {rows[9].id}
    assert len(decoded) == 2


def test_a_row_that_cannot_be_read_is_found_when_it_is_shown(tmp_path):
    for name in ("red", "blue"):
        Image.new("RGB", (9, 9), name).save(tmp_path / f"{name}.png")
    lines = [
        f'{{"question": "Q{i}?", "images": "{name}.png", "answer": "1"}}'
        for i, name in enumerate(("red", "blue"))
    ]
    (tmp_path / "d.jsonl").write_text("\n".join(lines))
    rows = load_rows(str(tmp_path / "d.jsonl"), DataSettings(), None).prompts
    (tmp_path / "blue.png").write_bytes(b"gone")
    partner_of = Partners(rows)
    assert partner_of[rows[0].id].id == rows[1].id
    assert partner_of[rows[1].id].id == rows[0].id


def pixels(prompt):
    return [np.asarray(ref.load().convert("RGB")) for ref in prompt.images]


@pytest.mark.more
@pytest.mark.parametrize(
    ("name", "repeated"), [("mathverse", 194), ("wemath", 82), ("puzzlevqa", 5), ("vsp_maze", 0)]
)
def test_no_row_of_a_real_data_set_is_shown_its_own_picture(shared_data, name, repeated):
    path = str(shared_data / name / "data.jsonl")
    settings = DataSettings(
        train=path, columns=Columns(id="id"), text_only="drop", max_bad_share=1.0
    )
    rows = load_rows(path, settings, None).prompts
    partner_of = Partners(rows)
    following = [*rows[1:], *rows[:1]]
    assert (
        sum(not partner_of.differs(p, other) for p, other in zip(rows, following, strict=True))
        == repeated
    )
    for index, prompt in enumerate(rows):
        partner = partner_of[prompt.id]
        if partner_of.differs(prompt, following[index]):
            assert partner is following[index]
        if index % 20:  # looking at every picture takes long
            continue
        own, shown = (
            pixels(prompt),
            pixels(apply_view(prompt, View.SWAPPED, ViewContext(partner=partner))),
        )
        assert any(not np.array_equal(a, b) for a, b in zip(own, shown, strict=True))
