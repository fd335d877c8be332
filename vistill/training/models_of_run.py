"""The models of a run by role, and how they see a prompt.

The student encodes for every reader, except for a teacher of another family.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace

from vistill.data.keys import keyed_seed
from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM
from vistill.models.pairs import same_family
from vistill.types import Pass, Prompt, Reader, View
from vistill.views import ViewContext, apply_view

EncodingKey = tuple[str, str]
"""Prompt id, and the name of an encoding (`Models.key_of`)."""
Prepared = Callable[[EncodingKey], EncodedPrompt | None]
"""Finds an encoding that was made before, or None."""


@dataclass(frozen=True)
class Models:
    """The models of a run by role, and what they share."""

    student: VLM
    teacher: VLM | None
    vocabulary: int
    """Tokens that student and teacher share: every head is cut to them."""
    view: ViewContext = ViewContext()
    copies: Mapping[Reader, VLM] = field(default_factory=dict)
    """Moving average and reference, where the method reads them (`training/student_copies.py`)."""
    partners: Mapping[str, Prompt] = field(default_factory=dict)
    """By prompt id another prompt, whose images or thoughts some views show."""
    teacher_encodes: bool = False
    """Whether the teacher is of another family, which encodes images in its own way."""
    encodings: dict[EncodingKey, EncodedPrompt] | None = field(default=None, compare=False)
    """The encodings of this step: the writer and all readers use the same ones."""
    prepared: Prepared = field(default=lambda key: None, compare=False, repr=False)
    """Finds the encodings of this step that threads have made (`training/ahead.py`)."""
    teachers: Mapping[str, VLM] = field(default_factory=dict)
    """Several teachers by name. `teacher` is their only model, or None if they differ."""
    teacher_names: Mapping[str, str] = field(default_factory=dict)
    """By prompt id the name of its teacher, if there are several."""

    @property
    def has_teacher(self) -> bool:
        """Whether the run has one teacher or several."""
        return self.teacher is not None or bool(self.teachers)

    @property
    def has_several_teachers(self) -> bool:
        """Whether rows have teachers of different weights."""
        return self.teacher is None and bool(self.teachers)

    def teacher_of(self, prompt: Prompt) -> VLM:
        """The teacher of a prompt."""
        if self.teacher is not None:
            return self.teacher
        return self.teachers[self.teacher_names[prompt.id]]

    def by_teacher(self) -> list[tuple[str, "Models"]]:
        """Each teacher's name, and the models with it as the only teacher; once per model.

        With at most one teacher these models themselves, without a name.
        """
        if not self.has_several_teachers:
            return [("", self)]
        distinct: dict[int, tuple[str, VLM]] = {}
        for name, vlm in self.teachers.items():
            distinct.setdefault(id(vlm), (name, vlm))
        return [(name, self.with_teacher(vlm)) for name, vlm in distinct.values()]

    def with_teacher(self, vlm: VLM) -> "Models":
        """The models with one of the teachers as the only one."""
        encodings = None if self.encodings is None else {}
        own = vlm.family.describe() != self.student.family.describe()
        return replace(
            self,
            teacher=vlm,
            teachers={},
            teacher_encodes=own,
            encodings=encodings,
            prepared=lambda key: None,
        )

    def reader(self, role: Reader) -> VLM:
        """The model with a role. The student is also `OLD`, until the step updates it."""
        roles = {
            Reader.STUDENT: self.student,
            Reader.OLD: self.student,
            Reader.TEACHER: self.teacher,
            **self.copies,
        }
        vlm = roles.get(role)
        assert vlm is not None, f"the run has no model for the role {role}"
        return vlm

    @contextmanager
    def on_device(self, passes: Sequence[Pass]) -> Iterator[None]:
        """Keep every reader without gradient on its device; an offloaded teacher is moved once.

        Several teachers are not kept there: `score_without_gradient` moves one after another.
        """
        with ExitStack() as stack:
            for role in dict.fromkeys(p.reader for p in passes if not p.gradient):
                if role is not Reader.TEACHER or not self.has_several_teachers:
                    stack.enter_context(self.reader(role).on_device())
            yield

    def at_step(self, seed: int, step: int, prepared: Prepared = lambda key: None) -> "Models":
        """The same models with the random views of a step: each step draws new masks."""
        view = replace(self.view, seed=keyed_seed("step", seed, step))
        return replace(self, view=view, encodings={}, prepared=prepared)

    def encode(
        self, prompt: Prompt, view: View | str, reader: Reader = Reader.STUDENT
    ) -> EncodedPrompt:
        """The tokens of a prompt under a view, once per step.

        Models of one family share tokenizer and image grid, so one encoding serves all of them.
        """
        if self.encodings is None:
            return self.encode_now(prompt, view, reader)
        key = self.key_of(prompt, view, reader)
        if key not in self.encodings:
            self.encodings[key] = self.prepared(key) or self.encode_now(prompt, view, reader)
        return self.encodings[key]

    def encode_now(self, prompt: Prompt, view: View | str, reader: Reader) -> EncodedPrompt:
        """The same, encoded here and kept nowhere."""
        encoder = self.teacher_of(prompt) if self.encodes_itself(prompt, reader) else self.student
        return encoder.encode(self.prompt_under(prompt, view))

    def encoders(self) -> list[VLM]:
        """The models that encode prompts in a step."""
        if not self.teacher_encodes:
            return [self.student]
        return [self.student, *(self.teachers.values() or [self.reader(Reader.TEACHER)])]

    def free_positions(self, prompt: Prompt) -> tuple[int, int, Reader]:
        """Positions of the prompt, of the reader with the fewest in all, and that reader."""
        if self.has_several_teachers:
            alone = [models.free_positions(prompt) for _, models in self.by_teacher()]
            return min(alone, key=lambda positions: positions[1])
        roles = [Reader.STUDENT, *([Reader.TEACHER] if self.teacher_encodes else [])]
        limit, role = min((max_positions(self.reader(role)), role) for role in roles)
        taken = max(self.encode(prompt, View.FULL, role).next_position for role in roles)
        return taken, limit, role

    def has_own_encoding(self, reader: Reader) -> bool:
        """Whether a reader encodes prompts itself: a teacher of another family."""
        return self.teacher_encodes and reader is Reader.TEACHER

    def encodes_itself(self, prompt: Prompt, reader: Reader) -> bool:
        """Whether a reader encodes this prompt itself: its own teacher is of another family."""
        if not self.has_own_encoding(reader):
            return False
        return not same_family(self.student, self.teacher_of(prompt))

    def key_of(self, prompt: Prompt, view: View | str, reader: Reader) -> EncodingKey:
        """What a reader gets of a prompt under a view, once per step.

        Of several teachers, those of the student's family share its encoding.
        """
        own = self.encodes_itself(prompt, reader)
        return prompt.id, self.encoding_key(view, reader) if own else str(view)

    def encoding_key(self, view: View | str, reader: Reader) -> str:
        """A name for what a reader gets under a view. Readers with equal encodings share it."""
        return f"{view} of the teacher" if self.has_own_encoding(reader) else str(view)

    def prompt_under(self, prompt: Prompt, view: View | str) -> Prompt:
        """The prompt as a view shows it."""
        seed = keyed_seed("view", prompt.id, self.view.seed)
        partner = self.partners.get(prompt.id)
        return apply_view(prompt, view, replace(self.view, seed=seed, partner=partner))


def max_positions(vlm: VLM) -> int:
    """Positions that a model was trained on."""
    return int(vlm.model.config.get_text_config().max_position_embeddings)
