"""What leaves this program as text: secrets are masked, control characters are shown instead of sent."""

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MASK = "***"
#: C0 and C1 controls but newline and tab, direction marks, line separators, lone surrogates.
CONTROL_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)
#: Names whose values are nobody's business: of a setting, of a JSON key, of an environment variable.
SECRET_NAME = re.compile(r"(?:[_-](?:token|key|secret)|password|passwd)$", re.IGNORECASE)
#: `user:pass@` and `token@` in a URL, which as a path has one slash. These patterns are bounded: text may be long.
CREDENTIALS = re.compile(
    r"(:/)(?:/[^\s/@\"'<>\\]{1,512}|[^\s/@\"'<>\\:]{1,256}:[^\s/@\"'<>\\]{1,256})@"
)
#: `?token=...` and the like in an address.
QUERY = re.compile(
    r"([?&][\w-]{0,40}(?:token|key|secret|password|passwd|signature)=)[^&\s\"'<>]{1,2048}",
    re.IGNORECASE,
)
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
#: `hf_token=...`, `'api_key': '...'`, and `--hf-token ...`.
SETTING = re.compile(
    r"((?:[_-](?:token|key|secret)|password|passwd)[\"']?\s{0,8}[=:]\s{0,8}"
    r"|(?<![\w-])--?[\w-]{0,40}(?:token|key|secret|password|passwd)\s{1,8})"
    r"(\"[^\"\n]{0,512}\"|'[^'\n]{0,512}'|[^\s,;}\]]{1,2048})",
    re.IGNORECASE,
)
#: Shorter values of the environment, and those without a letter and a digit, are words that occur anywhere.
SHORTEST_SECRET = 8
LETTER_AND_DIGIT = re.compile(r"(?=.*[A-Za-z])(?=.*\d)", re.DOTALL)


def escape_control_characters(text: str, newline: str = "⏎") -> str:
    """Control characters and direction marks made visible; spaces and tabs stay."""
    shown = CONTROL_CHARACTERS.sub(lambda found: f"\\x{ord(found[0]):02x}", text)
    return shown if newline == "\n" else shown.replace("\n", newline)


def for_terminal(text: str) -> str:
    """Text as it may be printed: no control character but newline, no secret."""
    return mask_secret_settings(escape_control_characters(text, "\n").replace("\t", "    "))


@dataclass(frozen=True)
class Secrets:
    """The secrets of an environment as one pattern; None where it has none."""

    pattern: re.Pattern[str] | None


def secrets_in_environment() -> Secrets:
    """The secrets of the environment as it is now; looked for again only where the environment has changed."""
    return find_secrets(tuple(os.environ.items()))


@lru_cache(maxsize=1)
def find_secrets(environment: tuple[tuple[str, str], ...]) -> Secrets:
    """Values of variables that are named like secrets, as they are and as JSON has them, the longest first."""
    named = {
        v
        for k, v in environment
        if len(v) >= SHORTEST_SECRET and SECRET_NAME.search(k) and LETTER_AND_DIGIT.search(v)
    }
    found = {v for v in named if not os.access(v, os.F_OK)}  # the path of a key file is no secret
    longest_first = sorted(found | {json.dumps(v)[1:-1] for v in found}, key=lambda v: (-len(v), v))
    return Secrets(re.compile("|".join(map(re.escape, longest_first))) if longest_first else None)


def mask_secrets(text: str, secrets: Secrets | None = None) -> str:
    """The same text without credentials in URLs and without the environment's secrets; what data says stays.

    Args:
        text: any text.
        secrets: of the environment; a caller with many texts asks for them once (`secrets_now`).
    """
    pattern = (secrets or secrets_in_environment()).pattern
    if pattern is not None:
        text = pattern.sub(MASK, text)
    if ":/" in text:
        text = CREDENTIALS.sub(rf"\1/{MASK}@", text)
    if "=" in text and "?" in text:
        text = QUERY.sub(rf"\1{MASK}", text)
    return HUB_TOKEN.sub(MASK, text) if "hf_" in text else text


def mask_secret_settings(text: str) -> str:
    """Text of ours (commands, messages), in which `hf_token=...` is masked too."""
    return SETTING.sub(rf"\g<1>{MASK}", mask_secrets(text))


def is_secret(name: Any, value: Any) -> bool:
    """Whether a key of a record says that its value is a secret; numbers are none."""
    return isinstance(value, str) and bool(value) and bool(SECRET_NAME.search(str(name)))
