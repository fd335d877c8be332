"""Data files with bad rows of every kind, and the same files without them."""

import json
import os
import random
from pathlib import Path

from PIL import Image

#: Number of good images; rows share them.
NUM_IMAGES = 40


def write_image(folder, name, data):
    (folder / name).write_bytes(data)
    return name


def write_bomb(folder, name):
    Image.new("1", (20_000, 20_000)).save(folder / name)
    return name


def write_narrow(folder, name):
    Image.new("RGB", (4, 1_000)).save(folder / name)
    return name


def write_huge(folder, name):
    with (folder / name).open("wb") as handle:
        handle.truncate(21_000_000)
    return name


def write_link(folder, name):
    outside = folder.parent / "outside.png"
    Image.new("RGB", (40, 40)).save(outside)
    (folder / name).symlink_to(outside)
    return name


def make_fifo(folder, name):
    os.mkfifo(folder / name)
    return name


def write_half(folder, name, suffix):
    full = folder / f"whole.{suffix}"
    Image.effect_noise((64, 64), 80).convert("RGB").save(full)
    return write_image(folder, name, full.read_bytes()[: full.stat().st_size // 2])


SVG = b'<svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>'
#: Bad values of an image column: kind to (function of folder and number that makes one, code).
IMAGES = {
    "missing file": (lambda f, n: f"gone-{n}.png", "D201"),
    "half a PNG": (lambda f, n: write_half(f, f"half-{n}.png", "png"), "D202"),
    "half a JPEG": (lambda f, n: write_half(f, f"half-{n}.jpg", "jpg"), "D202"),
    "empty file": (lambda f, n: write_image(f, f"empty-{n}.png", b""), "D202"),
    "text file": (lambda f, n: write_image(f, f"text-{n}.png", b"not found\n"), "D202"),
    "SVG": (lambda f, n: write_image(f, f"drawn-{n}.svg", SVG), "D202"),
    "bomb": (lambda f, n: write_bomb(f, f"bomb-{n}.png"), "D202"),
    "extreme aspect ratio": (lambda f, n: write_narrow(f, f"narrow-{n}.png"), "D202"),
    "huge file": (lambda f, n: write_huge(f, f"huge-{n}.png"), "D202"),
    "a number": (lambda f, n: n, "D202"),
    "URL": (lambda f, n: f"http://127.0.0.1:9/{n}.png", "D205"),
    "data URI": (lambda f, n: f"data:image/png;base64,AAAA{n}", "D205"),
    "traversal": (lambda f, n: f"../../secret-{n}.png", "D206"),
    "absolute path": (lambda f, n: "/etc/hostname", "D206"),
    "link out": (lambda f, n: write_link(f, f"link-{n}.png"), "D206"),
    "FIFO": (lambda f, n: make_fifo(f, f"pipe-{n}.png"), "D201"),
    "null byte": (lambda f, n: f"a\0{n}.png", "D206"),
}
#: Changes of the row itself.
ROWS = {
    "placeholder without an image": (
        lambda row: {**row, "question": "See <image> and <image2>."},
        "D103",
    ),
    "special token": (lambda row: {**row, "question": "Read <|image_pad|> well."}, "D103"),
    "empty question": (lambda row: {**row, "question": "  "}, "D104"),
    "null question": (lambda row: {**row, "question": None}, "D104"),
    "half a character": (lambda row: {**row, "question": "What is \ud83d?"}, "D104"),
}
#: Lines that are not rows.
LINES = {
    "not JSON": (lambda row: json.dumps(row).encode()[:-3], "D102"),
    "not UTF-8": (lambda row: json.dumps(row).encode().replace(b"What", b"Wh\xff\xfe"), "D102"),
    "not an object": (lambda row: json.dumps(list(row)).encode(), "D102"),
}
KINDS = [*IMAGES, *ROWS, *LINES]


def write_data_files(
    folder: Path, rows: int, bad: int, seed: int = 0
) -> tuple[Path, Path, dict[int, str]]:
    """Write a file of `rows` lines with `bad` bad ones, and its clean version.

    Returns both files, and the code of each bad row by line number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    for i in range(NUM_IMAGES):
        size = (48 + i % 3, 48)
        Image.frombytes("RGB", size, rng.randbytes(3 * size[0] * size[1])).save(folder / f"{i}.png")
    places = dict(
        zip(
            sorted(rng.sample(range(rows), bad)),
            (KINDS[i % len(KINDS)] for i in range(bad)),
            strict=True,
        )
    )
    dirty, clean, codes = [], [], {}
    for n in range(rows):
        question, answer = f"What is {n % 97} + {n % 13}?", str(n % 97 + n % 13)
        row = {"question": question, "images": [f"{n % NUM_IMAGES}.png"], "answer": answer}
        kind = places.get(n)
        if kind is None:
            clean.append(json.dumps(row).encode())
            dirty.append(clean[-1])
            continue
        if kind in IMAGES:
            make, codes[n + 1] = IMAGES[kind]
            dirty.append(json.dumps({**row, "images": [make(folder, n)]}).encode())
        elif kind in ROWS:
            make, codes[n + 1] = ROWS[kind]
            dirty.append(json.dumps(make(row)).encode())
        else:
            make, codes[n + 1] = LINES[kind]
            dirty.append(make(row))
    for name, lines in (("dirty.jsonl", dirty), ("clean.jsonl", clean)):
        (folder / name).write_bytes(b"".join(line + b"\n" for line in lines))
    return folder / "dirty.jsonl", folder / "clean.jsonl", codes
