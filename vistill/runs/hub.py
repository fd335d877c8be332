"""Whether the hub answers. It is asked once, because its client tries again for half a minute."""

import os
import ssl
import urllib.request
import warnings
from functools import cache
from http.client import HTTPException
from urllib.error import HTTPError, URLError

#: How long an answer may take.
SECONDS = 5.0


def is_offline() -> bool:
    """Whether only the local cache is read: HF_HUB_OFFLINE is set, or the hub did not answer."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def offline_is_set() -> bool:
    """Whether the environment forbids the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


def ask_hub() -> None:
    """Read only the local cache for the rest of the process if the hub does not answer."""
    from huggingface_hub import constants

    if not is_offline() and not hub_answers(constants.ENDPOINT):
        constants.HF_HUB_OFFLINE = True
        warnings.warn(f"{constants.ENDPOINT} does not answer: cached files are used", stacklevel=2)


@cache
def hub_answers(endpoint: str) -> bool:
    """Whether a request to the hub has any answer, an error included."""
    request = urllib.request.Request(endpoint, method="HEAD")  # noqa: S310  from HF_ENDPOINT
    try:
        with urllib.request.urlopen(request, timeout=SECONDS):  # noqa: S310
            return True
    except HTTPError as error:
        error.close()
        return True
    except URLError as error:  # the client of the hub may know other certificates
        return isinstance(error.reason, ssl.SSLError)
    except (OSError, HTTPException, ValueError):
        return False
