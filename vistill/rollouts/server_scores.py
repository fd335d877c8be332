"""The sampled-token teacher: a server's log-probabilities of given response ids.

It is an approximation with a name of its own. A reader of vistill knows the whole distribution at
every token; here only the log-probability of the token that was sampled is known. It is enough for
visual advantage (the difference of two views) and for `log pS(y) - log pT(y)`, whose mean over
tokens of the student estimates KL(pS || pT); a divergence over the vocabulary needs the teacher.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from vistill.models.loading import VLM
from vistill.models.scoring import EncodedGroup
from vistill.rollouts import server_checks as checks
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.server_engine import ServerEngine
from vistill.rollouts.server_routes import IdsRoute, ServerRow
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.vllm_checks import check_prompt

#: Scoring writes one token, which is not used.
ONE_TOKEN = Sampling(0, 0, 1.0, 1.0, 1)


class SampledTokenTeacher:
    """Log-probabilities of sampled tokens by a vLLM server that serves the teacher.

    Args:
        teacher: the teacher, loaded: it encodes the prompts, and the server is compared with it.
        settings: `server` has the address; `rows_per_call` is the most rows at a time.
        poll: called while the server computes.

    Raises:
        ConfigError: C101, as `ServerEngine`.
        RolloutError: R412, R413, R417, R418.
    """

    def __init__(
        self, teacher: VLM, settings: RolloutSettings, poll: Callable[[], None] = lambda: None
    ) -> None:
        self.engine = ServerEngine(teacher, settings, poll)
        self.rows = settings.rows_per_call

    def prove(self) -> float:
        """Mean distance of the server to the teacher in nats per token, measured once.

        R412, R417 or R418 unless it serves the teacher and scores given ids.
        """
        engine = self.engine
        model = engine.served_model()
        if (1.0, 1.0) not in engine.proven:
            engine.prove(model, replace(ONE_TOKEN, rows_per_call=self.rows))
        if not isinstance(engine.route, IdsRoute):
            what, why = "the server cannot score given token ids", f"no {IdsRoute.path}"
            url = engine.client.url
            raise checks.server_error("R417", what, why, where=url, note=checks.SERVE)
        return engine.proven[1.0, 1.0]

    def log_probs(self, groups: Sequence[EncodedGroup]) -> Float[Tensor, " R"]:
        """`log pT(y)` in nats, at temperature 1, of every response token on the flat axis.

        Encode the prompts under any view: the original image, or the pixelated one.
        """
        self.prove()
        engine, route = self.engine, IdsRoute()
        model = engine.served_model()
        asked = [
            (RolloutRequest("scored", group.prompt, (0,)), ids)
            for group in groups
            for ids in group.responses
        ]
        longest = max((len(ids) for _, ids in asked), default=0)
        engine.check_lengths([request for request, _ in asked], longest + 1)
        bodies = [route.scoring_body(model, request, ids) for request, ids in asked]
        replies = engine.client.ask_all(route.path, bodies, rows=self.rows)
        values: list[float] = []
        for (request, ids), reply in zip(asked, replies, strict=True):
            row = engine.read_row(reply, partial(route.scored_row, count=len(ids)))
            self.check_row(row, request, ids)
            values += row.log_probs
        return torch.tensor(values)

    def check_row(self, row: ServerRow, request: RolloutRequest, ids: Sequence[int]) -> None:
        """R412 if the server scored other ids than it got."""
        image_id = self.engine.family.image_id
        check_prompt(row.prompt_ids, request.prompt.ids, image_id, "a scored prompt")
        check_prompt(row.ids, ids, image_id, "a scored response")
