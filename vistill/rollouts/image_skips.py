"""Image-skip: if a model starts to draw, close its turn and let it continue in words.

Visual-OPSD 3.1: the marker is literal text (several tokens), so the engine decodes to find it. The
rounds become one completion: the tokens between them are dropped, and they share the token budget.
Ordinary models never emit the marker.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from vistill.models.families.base import EncodedPrompt
from vistill.models.loading import VLM
from vistill.rollouts.engine import RolloutEngine, RolloutRequest, Sampling, WrappedEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.types import Finish, Rollout

#: Added to the attempt in the noise key of each further round, so that all rounds use other noise.
ROUND_KEY = 1_000


class ImageSkipEngine(WrappedEngine):
    """Wraps an engine and adds at most `image_skips` further rounds to a response.

    Log-probabilities are those of the generation: in a further round they are conditioned on the
    tokens between the rounds, which the completion (and so its scoring) lacks.
    """

    def __init__(self, inner: RolloutEngine, vlm: VLM, settings: RolloutSettings) -> None:
        super().__init__(inner)
        self.vlm, self.settings = vlm, settings
        reopened = vlm.tokenizer(settings.reopen, add_special_tokens=False)["input_ids"]
        self.reopen: tuple[int, ...] = tuple(int(i) for i in reopened)  # pyright: ignore[reportGeneralTypeIssues]

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """Return the rollouts of each request, further rounds appended."""
        groups = [list(group) for group in self.inner.generate(requests, sampling)]
        contexts = {
            (g, s): rollout.ids for g, group in enumerate(groups) for s, rollout in enumerate(group)
        }
        last_rounds = dict(contexts)
        for number in range(1, self.settings.image_skips + 1):
            to_continue = [
                place
                for place, ids in last_rounds.items()
                if self.wants_to_draw(groups[place[0]][place[1]], ids)
            ]
            left = {(g, s): sampling.max_new_tokens - len(groups[g][s].ids) for g, s in to_continue}
            to_continue = [place for place in to_continue if left[place] > 0]
            if not to_continue:
                break
            contexts |= {place: (*contexts[place], *self.reopen) for place in to_continue}
            continuations = [
                self.continuation_request(requests[g], s, contexts[g, s], number)
                for g, s in to_continue
            ]
            budget = replace(sampling, max_new_tokens=max(left[place] for place in to_continue))
            last_rounds = {}
            for (g, s), (rollout,) in zip(
                to_continue, self.inner.generate(continuations, budget), strict=True
            ):
                last_rounds[g, s] = rollout.ids[: left[g, s]]
                contexts[g, s] = (*contexts[g, s], *last_rounds[g, s])
                groups[g][s] = self.join_rounds(groups[g][s], last_rounds[g, s], rollout.log_probs)
        return [tuple(group) for group in groups]

    def wants_to_draw(self, rollout: Rollout, last_round: tuple[int, ...]) -> bool:
        """Whether the last round ended its turn and contains the marker."""
        ended = rollout.finish is Finish.STOP
        return ended and self.settings.image_marker in self.vlm.tokenizer.decode(list(last_round))

    def continuation_request(
        self, request: RolloutRequest, index: int, context: tuple[int, ...], number: int
    ) -> RolloutRequest:
        """A request for one more round after the whole context so far."""
        sibling, attempt = request.siblings[index], request.attempt + ROUND_KEY * number
        return RolloutRequest(
            request.key, extend_rollout(request.prompt, context), (sibling,), attempt
        )

    def join_rounds(
        self, rollout: Rollout, more: tuple[int, ...], log_probs: tuple[float, ...] | None = None
    ) -> Rollout:
        """Join two rounds into one completion, without the end of turn between them."""
        stop = set(self.vlm.stop_ids)
        finish = Finish.STOP if more and more[-1] in stop else Finish.LENGTH
        values = None
        if rollout.log_probs is not None and log_probs is not None:
            values = (*rollout.log_probs[:-1], *log_probs[: len(more)])
        return replace(rollout, ids=(*rollout.ids[:-1], *more), finish=finish, log_probs=values)


def extend_rollout(prompt: EncodedPrompt, ids: tuple[int, ...]) -> EncodedPrompt:
    """Append text tokens to a prompt."""
    following = torch.arange(len(ids)) + prompt.next_position
    positions = torch.cat([prompt.positions, following.expand(len(prompt.positions), -1)], dim=1)
    return replace(
        prompt,
        ids=(*prompt.ids, *ids),
        positions=positions,
        next_position=prompt.next_position + len(ids),
    )
