"""`vistill chat`: questions to a student, with the model before training and the teacher's view.

Models write with the engine, the sampling and the picture normalisation of training. Everything
that a user gives is checked before weights are loaded.
"""

import difflib
import itertools
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vistill.data.decoding import PixelLimits
from vistill.data.images import FileImage, similar_names
from vistill.data.placeholders import place_images
from vistill.data.rows import check_texts, with_hashes
from vistill.errors import DataError, ModelError
from vistill.models.backends import with_kernels
from vistill.models.chat import chat_messages, load_images
from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM, PromptEncoder, load_weights
from vistill.models.pairs import check_pair
from vistill.models.scoring import EncodedGroup, score
from vistill.models.selftest import run_selftest
from vistill.rollouts.build import make_engine
from vistill.rollouts.engine import RolloutRequest, sampling_for_step
from vistill.runs.model_not_found import model_name
from vistill.runtime import prepare_process
from vistill.signals.visual_advantage import visual_advantage
from vistill.training import adapted_student, quantized_teacher
from vistill.training.checks.devices import choose_device
from vistill.training.checks.models import load_encoder_of
from vistill.training.recipe import ModelSettings, Recipe, TeacherSettings
from vistill.types import Finish, ImageRef, Prompt, View
from vistill.views import ViewContext, apply_view

#: Names of files that are read.
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".ppm")
URL = re.compile(r"\w+://|data:")
#: Below this probability the teacher finds a token unlikely, whatever the picture adds.
UNLIKELY = 0.1


@dataclass(frozen=True)
class TokenReading:
    """The teacher's reading of the tokens of an answer."""

    tokens: list[str]
    advantage: list[float]
    """Visual advantage, nats."""
    probability: list[float]
    """The teacher's probability of the token, with the picture."""

    @property
    def unlikely(self) -> list[bool]:
        """Tokens that the teacher itself would hardly write."""
        return [p < UNLIKELY for p in self.probability]


@dataclass(frozen=True)
class Answer:
    """One model's answer to one question."""

    model: str
    """`student`, or `before`."""
    text: str
    num_tokens: int
    is_truncated: bool
    reading: TokenReading | None = None

    def to_dict(self) -> dict[str, Any]:
        """The answer as the page shows it."""
        reading = {} if self.reading is None else asdict(self.reading)
        unlikely = {} if self.reading is None else {"unlikely": self.reading.unlikely}
        return {**asdict(self), **reading, **unlikely}


@dataclass
class Speaker:
    """A model in a conversation, with the answers that it has given."""

    name: str
    source: str
    vlm: VLM
    answers: list[str] = field(default_factory=list)


@dataclass
class Chat:
    """A conversation: questions, and each model's own answers."""

    recipe: Recipe
    speakers: list[Speaker]
    teacher: VLM | None
    view: ViewContext
    poll: Callable[[str, int], None]
    """Is called before each token with the model's name and the number of its tokens."""
    questions: list[Prompt] = field(default_factory=list)
    asked: dict[str, int] = field(default_factory=dict)
    """How often each question was asked first: each time has its own noise."""

    def start_again(self) -> None:
        """Forget the conversation."""
        self.questions.clear()
        for speaker in self.speakers:
            speaker.answers.clear()

    def ask(self, text: str, images: Sequence[ImageRef] = ()) -> list[Answer]:
        """Ask all models; each sees its own earlier answers.

        Raises:
            DataError: D103, the question contains a special token; D104, half a character.
        """
        prompt = make_question(text, images, self.recipe.data.system)
        first = self.questions[0] if self.questions else prompt
        if first is prompt:
            self.asked[prompt.id] = self.asked.get(prompt.id, -1) + 1
        self.questions.append(prompt)
        try:
            answers = [self.answer(speaker, self.asked[first.id]) for speaker in self.speakers]
        except BaseException:
            self.questions.pop()
            raise
        for speaker, answer in zip(self.speakers, answers, strict=True):
            speaker.answers.append(answer.text)
        return answers

    @torch.no_grad()
    def answer(self, speaker: Speaker, sibling: int) -> Answer:
        """Generate one answer, and let the teacher read it."""
        count = 0

        def poll() -> None:
            nonlocal count
            self.poll(speaker.name, count)
            count += 1

        settings = self.recipe.rollout.without_image_skips()
        key = "/".join(prompt.id for prompt in self.questions)
        prompt = encode_conversation(speaker.vlm, self.questions, speaker.answers)
        source = self.questions[0] if len(self.questions) == 1 else None
        request = RolloutRequest(key, prompt, (sibling,), source=source)
        with make_engine(speaker.vlm, settings, poll) as engine:
            sampling = sampling_for_step(settings, self.recipe.seed, 0)
            rollout = engine.generate([request], sampling)[0][0]
        reading = None
        if self.teacher is not None and rollout.ids and any(q.images for q in self.questions):
            reading = self.read(speaker, rollout.ids)
        text = speaker.vlm.decode(rollout.ids)
        cut = rollout.finish is Finish.LENGTH
        return Answer(speaker.name, text, len(rollout.ids), cut, reading)

    def read(self, speaker: Speaker, ids: tuple[int, ...]) -> TokenReading:
        """Visual advantage of each token, by the teacher: with the pictures minus pixelated."""
        teacher, student = self.teacher, speaker.vlm
        assert teacher is not None
        log_probs = []
        for view in (View.FULL, View.PIXELATED):
            viewed = [apply_view(prompt, view, self.view) for prompt in self.questions]
            group = EncodedGroup(encode_conversation(teacher, viewed, speaker.answers), (ids,))
            tokens = torch.tensor(ids, device=teacher.device)
            read = score(teacher, [group], tokens, student.vocabulary_size, "log_prob")
            log_probs.append(read.sampled().float())
        values = visual_advantage(*log_probs).tolist()
        return TokenReading(student.tokens(ids), values, log_probs[0].exp().tolist())

    def to_dict(self) -> dict[str, Any]:
        """What the page states about the conversation."""
        rollout = self.recipe.rollout
        return {
            "models": [(s.name, s.source) for s in self.speakers],
            "teacher": None if self.teacher is None else model_name(self.teacher.source),
            "sampling": f"temperature {rollout.temperature:g}, top_p {rollout.top_p:g}, "
            f"at most {rollout.max_new_tokens:,} tokens, seed {self.recipe.seed}",
        }


def encode_conversation(
    vlm: VLM, questions: Sequence[Prompt], answers: Sequence[str]
) -> EncodedPrompt:
    """The tokens of all questions and of the answers between them; the last question is open."""
    if len(questions) == 1:
        return vlm.encode(questions[0])
    messages: list[dict[str, Any]] = []
    for number, prompt in enumerate(questions):
        messages += chat_messages(prompt if number == 0 else replace(prompt, system=None))
        if number < len(questions) - 1:
            content = [{"type": "text", "text": answers[number]}]
            messages.append({"role": "assistant", "content": content})
    return vlm.family.encode(messages, [i for p in questions for i in load_images(p)])


def make_question(text: str, images: Sequence[ImageRef], system: str = "") -> Prompt:
    """A question as training reads one: pictures first, or at `<image>`; its id is its content."""
    check_texts({"question": (text,)}, "the question")
    try:
        parts = place_images(text.rstrip(), images, "the question")
    except DataError as error:
        error.fix = "write one <image> for each picture, or none: then all come first, in order"
        error.args = (error.render(),)
        raise
    return with_hashes(Prompt("", tuple(parts), system=system or None))


def open_picture(name: str, limits: PixelLimits) -> FileImage:
    """A picture file, decoded once.

    Raises:
        DataError: D201, there is no such file; D202, it cannot be read as a picture.
    """
    wrong = f"   in place of --image {shlex.quote(name)}"
    if URL.match(name):
        raise DataError(
            "D205",
            f'the picture "{name:.200}" is a URL',
            why="vistill fetches no image from the network",
            fix=f"--image FILE{wrong}   after you have downloaded it",
        )
    path = Path(name).expanduser()
    image = FileImage(path, "", path.parent, limits=limits)
    if not path.is_file():
        near = nearby_picture(path)
        fix = shlex.quote(str(near)) if near else "FILE"
        raise DataError(
            "D201",
            f'there is no picture "{name}"',
            where=str(path.parent) if path.parent != Path() else "",
            why="it is a folder" if path.is_dir() else "no such file",
            fix=f"--image {fix}{wrong}",
        )
    try:
        image.load()
    except DataError as error:
        error.where = str(path)
        error.fix = error.fix.replace(", or remove the row", "")
        error.fix += f"   or   --image FILE{wrong}"
        raise
    return image


def nearby_picture(path: Path) -> Path | None:
    """A picture in a folder, or one of a similar name."""
    if path.is_dir():
        files = itertools.islice(sorted(path.iterdir()), 5000)
        return next((file for file in files if file.suffix.lower() in PICTURES), None)
    files = [path.with_name(name) for name in similar_names(path)]
    names = [file.name for file in files if file.is_file()]
    near = difflib.get_close_matches(path.name, names, n=1)
    return path.with_name(near[0]) if near else None


def open_chat(
    recipe: Recipe,
    before: str = "",
    teacher: str = "",
    poll: Callable[[str, int], None] = lambda name, count: None,
    loading: Callable[[str], None] = lambda text: None,
) -> Chat:
    """Load the student and, where they are named, the model before training and the teacher.

    Raises:
        ModelError: M101 or M102, the teacher reads other tokens or images; M103 to M107.
    """
    prepare_process()
    limit = recipe.data.max_image_tokens
    named = {"student": recipe.student}
    named |= {"before": ModelSettings(before, device=recipe.student.device)} if before else {}
    encoders = {name: load_encoder_of(model, name, limit) for name, model in named.items()}
    reader = settings = None
    if teacher:
        settings = teacher_settings_for(recipe, teacher)
        reader = load_encoder_of(settings, "teacher", limit)
        for encoder in encoders.values():
            check_readable(encoder, reader)
    speakers, student = [], choose_device(recipe.student.device)
    options = {"student": adapted_student.loading_options(recipe, student)}
    for name, encoder in encoders.items():
        loading(f"loading {name}")
        vlm = load(encoder, student, name, options.get(name, {}))
        speakers.append(Speaker(name, named[name].model, vlm))
    loaded = None
    if reader is not None and settings is not None:
        loading("loading teacher")
        device = choose_device(settings.device)
        own = quantized_teacher.loading_options(settings.precision, device, recipe.train.precision)
        loaded = load(reader, device, "teacher", own)
    view = recipe.view_context(encoders["student"].family.patch_size)
    return Chat(recipe, speakers, loaded, view, poll)


def check_readable(speaker: PromptEncoder, teacher: PromptEncoder) -> None:
    """M101 or M102 if the teacher cannot read a model's answers, with a fix for `vistill chat`."""
    try:
        check_pair(speaker, teacher)
    except ModelError as error:
        is_named = error.fix.startswith("teacher.model=")
        other = error.fix.partition("   ")[0] + "   or, without a heatmap,   " if is_named else ""
        raise ModelError(
            error.code, error.what, where=error.where, why=error.why, fix=f"{other}--teacher ''"
        ) from error


def teacher_settings_for(recipe: Recipe, model: str) -> TeacherSettings:
    """The settings of a teacher with this model: those that the recipe has for it.

    A model that the recipe does not name has the device and precision of its `teacher`.
    """
    for one in (recipe.teacher, *recipe.teachers.values()):
        if one.model == model:
            return one
    return TeacherSettings(model, None, recipe.teacher.device, recipe.teacher.precision)


def load(encoder: PromptEncoder, device: str, role: str, options: Mapping[str, Any]) -> VLM:
    """Load the weights of an encoder, frozen; with `dtype` and `quantization` as options."""
    vlm = load_weights(encoder, device=device, **options)
    return with_kernels(run_selftest(vlm, role), "auto").freeze()
