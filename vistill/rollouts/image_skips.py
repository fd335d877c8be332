"""Image-skip: a model that wants to draw is not let; its turn is closed, a new one opened, and it goes on in words.

Visual-OPSD 3.1: the marker is literal text (several tokens), found by decoding. The rounds become one completion: the
marks between them are dropped, the token budget is shared. For ordinary models the marker never comes.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM
from vistill.rollouts.engine import RolloutEngine, RolloutRequest, Sampling, WrappedEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.types import Finish, Rollout

#: Added to the attempt in the noise key of each further round, so that no round repeats another's noise.
ROUND_KEY = 1_000


class ImageSkipEngine(WrappedEngine):
    """Wraps an engine; at most `image_skips` further rounds a response.

    Log-probabilities are those of the writing: a further round's are given the marks between the rounds, which the
    completion (and so its scoring) lacks.
    """

    def __init__(self, inner: RolloutEngine, vlm: VLM, settings: RolloutSettings) -> None:
        super().__init__(inner)
        self.vlm, self.settings = vlm, settings
        reopened = vlm.tokenizer(settings.reopen, add_special_tokens=False)["input_ids"]
        self.reopen: tuple[int, ...] = tuple(int(i) for i in reopened)  # pyright: ignore[reportGeneralTypeIssues]

    def write(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """The rollouts of each request, further rounds appended."""
        groups = [list(group) for group in self.inner.write(requests, sampling)]
        said = {
            (g, s): rollout.ids for g, group in enumerate(groups) for s, rollout in enumerate(group)
        }
        last = dict(said)
        for number in range(1, self.settings.image_skips + 1):
            drawing = [
                place
                for place, ids in last.items()
                if self.wants_to_draw(groups[place[0]][place[1]], ids)
            ]
            left = {(g, s): sampling.max_new_tokens - len(groups[g][s].ids) for g, s in drawing}
            drawing = [place for place in drawing if left[place] > 0]
            if not drawing:
                break
            said |= {place: (*said[place], *self.reopen) for place in drawing}
            further = [self.further(requests[g], s, said[g, s], number) for g, s in drawing]
            budget = replace(sampling, max_new_tokens=max(left[place] for place in drawing))
            last = {}
            for (g, s), (rollout,) in zip(drawing, self.inner.write(further, budget), strict=True):
                last[g, s] = rollout.ids[: left[g, s]]
                said[g, s] = (*said[g, s], *last[g, s])
                groups[g][s] = self.joined(groups[g][s], last[g, s], rollout.log_probs)
        return [tuple(group) for group in groups]

    def wants_to_draw(self, rollout: Rollout, last_round: tuple[int, ...]) -> bool:
        """Whether the last round ended its turn with the marker in it."""
        ended = rollout.finish is Finish.STOP
        return ended and self.settings.image_marker in self.vlm.tokenizer.decode(list(last_round))

    def further(
        self, request: RolloutRequest, place: int, context: tuple[int, ...], number: int
    ) -> RolloutRequest:
        """A request for one more round after everything so far."""
        sibling, attempt = request.siblings[place], request.attempt + ROUND_KEY * number
        return RolloutRequest(
            request.key, extend_rollout(request.prompt, context), (sibling,), attempt
        )

    def joined(
        self, rollout: Rollout, more: tuple[int, ...], log_probs: tuple[float, ...] | None = None
    ) -> Rollout:
        """Both rounds as one completion, without the end of turn between them."""
        stop = set(self.vlm.stop_ids)
        finish = Finish.STOP if more and more[-1] in stop else Finish.LENGTH
        values = None
        if rollout.log_probs is not None and log_probs is not None:
            values = (*rollout.log_probs[:-1], *log_probs[: len(more)])
        return replace(rollout, ids=(*rollout.ids[:-1], *more), finish=finish, log_probs=values)


def extend_rollout(prompt: EncodedPrompt, ids: tuple[int, ...]) -> EncodedPrompt:
    """The prompt followed by more text tokens."""
    following = torch.arange(len(ids)) + prompt.next_position
    positions = torch.cat([prompt.positions, following.expand(len(prompt.positions), -1)], dim=1)
    return replace(
        prompt,
        ids=(*prompt.ids, *ids),
        positions=positions,
        next_position=prompt.next_position + len(ids),
    )
