"""Which training rows are rows of a benchmark: by picture, by question, or by both."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from vistill.data.decoding import NO_LIMITS
from vistill.data.images import BytesImage, FileImage, file_digest, pixel_digest
from vistill.data.known_pictures import is_plain
from vistill.data.mixture import set_of
from vistill.data.settings import DataSettings
from vistill.errors import DataError
from vistill.evaluation.benchmarks.benchmark import BenchmarkRow
from vistill.evaluation.benchmarks.catalogue import BENCHMARKS
from vistill.evaluation.benchmarks.protocols import PROTOCOLS
from vistill.evaluation.benchmarks.sources import (
    BenchmarkRows,
    bare_prompt,
    find_present,
    row_reader,
)
from vistill.phases import count_items
from vistill.runs.start_cache import StartCache, source_hash
from vistill.types import ImageRef, Prompt

#: What two rows have in common, the strongest evidence first.
ROW, PICTURE, SIMILAR, QUESTION = "row", "picture", "similar picture", "question"
HOW = (ROW, PICTURE, SIMILAR, QUESTION)
#: A shorter question is no evidence: `How large is x?`.
LEAST_CHARACTERS = 25
#: Side of the small grey pictures that are compared, and the least correlation of similar ones:
#: 98.8 % of pictures that were shrunk or stored as JPEG or WebP reach it, and none of 1.6 million
#: pairs of pictures from two data sets (docs/benchmarks.md).
SIDE, LEAST_CORRELATION = 16, 0.98
#: A picture whose areas differ by fewer grey levels on average is almost empty, like any other.
LEAST_DEVIATION = 1.0
#: Largest ratio of the shapes of two similar pictures.
MOST_STRETCH = 1.03
#: Training pictures that are compared at once.
BLOCK = 4096
PLACEHOLDER = re.compile(r"<image[ _-]?\d*>|\[image[ _-]?\d*\]|<TEST-IMAGE>", re.IGNORECASE)
#: What a question keeps besides letters and digits: signs that change what is asked.
DROPPED = re.compile(r"[^\w+\-*/=<>^√π°%|≤≥≠]|_")
RULE = ("evaluation/benchmarks/contamination.py", "data/decoding.py", "data/images.py")


@dataclass(frozen=True)
class PictureKey:
    """What a picture is found by."""

    pixels: str
    """Digest of the decoded pixels: equal for two lossless files of one picture."""
    small: str
    """Its 16 x 16 grey levels in hexadecimal; empty for an almost empty picture."""
    shape: float
    """Width over height."""


@dataclass(frozen=True)
class Match:
    """A training row that is, or is like, a row of a benchmark."""

    train: str
    """File and line of the training row, or its id."""
    benchmark: str
    row: str
    how: str
    """`row` (picture and question), `picture`, `similar picture` or `question`."""

    def to_dict(self) -> dict[str, str]:
        """One line of `contamination.json`."""
        return {
            "train": self.train,
            "benchmark": self.benchmark,
            "row": self.row,
            "how": self.how,
        }


@dataclass(frozen=True)
class Contamination:
    """The result of a comparison: benchmarks that are here, and the training rows in them."""

    compared: Mapping[str, int]
    """Rows by benchmark."""
    matches: Sequence[Match]
    """The strongest one of each training row and benchmark."""
    unreadable: int = 0
    """Rows of benchmarks that could not be read, or whose picture could not."""

    def summary(self) -> str:
        """The result in a sentence."""
        if not self.compared:
            return "the folder holds no benchmark"
        total = sum(self.compared.values())
        names = f"{total:,} rows of {', '.join(self.compared)}"
        unread = f"; {self.unreadable:,} rows cannot be read" if self.unreadable else ""
        if not self.matches:
            return f"no training row is one of {names}{unread}"
        rows = len({match.train for match in self.matches})
        parts = []
        for name in self.compared:
            own = [match.how for match in self.matches if match.benchmark == name]
            kinds = [f"{own.count(how):,} by {IN_WORDS[how]}" for how in HOW if how in own]
            parts += [f"{name} {', '.join(kinds)}"] if own else []
        first = self.matches[0]
        return (
            f"{rows:,} training rows are like rows of benchmarks: {'; '.join(parts)}; first:"
            f" {first.train} and {first.row} by {IN_WORDS[first.how]} (compared with {names}"
            f"{unread})"
        )


IN_WORDS = {
    ROW: "picture and question",
    PICTURE: "picture",
    SIMILAR: "similar picture",
    QUESTION: "question",
}


@dataclass
class Index:
    """The training rows by what they are found by."""

    rows: list[str] = field(default_factory=list)
    pixels: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    questions: dict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    pictures: list[tuple[int, PictureKey]] = field(default_factory=list)

    def questions_of_one_picture(self) -> set[str]:
        """Questions that are asked about one picture only: others say nothing about a row."""
        seen: dict[int, set[str]] = defaultdict(set)
        for number, key in self.pictures:
            seen[number].add(key.pixels)
        return {
            text
            for text, rows in self.questions.items()
            if len({tuple(sorted(seen[number])) for number in rows}) == 1
        }


def question_key(text: str) -> str:
    """A question without placeholders, spaces, case and punctuation; empty if it is too short."""
    plain = unicodedata.normalize("NFKC", PLACEHOLDER.sub(" ", text)).casefold()
    kept = DROPPED.sub("", plain)
    return kept if len(kept) >= LEAST_CHARACTERS else ""


def question_of(prompt: Prompt, template: str) -> str:
    """The question of a prompt without what the template adds."""
    parts = re.split(r"(\{prompt\}|\{choices\})", template.replace("{{", "{").replace("}}", "}"))
    forms = {"{prompt}": "(.*?)", "{choices}": "(?:.*)"}
    pattern = "".join(forms.get(part) or re.escape(part) for part in parts).rstrip("\\\n ")
    match = re.fullmatch(pattern + r"\s*", prompt.text.strip(), re.DOTALL)
    return match[1] if match and match.groups() else prompt.text


def picture_key(picture: Image.Image) -> PictureKey:
    """What a decoded picture is found by."""
    grey = picture.convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    values = np.asarray(grey, dtype=np.uint8)
    is_empty = float(values.std()) < LEAST_DEVIATION
    small = "" if is_empty else values.tobytes().hex()
    shape = picture.width / picture.height
    return PictureKey(pixel_digest(picture.convert("RGB")), small, shape)


class PictureKeys:
    """The keys of pictures; each content is decoded once for all starts."""

    def __init__(self) -> None:
        self.cache = StartCache("picture-keys", (source_hash(*RULE), PIL.__version__))

    def keys_of(self, images: Sequence[ImageRef]) -> list[PictureKey]:
        """The keys of pictures, without those of one colour (D201, D202)."""
        return [key for key in map(self.key_of, images) if key is not None]

    def key_of(self, image: ImageRef) -> PictureKey | None:
        """The key of a picture as it is stored, before the pixel limits."""
        if not isinstance(image, FileImage | BytesImage):
            picture = image.load()
            return None if is_plain(picture) else picture_key(picture)
        data = image.data()
        name = file_digest(data)
        kept = self.cache.get(name, str, str, str)
        if kept is None:
            picture = replace(image, limits=NO_LIMITS).decode(data)
            key = None if is_plain(picture) else picture_key(picture)
            kept = ["", "", "1"] if key is None else [key.pixels, key.small, repr(key.shape)]
            self.cache.put(name, *kept)
        return PictureKey(kept[0], kept[1], float(kept[2])) if kept[0] else None


def find_contamination(
    prompts: Sequence[Prompt], settings: DataSettings, folder: Path
) -> Contamination:
    """Compare training rows with every benchmark of a folder; nothing is copied or sent.

    Args:
        prompts: training rows.
        settings: of the data: its template and columns.
        folder: with `NAME/data.jsonl`, as `vistill eval --data`.

    Raises:
        DataError: D101 or D102, a benchmark of the folder cannot be read.
    """
    keys = PictureKeys()
    index = index_of(prompts, settings, keys)
    present, _ = find_present(list(BENCHMARKS.values()), folder, "official", None)
    matches: list[Match] = []
    compared: dict[str, int] = {}
    unreadable = 0
    for part in present:
        hits, unread = compare_with(index, part, settings, keys)
        compared[part.benchmark.name] = len(part.rows)
        matches += hits
        unreadable += unread + len(part.failed)
    keys.cache.save()
    return Contamination(compared, matches, unreadable)


def index_of(prompts: Sequence[Prompt], settings: DataSettings, keys: PictureKeys) -> Index:
    """The training rows by pictures and question."""
    index = Index()
    for number, prompt in enumerate(count_items("comparing rows with benchmarks", prompts)):
        own = settings.of_set(set_of(prompt)) if settings.sets else settings
        index.rows.append(str(prompt.labels.get("row", prompt.id)))
        for key in keys.keys_of(prompt.images):
            index.pixels[key.pixels].add(number)
            index.pictures.append((number, key))
        for text in (question_of(prompt, own.template), prompt.text):
            if question_key(text):
                index.questions[question_key(text)].add(number)
    return index


def compare_with(
    index: Index, part: BenchmarkRows, settings: DataSettings, keys: PictureKeys
) -> tuple[list[Match], int]:
    """The matches with one benchmark, and how many of its rows have a picture that is unreadable.

    Of several rows of the benchmark that a training row is like, the one with the most in common.
    """
    read: list[tuple[BenchmarkRow, list[PictureKey]]] = []
    unread = 0
    reader = row_reader(part, PROTOCOLS["official"], settings)
    for line, row in enumerate(part.rows, 1):
        try:
            text = part.benchmark.prompt(row, "official")
            read.append((row, keys.keys_of(bare_prompt(reader, row, text, line).images)))
        except DataError:
            unread += 1  # counted, and said in the summary
    asked = questions_of(read)
    best: dict[int, tuple[int, str]] = {}

    def add(numbers: set[int], row: BenchmarkRow, how: str) -> None:
        for number in numbers:
            rank = HOW.index(how)
            if rank < best.get(number, (len(HOW), ""))[0]:
                best[number] = rank, row.id

    specific = index.questions_of_one_picture()
    similar = similar_rows(index, [key for _, own in read for key in own])
    for row, own in read:
        texts = {key for key in texts_of(row) if key}
        same_question = {n for text in texts for n in index.questions.get(text, ())}
        same_picture = {n for key in own for n in index.pixels.get(key.pixels, ())}
        like = {n for key in own for n in similar.get(key, ())}
        add(same_question & (same_picture | like), row, ROW)
        add(same_picture, row, PICTURE)
        add(like, row, SIMILAR)
        for text in texts:
            if text in specific and len(asked[text]) == 1:
                add(index.questions[text], row, QUESTION)
    name = part.benchmark.name
    hits = [Match(index.rows[n], name, row, HOW[rank]) for n, (rank, row) in best.items()]
    return sorted(hits, key=lambda match: (HOW.index(match.how), match.train)), unread


def texts_of(row: BenchmarkRow) -> Iterator[str]:
    """The keys of a question of a benchmark: alone, and with its options."""
    yield question_key(row.question)
    yield question_key(" ".join((row.question, *row.choices)))


def questions_of(read: Sequence[tuple[BenchmarkRow, list[PictureKey]]]) -> dict[str, set[str]]:
    """By question the groups that ask it: a question of several groups says nothing about a row."""
    asked: dict[str, set[str]] = defaultdict(set)
    for row, _ in read:
        for text in texts_of(row):
            asked[text].add(row.cluster)
    return asked


def similar_rows(index: Index, wanted: Sequence[PictureKey]) -> dict[PictureKey, set[int]]:
    """By picture of the benchmark: training rows with a similar one."""
    unique = list(dict.fromkeys(key for key in wanted if key.small))
    known = [(number, key) for number, key in index.pictures if key.small]
    hits: dict[PictureKey, set[int]] = defaultdict(set)
    if not unique or not known:
        return hits
    right, right_shape = unit_rows(unique), np.array([key.shape for key in unique])
    for start in range(0, len(known), BLOCK):
        block = known[start : start + BLOCK]
        correlation = unit_rows([key for _, key in block]) @ right.T
        ratio = np.array([key.shape for _, key in block])[:, None] / right_shape[None]
        is_shape = np.maximum(ratio, 1 / ratio) <= MOST_STRETCH
        for i, j in zip(*np.nonzero((correlation >= LEAST_CORRELATION) & is_shape), strict=True):
            hits[unique[j]].add(block[i][0])
    return hits


def unit_rows(keys: Sequence[PictureKey]) -> np.ndarray:
    """The small pictures around their mean, each of length 1: [P, 256]."""
    values = np.frombuffer(bytes.fromhex("".join(key.small for key in keys)), dtype=np.uint8)
    rows = values.reshape(len(keys), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)
