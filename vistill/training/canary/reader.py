"""The canary's checks of one reader: does it use the image, and does a step read it correctly?

A model that ignores the image trains as smoothly as one that uses it. So a few prompts with one
fixed sentence are read as a step reads them, and compared with transformers' own forward pass and
with other images. The checks compare wiring with numerical noise: a small effect of the image is a
warning, no effect is an error. Each error has its own code (V802 to V816).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import torch
from torch import Tensor

from vistill.errors import ModelError
from vistill.functional.divergences import reverse_kl
from vistill.functional.rows import States, per_row
from vistill.models.chat import load_images
from vistill.models.families.inputs import EncodedPrompt, has_same_pixels
from vistill.models.hf_reference import reference_log_probs
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, all_responses, open_reading, response_states, score
from vistill.training.models_of_run import Models
from vistill.training.step_inputs import Precision, flatten_responses
from vistill.types import Finish, Prompt, Reader, Rollout, RolloutGroup, View
from vistill.views import apply_view

#: Prompts that are read, and the sentence that follows each as its response.
SAMPLES, SENTENCE = 4, "The answer is 12."
#: Largest mean distance in nats per token between two ways to read the same, by bytes of the
#: precision.
BOUND = {8: 1e-6, 4: 1e-3, 2: 0.15}
#: The same for KL(student || student), which grows with the square of a difference.
SELF_BOUND = {8: 1e-9, 4: 1e-5, 2: 0.02}
#: An image has no effect if its effect is at most this multiple of the noise of a second reading,
#: plus rounding.
TIMES_NOISE, ROUNDING = 10.0, 2e-6
#: Below this mean effect in nats per token the canary warns: the model hardly uses its image.
WEAK_EFFECT = 1e-3
#: Views that differ from the original in pixels only.
SAME_TOKENS = (View.SWAPPED, View.PIXELATED)


@dataclass(frozen=True)
class ReaderProbe:
    """One reader with the canary's prompts."""

    role: Reader
    models: Models
    prompts: Sequence[Prompt]
    ids: tuple[int, ...]
    """Token ids of the sentence."""
    precision: Precision
    bytes_read: int = 4
    """Bytes per value of the precision of the reading."""
    cache: dict[tuple[View, tuple[int, ...]], Tensor] = field(default_factory=dict)
    """Log-probabilities by view and order of the prompts."""

    @property
    def vlm(self) -> VLM:
        """The model with an exact head: a rounded one has a test of its own (`head_error`)."""
        return replace(self.models.reader(self.role), head_precision="fp32")

    @property
    def bound(self) -> float:
        """Largest distance between two ways to read the same."""
        return BOUND[self.bytes_read]

    def encoded(self, view: View, index: int) -> EncodedPrompt:
        """A prompt as a step encodes it."""
        return self.models.encode(self.prompts[index], view, self.role)

    def groups(self, view: View, order: Sequence[int]) -> list[EncodedGroup]:
        """Some of the prompts with the sentence."""
        return [EncodedGroup(self.encoded(view, i), (self.ids,)) for i in order]

    def log_probs(self, view: View, order: Sequence[int] | None = None) -> Tensor:
        """Log-probabilities [prompts, T] as a step reads them, all prompts in this order."""
        order = tuple(range(len(self.prompts)) if order is None else order)
        if (view, order) not in self.cache:
            groups, device = self.groups(view, order), self.vlm.device
            ids = torch.tensor([*self.ids] * len(order), device=device)
            with torch.no_grad(), self.precision():
                rows = len(response_states(self.vlm, groups)) if view is View.FULL else len(ids)
                if rows != len(ids):
                    raise self.error("V813", f"{rows} rows are read for {len(ids)} response tokens")
                scored = score(self.vlm, groups, ids, self.models.vocabulary, "log_prob").sampled()
            self.cache[view, order] = scored.double().cpu().view(len(order), -1)
        return self.cache[view, order]

    def log_probs_by_hf(self, view: View, index: int) -> Tensor:
        """Log-probabilities [T] of one prompt by transformers' own forward pass."""
        with self.precision():
            prompt = self.prompt_under(view, index)
            log_probs = reference_log_probs(self.vlm, prompt, self.ids, self.models.vocabulary)
        return log_probs.double().cpu()

    def prompt_under(self, view: View, index: int) -> Prompt:
        """A prompt under a view, without the code of `Models`."""
        prompt = self.prompts[index]
        partner = self.models.partners.get(prompt.id)
        return apply_view(prompt, view, replace(self.models.view, partner=partner))

    def error(self, code: str, what: str, why: str = "") -> ModelError:
        """An error about this reader."""
        key = "teacher" if self.role is Reader.TEACHER else "student"
        fixes = {
            "V812": "use the model's own tokenizer",
            "V815": "set dropout to 0 in the model's config.json",
        }
        default = f"load the model again from a clean copy: {key}.model=FOLDER_OR_HUB_ID"
        return ModelError(
            code,
            what,
            where=f"the {self.role}, {self.vlm.source}",
            why=why or "a reader that ignores the image trains smoothly and learns nothing from it",
            fix=fixes.get(code, default),
            note=f"vistill explain {code}",
        )


def check_encodings(models: Models, prompts: Sequence[Prompt]) -> None:
    """V806, V807, V816: tokens, patches and grids fit the images, in all views of equal size."""
    readers = [Reader.STUDENT, *([Reader.TEACHER] if models.teacher_encodes else [])]
    for prompt, reader in product(prompts, readers):
        full = models.encode(prompt, View.FULL, reader)
        reason = models.reader(reader).family.encoding_problem(full, load_images(prompt))
        if reason is not None:
            code = "V807" if "image tokens" in reason else "V806"
            raise encoding_error(code, reason, prompt)
        for view in SAME_TOKENS:
            other = models.encode(prompt, view, reader)
            if other.ids != full.ids or not torch.equal(other.positions, full.positions):
                what = f"the views full and {view} differ in more than pixels"
                raise encoding_error("V816", what, prompt)
        if models.encode(prompt, View.TEXT_ONLY, reader).num_image_tokens:
            raise encoding_error("V816", "the view text_only still has image tokens", prompt)


def encoding_error(code: str, what: str, prompt: Prompt) -> ModelError:
    """An error about the encoding of a prompt."""
    return ModelError(
        code,
        what,
        where=prompt.labels.get("row", prompt.id),
        why="teacher and student would read other tokens than the image has",
        fix="use the image processor that belongs to the model (preprocessor_config.json)",
        note=f"vistill explain {code}",
    )


def check_heads(models: Models) -> None:
    """V812, V814: both heads have the shared vocabulary; both models share an end token."""
    words = models.student.vocabulary_size
    for name, vlm in (("student", models.student), ("teacher", models.teacher)):
        rows = words if vlm is None else len(vlm.head(models.vocabulary).weight)
        if vlm is not None and rows != words:
            raise ModelError(
                "V812",
                f"the {name}'s head has {rows:,} rows, the shared vocabulary {words:,} tokens",
                where=vlm.source,
                why="rows beyond the tokenizer are padding: they give probability to tokens that "
                "do not exist",
                fix="load the tokenizer and the weights of one model: "
                f"{name}.model=FOLDER_OR_HUB_ID",
            )
    student, teacher = models.student, models.teacher
    if teacher is not None and not set(student.stop_ids) & set(teacher.stop_ids):
        raise ModelError(
            "V814",
            f"student ends responses with {student.stop_ids}, teacher with {teacher.stop_ids}",
            why="the teacher would continue where the student has ended",
            fix="give both generation_config.json the same eos_token_id",
        )


def check_rows(models: Models, prompts: Sequence[Prompt], ids: tuple[int, ...]) -> None:
    """V813: the flat axis holds the tokens of the responses and nothing else."""
    groups = [RolloutGroup(p, (Rollout(ids, 0, Finish.STOP),)) for p in prompts]
    flat = flatten_responses(groups, 0, 0, models.student.device)
    expected_ids, expected_lengths = [*ids] * len(prompts), [len(ids)] * len(prompts)
    if flat.ids.tolist() != expected_ids or flat.lengths.tolist() != expected_lengths:
        raise ModelError(
            "V813",
            f"the loss has {flat.num_tokens} tokens, the responses have {len(expected_ids)}",
            why="tokens of the prompt, or of padding, are part of the loss",
            fix="report it: this is a defect of vistill",
        )


def check_reading(probe: ReaderProbe) -> None:
    """V803 to V805, V808, V809: readings equal those of transformers, in every batch."""
    full = probe.log_probs(View.FULL)
    for index in range(min(2, len(probe.prompts))):
        reference = probe.log_probs_by_hf(View.FULL, index)
        gap = mean_distance(full[index], reference)
        if gap > probe.bound:
            what = f"it differs by {gap:.2g} nats per token from transformers' own"
            raise diagnose_reading(probe, index, reference, what)
    backwards = range(len(probe.prompts))[::-1]
    again = probe.log_probs(View.FULL, backwards).flip(0)
    if mean_distance(full, again) > probe.bound:
        raise probe.error("V804", "a prompt reads differently when its neighbours change places")


def diagnose_reading(probe: ReaderProbe, index: int, reference: Tensor, gap: str) -> ModelError:
    """The error that explains why a reading differs from the reference."""
    full = probe.log_probs(View.FULL)[index]
    pixelated = probe.log_probs_by_hf(View.PIXELATED, index)
    if mean_distance(full, pixelated) <= probe.bound:
        return probe.error("V809", "it reads the pixelated image in place of the original")
    error = diagnose_image_features(probe)
    if error is not None:
        return error
    alone = probe.log_probs(View.FULL, (index,))[0]
    if mean_distance(alone, reference) <= probe.bound:
        return probe.error("V804", "a prompt reads differently alone than next to others", gap)
    what = f"its reading is wrong: {gap}"
    return probe.error("V808", what, "rows, positions or attention masks are off")


def diagnose_image_features(probe: ReaderProbe) -> ModelError | None:
    """V802, V803, V805 if the vision tower does not tell two different images apart."""
    first = probe.encoded(View.FULL, 0)
    others = [probe.encoded(view, 0) for view in SAME_TOKENS]
    second = next((e for e in others if not has_same_pixels(e, first)), None)
    if second is None:
        return None
    with torch.no_grad(), probe.precision():
        states = [probe.vlm.family.image_states(probe.vlm.model, [e]) for e in (first, second)]
    if not all(states):
        return probe.error("V803", "the pixels of the image never reach the model")
    a, b = (x[0].float() for x in states)
    spread = float((a - a.mean(0)).abs().max())
    if spread <= ROUNDING * max(1.0, float(a.abs().max())):
        what = "its vision tower gives every patch the same state: weights are zero or never loaded"
        return probe.error("V802", what)
    if a.shape == b.shape and torch.equal(a, b):
        what = "two different images give the same states: it reads one image again and again"
        return probe.error("V805", what)
    return None


def check_effects(probe: ReaderProbe) -> dict[str, float]:
    """V802, V803, V805: the reading changes when the image is swapped, pixelated or removed.

    Returns:
        Mean effect in nats per token by view.
    """
    full = probe.log_probs(View.FULL)
    backwards = range(len(probe.prompts))[::-1]
    noise = float((full - probe.log_probs(View.FULL, backwards).flip(0)).abs().max())
    effects: dict[str, float] = {}
    for view in (View.SWAPPED, View.PIXELATED, View.TEXT_ONLY):
        differs = [
            not has_same_pixels(probe.encoded(view, i), probe.encoded(View.FULL, i))
            for i in range(len(probe.prompts))
        ]
        if not any(differs):  # an image without detail looks the same pixelated
            continue
        change = (full - probe.log_probs(view)).abs()[torch.tensor(differs)]
        effects[view] = float(change.mean())
        if float(change.max()) <= TIMES_NOISE * noise + ROUNDING:
            what = f"no log-probability changes when its image is {view_in_words(view)}"
            raise diagnose_image_features(probe) or probe.error("V803", what)
    return effects


def view_in_words(view: View) -> str:
    """What a view does to the image, in a word."""
    return "removed" if view is View.TEXT_ONLY else str(view)


def check_self_divergence(probe: ReaderProbe) -> None:
    """V815: with and without gradient, the student is the same distribution."""
    vlm, groups = probe.vlm, probe.groups(View.FULL, range(len(probe.prompts)))
    head = vlm.head(probe.models.vocabulary).detached()
    was_training = vlm.model.training
    with probe.precision():
        vlm.model.train()
        with_gradient = open_reading(vlm, groups, cut=True).read(all_responses(groups)).detach()
        vlm.model.eval()
        with torch.no_grad():
            without = [States(response_states(vlm, groups), head)]
            divergence = float(per_row(reverse_kl, with_gradient, head, without).mean())
    vlm.model.train(was_training)
    if divergence > SELF_BOUND[probe.bytes_read]:
        raise probe.error(
            "V815",
            f"KL(student || student) is {divergence:.2g} nats per token, not 0",
            "its reading with gradient differs from the one without: dropout, or another precision",
        )


def mean_distance(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference in nats per token."""
    return float((a - b).abs().mean())


def weak_reader_warnings(facts: Mapping[str, float]) -> list[str]:
    """Warnings about readers that hardly use their image, from the result of `run_canary`."""
    return [
        f"the {name.split('/')[1].removesuffix('_image_effect')} hardly uses its image: "
        f"another one changes its log-probabilities by {value:.1e} nats per token"
        for name, value in facts.items()
        if name.endswith("_image_effect") and value < WEAK_EFFECT
    ]
