"""What can go wrong between vistill and a vLLM server, each as an error."""

import math
import os
import re
from collections.abc import Sequence
from urllib.parse import urlsplit

from vistill.errors import ConfigError, RolloutError
from vistill.rollouts.settings import ServerSettings

#: The variable that has the API key. It is no key of a recipe: run folders keep recipes.
KEY_VARIABLE = "VISTILL_SERVER_KEY"
#: The variable that names the other machines that may be asked, and the names of this one.
HOSTS_VARIABLE, LOOPBACK = "VISTILL_SERVER_HOSTS", ("127.0.0.1", "localhost", "::1")
#: The start of a server that takes token ids and pictures, and returns ids.
SERVE = "vllm serve MODEL --enable-scale-out"
AGAIN = "the same command continues with what is written"
#: Standard deviations that samples may be away from their expectation; rounding adds to the
#: variance.
MOST_DEVIATIONS, ROUNDING = 5.0, 0.1


def server_error(
    code: str, what: str, why: str, *, where: str = "", note: str = ""
) -> RolloutError:
    """An error of a server. Our own engine needs none."""
    return RolloutError(code, what, where=where, why=why, fix="rollout.engine=shared", note=note)


def checked_url(settings: ServerSettings) -> str:
    """The address without a trailing slash or `/v1`.

    C101 without one, for another scheme, or for a machine that the environment does not allow: a
    recipe from elsewhere must not send pictures away.
    """
    url = settings.url.rstrip("/").removesuffix("/v1")
    parts = urlsplit(url)
    host = parts.hostname or ""
    why = f"an address of http or https, without a password; {KEY_VARIABLE} has the API key"
    what = "rollout.engine = server needs rollout.server.url, such as http://127.0.0.1:8000"
    note = f"start one: {SERVE}"
    if parts.scheme in ("http", "https") and host and not parts.username:
        allowed = re.split(r"[,\s]+", os.environ.get(HOSTS_VARIABLE, "").lower())
        if host in {*LOOPBACK, *allowed}:
            return url
        what = "rollout.server.url names another machine, which the environment does not allow"
        why = "a recipe alone must not send prompts and pictures away"
        note = f"export {HOSTS_VARIABLE}={host}"
    raise ConfigError(
        "C101",
        what,
        where=f"rollout.server.url = {settings.url!r}" if not parts.username else "",
        why=why,
        fix="rollout.engine=shared",
        note=note,
    )


def unknown_model_error(url: str, wanted: str, names: Sequence[str]) -> RolloutError:
    """R418 for a name that the server does not serve, or without one where it serves several."""
    what = f"the server does not serve {wanted!r}" if wanted else "which model of the server?"
    why = f"it serves: {', '.join(names) or 'none'}"
    note = f"rollout.server.model={names[0] if names else 'NAME'}"
    return server_error("R418", what, why, where=url, note=note)


def unreachable_error(url: str, why: str) -> RolloutError:
    """R417 for a server that does not answer."""
    return server_error("R417", "the vLLM server does not answer", why, where=url, note=AGAIN)


def refused_error(url: str, path: str, status: int, text: str) -> RolloutError:
    """The error for a reply with another status than 200."""
    text = " ".join(text.split())[:300]
    if re.search(r"At most 0 image|not a multimodal|does not support (image|multimodal)", text):
        what = "the server takes no pictures"
        return server_error("R418", what, text, where=url, note="without --limit-mm-per-prompt 0")
    if status == 400 and re.search(r"[Aa]t most \d+ image|limit[-_]mm[-_]per[-_]prompt", text):
        what = "a prompt has more images than the server takes"
        note = "start it with --limit-mm-per-prompt '{\"image\": 8}'"
        return server_error("R413", what, text, where=url, note=note)
    if status == 400 and re.search(r"maximum (context|model) length|max_model_len", text):
        return length_error(url, text)
    if status in (401, 403):
        what, note = "the server wants an API key", f"export {KEY_VARIABLE}=KEY"
        return server_error("R417", what, text, where=url, note=note)
    what = f"the vLLM server refuses {path} (status {status})"
    note = "out of memory, another version than 0.32, or its engine ended: see its own log"
    return server_error("R417", what, text or "no text", where=url, note=note)


def length_error(url: str, why: str, needed: int | None = None) -> RolloutError:
    """R413 for a prompt and response that are longer than the server's limit."""
    what = "prompt and response together are longer than the server takes"
    note = f"start it with --max-model-len {needed or 'LARGER'}"
    return server_error("R413", what, why, where=url, note=note)


def check_ended(url: str, ids: Sequence[int], stop: set[int], limit: int) -> None:
    """R412 for a response that ends before its limit at a token that ends no turn."""
    if len(ids) < limit and (not ids or ids[-1] not in stop):
        last = f"after token {ids[-1]}" if ids else "before its first token"
        what = f"the server ends a response {last}, which ends no turn of the model"
        why = f"{len(ids)} of {limit} tokens: a stop string or a limit of its own"
        raise server_error("R412", what, why, where=url)


def check_same_model(url: str, distance: float, bound: float, processed: float) -> None:
    """R418 if a server's log-probabilities are not those of the model.

    Args:
        url: of the server.
        distance: mean distance to the model's log-probabilities at temperature 1, in nats.
        bound: the largest one for the server's precision.
        processed: the same distance to those after temperature and nucleus.
    """
    if distance <= bound:
        return
    if processed <= bound:
        what = "the server reports log-probabilities after temperature and nucleus"
        why = "teacher and student are compared at temperature 1 over all tokens"
        note = "start it with --logprobs-mode raw_logprobs"
        raise server_error("R412", what, why, where=url, note=note)
    what = f"the server is {distance:.1e} nats per token away from the model"
    why = f"at most {bound:g}: other weights, another model, or pictures that it reads differently"
    note = "a server in bf16: rollout.server.precision=bfloat16" if bound < 0.1 else ""
    raise server_error("R418", what, why, where=url, note=note)


def check_draws(url: str, difference: float, variance: float, outside: int) -> None:
    """R412 for samples that are not of the distribution that was asked for.

    Args:
        url: of the server.
        difference: sum over tokens of their place in the distribution, minus 1/2.
        variance: of that sum.
        outside: tokens that are not in the nucleus.
    """
    deviation = -difference / math.sqrt(variance + ROUNDING)
    if abs(deviation) <= MOST_DEVIATIONS and not outside:
        return
    what = "the server samples in another way than it is asked to"
    why = (
        f"{outside} tokens are outside of the nucleus"
        if outside
        else f"its tokens are {deviation:+.1f} standard deviations too likely"
    )
    why += ": a temperature, top_k, top_p or penalty of its own"
    raise server_error("R412", what, why, where=url, note="see --override-generation-config")


def follow_error(why: str) -> RolloutError:
    """R419."""
    return server_error(
        "R419",
        "a server does not get the student's new weights, so its responses are off-policy",
        why,
        note="a server can write what the teacher writes, and evaluations of finished models",
    )
