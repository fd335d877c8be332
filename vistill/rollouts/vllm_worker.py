"""The process in which vLLM writes rollouts, in vLLM's own environment.

`vllm_process.py` starts it, with a socket. Of vistill it imports only what needs no package besides
those in `vllm-requirements.txt`. It answers one message after the other.
"""

import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.base_loader import BaseModelLoader
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.platforms import current_platform
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor, MoveDirectionality

from vistill.rollouts.vllm_memory import tensors_in
from vistill.rollouts.vllm_messages import Closed, Received, receive, send
from vistill.rollouts.vllm_rows import Row, RowSampler, make_row_sampler
from vistill.rollouts.vllm_update import (
    WeightSpec,
    digest_of,
    memory_share,
    update_problem,
)


class Refused(Exception):  # noqa: N818  (not a failure of the process)
    """A message that changed nothing: `kind` says what is wrong."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind = kind


class PartlyLoaded(Exception):  # noqa: N818  (as above)
    """Weights of the model are overwritten, but not all: the run ends the process."""


class Call:
    """The call that vLLM works on: its rows by number, and how they are sampled."""

    def __init__(self, sampling: dict[str, Any], rows: list[Row], channel: socket.socket) -> None:
        self.rows, self.channel, self.finished = rows, channel, 0
        self.stop, self.most = set(sampling["stop"]), sampling["max_new_tokens"]
        self.sampler: RowSampler = make_row_sampler(sampling, rows)

    def choose(self, rows: Sequence[Row], scores: Tensor) -> Tensor:
        """The next id of some rows. Tells the run that vLLM is alive."""
        self.sampler.rows = rows
        chosen = self.sampler.choose(scores)
        ids = chosen.tolist()
        if self.sampler.log_probs is not None:
            values = self.sampler.log_probs.pop().tolist()
            for row, value in zip(rows, values, strict=True):
                kept = (row.log_probs or [])[: len(row.output)]  # a row can be computed again
                row.log_probs = [*kept, value]
        self.finished += sum(
            token in self.stop or len(row.output) + 1 >= self.most
            for row, token in zip(rows, ids, strict=True)
        )
        send(self.channel, {"finished": self.finished})
        return chosen


class KeyedRows(LogitsProcessor):
    """Masks every token except the one that our sampler chooses. vLLM takes the largest logit."""

    call: Call | None = None

    def __init__(self, config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.rows: dict[int, Row] = {}

    def is_argmax_invariant(self) -> bool:
        """No: it is the sampler."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow which row of the batch is which response."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self.rows.pop(index, None)
        for index, params, _, output in batch_update.added:
            number = (params.extra_args or {}).get("row")
            self.rows.pop(index, None)
            if number is not None and KeyedRows.call is not None:
                row = KeyedRows.call.rows[number]
                row.output = output
                self.rows[index] = row
        for first, second, direction in batch_update.moved:
            a, b = self.rows.pop(first, None), self.rows.pop(second, None)
            if a is not None:
                self.rows[second] = a
            if b is not None and direction == MoveDirectionality.SWAP:
                self.rows[first] = b

    def apply(self, logits: Tensor) -> Tensor:
        """Keep one token of each of our rows."""
        if KeyedRows.call is None or not self.rows:
            return logits
        index = sorted(self.rows)
        chosen = KeyedRows.call.choose([self.rows[i] for i in index], logits[index])
        logits[index] = torch.full_like(logits[index], -torch.inf).scatter(-1, chosen[:, None], 0.0)
        return logits


class Worker:
    """vLLM with the weights of the last sync."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.llm: Any = None
        self.spec: WeightSpec = {}
        self.serial, self.digest = 0, ""
        self.can_sleep = False

    def serve(self) -> None:
        """Answer messages until the run closes the socket."""
        operations = {
            "start": self.start,
            "sync": self.sync,
            "generate": self.generate,
            "sleep": self.sleep,
            "wake": self.wake,
        }
        while True:
            message, blocks = receive(self.channel)
            try:
                reply = operations[message["op"]](message, blocks)
            except Closed:
                raise
            except Refused as refused:
                reply = {"error": refused.kind, "text": str(refused)}
            except PartlyLoaded as partly:
                reply = {"error": "partly loaded", "text": str(partly)}
            except Exception as error:  # noqa: BLE001  the run raises it, with this text
                traceback.print_exc()
                reply = {"error": "failed", "text": f"{type(error).__name__}: {error}"}
            send(self.channel, {**reply, "is_reply": True})

    def start(self, message: dict[str, Any], blocks: list[Received]) -> dict[str, Any]:
        """Build the model of a folder with the first weights."""
        is_cpu = current_platform.is_cpu()
        self.can_sleep = bool(current_platform.is_cuda())
        self.spec = spec_in(message)
        SentLoader.weights = self.checked_weights(message, blocks)
        share = {}
        if self.can_sleep:
            total = current_platform.get_device_total_memory()
            held = len(blocks[-1])
            share["gpu_memory_utilization"] = memory_share(held, message["cache_bytes"], total)
        self.llm = LLM(
            message["folder"],
            load_format=SentLoader.FORMAT,
            dtype=message["dtype"],
            max_model_len=message["max_length"],
            max_num_seqs=message["rows"],
            limit_mm_per_prompt={"image": message["images"], "video": 0},
            kv_cache_memory_bytes=message["cache_bytes"],
            logits_processors=[KeyedRows],
            generation_config="vllm",
            enforce_eager=is_cpu,
            enable_sleep_mode=self.can_sleep,
            async_scheduling=False,
            trust_remote_code=False,
            seed=0,
            **share,
        )
        SentLoader.weights = {}
        return self.confirm(message)

    def sync(self, message: dict[str, Any], blocks: list[Received]) -> dict[str, Any]:
        """Take over weights, after all checks; then forget what the old ones computed."""
        weights = self.checked_weights(message, blocks)
        self.digest = ""  # whatever happens now: not the old weights any more
        self.llm.collective_rpc(lambda worker: reload_weights(worker, weights))
        self.reset_caches()
        return self.confirm(message)

    def checked_weights(self, message: dict[str, Any], blocks: list[Received]) -> dict[str, Tensor]:
        """The weights of a message (Refused if they are not those of the model)."""
        weights = tensors_in(blocks[-1], spec_in(message))
        problem = update_problem(weights, self.spec)
        if problem is None and digest_of(weights) != message["digest"]:
            problem = "the bytes that arrived are not those that were sent"
        if problem is not None:
            raise Refused("update", problem)
        return weights

    def confirm(self, message: dict[str, Any]) -> dict[str, Any]:
        """Hold the weights of a message from now on."""
        self.serial, self.digest = message["serial"], message["digest"]
        return {"serial": self.serial, "digest": self.digest}

    def reset_caches(self) -> None:
        """Forget keys and values of prompts and the states of images."""
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM did not reset its prefix cache")
        self.llm.llm_engine.reset_encoder_cache()

    def generate(self, message: dict[str, Any], blocks: list[Received]) -> dict[str, Any]:
        """Write all responses of some requests with the weights of one sync."""
        if (message["serial"], message["digest"]) != (self.serial, self.digest):
            text = f"sync {self.serial}, the run expects {message['serial']}"
            raise Refused("stale", text)
        sampling, images = message["sampling"], iter(blocks)
        prompts, rows = [], []
        for request in message["requests"]:
            pictures = [picture(size, next(images)) for size in request["images"]]
            prompt = {"prompt_token_ids": request["ids"]}
            if pictures:
                prompt["multi_modal_data"] = {"image": pictures}
            for seed, forced in zip(request["seeds"], request["forced"], strict=True):
                prompts.append(prompt)
                rows.append(Row(seed, forced))
        KeyedRows.call = Call(sampling, rows, self.channel)
        params = [
            SamplingParams(
                temperature=0.0,
                max_tokens=sampling["max_new_tokens"] if r.forced is None else len(r.forced),
                stop_token_ids=sampling["stop"] if r.forced is None else [],
                ignore_eos=True,
                detokenize=False,
                extra_args={"row": number},
            )
            for number, r in enumerate(rows)
        ]
        outputs = self.llm.generate(prompts, params, use_tqdm=False)
        sampler, KeyedRows.call = KeyedRows.call.sampler, None
        return {
            "serial": self.serial,
            "digest": self.digest,
            "applied": {"temperature": sampler.temperature, "top_p": sampler.top_p},
            "rows": [
                {
                    "prompt_ids": list(output.prompt_token_ids),
                    "ids": list(output.outputs[0].token_ids),
                    "log_probs": row.log_probs,
                }
                for output, row in zip(outputs, rows, strict=True)
            ],
        }

    def sleep(self, message: dict[str, Any], blocks: list[Received]) -> dict[str, Any]:
        """Free cache and weights on a GPU; the weights wait in host memory."""
        if self.can_sleep:
            self.llm.sleep(level=1)
        return {"slept": self.can_sleep}

    def wake(self, message: dict[str, Any], blocks: list[Received]) -> dict[str, Any]:
        """Undo `sleep`."""
        if self.can_sleep:
            self.llm.wake_up()
        return {}


def spec_in(message: dict[str, Any]) -> WeightSpec:
    """Precision and shape of each weight of a message."""
    return {name: (kind, tuple(shape)) for name, kind, shape in message["weights"]}


def picture(size: Sequence[int], data: Received) -> Image.Image:
    """An RGB image from its bytes."""
    return Image.frombytes("RGB", (size[0], size[1]), bytes(data))


@register_model_loader("vistill")
class SentLoader(BaseModelLoader):
    """Loads the weights that the run sent. Dummy weights would overwrite constants too."""

    FORMAT = "vistill"
    weights: ClassVar[dict[str, Tensor]] = {}

    def download_model(self, model_config: Any) -> None:
        """Do nothing: the weights are here."""

    def load_weights(self, model: torch.nn.Module, model_config: Any) -> None:
        """Load every weight of the model."""
        load_all(model, model_config, self.weights)


def reload_weights(worker: Any, weights: dict[str, Tensor]) -> None:
    """Replace the weights of a running model. vLLM's layers keep packed copies, so layer by layer.

    No reload makes the packed copy of a tied head again unless it is given a weight of its own.
    """
    runner = worker.model_runner
    model, config = runner.get_model(), runner.vllm_config.model_config
    head = {}
    if config.hf_text_config.tie_word_embeddings and "lm_head.weight" not in weights:
        (embedding,) = [name for name in weights if name.endswith("embed_tokens.weight")]
        head = {"lm_head.weight": weights[embedding]}
    initialize_layerwise_reload(model)
    load_all(model, config, {**weights, **head})
    finalize_layerwise_reload(model, config)


def load_all(model: Any, config: Any, weights: dict[str, Tensor]) -> None:
    """Load weights into vLLM's model (PartlyLoaded if one of its own is not among them)."""
    expected = {name for name, _ in model.named_parameters()}
    missing = sorted(expected - set(model.load_weights(iter(weights.items()))))
    if config.hf_text_config.tie_word_embeddings:
        missing = [name for name in missing if not name.endswith("lm_head.weight")]
    if missing:
        raise PartlyLoaded(f"vLLM has no weight for {missing[0]} ({len(missing)} in all)")


def end_with_parent() -> None:
    """End this process when the run is gone, also while vLLM computes."""
    parent = os.getppid()
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(0)


def main() -> None:
    """Serve the socket with the given number."""
    threading.Thread(target=end_with_parent, daemon=True).start()
    with socket.socket(fileno=int(sys.argv[1])) as channel:
        send(channel, {"is_reply": True})
        try:
            Worker(channel).serve()
        except Closed:
            return
