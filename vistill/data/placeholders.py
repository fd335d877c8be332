"""Put the images of a row at their placeholders. The order of images never changes in silence."""

import re
from collections.abc import Sequence

from vistill.errors import DataError
from vistill.types import ImageRef, Part

#: `<image>`, `<image1>`, `<image 1>`, `<img_1>`, `<test-image>`: a number selects an image; without
#: one, in order. `<img>` without a number is text, because it is an element of HTML.
PLACEHOLDER = re.compile(
    r"<\s*(?:(?:(?:test|input|query|question|target|reference|example|sample)[-_ ])?"
    r"image(?:\s*[-_]?(\d+)|\s*[-_])?|img\s*[-_]?(\d+))\s*>",
    re.IGNORECASE,
)
#: What looks like a placeholder and is text.
HTML_IMAGE = re.compile(r"<\s*img(?:\s*/)?\s*>", re.IGNORECASE)


def place_images(text: str, images: Sequence[ImageRef | None], where: str) -> list[Part]:
    """Put images at their placeholders; without any placeholder, all images come first, in order.

    Args:
        text: the question.
        images: those of the row. None is an empty place: numbered placeholders count it,
            placeholders without a number skip it.
        where: the row, for messages.

    Raises:
        DataError: D103, a placeholder has no image, or only some images have a placeholder.
    """
    present = [index for index, image in enumerate(images) if image is not None]
    used: set[int] = set()
    pieces: list[Part] = []
    at, next_index = 0, 0
    for match in PLACEHOLDER.finditer(text):
        number = match.group(1) or match.group(2)
        index = (
            (int(number) if len(number) < 10 else 0) - 1
            if number
            else next((i for i in present if i >= next_index), len(images))
        )
        next_index = index + 1
        image = images[index] if 0 <= index < len(images) else None
        if image is None:
            raise no_image_error(match.group(0), len(present), where)
        pieces += [text[at : match.start()], image]
        used.add(index)
        at = match.end()
    pieces.append(text[at:])
    spare = [index for index in present if index not in used]
    if used and spare:
        raise spare_images_error(spare, len(used), where)
    first: list[Part] = [image for index in spare if (image := images[index]) is not None]
    return [part for part in [*first, *pieces] if part != ""]


def no_image_error(placeholder: str, count: int, where: str) -> DataError:
    """D103 for a placeholder without an image."""
    return DataError(
        "D103",
        f"placeholder {placeholder} has no image",
        where=where,
        why=f"the row has {count} image(s); the placeholder would be read as text",
        fix="data.columns.images=COLUMN, or correct the row",
    )


def spare_images_error(spare: Sequence[int], placed: int, where: str) -> DataError:
    """D103 for images without a placeholder next to images with one."""
    return DataError(
        "D103",
        f"{placed} of the row's images has a placeholder, {len(spare)} has none"
        if placed == 1
        else f"{placed} of the row's images have placeholders, {len(spare)} have none",
        where=where,
        why=f"image {spare[0] + 1} has no place in the question, so its order is unknown",
        fix="write one <image> per image into the question, or none: then all come first, in order",
    )
