"""The one exception tree: every message says what, where, why and how to mend it.

VistillError
├── ConfigError       C   exit 2   the recipe or the command line (also a ValueError)
├── DataError         D   exit 3   rows, images, answers (also a ValueError)
├── ModelError        M/V exit 4   models that do not fit together, or do not see (also a ValueError)
├── RolloutError      R   exit 4   responses that cannot be used
├── StorageError      S   exit 6   run folder, checkpoints, disk (also an OSError)
├── NonFiniteError    N   exit 7   a loss or gradient that is not a number
├── MissingExtraError E   exit 2   an optional package that is not installed (also an ImportError)
├── ArmError          A   exit 1   a process of a study ended without a message of its own
└── Preempted         P   exit 75  stopped by a signal, checkpoint saved: run the same command again
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

#: One line per code: what it means. `vistill explain CODE` prints it; a test holds it equal to the codes raised.
CATALOGUE: dict[str, str] = {
    "A101": "A process of a study ended without a message of its own: killed from outside, or a fault in the code.",
    "C001": "A key of the recipe is unknown. Unknown keys are errors, so that a misspelt knob never passes unnoticed.",
    "C002": "A value of the recipe has the wrong type or lies outside its range.",
    "C003": "The recipe is not strict YAML: duplicate keys, aliases, tags and merge keys are refused.",
    "C004": "The recipe file does not exist or cannot be read.",
    "C005": "An override on the command line is not of the form key=value.",
    "C101": "Two settings contradict each other.",
    "C102": "The method is unknown.",
    "C103": "The method weighs sibling rollouts of one prompt against each other, but there is only one.",
    "C104": "The memory that may be used does not hold one prompt with one response.",
    "C110": "A frozen part has no weights, or nothing is left to train.",
    "C201": "The run folder belongs to a run with another recipe. Continuing would silently change the experiment.",
    "C202": "The initial student handed in is not the one the run began with, and the method compares with it.",
    "C301": "Runs that are to be compared differ in more than what is compared, or answered other questions.",
    "D101": "A column named in the recipe is not in the data file.",
    "D102": "The data file does not exist, is empty, or is not JSON Lines.",
    "D103": "A placeholder in a question has no image, or an image placeholder would reach the tokenizer as text.",
    "D104": "A question is empty, a text is no text, or holds half a character that no tokenizer can read.",
    "D201": "An image file named by a row is missing.",
    "D202": "An image cannot be decoded, or is larger than the limits.",
    "D203": "A prompt is longer than the limit. Cutting it would cut image placeholders.",
    "D204": "Rows have no image. Visual advantage is undefined without a picture.",
    "D205": "An image is given as a URL. Data never reaches the network.",
    "D206": "An image path leaves the image folder.",
    "D207": "A box of a row is not four numbers: left, top, right, bottom in pixels of its first picture.",
    "D208": "An image has changed since this run first read it.",
    "D301": "A gold answer is not accepted by its own checker, so accuracy on it would be meaningless.",
    "D302": "The method is rewarded for right answers, and a row has no gold answer.",
    "D303": "The method needs a written response in every row (`sft`), and a row has none.",
    "D304": "The method needs visual thoughts, and no row has any.",
    "D305": "The method needs pictures, and no row has one.",
    "D306": "The teacher wrote not one correct response, so nothing is left to learn from.",
    "D307": "The data are no longer those the run was started with.",
    "D308": "Evaluation rows ask what training rows ask, so accuracy on them would be memory.",
    "D309": "A view shows another row's picture or thoughts in a row's place, and all rows have the same.",
    "E301": "An optional package is needed and not installed.",
    "M101": "Student and teacher do not share a vocabulary; the loss compares distributions id by id.",
    "M102": "Student and teacher turn the same picture into different tokens, so their rows cannot be compared.",
    "M103": "A model was not found: no such folder, not in the local cache, not on the hub.",
    "M104": "A model configuration has a value that transformers would silently ignore or clamp.",
    "M105": "The model family has no adapter.",
    "M107": "Weights cannot be read: damaged, incomplete, not safetensors, or an index that names files elsewhere.",
    "M110": "The installed transformers does not know an argument that pictures or positions travel by.",
    "M106": "A model cannot read a view that the method needs, for example a question without its picture.",
    "V802": "A vision tower gives the same for every picture: it is silent (zeroed or never loaded weights).",
    "V803": "A picture never reaches the words: what a reader says does not change when the picture does.",
    "V804": "A reading depends on its neighbours: pictures of two rows are mixed up.",
    "V805": "A reader sees one and the same picture again and again (a cache that is never emptied).",
    "V806": "A picture's grid or patches are not what its size asks for.",
    "V807": "Image tokens are lost between prompt and model: their number is not what the picture asks for.",
    "V808": "A reading is not what transformers' own forward pass says: rows or positions are off.",
    "V809": "A reader that should see the original picture sees the pixelated one.",
    "V810": "The rollout engine does not write what the student's weights say: its weights are stale or others.",
    "V811": "The rollout engine does not see the picture that the student sees.",
    "V812": "The head is not cut to the shared vocabulary: padding rows take part in the distribution.",
    "V813": "Rows of the prompt are among the rows that are learnt from.",
    "V814": "Student and teacher share no token that ends a response.",
    "V815": "The student read twice differs from itself, so a distance to the teacher would be noise.",
    "V816": "Views that should differ in pixels alone differ in tokens.",
    "V801": "The gate of Visual-OPSD: visual thoughts do not help the untrained model; there is nothing to distil.",
    "N701": "A reading, signal, loss or gradient is not finite several steps in a row, or in over 1 % of all steps.",
    "N702": "A number that a resumed run reads again is not finite, so it cannot be saved.",
    "P075": "The run was stopped by a signal. A checkpoint is saved; the same command continues.",
    "R401": "Every response of several steps in a row was cut off at the length limit.",
    "R403": "A response stayed empty after several attempts.",
    "R404": "The rollout engine returned other responses than it was asked for.",
    "R405": "The rollout engine returned token ids that no response can have.",
    "R406": "The rollout engine's reason to end contradicts the response's last token.",
    "R407": "The rollout engine's log-probabilities are missing, too few or too many, or not log-probabilities.",
    "R408": "The rollout engine writes with other weights than expected: they are stale, or a sync failed.",
    "R501": "Memory does not hold one prompt at a time in some phase of a step.",
    "S601": "The disk is full, or the folder cannot be written.",
    "S602": "Another process owns this run folder.",
    "S604": "A checkpoint is damaged or from another version.",
    "S605": "The run folder holds nothing that can be read.",
    "S606": "A file that the run wrote for itself is damaged, or was changed.",
    "S607": "The journal does not hold the responses of a step, and the rollout engine would write others.",
}


class VistillError(Exception):
    """A failure a user can mend: code, what, where, why, fix and note, at most twelve lines."""

    exit_code: ClassVar[int] = 1
    rows: Sequence[str] = ()
    """Ids of the rows it comes from, where it comes from rows."""

    def __init__(
        self, code: str, what: str, *, where: str = "", why: str = "", fix: str = "", note: str = ""
    ) -> None:
        assert code in CATALOGUE, f"error code {code} is not in the catalogue"
        self.code, self.what, self.where, self.why, self.fix, self.note = (
            code,
            what,
            where,
            why,
            fix,
            note,
        )
        super().__init__(self.render())

    def render(self) -> str:
        """The message as printed: first line `error[CODE]: what   where`, then why, fix and note."""
        head = f"error[{self.code}]: {self.what}"
        lines = [f"{head}   {self.where}" if self.where else head]
        for label, text in (("why", self.why), ("fix", self.fix), ("note", self.note)):
            if text:
                lines += [
                    f"{label if i == 0 else '':<5} {part}".rstrip()
                    for i, part in enumerate(text.splitlines())
                ]
        return "\n".join(lines[:12])

    def to_dict(self) -> dict[str, str]:
        """The same content for machines (`error.json`)."""
        keys = ("code", "what", "where", "why", "fix", "note")
        return {key: getattr(self, key) for key in keys} | {"exit_code": str(self.exit_code)}


class ConfigError(VistillError, ValueError):
    """The recipe or the command line is wrong."""

    exit_code = 2


class DataError(VistillError, ValueError):
    """A data set, row, image or answer is wrong."""

    exit_code = 3
    bad_rows: Sequence[dict[str, str]] = ()
    """Every bad row, where several stopped the run."""


class ModelError(VistillError, ValueError):
    """Models are missing, do not fit together, or do not see the picture."""

    exit_code = 4


class RolloutError(VistillError, RuntimeError):
    """The student's responses cannot be used."""

    exit_code = 4


class StorageError(VistillError, OSError):
    """The run folder or a checkpoint cannot be used."""

    exit_code = 6


class NonFiniteError(VistillError, ArithmeticError):
    """The loss or its gradient is not a number."""

    exit_code = 7


class MissingExtraError(VistillError, ImportError):
    """An optional package is needed."""

    exit_code = 2


class ArmError(VistillError, RuntimeError):
    """A process of a study ended without a message of its own."""

    exit_code = 1


class Preempted(VistillError):  # noqa: N818  (it is no failure: run the same command again)
    """Stopped by a signal after saving a checkpoint."""

    exit_code = 75


KINDS: dict[str, type[VistillError]] = {
    "A": ArmError,
    "C": ConfigError,
    "D": DataError,
    "E": MissingExtraError,
    "M": ModelError,
    "N": NonFiniteError,
    "P": Preempted,
    "R": RolloutError,
    "S": StorageError,
    "V": ModelError,
}


def error_of(record: Mapping[str, str]) -> VistillError:
    """The error that another process wrote down with `to_dict`, with its kind and exit code."""
    parts = {key: record[key] for key in ("where", "why", "fix", "note")}
    error = KINDS[record["code"][0]](record["code"], record["what"], **parts)
    error.exit_code = int(record["exit_code"])  # pyright: ignore[reportAttributeAccessIssue]
    return error


def closest(word: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Up to three known words that are spelt like this one, the closest first."""
    import difflib

    return difflib.get_close_matches(word, list(known), n=3, cutoff=cutoff)


def suggest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean "x"?`, or an empty string when nothing is close."""
    close = closest(word, known, cutoff)
    return f'did you mean "{close[0]}"?' if close else ""
