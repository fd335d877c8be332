"""Pictures are normalised once, at decode; odd ones keep their content, others name a way out."""

import base64
import io
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from vistill.data.decoding import PixelLimits, decode_image, normalise
from vistill.data.images import FileImage
from vistill.data.loading import load_rows, load_source
from vistill.data.rows import with_hashes
from vistill.data.settings import Columns, DataSettings, DiagramData
from vistill.data.stored_prompts import read_prompts, with_content_hashes, write_prompts
from vistill.errors import ConfigError, DataError
from vistill.types import LoadedImage, Prompt
from vistill.views import ViewContext, apply_view, pixelate


def encode(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colours(image):
    return len(image.getcolors(1 << 20))


def line_art(mode="RGBA", alpha=0):
    """Black lines on a transparent ground whose hidden colour is black."""
    image = Image.new("RGBA", (48, 32), (0, 0, 0, alpha))
    ImageDraw.Draw(image).line((4, 4, 40, 28), fill=(0, 0, 0, 255), width=3)
    return image.convert(mode) if mode != "RGBA" else image


def palette_with_key():
    image = Image.new("P", (16, 16), 0)
    image.putpalette([0, 0, 0, 0, 0, 0])
    image.paste(1, (4, 4, 12, 12))
    return encode(image, transparency=0)


def grey16(key=None):
    values = np.linspace(20_000, 60_000, 48 * 32).reshape(32, 48).astype(np.uint16)
    image = Image.fromarray(values)
    return encode(image) if key is None else encode(image, transparency=int(values[0, 0]))


@pytest.mark.parametrize(
    ("data", "ground"),
    [
        (encode(line_art()), (255, 255, 255)),
        (encode(line_art("LA")), (255, 255, 255)),
        (encode(line_art(), "WEBP", lossless=True), (255, 255, 255)),
        (palette_with_key(), (255, 255, 255)),
        (encode(Image.new("L", (8, 8), 7), transparency=7), (255, 255, 255)),
        (grey16(), (78, 78, 78)),
        (grey16(key=True), (255, 255, 255)),
        (encode(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=100), (0, 255, 255)),
        (b"P5 2 1 65535\n\xff\xff\x80\x00", (255, 255, 255)),
        (b"P2 2 1 255\n200 10\n", (200, 200, 200)),
    ],
)
def test_odd_pictures_reach_the_model_as_they_look(data, ground):
    picture = decode_image(data, "here")
    assert picture.mode == "RGB"
    assert np.abs(np.subtract(picture.getpixel((0, 0)), ground)).max() <= 3
    assert colours(picture) > 1 or picture.size == (8, 8)


def test_a_hidden_colour_is_the_same_in_the_full_and_the_pixelated_picture():
    image = Image.new("RGBA", (96, 64), (255, 255, 255, 0))
    image.paste((200, 30, 30, 255), (30, 20, 60, 40))
    prompt = with_hashes(Prompt("a", (LoadedImage(image), "What?")))
    full, small = (
        apply_view(prompt, view, ViewContext()).images[0].load() for view in ("full", "pixelated")
    )
    assert full.getpixel((0, 0)) == small.getpixel((0, 0)) == (255, 255, 255)
    assert full.mode == small.mode == "RGB"


def test_an_upright_rgb_picture_stays_the_object_and_keeps_its_hash():
    image = Image.effect_noise((20, 10), 90).convert("RGB")
    assert normalise(image, "here") is image
    prompt = with_hashes(Prompt("a", (LoadedImage(image), "What?")))
    assert prompt.images[0].load() is image
    # The hash decides whether an old run resumes, so it never changes.
    plain = with_hashes(Prompt("a", (LoadedImage(Image.new("RGB", (4, 4), (1, 2, 3))), "What?")))
    assert plain.content == "4502f9de78104541-2744357aed41931a"


def test_the_orientation_of_a_picture_in_memory_is_applied_like_that_of_a_file(tmp_path):
    image = Image.new("RGB", (30, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    in_memory = with_hashes(Prompt("a", (LoadedImage(Image.open(tmp_path / "turned.jpg")), "?")))
    in_file = FileImage(tmp_path / "turned.jpg").load()
    assert in_memory.images[0].load().size == in_file.size == (10, 30)


@pytest.mark.parametrize("mode", ["I", "F"])
@pytest.mark.parametrize(("top", "shown"), [(255, 255), (65535, 255), (70_000, None), (-1, None)])
def test_integers_and_floats_are_scaled_by_their_range_or_refused(mode, top, shown):
    image = Image.fromarray(np.array([[0, top]], dtype={"I": np.int32, "F": np.float32}[mode]))
    if shown is None:
        with pytest.raises(DataError) as caught:
            normalise(image, "here")
        assert caught.value.code == "D202"
    else:
        assert normalise(image, "here").getpixel((1, 0)) == (shown,) * 3


def test_floats_between_0_and_1_are_shares():
    image = Image.fromarray(np.array([[0.0, 0.5, 1.0]], dtype=np.float32))
    assert [normalise(image, "here").getpixel((x, 0))[0] for x in range(3)] == [0, 128, 255]


# ---- pixel limits ----


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((1000, 500), PixelLimits(None, 125_000), (500, 250)),
        ((100, 50), PixelLimits(20_000, None), (200, 100)),
        ((1000, 500), PixelLimits(262_144, 4_194_304), (1000, 500)),
        ((2047, 2047), PixelLimits(262_144, 4_194_304), (2047, 2047)),
        ((4000, 3000), PixelLimits(262_144, 4_194_304), (2364, 1773)),
        ((300, 200), PixelLimits(262_144, 4_194_304), (627, 418)),
        ((400, 2), PixelLimits(None, 100), (141, 1)),
        ((3, 1), PixelLimits(None, 1), (1, 1)),
    ],
)
def test_pixel_limits_scale_both_sides_by_one_factor(size, limits, expected):
    picture = decode_image(encode(Image.new("RGB", size)), "here", limits)
    assert picture.size == limits.size(*size) == expected


@pytest.mark.parametrize("longer", [1999, 39_999, 9_999])
def test_a_narrow_picture_stays_within_the_aspect_ratio_of_image_processors(longer):
    shorter = -(-longer // 200)
    for limit in (500, 3_000, 40_000):
        width, height = PixelLimits(None, limit).size(longer, shorter)
        assert max(width, height) <= 200 * min(width, height)


def write_rows(folder, rows, name="data.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_views_boxes_and_digests_start_from_the_picture_within_the_limits(tmp_path):
    Image.effect_noise((400, 200), 80).convert("RGB").save(tmp_path / "a.png")
    row = {"question": "What?", "images": ["a.png"], "answer": "1", "boxes": [100, 50, 200, 100]}
    path = write_rows(tmp_path, [row])
    settings = DataSettings(train=path, max_pixels=20_000, columns=Columns(boxes="boxes"))
    prompt = load_rows(path, settings, None).prompts[0]
    picture = prompt.images[0].load()
    assert picture.size == (200, 100)
    assert prompt.boxes == ((50, 25, 100, 50),)
    shown = apply_view(prompt, "pixelated", ViewContext()).images[0].load()
    assert shown.tobytes() == pixelate(picture).tobytes()
    write_prompts(with_content_hashes([prompt]), tmp_path / "stored" / "train.jsonl")
    again = read_prompts(f"prompts:{tmp_path / 'stored' / 'train.jsonl'}")
    assert again[0].images[0].load().size == (200, 100)
    assert again[0].content == prompt.content


def test_diagrams_are_drawn_within_the_limits():
    settings = DataSettings(diagrams=DiagramData(train=2), min_pixels=128 * 128)
    for prompt in load_source("diagrams", settings, "train", None).prompts:
        assert prompt.images[0].load().size == (128, 128)
        assert max(side for box in prompt.boxes for side in box) > 64


def test_limits_that_no_picture_meets_are_refused():
    with pytest.raises(ConfigError) as caught:
        DataSettings(min_pixels=100, max_pixels=50)
    assert (caught.value.code, caught.value.fix) == (
        "C101",
        "vistill.DataSettings(min_pixels=50)   or   vistill.DataSettings(max_pixels=100)",
    )


# ---- formats that are not read ----


def page(text):
    return text.encode()


@pytest.mark.parametrize(
    ("data", "name", "converts"),
    [
        (encode(Image.new("RGB", (8, 8)), "TIFF"), "TIFF", True),
        (encode(Image.new("RGB", (8, 8)), "JPEG2000"), "JPEG 2000", True),
        (encode(Image.new("RGB", (32, 32)), "ICO"), "icon (ICO)", True),
        (b"\0\0\0\x20ftypavif" + bytes(20), "AVIF", True),
        (b"\0\0\0\x20ftypheic" + bytes(20), "HEIC", False),
        (page("<?xml version='1.0'?>\n<svg/>"), "SVG", False),
        (page("  <!DOCTYPE html><title>x</title>"), "web page", False),
        (page("version https://git-lfs.github.com/spec/v1\noid x"), "Git LFS pointer", False),
        (page("%PDF-1.4"), "PDF", False),
    ],
)
def test_a_format_that_is_not_read_is_named_with_those_that_are(tmp_path, data, name, converts):
    with pytest.raises(DataError) as caught:
        decode_image(data, "row 1", path=tmp_path / "a b.tiff")
    error = caught.value
    assert error.code == "D202"
    assert name in error.what
    assert "PNG, JPEG, WebP, GIF, BMP" in error.why
    assert ("convert" in error.fix and "vistill.data.convert" in error.fix) == converts


@pytest.mark.more
def test_the_command_that_converts_works_when_pasted_and_keeps_the_originals(tmp_path):
    folder = tmp_path / "my pictures é"
    folder.mkdir()
    for number in range(2):
        Image.new("RGB", (8, 8), (9, 9, number)).save(folder / f"{number}.tiff")
    row = {"question": "What?", "images": ["my pictures é/0.tiff"], "answer": "1"}
    path = write_rows(tmp_path, [row])
    with pytest.raises(DataError) as caught:
        load_rows(path, DataSettings(train=path), None)
    command = caught.value.fix.partition("PNG: ")[2]
    command = command.replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(["bash", "-c", command], check=True, cwd=tmp_path)
    assert load_rows(path, DataSettings(train=path), None).prompts[0].images[0].load().size == (
        8,
        8,
    )
    assert sorted(p.name for p in folder.iterdir()) == [
        "0.tiff",
        "0.tiff.orig",
        "1.tiff",
        "1.tiff.orig",
    ]


# ---- the cases of the reviewers ----


@pytest.mark.parametrize("name", ["rgba_lineart.png", "gray16.png", "white_hidden.png", "rgb.png"])
def test_the_reviewers_odd_pictures_have_more_than_one_colour(shared_data, name):
    file = shared_data.parent / "cases" / "images" / name
    if not file.exists():
        pytest.skip(f"{file} is not there")
    picture = decode_image(file.read_bytes(), name)
    assert colours(picture) > 1
    assert colours(pixelate(picture)) > 1


def test_the_reviewers_tiff_is_named(shared_data):
    file = shared_data.parent / "cases" / "images" / "rgb.tiff"
    if not file.exists():
        pytest.skip(f"{file} is not there")
    with pytest.raises(DataError, match="TIFF"):
        FileImage(file).load()


def test_a_picture_in_base64_is_read(tmp_path):
    data = encode(Image.new("RGB", (10, 10), "red"))
    text = base64.b64encode(data).decode()
    rows = [
        {"question": f"What {n}?", "images": images, "answer": "1"}
        for n, images in enumerate((text, [f"data:image/png;base64,{text}"], {"bytes": text}))
    ]
    path = write_rows(tmp_path, rows)
    prompts = load_rows(path, DataSettings(train=path), None).prompts
    assert [prompt.images[0].load().size for prompt in prompts] == [(10, 10)] * 3
