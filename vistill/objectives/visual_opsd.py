"""`visual_opsd`: one model in two contexts (arXiv 2606.18974).

The teacher also sees visual thoughts. Differences from the release: T rows per response instead of
T + 1, because our generation prompt already ends where the answer begins; and the gate of methods
3.6 refuses to start on a model that thoughts do not help.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from vistill.batch import EntryGate, LossTerm, Need, Requirements, ScoredBatch, Signals
from vistill.functional.divergences import ClipMode, forward_kl, jensen_shannon, keep_top
from vistill.objectives.shared import STUDENT, UniformObjective, apply_rules
from vistill.ranges import ranged
from vistill.types import Pass, Reader, View

Teacher = Literal["ema", "self", "fixed"]
TEACHERS: dict[Teacher, Reader] = {"ema": Reader.EMA, "self": Reader.OLD, "fixed": Reader.REFERENCE}
THOUGHTS = {
    "real": View.PRIVILEGED,
    "noise": View.PRIVILEGED_NOISE,
    "blank": View.PRIVILEGED_BLANK,
    "mismatched": View.PRIVILEGED_MISMATCHED,
    "none": View.PRIVILEGED_PROMPTS,
}


@dataclass(frozen=True)
class VisualOPSD(UniformObjective):
    """`(1/T) sum_t JSD_beta(p(.|privileged), p(.|image))` on the teacher's top-K entries.

    Each entry is clipped.
    """

    teacher: Teacher = "ema"
    """`ema`: moving average of the student. `self`: the student without gradient. `fixed`: the
    initial weights."""
    ema_decay: float = ranged(0.995, 0, 1)
    """Share that the moving average keeps at each update."""
    beta: float = ranged(0.5, 0, 1)
    """Weight of the teacher in the mixture m; 0 is KL(pT || pS), 1 is KL(pS || pT)."""
    top_k: int | None = ranged(256, 1)
    """Entries of the teacher within which both sides are renormalised (K); null takes the whole
    vocabulary."""
    tail_bucket: bool = False
    """One more entry for everything outside the top K, instead of renormalising."""
    clip: float = ranged(0.05, 0, above=True)
    """Largest contribution (tau)."""
    clip_mode: ClipMode = "entry"
    """Clip each vocabulary entry (as the release; a clipped entry has no gradient), the sum of the
    token, or nothing."""
    thoughts: Literal["real", "noise", "blank", "mismatched", "none"] = "real"
    """What the teacher sees: the thoughts, or a control: noise, white images, the thoughts of
    another row, or only the sentences around them."""
    gate: bool = True
    """Refuse to start if the thoughts change nothing or do not make the model more accurate
    (methods 3.6)."""
    gate_rows: int = ranged(128, 1)
    """Number of prompts that the gate evaluates."""

    @property
    def requirements(self) -> Requirements:
        """Images and thoughts, and a view that helps.

        A row without thoughts would distil only the wording of two sentences.
        """
        gate = EntryGate(self.privileged().view, self.gate_rows, "visual_opsd.gate=false")
        return Requirements(
            needs={Need.IMAGE, Need.THOUGHTS},
            ema_rate=1 - self.ema_decay,
            entry_gate=gate if self.gate else None,
        )

    def privileged(self) -> Pass:
        """The teacher's pass."""
        return Pass(TEACHERS[self.teacher], THOUGHTS[self.thoughts])

    def passes(self) -> tuple[Pass, ...]:
        """The student on the image, its teacher on image and thoughts."""
        return (STUDENT, self.privileged())

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """The divergence, and the logged generation gap KL(teacher || student) of Eq. 4."""
        weights, teacher = signals["token_weight"], self.privileged()
        clip = None if self.clip_mode == "none" else self.clip
        rule = partial(
            top_jensen_shannon, beta=self.beta, top_k=self.top_k, tail_bucket=self.tail_bucket
        )
        clipped = partial(rule, clip=clip, clip_mode=self.clip_mode)
        values, gap = apply_rules(
            batch, STUDENT, (clipped, (teacher,), weights), (forward_kl, (teacher,), None)
        )
        return (
            LossTerm("jensen_shannon", values, weights),
            LossTerm("generation_gap", gap.detach(), weights, minimised=False),
        )


def top_jensen_shannon(
    own: Tensor, other: Tensor, top_k: int | None, tail_bucket: bool = False, **options: object
) -> Tensor:
    """JSD within the target's top K."""
    kept = (own, other) if top_k is None else keep_top(own, other, top_k, tail_bucket)
    return jensen_shannon(*kept, **options)  # pyright: ignore[reportArgumentType]
