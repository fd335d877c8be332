"""`vistill chat`: a conversation in the terminal, or one question."""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vistill.cli.live import (
    DARKEST,
    CountLine,
    has_colours,
    print_spans,
    token_lines,
    token_spans,
)
from vistill.display.wrapping import WORD, fit_text, fit_to, wrap_words
from vistill.errors import ConfigError, DataError
from vistill.redaction import for_terminal
from vistill.report.charts import scale_of

if TYPE_CHECKING:
    from vistill.data.images import FileImage
    from vistill.studies.chat import Answer, Chat, TokenReading

#: From this width on, two answers stand next to each other.
TWO_COLUMNS = 72
#: Tokens with the largest visual advantage whose numbers are printed below the colours.
LARGEST = 5
HELP = """\
/image FILE   add a picture to the next question
/new          forget the conversation; the next question shows the first pictures again
/help         this text
/quit         end (Ctrl-D too); Ctrl-C stops an answer"""


@dataclass
class Terminal:
    """The conversation as it is shown, and as the page stores it."""

    chat: "Chat"
    pictures: list["FileImage"]
    """Pictures of the first question of a conversation."""
    html: Path | None
    line: CountLine
    shown: list[dict[str, Any]] = field(default_factory=list)
    added: list["FileImage"] = field(default_factory=list)
    """Pictures of the next question."""

    def ask(self, text: str) -> None:
        """Ask, print the answers, and write the page."""
        first = [] if self.chat.questions else self.pictures
        images = [*first, *self.added]
        try:
            answers = self.chat.ask(text, images)
        finally:
            self.line.clear()
        self.added = []
        print_answers(answers)
        if self.html is not None:
            self.write_page(text, images, answers)

    def write_page(
        self, text: str, images: Sequence["FileImage"], answers: Sequence["Answer"]
    ) -> None:
        """Write the conversation so far as a page."""
        from vistill.report.chat_page import write_chat_page
        from vistill.studies.preview import data_uri

        assert self.html is not None
        stored = [answer.to_dict() for answer in reversed(answers)]
        pictures = [data_uri(image.load()) for image in images]
        self.shown.append({"text": text, "pictures": pictures, "answers": stored})
        write_chat_page(self.chat.to_dict(), self.shown, self.html)

    def command(self, line: str) -> bool:
        """Do what a line that begins with `/` says. Return whether the conversation ends."""
        from vistill.studies.chat import open_picture

        word, _, rest = line.partition(" ")
        if word == "/image" and rest.strip():
            limits = picture_limits(self.chat.recipe)
            picture = open_picture(rest.strip(), limits)
            self.added.append(picture)
            print("{}: {} x {} pixels".format(picture.name, *picture.load().size))
        elif word == "/new":
            self.chat.start_again()
            self.added = []
        elif word in ("/quit", "/exit"):
            return True
        else:
            if word != "/help":
                print_fitted(f"{line} is no command" if word != "/image" else "/image needs a file")
            print_fitted(HELP)
        return False

    def converse(self) -> None:
        """Questions and answers until the input ends."""
        import contextlib

        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  editing and history of the input line
        print_fitted("ask a question; /help lists commands, Ctrl-D ends")
        while True:
            try:
                line = input("> ").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            try:
                if line.startswith("/"):
                    if self.command(line):
                        return
                elif line:
                    self.ask(line)
            except DataError as error:
                error.fix = error.fix.replace("--image ", "/image ")
                print_fitted(error.render())
            except KeyboardInterrupt:
                self.line.clear()
                print("stopped; the question is forgotten")


def picture_limits(recipe: Any) -> Any:
    """The pixel limits of training."""
    from vistill.data.decoding import PixelLimits

    return PixelLimits(recipe.data.min_pixels, recipe.data.max_pixels)


def print_answers(answers: Sequence["Answer"]) -> None:
    """Print one answer, or two side by side; the teacher's reading below."""
    shown = list(answers)
    if len(shown) == 1:
        print_fitted(finished_text(shown[0]))
    else:
        before, after = shown[1], shown[0]
        columns = shutil.get_terminal_size().columns
        if sys.stdout.isatty() and columns >= TWO_COLUMNS:
            print("\n".join(side_by_side(before, after, columns)))
        else:
            for answer in (before, after):
                print_fitted(f"{answer.model}: {finished_text(answer)}")
    print_readings(shown)


def finished_text(answer: "Answer") -> str:
    """The text of an answer, and whether it was cut off."""
    return answer.text.strip() + ("   [cut off at the length limit]" if answer.is_truncated else "")


def side_by_side(before: "Answer", after: "Answer", columns: int) -> list[str]:
    """Two answers in columns of equal width."""
    from rich.cells import set_cell_size

    width = (columns - 3) // 2
    sides = []
    for answer in (before, after):
        text = f"{answer.model}\n{finished_text(answer)}"
        lines = []
        for line in for_terminal(text).splitlines():
            lines += wrap_words(WORD.findall(line), width, "")
        sides.append([set_cell_size(line, width) for line in lines])
    return [f"{a} | {b}".rstrip() for a, b in zip_longest(*sides, fillvalue=" " * width)]


def print_fitted(text: str) -> None:
    """Print a text, in whole words on a terminal."""
    text = for_terminal(text)
    if sys.stdout.isatty():
        text = fit_text(text, shutil.get_terminal_size().columns, continued="")
    print(text)


def print_readings(answers: Sequence["Answer"]) -> None:
    """Print the tokens by visual advantage, on one scale; the student's come last."""
    read = [(a.model, a.reading) for a in reversed(answers) if a.reading is not None]
    if not read:
        return
    names = len(answers) > 1
    if not has_colours(sys.stdout):
        for name, reading in read:
            lines = token_lines(reading.tokens, gains(reading), reading.probability)
            print("\n".join([*([name] if names else []), *lines]))
        return
    scale = scale_of([gains(reading) for _, reading in read])
    print_fitted(
        "visual advantage: orange, the picture raises the teacher's log p (darkest: "
        f"{DARKEST * scale:.2f} nats and more); underlined, the teacher gives it less than 10 %"
    )
    columns = shutil.get_terminal_size().columns
    for name, reading in read:
        if names:
            print(f"{name}:")
        spans = token_spans(reading.tokens, gains(reading), reading.unlikely, scale)
        print_spans(spans, columns)
        print_fitted(largest_gains(reading))


def gains(reading: "TokenReading") -> list[float]:
    """Visual advantage of each token, at least 0."""
    return [max(0.0, value) for value in reading.advantage]


def largest_gains(reading: "TokenReading") -> str:
    """The tokens with the largest visual advantage, and its numbers."""
    values = gains(reading)
    largest = sorted(range(len(values)), key=lambda i: -values[i])[:LARGEST]
    figures = [f"{reading.tokens[i].strip()} {values[i]:.2f}" for i in largest if values[i] >= 0.01]
    return f"largest, nats: {', '.join(figures)}" if figures else "no token gains 0.01 nats"


def read_question(ask: str) -> str | None:
    """The one question of `--ask` or of a pipe; None for a conversation."""
    if ask:
        return ask
    if sys.stdin.isatty():
        return None
    text = sys.stdin.read().strip()
    if not text:
        raise ConfigError(
            "C002",
            "there is no question",
            why="the input is not a terminal, and it is empty",
            fix="--ask 'What is shown?'",
        )
    return text


def introduce(chat: "Chat", base: str) -> None:
    """Print what answers how, to stderr, so that a pipe has the answer alone."""
    facts, recipe = chat.to_dict(), chat.recipe
    lines = [f"{name:<9} {source}" for name, source in facts["models"]]
    lines += [f"teacher   {facts['teacher']}"] if facts["teacher"] else []
    lines.append(f"sampling  {facts['sampling']}")
    lines += [f"system    {recipe.data.system}"] if recipe.data.system else []
    if recipe.data.template.strip() == "{prompt}\n{choices}":
        lines.append("note      training listed choices below the question: (A) ..., one per line")
    elif recipe.data.template != "{prompt}":
        wording = " / ".join(recipe.data.template.splitlines())
        wording = wording.replace("{{", "{").replace("}}", "}")
        lines.append(f"note      not added here, but training asked so: {wording}")
    if base and len(chat.speakers) == 1:
        lines.append(f"compare   --before {base}   the model before training")
    print(fit_to(for_terminal("\n".join(lines)), sys.stderr), file=sys.stderr)
