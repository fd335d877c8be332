"""The exception tree. Every message states what is wrong, where, why, and a fix.

VistillError
├── ConfigError       C   exit 2   the recipe or the command line (also a ValueError)
├── DataError         D   exit 3   rows, images, answers (also a ValueError)
├── ModelError        M/V exit 4   models that do not match or ignore the image (also a ValueError)
├── RolloutError      R   exit 4   responses that cannot be used
├── StorageError      S   exit 6   run folder, checkpoints, disk (also an OSError)
├── NonFiniteError    N   exit 7   a loss or gradient that is not a number
├── MissingExtraError E   exit 2   an optional package that is not installed (also an ImportError)
├── ArmError          A   exit 1   a process of a study ended without an error message
└── Preempted         P   exit 75  stopped by a signal, checkpoint saved: run the same command again
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import ClassVar

#: One line per code: its meaning. `vistill explain CODE` prints it; a test compares the codes with
#: those that the code raises.
CATALOGUE: dict[str, str] = {
    "A101": "A process of a study ended without an error message: killed, or a defect.",
    "A102": "Cells of a table failed. The others are not affected.",
    "C001": "A key of the recipe is unknown.",
    "C002": "A value of the recipe has the wrong type or is outside its range.",
    "C003": "The recipe is not strict YAML: no duplicate keys, aliases, tags or merge keys.",
    "C004": "The recipe file does not exist or cannot be read.",
    "C005": "An override on the command line is not of the form key=value.",
    "C101": "Two settings contradict each other.",
    "C102": "The method is unknown.",
    "C103": "The method compares sibling rollouts of one prompt, but there is only one.",
    "C104": "The allowed memory does not hold one prompt with one response.",
    "C105": "An unknown name: of a view, engine, checker, reward, thought source or task.",
    "C106": "A plug-in cannot be read or executed, is of the wrong kind, or fails in a run.",
    "C110": "A frozen part has no weights, or nothing is left to train.",
    "C111": "The targets of LoRA match no layer of the student.",
    "C112": "The activations of the student cannot be recomputed.",
    "C130": "The run does not fit on the GPU of the plan.",
    "C131": "The run does not fit on the disk.",
    "C132": "A GPU, a memory profile or the shape of a model is not known.",
    "C140": "A table of the papers, or a cell of a table, is unknown.",
    "C201": "The run folder belongs to a run with another recipe.",
    "C202": "The given initial student is not the one of the run.",
    "C203": "A file of responses holds those of another model, of other settings or of other rows.",
    "C301": "Compared runs differ in more than the compared settings, or in their questions.",
    "D101": "A column named in the recipe is not in the data file.",
    "D102": "The data file does not exist, is empty, or cannot be read.",
    "D103": "Placeholders and images of a row do not match, or a text has a special token.",
    "D104": "A question, a gold answer or the options of a row cannot be read.",
    "D105": "Rows can be read in more than one way.",
    "D201": "The image file of a row is missing.",
    "D202": "An image cannot be decoded, or is larger than the limits.",
    "D203": "A prompt is longer than the limit.",
    "D204": "Rows have no image, so their visual advantage is undefined.",
    "D205": "An image is given as a URL. vistill never reads data from the network.",
    "D206": "An image path leaves the image folder.",
    "D207": "A box is not left, top, right, bottom in pixels of the first image of its row.",
    "D208": "An image has changed since the run first read it.",
    "D301": "The checker does not accept a gold answer, so accuracy on it has no meaning.",
    "D302": "The method rewards correct answers, and a row has no gold answer.",
    "D303": "The method needs a response in every row (`sft`), and a row has none.",
    "D304": "The method needs visual thoughts, and no row has any.",
    "D305": "The method needs images, and no row has one.",
    "D306": "The teacher wrote no correct response, so nothing is left to learn from.",
    "D307": "The data differ from those at the first start of the run.",
    "D308": "Evaluation rows have the same questions as training rows.",
    "D309": "A view needs another row's image or thoughts, and all rows have the same.",
    "D310": "Rows have no teacher: no rule of `teachers` takes them.",
    "D311": "A teacher has no row: its rule takes none of the training rows.",
    "D312": "Training rows come from a data set that is for evaluation only.",
    "E301": "An optional package is needed and not installed.",
    "E302": "The processor of a model needs torchvision or num2words.",
    "E303": "The environment of vLLM is missing, cannot be used, or has another version of vLLM.",
    "E304": "A deterministic run on a GPU cannot be repeated to the bit.",
    "M101": "Student and teacher do not share a vocabulary.",
    "M102": "Student and teacher turn the same image into different tokens.",
    "M103": "A model was not found: no such folder, not in the local cache, not on the hub.",
    "M104": "A model configuration has a value that transformers would silently ignore or change.",
    "M105": "A model of this family cannot be read.",
    "M106": "A model cannot read a view of the method, such as a question without its image.",
    "M107": "Weights cannot be read: damaged, incomplete, not safetensors, or outside the folder.",
    "M108": "The processor of a model is missing, incomplete or has no chat template.",
    "M110": "The installed transformers does not know an argument for images or positions.",
    "M111": "Hidden states and head do not give the logits of the model's own forward pass.",
    "M112": "A token is read differently when later tokens change.",
    "M113": "A row is read differently next to other rows than alone.",
    "M114": "The adapter reads a prompt differently than the model reads the processor's inputs.",
    "M115": "The rollout engine does not continue two images and two siblings as the model reads.",
    "M116": "The language of a model breaks down without the image: no valid text-only context.",
    "M120": "A model has no processor, or one that reads prompts in another way.",
    "V801": "The gate of Visual-OPSD: visual thoughts do not help the untrained model.",
    "V802": "A vision tower gives the same states for every image: zero or missing weights.",
    "V803": "The image has no effect on the output of a model.",
    "V804": "The results of a prompt depend on its batch: images are exchanged.",
    "V805": "A model uses the same image for every prompt: a cache is never emptied.",
    "V806": "The grid or the patches of an image do not match its size.",
    "V807": "The number of image tokens in a prompt does not match its images.",
    "V808": "Log-probabilities differ from transformers' forward pass: wrong rows or positions.",
    "V809": "A pass with the original image uses the pixelated one.",
    "V810": "The rollout engine does not use the student's current weights.",
    "V811": "The rollout engine does not use the image of the student's prompt.",
    "V812": "The head is not cut to the shared vocabulary: padding rows are in the distribution.",
    "V813": "The loss includes rows of the prompt.",
    "V814": "Student and teacher have no common token that ends a response.",
    "V815": "Two passes of the same student differ, so the KL to the teacher would be noise.",
    "V816": "Views that should differ only in pixels differ in tokens.",
    "N701": "Results are not finite several steps in a row, or in over 1 % of all steps.",
    "N702": "A number that a resumed run needs is not finite, so it cannot be saved.",
    "P075": "A signal stopped the run. A checkpoint is saved; the same command continues.",
    "R401": "All responses of several steps in a row were truncated at the length limit.",
    "R403": "A response stayed empty after several attempts.",
    "R404": "The responses of the rollout engine do not match the requests.",
    "R405": "The rollout engine returned token ids that no response can contain.",
    "R406": "The finish reason of the rollout engine contradicts the last token.",
    "R407": "The log-probabilities of the rollout engine are missing, incomplete or invalid.",
    "R408": "The weights version of the rollout engine is not the expected one.",
    "R409": "The process that compares answers gives no answer, so no verdict is sure.",
    "R410": "The process of vLLM ended, or gives no sign of life.",
    "R411": "vLLM cannot start, or fails at what it is asked.",
    "R412": "vLLM reads another prompt than the student, or samples in another way.",
    "R413": "A prompt is longer, or has more images, than the limits vLLM was started with.",
    "R414": "After a weight sync vLLM gives a known response other log-probabilities.",
    "R415": "The weights for vLLM are incomplete, not finite, or those of another model.",
    "R416": "A decoding step cannot be captured as a CUDA graph.",
    "R417": "A vLLM server does not answer, or not with token ids.",
    "R418": "A vLLM server serves another model, or takes no pictures.",
    "R419": "A server would write for a student that is trained, and does not get its weights.",
    "R430": "A language model that judges gives no answer to the first request.",
    "R431": "A language model that judges gave no answer on a sample.",
    "R432": "A language model that judges gave an answer that is no verdict.",
    "R433": "The limit of requests to a language model that judges is reached.",
    "R501": "The memory does not hold one prompt in some phase of a step.",
    "S601": "The disk is full, or the folder cannot be written.",
    "S602": "Another process uses this run folder.",
    "S604": "A checkpoint is damaged or from another version.",
    "S605": "The folder holds no run, or nothing that can be read.",
    "S606": "A file of the run folder is damaged, or was changed.",
    "S607": "The journal does not hold the responses of a step, and no engine can repeat them.",
    "S608": "The folder or file to write exists already.",
    "S609": "The hub cannot be reached, or refuses the upload.",
}


class VistillError(Exception):
    """An error that a user can fix: code, what, where, why, fix and note, at most twelve lines."""

    exit_code: ClassVar[int] = 1
    rows: Sequence[str] = ()
    """Ids of the rows that cause the error, if any."""

    def __init__(
        self, code: str, what: str, *, where: str = "", why: str = "", fix: str = "", note: str = ""
    ) -> None:
        assert code in CATALOGUE, f"error code {code} is not in the catalogue"
        self.code, self.what, self.where = code, what, where
        self.why, self.fix, self.note = why, fix, note
        super().__init__(self.render())

    def render(self) -> str:
        """The printed message: `error[CODE]: what   where`, then why, fix and note.

        A place that `what` names already is not repeated.
        """
        head = f"error[{self.code}]: {self.what}"
        is_new = self.where and self.where not in self.what.split()
        lines = [f"{head}   {self.where}" if is_new else head]
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
    """All bad rows, if several stopped the run."""


class ModelError(VistillError, ValueError):
    """Models are missing, do not match, or do not use the image."""

    exit_code = 4


class RolloutError(VistillError, RuntimeError):
    """The student's responses cannot be used."""

    exit_code = 4


class StorageError(VistillError, OSError):
    """The run folder or a checkpoint cannot be used."""

    exit_code = 6


class NonFiniteError(VistillError, ArithmeticError):
    """A loss or a gradient is not finite."""

    exit_code = 7


class MissingExtraError(VistillError, ImportError):
    """An optional package is needed."""

    exit_code = 2


class ArmError(VistillError, RuntimeError):
    """A process of a study ended without an error message."""

    exit_code = 1


class Preempted(VistillError):  # noqa: N818  (not a failure: run the same command again)
    """A signal stopped the run after it saved a checkpoint."""

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


def error_from_dict(record: Mapping[str, str]) -> VistillError:
    """Restore the error that another process wrote with `to_dict`."""
    parts = {key: record[key] for key in ("where", "why", "fix", "note")}
    error = KINDS[record["code"][0]](record["code"], record["what"], **parts)
    error.exit_code = int(record["exit_code"])  # pyright: ignore[reportAttributeAccessIssue]
    return error


def quote_setting(key: str, value: object) -> str:
    """`key=value` as one word of a shell, in quotes where the shell would change it."""
    return shlex.quote(f"{key}={value}".replace("\n", "\\n"))


def quote_command(*words: object) -> str:
    """A command as it is typed in a shell."""
    return shlex.join(map(str, words))


def quote_path(path: object) -> str:
    """A path as an argument of any program: one that begins with a hyphen is no option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


def file_next_to(path: Path, name: str) -> Path:
    """A file to write next to another one; in the current folder where that cannot be written."""
    return path.with_name(name) if os.access(path.parent, os.W_OK) else Path(name)


def in_place_of(right: str, wrong: str) -> str:
    """A fix that exchanges a word of the command for another one."""
    return f"{shlex.quote(right)}   in place of {shlex.quote(wrong)}"


def closest(word: str, known: Iterable[str], cutoff: float = 0.6) -> list[str]:
    """Up to three known words with a similar spelling, the closest first."""
    import difflib

    return difflib.get_close_matches(word, list(known), n=3, cutoff=cutoff)


def suggest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """`did you mean "x"?`, or an empty string if no word is close."""
    close = closest(word, known, cutoff)
    return f'did you mean "{close[0]}"?' if close else ""
