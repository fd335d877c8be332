"""`python -m vistill.data.convert FOLDER`, ranges of values and colour keys."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vistill.data.convert import main
from vistill.data.decoding import decode_image, normalise
from vistill.data.loading import load_rows
from vistill.data.settings import DataSettings
from vistill.errors import DataError


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def half_red(size=(40, 20)):
    image = Image.new("RGB", size, "white")
    image.paste("red", (0, 0, size[0] // 2, size[1]))
    return image


def turned():
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_the_pictures_of_a_folder_that_need_it_are_converted_and_nothing_else(tmp_path, capsys):
    folder = tmp_path / "my pictures é"
    folder.mkdir()
    tiff = encoded(half_red(), "TIFF")
    cases = {
        "no suffix": tiff,
        "a.jpg": encoded(half_red(), "TIFF", exif=turned()),
        "cmyk.tif": encoded(half_red().convert("CMYK"), "TIFF"),
        "deep.tif": encoded(Image.fromarray(np.full((4, 4), 40000, np.uint16)), "TIFF"),
    }
    kept = {
        "good.jpg": encoded(half_red(), "JPEG", exif=turned()),
        "cmyk.jpg": encoded(half_red().convert("CMYK"), "JPEG"),
        "good.png": encoded(half_red(), "PNG"),
        "data.jsonl": b"{}\n",
        "a.jpg.orig": b"an older backup",
    }
    for name, data in (cases | kept).items():
        (folder / name).write_bytes(data)
    assert main([str(folder)]) == 0
    assert "4 pictures converted" in capsys.readouterr().out
    for name, data in kept.items():
        assert (folder / name).read_bytes() == data
    for name, data in cases.items():
        original = f"{name}.orig1" if name == "a.jpg" else f"{name}.orig"
        assert (folder / original).read_bytes() == data
        picture = decode_image((folder / name).read_bytes(), name)
        assert picture.size == {"a.jpg": (20, 40), "deep.tif": (4, 4)}.get(name, (40, 20))
    assert decode_image((folder / "deep.tif").read_bytes(), "").getpixel((0, 0))[0] == 156
    red = decode_image((folder / "cmyk.tif").read_bytes(), "").getpixel((5, 5))
    assert np.abs(np.subtract(red, (255, 0, 0))).max() < 12
    assert len(list(folder.iterdir())) == 2 * len(cases) + len(kept)
    assert main([str(folder)]) == 0
    assert "0 pictures converted" in capsys.readouterr().out


def test_a_picture_that_cannot_be_converted_stays(tmp_path, capsys):
    path = tmp_path / "cut.tif"
    path.write_bytes(encoded(half_red(), "TIFF")[:200])
    before = path.read_bytes()
    assert main([str(tmp_path)]) == 3
    assert "D202" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    assert main([str(tmp_path / "none")]) == 2


def test_the_first_of_several_pages_is_converted_and_named(tmp_path, capsys):
    path = tmp_path / "pages.tif"
    second = Image.new("RGB", (40, 20), "blue")
    path.write_bytes(encoded(half_red(), "TIFF", save_all=True, append_images=[second, second]))
    with pytest.raises(DataError) as caught:
        decode_image(path.read_bytes(), "row", path=path)
    assert "of several pages the first one is taken" in caught.value.note
    assert main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "page 1 of 3, the others are only there" in out
    assert "1 of them had several pages: the PNG shows the first one alone" in out
    assert decode_image(path.read_bytes(), "").getpixel((0, 0)) == (255, 0, 0)


def test_check_says_that_the_first_page_is_taken(tmp_path):
    pages = [Image.new("RGB", (40, 20), "blue")] * 2
    (tmp_path / "a.tif").write_bytes(
        encoded(half_red(), "TIFF", save_all=True, append_images=pages)
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "?", "images": ["a.tif"], "answer": "3"}\n')
    with pytest.raises(DataError) as caught:
        load_rows(str(rows), DataSettings(train=str(rows)), None)
    assert caught.value.code == "D202"
    assert "of several pages the first one is taken" in caught.value.note


def ramp(top, mode):
    kind = {"I": np.int32, "F": np.float32}[mode]
    return Image.fromarray(np.linspace(0, top, 64).reshape(8, 8).astype(kind))


@pytest.mark.parametrize(
    ("mode", "top", "white"),
    [
        ("F", 1.0, 255), ("F", 0.5, 128), ("F", 1.0001, None), ("F", 10, None), ("F", 255, 255),
        ("F", 255.5, None), ("F", 1000, None), ("F", 65535, 255), ("F", 128, 128),
        ("I", 255, 255), ("I", 256, None), ("I", 4095, None), ("I", 65535, 255), ("I", 7, 7),
    ],
)  # fmt: skip
def test_a_range_that_would_turn_a_picture_black_is_refused(mode, top, white):
    if white is None:
        with pytest.raises(DataError, match="ambiguous") as caught:
            normalise(ramp(top, mode), "here")
        assert caught.value.code == "D202"
        scale = {"F": 1, "I": 65535}[mode]  # what the message advises
        assert caught.value.fix.endswith(f"0..{scale:,}")
        assert normalise(ramp(scale, mode), "here").getpixel((7, 7))[0] == 255
    else:
        assert normalise(ramp(top, mode), "here").getpixel((7, 7))[0] == white


def test_a_dark_pgm_of_16_bits_stays_dark():
    dark = b"P5 2 1 65535\n" + struct.pack(">2H", 0, 200)
    assert decode_image(dark, "").getpixel((1, 0)) == (1, 1, 1)


def png(width, depth, colour, row, key):
    def chunk(name, data):
        crc = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + crc

    header = struct.pack(">IIBBBBB", width, 1, depth, colour, 0, 0, 0)
    return b"".join([
        b"\x89PNG\r\n\x1a\n", chunk(b"IHDR", header), chunk(b"tRNS", key),
        chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b""),
    ])  # fmt: skip


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (png(4, 2, 0, bytes([0b01_00_10_11]), b"\0\1"), [255, 0, 170, 255]),
        (png(2, 4, 0, bytes([0x80]), b"\0\x08"), [255, 0]),
        (png(2, 1, 0, bytes([0b01_000000]), b"\0\0"), [255, 255]),
        (png(2, 16, 0, struct.pack(">2H", 257, 256), struct.pack(">H", 257)), [255, 1]),
        (png(2, 16, 2, struct.pack(">6H", *[257] * 3, *[256] * 3), struct.pack(">3H", *[257] * 3)),
         [255, 1]),
    ],
)  # fmt: skip
def test_a_colour_key_is_compared_at_the_depth_of_the_file(data, expected):
    image = decode_image(data, "")
    assert [image.getpixel((x, 0))[0] for x in range(len(expected))] == expected
