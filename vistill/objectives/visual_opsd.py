"""`visual_opsd`: one model in two contexts (arXiv 2606.18974): its teacher also sees visual thoughts.

Where we depart, and why: T rows per response instead of the release's T + 1 (our generation prompt already ends where
the answer begins); the gate of methods 3.6 refuses to start on a model that thoughts do not help.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import Tensor

from vistill.batch import EntryGate, LossTerm, Need, ScoredBatch, Signals
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
    """`(1/T) sum_t JSD_beta(p(.|privileged), p(.|picture))` on the teacher's top-K entries, each entry clipped."""

    teacher: Teacher = "ema"
    """Moving average of the student, the student itself without gradient, or the weights the run began with."""
    ema_decay: float = ranged(0.995, 0, 1)
    """What the moving average keeps at each update."""
    beta: float = ranged(0.5, 0, 1)
    """Weight of the teacher in the mixture m; 0 is KL(teacher || student), 1 is KL(student || teacher)."""
    top_k: int | None = ranged(256, 1)
    """Entries of the teacher that both sides are renormalised within (K); null takes the whole vocabulary."""
    tail_bucket: bool = False
    """One more entry for everything outside the top K, instead of renormalising."""
    clip: float = ranged(0.05, 0, above=True)
    """Largest contribution (tau)."""
    clip_mode: ClipMode = "entry"
    """Clip each vocabulary entry (the release: a clipped entry has no gradient), the token's sum, or nothing."""
    thoughts: Literal["real", "noise", "blank", "mismatched", "none"] = "real"
    """What the teacher sees: the thoughts, or a control (noise, white pictures, another row's, the sentences alone)."""
    gate: bool = True
    """Refuse to start where the thoughts change nothing, or do not make the model more accurate (methods 3.6)."""
    gate_rows: int = ranged(128, 1)
    """Prompts that the gate asks."""

    def needs(self) -> frozenset[Need]:
        """Pictures and thoughts; a row without thoughts would distil the wording of two sentences."""
        return frozenset({Need.IMAGE, Need.THOUGHTS})

    def ema_rate(self) -> float:
        """Complement of the decay."""
        return 1 - self.ema_decay

    def entry_gate(self) -> EntryGate | None:
        """The teacher's view must help."""
        return EntryGate(self.privileged().view, self.gate_rows) if self.gate else None

    def privileged(self) -> Pass:
        """The teacher's reading."""
        return Pass(TEACHERS[self.teacher], THOUGHTS[self.thoughts])

    def passes(self) -> tuple[Pass, ...]:
        """The student on the picture, its teacher on picture and thoughts."""
        return (STUDENT, self.privileged())

    def terms(self, batch: ScoredBatch, signals: Signals) -> tuple[LossTerm, ...]:
        """The divergence, and the generation gap KL(teacher || student) of Eq. 4 to watch."""
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
