"""From which row a view takes images or thoughts: the next row that shows something else.

Real data repeat one image in neighbouring rows (versions of a problem, steps of a problem), so the
next row often has the same image, and `swapped` would swap nothing. Training, evaluation and the
canary choose the row here.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence

import xxhash

from vistill.errors import DataError
from vistill.types import ImageRef, Prompt, View
from vistill.views.thoughts import thoughts_of

#: Views that show something of another row.
VIEWS_WITH_PARTNERS = (View.SWAPPED, View.PRIVILEGED_MISMATCHED)


class Partners(Mapping[str, Prompt]):
    """For each prompt id the next prompt, in order and around the end, that shows something else.

    Images are compared by their decoded pixels in RGB, as `swapped` shows them: of the 137 files of
    one benchmark 33 are copies of another file in another encoding, and a hash of the file would
    not detect that. Each file is decoded once. A partner is searched on first access, so a run
    whose method needs none decodes nothing.

    Args:
        prompts: the rows, in order; ids are unique.
        views: what the partner is for; views that take nothing from another row are ignored.
        thought: where visual thoughts come from (`views.thought`).
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        views: Collection[View | str] = (View.SWAPPED,),
        thought: str = "data",
    ) -> None:
        self.prompts, self.thought = prompts, thought
        self.views = tuple(view for view in VIEWS_WITH_PARTNERS if view in views)
        self.place = {prompt.id: i for i, prompt in enumerate(prompts)}
        self.chosen: dict[str, Prompt | None] = {}
        self.pixels: dict[str, str] = {}
        self.contents: dict[tuple[str, View], tuple[str, ...]] = {}

    def __getitem__(self, name: str) -> Prompt:
        if name not in self.chosen:
            self.chosen[name] = self.search(self.place[name]) if self.views else None
        chosen = self.chosen[name]
        if chosen is None:
            raise KeyError(name)
        return chosen

    def __iter__(self) -> Iterator[str]:
        return (prompt.id for prompt in self.prompts if prompt.id in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def search(self, index: int) -> Prompt | None:
        """The next row that shows something else, or None."""
        prompt, count = self.prompts[index], len(self.prompts)
        if not any(self.borrowed(prompt, view) for view in self.views):
            return None
        following = (self.prompts[(index + step) % count] for step in range(1, count))
        return next((other for other in following if self.differs(prompt, other)), None)

    def differs(self, prompt: Prompt, other: Prompt) -> bool:
        """Whether every view has an image of the other row that this row does not have.

        A row that cannot be read counts as different: the error follows when the row is shown.
        """
        try:
            return all(self.shows_other(prompt, other, view) for view in self.views)
        except DataError:
            return True

    def shows_other(self, prompt: Prompt, other: Prompt, view: View) -> bool:
        """The same for one view; the images of the other row repeat if it has fewer."""
        own, others = self.content(prompt, view), self.content(other, view)
        if not own or not others:
            return not own
        return any(others[i % len(others)] not in own for i in range(len(own)))

    def borrowed(self, prompt: Prompt, view: View) -> Sequence[ImageRef]:
        """What a view replaces in a row, and shows of it in another."""
        return prompt.images if view is View.SWAPPED else thoughts_of(prompt, self.thought)

    def content(self, prompt: Prompt, view: View) -> tuple[str, ...]:
        """Digests of what a view replaces in a row."""
        key = (prompt.id, view)
        if key not in self.contents:
            self.contents[key] = tuple(self.digest(image) for image in self.borrowed(prompt, view))
        return self.contents[key]

    def digest(self, image: ImageRef) -> str:
        """The digest of the pixels of an image; equal files are decoded once."""
        file = getattr(image, "digest", "")
        if file and file in self.pixels:
            return self.pixels[file]
        digest = pixel_digest(image)
        if file:
            self.pixels[file] = digest
        return digest

    def lacking(self) -> bool:
        """Whether no row at all has a partner: all show the same."""
        seen: dict[tuple[tuple[str, ...], ...], Prompt] = {}
        for prompt in self.prompts:
            try:
                content = tuple(self.content(prompt, view) for view in self.views)
            except DataError:
                return False
            if content not in seen:
                if any(content) and any(self.pairs(prompt, other) for other in seen.values()):
                    return False
                seen[content] = prompt
        return True

    def pairs(self, prompt: Prompt, other: Prompt) -> bool:
        """Whether one of two rows can borrow from the other."""
        return any(
            any(self.content(a, view) for view in self.views) and self.differs(a, b)
            for a, b in ((prompt, other), (other, prompt))
        )


def pixel_digest(image: ImageRef) -> str:
    """xxh3-128 of the decoded pixels in RGB, and of the size."""
    picture = image.load().convert("RGB")
    return xxhash.xxh3_128(f"{picture.size} ".encode() + picture.tobytes()).hexdigest()


def images_of_partner(own: Sequence[ImageRef], others: Sequence[ImageRef]) -> list[ImageRef]:
    """The images of the partner row that this row does not have itself, in order.

    Rows of several images often share one (a legend, the figure of a page) next to those that
    differ. A partner (`Partners`) has at least one image of its own.
    """
    if len(own) <= 1 and len(others) <= 1:
        return list(others)
    digests = {pixel_digest(image) for image in own}
    return [image for image in others if pixel_digest(image) not in digests]


def no_partner_error(prompt: Prompt, view: View) -> DataError:
    """D309: nothing else can be shown in the place of what the row has."""
    what = "picture" if view is View.SWAPPED else "visual thoughts"
    error = DataError(
        "D309",
        f"no other {what} for a row: the view {view} would show its own again",
        where=prompt.labels.get("row", prompt.id),
        why="all rows have the same, so a control that exchanges them exchanges nothing",
        fix="add rows about other pictures, or leave this view out"
        if view is View.SWAPPED
        else "visual_opsd.thoughts=noise   or rows with other thoughts",
    )
    error.rows = [prompt.id]
    return error
