"""The two ways to ask a vLLM server: by token ids, or by chat messages. Both return ids.

`/inference/v1/generate` (`vllm serve --enable-scale-out`) takes ids and pictures, and scores given
ids. `/v1/chat/completions`, which every server has, takes text: the ids of the prompt that it
reports must be the model's.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from vistill.models.chat import chat_messages
from vistill.models.families.qwen3_vl import Qwen3VLFamily
from vistill.rollouts import server_checks as checks
from vistill.rollouts.engine import RolloutRequest, Sampling
from vistill.rollouts.vllm_checks import collapse_images
from vistill.rollouts.vllm_engine import image_tokens
from vistill.types import PilImage


@dataclass(frozen=True)
class ServerRow:
    """What a server answers to one request."""

    prompt_ids: list[int]
    ids: list[int]
    log_probs: list[float]
    weights: str = ""
    """The name of the server's weights, where it has one."""


@dataclass(frozen=True)
class ServerModel:
    """What a request says of the model: its name on the server and its ids."""

    name: str
    family: Qwen3VLFamily
    banned: tuple[int, ...]
    """Ids that no response has, rows of the head beyond the vocabulary included."""
    stop: tuple[int, ...]


class Route(Protocol):
    """One way to ask."""

    path: str

    def body(
        self, model: ServerModel, request: RolloutRequest, sampling: Sampling, seed: int
    ) -> dict[str, Any]:
        """The request for one response."""
        ...

    def row(self, reply: dict[str, Any]) -> ServerRow:
        """The response in a reply (KeyError, TypeError or IndexError if it has none)."""
        ...


def sampling_fields(model: ServerModel, sampling: Sampling, seed: int) -> dict[str, Any]:
    """All that decides a response, so that no default of the server or checkpoint is used."""
    return {
        "n": 1,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p if sampling.temperature > 0 else 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "seed": seed % 2**63,
        "max_tokens": sampling.max_new_tokens,
        "min_tokens": 0,
        "stop": [],
        "stop_token_ids": list(model.stop),
        "ignore_eos": True,  # ends at the model's own ids above, not at those of a file
        "logit_bias": {str(token): -100.0 for token in model.banned},
    }


def picture_url(image: PilImage) -> str:
    """A picture as a `data:` URL, without loss."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def weight_names(choice: dict[str, Any]) -> str:
    """The names of the weights that wrote a response, where vLLM tells them."""
    return ",".join(str(span["version"]) for span in choice.get("weight_versions") or ())


class IdsRoute:
    """Ids in, ids out."""

    path = "/inference/v1/generate"

    def inputs(self, model: ServerModel, request: RolloutRequest) -> dict[str, Any]:
        """Prompt ids with one image token per picture, and the pictures as they are read."""
        images = model.family.images_as_read(request.prompt)
        counts = image_tokens(model.family, request.prompt)
        parts = [{"type": "image_url", "url": picture_url(image)} for image in images]
        return {
            "model": model.name,
            "token_ids": collapse_images(request.prompt.ids, model.family.image_id, counts),
            **({"content_parts": parts} if parts else {}),
            "return_token_ids": True,
        }

    def body(
        self, model: ServerModel, request: RolloutRequest, sampling: Sampling, seed: int
    ) -> dict[str, Any]:
        """The request for one response."""
        fields = {**sampling_fields(model, sampling, seed), "logprobs": 0, "detokenize": False}
        return {**self.inputs(model, request), "sampling_params": fields}

    def scoring_body(
        self, model: ServerModel, request: RolloutRequest, ids: Sequence[int]
    ) -> dict[str, Any]:
        """The request for the log-probabilities of given response ids."""
        inputs = self.inputs(model, request)
        fields = {"temperature": 0.0, "max_tokens": 1, "prompt_logprobs": 0, "detokenize": False}
        ids = [*inputs["token_ids"], *ids]
        return {**inputs, "token_ids": ids, "sampling_params": fields}

    def row(self, reply: dict[str, Any]) -> ServerRow:
        """The response in a reply."""
        choice = reply["choices"][0]
        values = [float(one["logprob"]) for one in choice["logprobs"]["content"]]
        ids = list(choice["token_ids"])
        return ServerRow(list(reply["prompt_token_ids"]), ids, values, weight_names(choice))

    def scored_row(self, reply: dict[str, Any], count: int) -> ServerRow:
        """The log-probabilities of the last `count` ids of a prompt."""
        ids = list(reply["prompt_token_ids"])
        values = [
            float(entry[str(token)]["logprob"])
            for entry, token in zip(reply["prompt_logprobs"][-count:], ids[-count:], strict=True)
        ]
        return ServerRow(ids[:-count], ids[-count:], values, weight_names(reply["choices"][0]))


class ChatRoute:
    """Chat messages in, ids out."""

    path = "/v1/chat/completions"

    def body(
        self, model: ServerModel, request: RolloutRequest, sampling: Sampling, seed: int
    ) -> dict[str, Any]:
        """The request for one response."""
        if request.source is None:
            what = "the server takes chat messages only, and this prompt has none"
            raise checks.server_error("R417", what, "it was made from ids", note=checks.SERVE)
        images = iter(model.family.images_as_read(request.prompt))
        messages = chat_messages(request.source)
        for message in messages:
            message["content"] = [
                {"type": "image_url", "image_url": {"url": picture_url(next(images))}}
                if part["type"] == "image"
                else part
                for part in message["content"]
            ]
        return {
            "model": model.name,
            "messages": messages,
            **sampling_fields(model, sampling, seed),
            "logprobs": True,
            "top_logprobs": 0,
            "return_token_ids": True,
        }

    def row(self, reply: dict[str, Any]) -> ServerRow:
        """The response in a reply."""
        choice = reply["choices"][0]
        values = [float(one["logprob"]) for one in choice["logprobs"]["content"]]
        return ServerRow(list(reply["prompt_token_ids"]), list(choice["token_ids"]), values)
