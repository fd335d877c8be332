"""The canary: before step 1 and at every evaluation, does everybody see the picture?

A model that never saw the image trains as smoothly as one that did. So a few prompts with one fixed sentence are read
the way a step reads them, and held against transformers' own forward pass, against other pictures, and against what the
rollout engine writes. It tests wiring against numerical noise: little reliance is a warning, none is an error. Each
finding has its own code (V802 to V816).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from vistill.errors import ModelError
from vistill.functional.divergences import reverse_kl
from vistill.functional.rows import States, per_row
from vistill.models.chat import load_images
from vistill.models.families.base import EncodedPrompt
from vistill.models.hf_reference import has_same_pixels, reference_log_probs
from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup, all_responses, open_reading, response_states, score
from vistill.training.step_inputs import Models, Precision, flatten_responses
from vistill.types import Finish, Prompt, Reader, Rollout, RolloutGroup, View
from vistill.views import apply_view

#: Prompts that are read, and the sentence that is read after each.
SAMPLES, SENTENCE = 4, "The answer is 12."
#: Mean distance in nats a token between two ways to the same reading, by bytes of the precision that is read in.
BOUND = {8: 1e-6, 4: 1e-3, 2: 0.15}
#: The same for KL(student || student), which grows with the square of a difference.
SELF_BOUND = {8: 1e-9, 4: 1e-5, 2: 0.02}
#: A picture has no effect if it is no larger than so many times the noise of repeating the reading, plus rounding.
TIMES_NOISE, ROUNDING = 10.0, 2e-6
#: Below this mean effect in nats a token the canary warns: the model hardly uses its picture.
WEAK_EFFECT = 1e-3
#: Views whose pixels differ from the original's and nothing else.
SAME_TOKENS = (View.SWAPPED, View.PIXELATED)


@dataclass(frozen=True)
class ReaderProbe:
    """One reader on the canary's prompts."""

    role: Reader
    models: Models
    prompts: Sequence[Prompt]
    ids: tuple[int, ...]
    precision: Precision
    bytes_read: int = 4
    read: dict[tuple[View, tuple[int, ...]], Tensor] = field(default_factory=dict)

    @property
    def vlm(self) -> VLM:
        """The model."""
        return self.models.reader(self.role)

    @property
    def bound(self) -> float:
        """How far two ways to the same reading may lie apart."""
        return BOUND[self.bytes_read]

    def encoded(self, view: View, index: int) -> EncodedPrompt:
        """A prompt as a step would encode it."""
        return self.models.encode(self.prompts[index], view)

    def groups(self, view: View, order: Sequence[int]) -> list[EncodedGroup]:
        """Some of the prompts with the sentence."""
        return [EncodedGroup(self.encoded(view, i), (self.ids,)) for i in order]

    def log_probs(self, view: View, order: Sequence[int] | None = None) -> Tensor:
        """Log-probabilities [prompts, T] as a step reads them, prompts read together in this order."""
        order = tuple(range(len(self.prompts)) if order is None else order)
        if (view, order) not in self.read:
            groups, device = self.groups(view, order), self.vlm.device
            ids = torch.tensor([*self.ids] * len(order), device=device)
            with torch.no_grad(), self.precision():
                rows = len(response_states(self.vlm, groups)) if view is View.FULL else len(ids)
                if rows != len(ids):
                    raise self.error("V813", f"{rows} rows are read for {len(ids)} response tokens")
                found = score(self.vlm, groups, ids, self.models.vocabulary, "log_prob").sampled()
            self.read[view, order] = found.double().cpu().view(len(order), -1)
        return self.read[view, order]

    def plainly(self, view: View, index: int) -> Tensor:
        """The same for one prompt by transformers' own forward pass."""
        with self.precision():
            prompt = self.vlm.encode(self.seen(view, index))
            return (
                reference_log_probs(self.vlm, prompt, self.ids, self.models.vocabulary)
                .double()
                .cpu()
            )

    def seen(self, view: View, index: int) -> Prompt:
        """A prompt under a view, past the models."""
        prompt = self.prompts[index]
        return apply_view(
            prompt, view, replace(self.models.view, partner=self.models.partners.get(prompt.id))
        )

    def error(self, code: str, what: str, why: str = "") -> ModelError:
        """A finding about this reader."""
        fixes = {
            "V812": "use the model's own tokenizer",
            "V815": "set dropout to 0 in the model's config.json",
        }
        return ModelError(
            code,
            what,
            where=f"the {self.role}, {self.vlm.source}",
            why=why
            or "a reader that does not see the picture trains smoothly and learns nothing from it",
            fix=fixes.get(
                code,
                f"load the model again from a clean copy: {self.config_key}.model=FOLDER_OR_HUB_ID",
            ),
            note=f"vistill explain {code}",
        )

    @property
    def config_key(self) -> str:
        """Where the recipe names this model."""
        return "teacher" if self.role is Reader.TEACHER else "student"


def check_encodings(models: Models, prompts: Sequence[Prompt]) -> None:
    """V806, V807, V816: tokens, patches and grids are what the pictures ask for, and equal in views of equal size."""
    for prompt in prompts:
        full = models.encode(prompt, View.FULL)
        reason = models.student.family.encoding_problem(full, load_images(prompt))
        if reason is not None:
            tokens = "image tokens" in reason
            raise encoding_error("V807" if tokens else "V806", reason, prompt)
        for view in SAME_TOKENS:
            other = models.encode(prompt, view)
            if other.ids != full.ids or not torch.equal(other.positions, full.positions):
                raise encoding_error(
                    "V816", f"the views full and {view} differ in more than pixels", prompt
                )
        if models.encode(prompt, View.TEXT_ONLY).num_image_tokens:
            raise encoding_error("V816", "the view text_only still has image tokens", prompt)


def encoding_error(code: str, what: str, prompt: Prompt) -> ModelError:
    """A finding about how a prompt is encoded."""
    return ModelError(
        code,
        what,
        where=prompt.labels.get("row", prompt.id),
        why="teacher and student would read other tokens than the picture has",
        fix="use the image processor that belongs to the model (preprocessor_config.json)",
        note=f"vistill explain {code}",
    )


def check_heads(models: Models) -> None:
    """V812, V814: both heads are cut to the shared vocabulary, and some token ends a response of either."""
    words = models.student.vocabulary_size
    for name, vlm in (("student", models.student), ("teacher", models.teacher)):
        rows = words if vlm is None else len(vlm.head(models.vocabulary).weight)
        if vlm is not None and rows != words:
            raise ModelError(
                "V812",
                f"the {name}'s head has {rows:,} rows, the shared vocabulary {words:,} tokens",
                where=vlm.source,
                why="rows beyond the tokenizer are padding; with them probability goes to words that do not exist",
                fix=f"load the tokenizer and the weights of one model: {name}.model=FOLDER_OR_HUB_ID",
            )
    if models.teacher is not None and not set(models.student.stop_ids) & set(
        models.teacher.stop_ids
    ):
        raise ModelError(
            "V814",
            f"student ends responses with {models.student.stop_ids}, teacher with {models.teacher.stop_ids}",
            why="the teacher would go on where the student has ended",
            fix="give both generation_config.json the same eos_token_id",
        )


def check_rows(models: Models, prompts: Sequence[Prompt], ids: tuple[int, ...]) -> None:
    """V813: the flat axis holds the responses' tokens and nothing else."""
    groups = [RolloutGroup(p, (Rollout(ids, 0, Finish.STOP),)) for p in prompts]
    laid = flatten_responses(groups, 0, 0, models.student.device)
    if laid.ids.tolist() != [*ids] * len(prompts) or laid.lengths.tolist() != [len(ids)] * len(
        prompts
    ):
        raise ModelError(
            "V813",
            f"{laid.num_tokens} tokens are learnt from where the responses have {len(ids) * len(prompts)}",
            why="tokens of the prompt, or of padding, are among those that are learnt from",
            fix="report it: this is a defect of vistill",
        )


def check_reading(probe: ReaderProbe) -> None:
    """V803 to V805, V808, V809: readings equal transformers' own, whoever else is in the batch."""
    full = probe.log_probs(View.FULL)
    for index in range(min(2, len(probe.prompts))):
        plainly = probe.plainly(View.FULL, index)
        gap = distance(full[index], plainly)
        if gap > probe.bound:
            raise diagnosis(
                probe,
                index,
                plainly,
                f"it differs by {gap:.2g} nats a token from transformers' own",
            )
    order = range(len(probe.prompts))[::-1]
    turned = probe.log_probs(View.FULL, order).flip(0)
    if distance(full, turned) > probe.bound:
        raise probe.error("V804", "a prompt reads differently when its neighbours change place")


def diagnosis(probe: ReaderProbe, index: int, plainly: Tensor, gap: str) -> ModelError:
    """What kind of wrong a wrong reading is."""
    full = probe.log_probs(View.FULL)[index]
    if distance(full, probe.plainly(View.PIXELATED, index)) <= probe.bound:
        return probe.error(
            "V809", "it is shown the pixelated picture where it should see the original"
        )
    fault = faulty_pictures(probe)
    if fault is not None:
        return fault
    alone = probe.log_probs(View.FULL, (index,))[0]
    if distance(alone, plainly) <= probe.bound:
        return probe.error("V804", "a prompt reads differently alone than beside others", gap)
    return probe.error(
        "V808", f"its reading is wrong: {gap}", "rows, positions or attention masks are off"
    )


def faulty_pictures(probe: ReaderProbe) -> ModelError | None:
    """V802, V803, V805: what the vision tower gives for two different pictures."""
    first = probe.encoded(View.FULL, 0)
    others = [probe.encoded(view, 0) for view in SAME_TOKENS]
    others = [probe.encoded(view, 0) for view in SAME_TOKENS]
    second = next((e for e in others if not has_same_pixels(e, first)), None)
    if second is None:
        return None
    with torch.no_grad(), probe.precision():
        made = [probe.vlm.family.image_states(probe.vlm.model, [e]) for e in (first, second)]
    if not all(made):
        return probe.error("V803", "the picture's pixels never reach the model")
    a, b = (x[0].float() for x in made)
    spread = float((a - a.mean(0)).abs().max())
    if spread <= ROUNDING * max(1.0, float(a.abs().max())):
        return probe.error(
            "V802", "its vision tower says the same everywhere: weights are zero or never loaded"
        )
    if a.shape == b.shape and torch.equal(a, b):
        return probe.error(
            "V805",
            "two different pictures give the same states: it sees one picture again and again",
        )
    return None


def check_effects(probe: ReaderProbe) -> dict[str, float]:
    """V802, V803, V805: the reading changes when the picture is swapped, pixelated or removed."""
    full = probe.log_probs(View.FULL)
    order = range(len(probe.prompts))[::-1]
    noise = float((full - probe.log_probs(View.FULL, order).flip(0)).abs().max())
    effects: dict[str, float] = {}
    for view in (View.SWAPPED, View.PIXELATED, View.TEXT_ONLY):
        differs = [
            not has_same_pixels(probe.encoded(view, i), probe.encoded(View.FULL, i))
            for i in range(len(probe.prompts))
        ]
        if not any(differs):  # a picture without detail looks the same pixelated
            continue
        change = (full - probe.log_probs(view)).abs()[torch.tensor(differs)]
        effects[view] = float(change.mean())
        if float(change.max()) <= TIMES_NOISE * noise + ROUNDING:
            fault = faulty_pictures(probe)
            raise fault or probe.error(
                "V803", f"nothing it says changes when its picture is {view_in_words(view)}"
            )
    return effects


def view_in_words(view: View) -> str:
    """A view in words."""
    return "removed" if view is View.TEXT_ONLY else str(view)


def check_self_divergence(probe: ReaderProbe) -> None:
    """V815: read with gradient and without, the student is the same distribution."""
    vlm, groups = probe.vlm, probe.groups(View.FULL, range(len(probe.prompts)))
    head = vlm.head(probe.models.vocabulary).detached()
    was_training = vlm.model.training
    with probe.precision():
        vlm.model.train()
        learning = open_reading(vlm, groups, cut=True).read(all_responses(groups)).detach()
        vlm.model.eval()
        with torch.no_grad():
            judged = response_states(vlm, groups)
            divergence = float(per_row(reverse_kl, learning, head, [States(judged, head)]).mean())
    vlm.model.train(was_training)
    if divergence > SELF_BOUND[probe.bytes_read]:
        raise probe.error(
            "V815",
            f"KL(student || student) is {divergence:.2g} nats a token instead of 0",
            "its reading with gradient differs from its reading without: dropout, or another precision",
        )


def distance(a: Tensor, b: Tensor) -> float:
    """Mean absolute difference in nats a token."""
    return float((a - b).abs().mean())


def weak_reader_warnings(facts: Mapping[str, float]) -> list[str]:
    """Warnings about readers that hardly use their picture."""
    return [
        f"the {name.split('/')[1].removesuffix('_image_effect')} hardly uses its picture: another one changes its"
        f" log-probabilities by {value:.1e} nats a token"
        for name, value in facts.items()
        if name.endswith("_image_effect") and value < WEAK_EFFECT
    ]
