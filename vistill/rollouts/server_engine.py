"""`rollout.engine: server`: a vLLM server writes the responses of a model that is not trained.

Before the first response the server must prove that it serves this model: it gets a question with
a picture, and its prompt ids, its log-probabilities and its samples must be those of the model.
"""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from vistill.models.loading import VLM
from vistill.phases import RESPONSES, count_done
from vistill.rollouts import server_checks as checks
from vistill.rollouts.checked_engine import banned_ids, location_of_request
from vistill.rollouts.engine import InProcessEngine, RolloutRequest, Sampling
from vistill.rollouts.hf import to_rollout
from vistill.rollouts.keyed_noise import rollout_seed
from vistill.rollouts.server_client import ServerClient
from vistill.rollouts.server_probe import measure_probe, probe_request, probe_seeds, probe_tokens
from vistill.rollouts.server_routes import ChatRoute, IdsRoute, Route, ServerModel, ServerRow
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.vllm_checks import check_prompt
from vistill.rollouts.vllm_engine import check_family, host_weights, picture_limits
from vistill.rollouts.vllm_update import digest_of
from vistill.types import Rollout

LOG = logging.getLogger("vistill.rollouts")
#: Largest mean distance in nats per token, by the precision of the server: the canary's bounds.
BOUND = {"float32": 1e-3, "bfloat16": 0.15}
#: Length of a prompt where the server does not tell its limit.
MOST_LENGTH = 1 << 18


class ServerEngine(InProcessEngine):
    """Generates responses by a vLLM server that serves the model.

    Seeds depend on the request alone, but the noise is vLLM's: the tokens are samples of the same
    distribution as those of `shared`, and the same ones at temperature 0 up to rounding.

    Args:
        vlm: the model that writes; the server has the same weights.
        settings: of the rollouts; `server` has the address.
        poll: called while the server computes.

    Raises:
        ConfigError: C101, no address, or a model of another family.
        RolloutError: R412, R413, R417 to R419.
    """

    follows_keyed_noise = False

    def __init__(
        self, vlm: VLM, settings: RolloutSettings, poll: Callable[[], None] = lambda: None
    ) -> None:
        self.vlm, self.settings = vlm, settings
        self.family = check_family(vlm, "server")
        self.client = ServerClient(settings.server, poll)
        self.model: ServerModel | None = None
        self.route: Route = IdsRoute()
        self.limit: int | None = None
        self.weights: str | None = None
        self.synced: str | None = None
        self.proven: dict[tuple[float, float], float] = {}
        """Mean distance to the model in nats per token, by temperature and nucleus."""

    def sync_weights(self, version: int) -> None:
        """Take over the version of weights that did not change (R419 for others)."""
        digest = digest_of(host_weights(self.vlm, "float32"))
        if self.synced not in (None, digest):
            raise checks.follow_error("the weights of the model changed since the first sync")
        self.synced, self.version = digest, version

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """Return the rollouts of each request, in order."""
        model = self.served_model()
        self.check_lengths(requests, sampling.max_new_tokens)
        if requests and (sampling.temperature, sampling.top_p) not in self.proven:
            self.prove(model, sampling)
        seeds = [
            rollout_seed(sampling.seed, sampling.step, r.key, sibling, r.attempt)
            for r in requests
            for sibling in r.siblings
        ]
        rows = iter(self.ask_rows(model, requests, sampling, seeds))
        stop = set(self.vlm.stop_ids)

        def rollout(request: RolloutRequest, sibling: int) -> Rollout:
            row = next(rows)
            checks.check_ended(self.client.url, row.ids, stop, sampling.max_new_tokens)
            values = row.log_probs if sampling.log_probs else None
            return to_rollout(row.ids, stop, sibling, request.attempt, values)

        return [tuple(rollout(r, sibling) for sibling in r.siblings) for r in requests]

    def served_model(self) -> ServerModel:
        """The model as requests name it, after a first look at the server."""
        if self.model is not None:
            return self.model
        entries = self.client.ask("/v1/models").get("data") or []
        names = [str(entry["id"]) for entry in entries]
        wanted = self.settings.server.model or (names[0] if len(names) == 1 else "")
        if wanted not in names:
            raise checks.unknown_model_error(self.client.url, wanted, names)
        self.limit = next(e for e in entries if e["id"] == wanted).get("max_model_len")
        layer: Any = self.vlm.model.get_output_embeddings()
        beyond = range(self.vlm.vocabulary_size, layer.weight.shape[0])
        banned = (*banned_ids(self.vlm), *beyond)
        self.model = ServerModel(wanted, self.family, banned, tuple(self.vlm.stop_ids))
        return self.model

    def prove(self, model: ServerModel, sampling: Sampling) -> None:
        """R412, R417, R418 unless the server reads, samples and scores as the model does."""
        request, asked = probe_request(self.vlm), probe_tokens(sampling)
        self.check_lengths([request], asked.max_new_tokens)
        if isinstance(self.route, IdsRoute):
            first = self.route.body(model, request, replace(asked, max_new_tokens=1), 0)
            status, text = self.client.exchange(self.route.path, first)
            if status == 404 and "does not exist" not in text:
                self.route = ChatRoute()
        seeds = probe_seeds(sampling)
        requests = [replace(request, siblings=tuple(range(len(seeds))))]
        rows = self.ask_rows(model, requests, asked, seeds, counts=False)
        url, measured = self.client.url, measure_probe(self.vlm, request, rows, asked)
        bound = BOUND[self.settings.server.precision]
        checks.check_same_model(url, measured.distance, bound, measured.processed_distance)
        checks.check_draws(url, measured.difference, measured.variance, measured.outside)
        self.proven[sampling.temperature, sampling.top_p] = measured.distance
        LOG.info(
            "%s serves the model as %s: %.1e nats per token away over %d tokens (%s)",
            url, model.name, measured.distance, measured.tokens, self.route.path,
        )  # fmt: skip

    def ask_rows(
        self,
        model: ServerModel,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        seeds: Sequence[int],
        counts: bool = True,
    ) -> list[ServerRow]:
        """One row per sibling; each continues the prompt as the model reads it."""
        of_row = [r for r in requests for _ in r.siblings]
        bodies = [
            self.route.body(model, request, sampling, seed)
            for request, seed in zip(of_row, seeds, strict=True)
        ]

        def count(finished: int) -> None:
            if counts:
                count_done(RESPONSES, finished)

        replies = self.client.ask_all(
            self.route.path, bodies, count, max(1, sampling.rows_per_call)
        )
        rows = [self.read_row(reply) for reply in replies]
        self.check_prompts(of_row, rows)
        return rows

    def check_lengths(self, requests: Sequence[RolloutRequest], new: int) -> None:
        """R413 for a prompt and response that are longer than the server takes."""
        needed = max((len(r.prompt.ids) for r in requests), default=0) + new
        if self.limit is not None and needed > self.limit:
            why = f"{needed:,} tokens, it takes {self.limit:,}"
            raise checks.length_error(self.client.url, why, needed)

    def check_prompts(self, requests: Sequence[RolloutRequest], rows: Sequence[ServerRow]) -> None:
        """R412 if the server continued other prompt ids than the model's."""
        size = picture_limits(self.vlm, self.limit or MOST_LENGTH)
        note = f"no picture resized twice: --mm-processor-kwargs '{json.dumps({'size': size})}'"
        for request, row in zip(requests, rows, strict=True):
            where = location_of_request(request)
            check_prompt(row.prompt_ids, request.prompt.ids, self.family.image_id, where, note)

    def read_row(
        self, reply: dict[str, Any], read: Callable[[dict[str, Any]], ServerRow] | None = None
    ) -> ServerRow:
        """The row of a reply (R417 without ids; R418 if the server has other weights by now)."""
        row = None
        with suppress(KeyError, TypeError, IndexError, ValueError):
            row = (read or self.route.row)(reply)
        if row is None:
            what = "the replies of the server have no token ids or no log-probabilities"
            why = f"no vLLM, or another version than 0.32; keys: {', '.join(sorted(reply))}"
            raise checks.server_error("R417", what, why[:300], where=self.client.url)
        if self.weights is None:
            self.weights = row.weights
        if row.weights != self.weights:
            what = f"the weights of the server changed from {self.weights!r} to {row.weights!r}"
            why = "its first rows proved that it had those of the model"
            raise checks.server_error("R418", what, why, where=self.client.url)
        return row
