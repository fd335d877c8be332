"""`rollout.engine: vllm`: vLLM writes the rollouts, with our noise, in a process of its own.

The process gets the student's weights at every sync, checks them, and must then give a known
response the log-probabilities that the student gives it. The tokens are those of `shared`.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vistill.errors import ConfigError
from vistill.models.adapters import has_adapters, merged_weights
from vistill.models.families.base import EncodedPrompt
from vistill.models.families.qwen3_vl import Qwen3VLFamily
from vistill.models.loading import VLM
from vistill.models.save import weights_of
from vistill.models.scoring import EncodedGroup, score
from vistill.phases import RESPONSES, count_done
from vistill.rollouts import vllm_checks as checks
from vistill.rollouts.checked_engine import banned_ids, location_of_request
from vistill.rollouts.engine import InProcessEngine, RolloutRequest, Sampling
from vistill.rollouts.hf import eval_mode, to_rollout
from vistill.rollouts.keyed_noise import rollout_seed
from vistill.rollouts.settings import RolloutSettings, VLLMSettings
from vistill.rollouts.vllm_memory import share
from vistill.rollouts.vllm_messages import Block
from vistill.rollouts.vllm_process import VLLMProcess
from vistill.rollouts.vllm_update import digest_of, spec_of, update_problem
from vistill.types import LoadedImage, Prompt, Rollout

LOG = logging.getLogger("vistill.rollouts")
#: Tokens of the probe, and words of its question: longer than a block of vLLM's prefix cache (128
#: tokens on a CPU), so that a cache that was not reset shows.
PROBE_TOKENS, PROBE_WORDS = 12, 160
#: Tokens of a prompt that a process takes where no key says how many.
PROMPT_TOKENS = 2048
#: Processes by model and settings, each with the number of engines that use it.
PROCESSES: dict[tuple[int, VLLMSettings, int], tuple[VLLMProcess, list[object]]] = {}


class VLLMEngine(InProcessEngine):
    """Generates rollouts by vLLM, token for token the same as `SharedEngine` in fp32.

    Engines of the same model and settings share one process. It starts at the first sync.

    Args:
        vlm: the model that writes.
        settings: of the rollouts.
        poll: called at every decoded token, and while vLLM is silent.

    Raises:
        MissingExtraError: E303, no environment with the right vLLM.
        ConfigError: C101, weights that vLLM cannot take.
        RolloutError: R408, R410 to R415.
    """

    def __init__(
        self, vlm: VLM, settings: RolloutSettings, poll: Callable[[], None] = lambda: None
    ) -> None:
        self.vlm, self.settings, self.poll = vlm, settings, poll
        self.dtype = "float32" if vlm.device.type == "cpu" else "bfloat16"
        self.digest = ""
        self.version = 0
        self.needed = settings.max_new_tokens + PROMPT_TOKENS
        """Most tokens of a prompt and its response that were asked for."""
        self.family = check_writer(vlm)
        checks.find_python()

    # The process.

    @property
    def key(self) -> tuple[int, VLLMSettings, int]:
        """What engines of one process have in common."""
        return id(self.vlm.model), self.settings.vllm, self.settings.rows_per_call

    def process(self) -> VLLMProcess:
        """The process, started with the model's present weights where there is none."""
        known, users = PROCESSES.get(self.key, (None, []))
        if self not in users:
            users.append(self)
        if known is not None and known.is_open:
            known.poll = self.poll
            known.check_alive()
            return awake(known)
        probe, where = self.vlm.encode(probe_prompt()), "the probe, a known response with an image"
        checks.check_length(probe.ids, len(probe_ids(self.vlm)), self.limits, where)
        self.needed = max(self.needed, len(probe.ids) + len(probe_ids(self.vlm)))
        process = VLLMProcess(self.limits, self.vlm.device, self.poll)
        process.max_length = self.limits.max_length or length_for(self.vlm, self.needed)
        PROCESSES[self.key] = (process, users)
        write_model_folder(self.vlm, process.folder / "model", process.max_length)
        limits = {
            "folder": str(process.folder / "model"),
            "dtype": self.dtype,
            "max_length": process.max_length,
            "rows": self.settings.rows_per_call,
            "images": self.limits.images,
            "cache_bytes": int(self.limits.cache_gb * 2**30),
        }
        self.send_weights(process, {"op": "start", **limits})
        return process

    @property
    def limits(self) -> VLLMSettings:
        """The settings of the process."""
        return self.settings.vllm

    def close(self) -> None:
        """End the process if no other engine uses it."""
        process, users = PROCESSES.get(self.key, (None, []))
        if self in users:
            users.remove(self)
        if process is not None and not users:
            del PROCESSES[self.key]
            process.end()
        self.digest = ""

    def sleep(self) -> None:
        """Free memory of a GPU. On a CPU vLLM frees nothing."""
        process, _ = PROCESSES.get(self.key, (None, []))
        if process is None or not process.is_open or process.is_asleep:
            return
        if self.vlm.device.type == "cpu":
            LOG.info("vLLM does not sleep on a CPU")
            return
        process.ask({"op": "sleep"})
        process.is_asleep = True

    def wake(self) -> None:
        """Do nothing: what needs the process wakes it."""

    # Weights.

    def sync_weights(self, version: int) -> None:
        """Send the student's weights, unless vLLM has them; then probe it."""
        self.sync()
        self.version = version

    def sync(self) -> VLLMProcess:
        """The process with the model's present weights."""
        process = self.process()
        self.send_weights(process, {"op": "sync"})
        return process

    def send_weights(self, process: VLLMProcess, message: dict[str, Any]) -> None:
        """Send the model's weights with a message, if the process has others."""
        block, weights = share(own_weights(self.vlm), self.dtype)
        with block:
            digest, serial = digest_of(weights), process.serial + 1
            if process.digest == digest:
                self.digest = digest
                return
            problem = update_problem(weights, process.spec or spec_of(weights))
            if problem is not None:  # before anything is sent; the process is as it was
                raise checks.update_error(problem)
            process.spec = spec_of(weights)
            process.digest = ""  # until the probe passed: nothing is written with other weights
            head = {"serial": serial, "digest": digest, "weights": described(weights)}
            reply = process.ask({**message, **head}, shared=block)
        process.serial = serial
        checks.check_reply(reply, (serial, digest))
        self.probe(process, digest)
        process.digest = self.digest = digest

    def probe(self, process: VLLMProcess, digest: str) -> None:
        """R414 if a known response has other log-probabilities than in the student."""
        prompt = probe_prompt()
        encoded = self.vlm.encode(prompt)
        ids = probe_ids(self.vlm)
        with eval_mode(self.vlm.model), torch.no_grad(), self.vlm.on_device():
            ours = score(
                self.vlm,
                [EncodedGroup(encoded, (ids,))],
                torch.tensor(ids, device=self.vlm.device),
                self.vlm.vocabulary_size,
                "log_prob",
            ).sampled()
        request = RolloutRequest(prompt.id, encoded, (0,))
        sampling = Sampling(0, 0, 1.0, 1.0, len(ids), log_probs=True)
        (row,) = self.ask_rows(process, digest, [request], sampling, ids)
        checks.check_probe(row["log_probs"], ours.tolist(), self.dtype)

    # Responses.

    def generate(
        self, requests: Sequence[RolloutRequest], sampling: Sampling
    ) -> list[tuple[Rollout, ...]]:
        """Return the rollouts of each request, in order."""
        self.check_limits(requests, sampling.max_new_tokens)
        process = self.process()
        if not self.digest or not process.digest:  # new: the weights as they are now
            process = self.sync()
        if process.digest != self.digest:
            raise checks.stale_error("another engine of this model synced other weights")
        rows = iter(self.ask_rows(process, self.digest, requests, sampling))
        stop = set(self.vlm.stop_ids)

        def rollout(request: RolloutRequest, sibling: int) -> Rollout:
            row = next(rows)
            values = row["log_probs"] if sampling.log_probs else None
            return to_rollout(row["ids"], stop, sibling, request.attempt, values)

        return [tuple(rollout(r, sibling) for sibling in r.siblings) for r in requests]

    def check_limits(self, requests: Sequence[RolloutRequest], new: int) -> None:
        """R413 with the limit that all prompts of a call need."""
        if not requests:
            return
        longest = max(requests, key=lambda request: len(request.prompt.ids))
        where = location_of_request(longest)
        checks.check_length(longest.prompt.ids, new, self.limits, where)
        self.restart_for(len(longest.prompt.ids) + new)
        images, where = max(
            ((len(image_tokens(self.family, r.prompt)), location_of_request(r)) for r in requests),
            key=lambda pair: pair[0],
        )
        checks.check_images(images, self.limits, where)

    def restart_for(self, needed: int) -> None:
        """End a process that was started for fewer tokens; the next one takes so many."""
        self.needed = max(self.needed, needed)
        process, _ = PROCESSES.get(self.key, (None, []))
        if process is None or not process.is_open or process.max_length >= needed:
            return
        if process.max_length < length_for(self.vlm, needed):
            LOG.info("vLLM starts again: %d tokens, not %d", needed, process.max_length)
            process.end()

    def ask_rows(
        self,
        process: VLLMProcess,
        digest: str,
        requests: Sequence[RolloutRequest],
        sampling: Sampling,
        forced: Sequence[int] | None = None,
    ) -> list[dict[str, Any]]:
        """The rows of vLLM, checked: weights, sampling, and the prompt that each one continues."""
        described_requests, blocks = [], []
        for request in requests:
            message, images = self.describe(request, sampling, forced)
            described_requests.append(message)
            blocks += images
        counted = 0

        def count(finished: int) -> None:
            nonlocal counted
            if forced is None:
                count_done(RESPONSES, finished - counted)
            counted = finished

        reply = process.ask(
            {
                "op": "generate",
                "serial": process.serial,
                "digest": digest,
                "sampling": {
                    "temperature": sampling.temperature,
                    "top_p": sampling.top_p,
                    "noise": sampling.noise,
                    "max_new_tokens": sampling.max_new_tokens,
                    "log_probs": sampling.log_probs,
                    "banned": banned_ids(self.vlm),
                    "stop": self.vlm.stop_ids,
                    "vocabulary": self.vlm.vocabulary_size,
                },
                "requests": described_requests,
            },
            blocks,
            count,
        )
        checks.check_reply(reply, (process.serial, digest))
        checks.check_applied(reply, sampling.temperature, sampling.top_p)
        rows = iter(reply["rows"])
        image_id, checked = self.family.image_id, []
        for request in requests:
            for _ in request.siblings:
                checked.append(next(rows))
                where = location_of_request(request)
                checks.check_prompt(checked[-1]["prompt_ids"], request.prompt.ids, image_id, where)
        return checked

    def describe(
        self, request: RolloutRequest, sampling: Sampling, forced: Sequence[int] | None
    ) -> tuple[dict[str, Any], list[Block]]:
        """A request for the process: one image token per image, and the pixels of the images."""
        images = self.family.images_as_read(request.prompt)
        counts = image_tokens(self.family, request.prompt)
        ids = checks.collapse_images(request.prompt.ids, self.family.image_id, counts)
        message = {
            "ids": ids,
            "images": [image.size for image in images],
            "seeds": [
                rollout_seed(sampling.seed, sampling.step, request.key, sibling, request.attempt)
                for sibling in request.siblings
            ],
            "forced": [None if forced is None else list(forced)] * len(request.siblings),
        }
        return message, [image.tobytes() for image in images]


def length_for(vlm: VLM, needed: int) -> int:
    """The power of two from 4,096 on that holds so many tokens, but no more than the model."""
    length = max(4096, 1 << (needed - 1).bit_length())
    return min(length, int(vlm.model.config.get_text_config().max_position_embeddings))


def image_tokens(family: Qwen3VLFamily, prompt: EncodedPrompt) -> list[int]:
    """Tokens of each image of a prompt."""
    grids = family.patch_grids(prompt) if prompt.has_image else []
    return [rows * columns // family.merge**2 for _, rows, columns in grids]


def awake(process: VLLMProcess) -> VLLMProcess:
    """The process, woken if it sleeps."""
    if process.is_asleep:
        process.ask({"op": "wake"})
        process.is_asleep = False
    return process


def check_family(vlm: VLM, engine: str) -> Qwen3VLFamily:
    """The family of a model whose pictures vLLM can get as the model reads them (C101)."""
    if not isinstance(vlm.family, Qwen3VLFamily):
        what = f"rollout.engine = {engine}, but the writer is of the family {vlm.family.describe()}"
        why = "that vLLM gets exactly the pixels that the student reads is tested for Qwen3-VL"
        raise ConfigError("C101", what, why=why, fix="rollout.engine=shared")
    return vlm.family


def check_writer(vlm: VLM) -> Qwen3VLFamily:
    """The family of a model that vLLM can write with (C101 for another one)."""
    family = check_family(vlm, "vllm")
    if any(not p.dtype.is_floating_point for p in vlm.model.parameters()):
        what = "rollout.engine = vllm, but the weights of the writer are quantised"
        why = "vLLM takes weights of 16 or 32 bits"
        raise ConfigError("C101", what, why=why, fix="rollout.engine=shared")
    return family


@torch.no_grad()
def own_weights(vlm: VLM) -> Mapping[str, Tensor]:
    """The weights of a model by their names in safetensors, adapters merged."""
    return merged_weights(vlm.model) if has_adapters(vlm.model) else weights_of(vlm)


@torch.no_grad()
def host_weights(vlm: VLM, dtype: str) -> dict[str, Tensor]:
    """The weights as vLLM takes them: adapters merged, in host memory, in its precision."""
    kind = getattr(torch, dtype)
    return {n: x.detach().to("cpu", kind).contiguous() for n, x in own_weights(vlm).items()}


def described(weights: dict[str, Tensor]) -> list[tuple[str, str, list[int]]]:
    """Name, precision and shape of each weight, in order."""
    return [(name, dtype, list(shape)) for name, (dtype, shape) in spec_of(weights).items()]


def write_model_folder(vlm: VLM, folder: Path, max_length: int) -> None:
    """Write what vLLM needs of a model besides its weights.

    Images are sent as they are read, so the limits of the image processor change none of them.
    """
    folder.mkdir()
    config = vlm.model.config
    config.architectures = [type(vlm.model).__name__]
    config.save_pretrained(folder)
    vlm.family.save_processor(folder)
    file = folder / "preprocessor_config.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    settings["size"] = picture_limits(vlm, max_length)
    file.write_text(json.dumps(settings), encoding="utf-8")


def picture_limits(vlm: VLM, max_length: int) -> dict[str, int]:
    """Limits, in pixels, under which no picture that the model has resized is resized again."""
    grid = vlm.family.image_grid()
    token = (grid["patch"] * grid["merge"]) ** 2
    largest = min(2 * grid["max_pixels"], max_length * token)  # a resized image can be larger
    return {"shortest_edge": token, "longest_edge": largest}


def probe_prompt() -> Prompt:
    """A question with an image, longer than a block of the prefix cache."""
    gradient = Image.linear_gradient("L").resize((64, 48))
    turned = gradient.transpose(Image.Transpose.ROTATE_90).resize((64, 48))
    image = LoadedImage(Image.merge("RGB", (gradient, turned, gradient)))
    return Prompt("vllm probe", (image, "Which? " * PROBE_WORDS))


def probe_ids(vlm: VLM) -> tuple[int, ...]:
    """A response of ids that any model can score, spread over its vocabulary."""
    banned, size = {*banned_ids(vlm), *vlm.stop_ids}, vlm.vocabulary_size
    spread = [(7 + number * 7919) % size for number in range(4 * PROBE_TOKENS)]
    return tuple([token for token in spread if token not in banned][:PROBE_TOKENS])
