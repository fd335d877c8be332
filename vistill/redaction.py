"""Redaction of all text that vistill writes or prints: mask secrets, escape control characters."""

import json
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MASK = "***"
#: C0 and C1 controls except newline and tab, direction marks, line separators, lone surrogates.
CONTROL_CHARACTERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)
#: Names with secret values: of a setting, a JSON key, or an environment variable.
SECRET_NAME = re.compile(r"(?:[_-](?:token|key|secret)|password|passwd)$", re.IGNORECASE)
#: `user:pass@` and `token@` in a URL; a URL turned into a path has only one slash. The repeats in
#: these patterns are bounded, because texts may be long.
CREDENTIALS = re.compile(
    r"(:/)(?:/[^\s/@\"'<>\\]{1,512}|[^\s/@\"'<>\\:]{1,256}:[^\s/@\"'<>\\]{1,256})@"
)
#: `?token=...` and similar parameters in a URL.
QUERY = re.compile(
    r"([?&][\w-]{0,40}(?:token|key|secret|password|passwd|signature)=)[^&\s\"'<>]{1,2048}",
    re.IGNORECASE,
)
HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b")
#: `hf_token=...`, `'api_key': '...'`, and `--hf-token ...`; not the placeholder of a local server.
SETTING = re.compile(
    r"((?:[_-](?:token|key|secret)|password|passwd)[\"']?\s{0,8}[=:]\s{0,8}"
    r"|(?<![\w-])--?[\w-]{0,40}(?:token|key|secret|password|passwd)\s{1,8})"
    r"(?!(?-i:EMPTY)(?:[\s,;}\]]|$))(\"[^\"\n]{0,512}\"|'[^'\n]{0,512}'|[^\s,;}\]]{1,2048})",
    re.IGNORECASE,
)
#: Shorter values of the environment, and values without both a letter and a digit, are ordinary
#: words.
SHORTEST_SECRET = 8
LETTER_AND_DIGIT = re.compile(r"(?=.*[A-Za-z])(?=.*\d)", re.DOTALL)


def escape_control_characters(text: str, newline: str = "⏎") -> str:
    """Replace control characters and direction marks by visible escapes; tabs stay."""
    escaped = CONTROL_CHARACTERS.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
    return escaped if newline == "\n" else escaped.replace("\n", newline)


def for_terminal(text: str) -> str:
    """Make text safe to print: no control character except newline, no secret."""
    return mask_secret_settings(escape_control_characters(text, "\n").replace("\t", "    "))


@dataclass(frozen=True)
class Secrets:
    """The secrets of an environment as one pattern; None if it has none."""

    pattern: re.Pattern[str] | None


def secrets_in_environment() -> Secrets:
    """The secrets of the current environment, cached until the environment changes."""
    return find_secrets(tuple(os.environ.items()))


@lru_cache(maxsize=1)
def find_secrets(environment: tuple[tuple[str, str], ...]) -> Secrets:
    """Find the values of variables named like secrets, plain and JSON-escaped, longest first."""
    candidates = {
        v
        for k, v in environment
        if len(v) >= SHORTEST_SECRET and SECRET_NAME.search(k) and LETTER_AND_DIGIT.search(v)
    }
    # the path of a key file is not a secret
    secrets = {v for v in candidates if not os.access(v, os.F_OK)}
    escaped = {json.dumps(v)[1:-1] for v in secrets}
    longest_first = sorted(secrets | escaped, key=lambda v: (-len(v), v))
    return Secrets(re.compile("|".join(map(re.escape, longest_first))) if longest_first else None)


def mask_secrets(text: str, secrets: Secrets | None = None) -> str:
    """Mask credentials in URLs and the secrets of the environment; other text stays.

    Args:
        text: any text.
        secrets: of the environment; a caller with many texts computes them once
            (`secrets_in_environment`).
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
    """Like `mask_secrets`, for commands and messages: masks `hf_token=...` too."""
    return SETTING.sub(rf"\g<1>{MASK}", mask_secrets(text))


def is_secret(name: Any, value: Any) -> bool:
    """Whether a key of a record marks its value as a secret; numbers are never secrets."""
    return isinstance(value, str) and bool(value) and bool(SECRET_NAME.search(str(name)))
