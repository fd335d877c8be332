"""What is known of encoded pictures: their digest, their size, and that they can be decoded.

The first start decodes every picture, because only that detects a truncated file. Later starts find
a picture by the digest of its bytes, and a file by its state (size, times, number): a file in the
state in which it was read has the same bytes. Errors are never kept.
"""

import os
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from vistill.data.decoding import PixelLimits
from vistill.data.images import BytesImage, FileImage, file_digest
from vistill.runs.start_cache import StartCache, hash_text, source_hash

#: Modules whose source decides what is found out about a picture.
RULE = ("data/known_pictures.py", "data/decoding.py", "data/colour_keys.py", "data/images.py")
#: A file that changed less than so long ago may change again within the resolution of its times.
SETTLED_NS = 10_000_000_000


@dataclass(frozen=True)
class PictureFacts:
    """What is known of a picture that was decoded."""

    digest: str
    """Of its encoded bytes."""
    size: tuple[int, int]
    """Width and height of the normalised picture."""
    is_plain: bool
    """Whether it has one colour only."""


class KnownPictures:
    """Finds out about pictures, and decodes each content once for all starts.

    Args:
        source: the data source; each has its own file. None keeps nothing.
        settled_ns: how long a file must not have changed, so that its state decides its content.
    """

    def __init__(self, source: str | None = None, settled_ns: int = SETTLED_NS) -> None:
        self.settled_ns = settled_ns
        rule = (source_hash(*RULE), PIL.__version__, np.__version__, absolute_source(source or ""))
        self.cache = StartCache("pictures", None if source is None else rule)

    def facts_of(self, image: FileImage | BytesImage) -> PictureFacts:
        """What is known of a picture (D201, D202 as when it is decoded)."""
        name, state = "", None
        if isinstance(image, FileImage):
            name = hash_text("file", image.path)
            state = file_state(image.path, self.settled_ns)
            kept = self.cache.get(name, str, str) if state is not None else None
            if kept is not None and kept[0] == state:
                known = self.known(kept[1], image.limits)
                if known is not None:
                    return known
        data = image.data()
        digest = file_digest(data)
        facts = self.known(digest, image.limits)
        if facts is None:
            picture = image.decode(data)
            facts = PictureFacts(digest, picture.size, is_plain(picture))
            self.cache.put(key_of(digest, image.limits), *picture.size, facts.is_plain)
        if state is not None:
            self.cache.put(name, state, digest)
        return facts

    def known(self, digest: str, limits: PixelLimits) -> PictureFacts | None:
        """What an earlier start found out about some content under some limits."""
        kept = self.cache.get(key_of(digest, limits), int, int, bool)
        return None if kept is None else PictureFacts(digest, (kept[0], kept[1]), kept[2])

    def with_facts(
        self, image: FileImage | BytesImage
    ) -> tuple[FileImage | BytesImage, PictureFacts]:
        """The picture with its size, and the digest that its file must have from now on."""
        facts = self.facts_of(image)
        if isinstance(image, FileImage):
            return replace(image, digest=facts.digest, size=facts.size), facts
        return replace(image, size=facts.size), facts


def key_of(digest: str, limits: PixelLimits) -> str:
    """The key of a picture's content under pixel limits."""
    return f"{digest} {limits.min_pixels or ''} {limits.max_pixels or ''}"


def absolute_source(source: str) -> str:
    """A source by which its file is named: a path is absolute."""
    return source if source.startswith("hf:") else str(Path(source).absolute())


def file_state(path: Path, settled_ns: int = SETTLED_NS) -> str | None:
    """Size, times, number and device of a regular file; None if they do not decide its content.

    The time of the last change (ctime) cannot be set, so a file that was overwritten has another
    state, even if a program restores its size and its time of modification.
    """
    if os.name != "posix" and settled_ns:  # ctime is the time of creation there
        return None
    try:
        facts = path.stat()
    except (OSError, ValueError):
        return None
    newest = max(facts.st_mtime_ns, facts.st_ctime_ns)
    is_settled = not settled_ns or time.time_ns() - newest >= settled_ns
    if not stat.S_ISREG(facts.st_mode) or not is_settled:
        return None
    times = f"{facts.st_mtime_ns} {facts.st_ctime_ns}"
    return f"{facts.st_size} {times} {facts.st_ino} {facts.st_dev}"


def is_plain(picture: Image.Image) -> bool:
    """Whether a picture has one colour only. Two pixels settle it for most pictures."""
    width, height = picture.size
    if picture.getpixel((0, 0)) != picture.getpixel((width // 2, height // 2)):
        return False
    return all(low == high for low, high in picture.getextrema())  # pyright: ignore[reportGeneralTypeIssues]
