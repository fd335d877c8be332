"""Learning up to the first misread: what `grounded_opd` and the option of other methods share."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vistill.batch import Objective, Responses, ScoredPass, Signals
from vistill.functional.segments import segment_mean, segment_sum
from vistill.objectives.metrics import existing, share
from vistill.ranges import ranged
from vistill.signals.misreads import misread_by_advantage, up_to_first
from vistill.signals.visual_advantage import visual_advantage
from vistill.signals.visual_dependency import token_has_image
from vistill.types import Pass

#: A step warns if it learns from less than this share of its tokens, or of its rollouts with an
#: image in the mean: prompts without one keep all tokens and would hide it.
FEW_KEPT = 0.1
#: It also warns if more than this share of the tokens is marked: of a short response the first
#: token alone can be more than `FEW_KEPT`.
MANY_MARKED = 0.5


@dataclass(frozen=True)
class MisreadOption(Objective):
    """A method that can leave out the tokens after the first misread of each rollout."""

    stop_at_misread: bool = False
    """No distillation after the first misread of a rollout, a token whose signed visual advantage
    lies below misread_threshold. Tokens keep the weights that they have without this option."""
    misread_threshold: float = ranged(-1.0, -100, 0, below=True)
    """Signed visual advantage in nats below which a token is a misread (stop_at_misread)."""

    def with_log_probs(self, *passes: Pass) -> tuple[Pass, ...]:
        """The passes; with the option they keep the log-probabilities of sampled tokens too."""
        if not self.stop_at_misread:
            return passes
        return tuple(replace(p, keep="both") if p.keep == "hidden" else p for p in passes)

    def misread_signals(
        self, responses: Responses, full: ScoredPass, degraded: ScoredPass
    ) -> dict[str, Tensor]:
        """`signed_advantage`, `misread` and `kept` of each token; nothing without the option."""
        if not self.stop_at_misread:
            return {}
        signed = signed_advantage(responses, full, degraded)
        misread = misread_by_advantage(signed, self.misread_threshold)
        kept = up_to_first(misread, responses.rollout, responses.num_rollouts)
        return {"signed_advantage": signed, "misread": misread, "kept": kept}

    def misread_metrics(self, responses: Responses, signals: Signals) -> dict[str, float]:
        """Figures on misreads; nothing without the option."""
        return misread_metrics(responses, signals) if self.stop_at_misread else {}

    def warnings(self, metrics: Mapping[str, float]) -> dict[str, str]:
        """A step without misreads, or one that learns from few tokens."""
        if not self.stop_at_misread:
            return {}
        return misread_warnings(metrics, f"misread_threshold={self.misread_threshold:g}")


def signed_advantage(responses: Responses, full: ScoredPass, degraded: ScoredPass) -> Tensor:
    """Signed visual advantage of each token in nats; 0 where the prompt has no image."""
    signed = visual_advantage(full.sampled(), degraded.sampled(), "signed")
    return torch.where(token_has_image(responses), signed, torch.zeros_like(signed))


def misread_metrics(responses: Responses, signals: Signals) -> dict[str, float]:
    """How many rollouts have a misread, where the first one is, and what stays.

    Reads the signals `signed_advantage`, `misread` and `kept`. Shares of rollouts and of marked
    tokens are over prompts with an image; the kept share is over all tokens.
    """
    rollout, num = responses.rollout, responses.num_rollouts
    signed, misread, kept = (signals[name] for name in ("signed_advantage", "misread", "kept"))
    seen = token_has_image(responses)
    has_image = responses.has_image[responses.group]
    has_misread = segment_sum(misread.float(), rollout, num) > 0
    position = segment_mean(kept.float(), rollout, num)[has_misread]
    return existing(
        {
            "misread/rollout_share": share(has_misread[has_image]),
            "misread/token_share": share(misread[seen]),
            "misread/position": float(position.mean()) if len(position) else math.nan,
            "misread/kept_share": share(kept),
            "misread/lowest_va": float(signed[seen].min()) if bool(seen.any()) else math.nan,
            "misread/without_image_share": share(~has_image),
        }
    )


def misread_warnings(
    metrics: Mapping[str, float], setting: str, factor_after: float = 0.0
) -> dict[str, str]:
    """Warnings with numbers from `misread_metrics`; `setting` names the detection.

    Nothing with a factor of 1, which leaves every token its weight.
    """
    share_of_rollouts = metrics.get("misread/rollout_share")
    if share_of_rollouts is None or factor_after == 1:  # None: no rollout of the step has an image
        return {}
    if share_of_rollouts == 0:
        why = f"lowest signed visual advantage {metrics['misread/lowest_va']:.3f} nats, {setting}"
        return {"no_misread": f"no rollout of this step has a misread, so none is cut: {why}"}
    kept, marked = metrics["misread/kept_share"], metrics["misread/token_share"]
    with_image = 1 - share_of_rollouts * (1 - metrics["misread/position"])
    if min(kept, with_image) >= FEW_KEPT and marked <= MANY_MARKED:
        return {}
    verb = "keep their whole weight" if factor_after > 0 else "are learned from"
    what = f"only {100 * kept:.1f} % of the tokens of this step {verb}"
    of_image = (
        f"of the prompts with an image {100 * share_of_rollouts:.0f} % of the rollouts have a "
        f"misread and {100 * marked:.0f} % of the tokens are marked"
    )
    return {"all_misread": f"{what}: {of_image}, {setting}"}
