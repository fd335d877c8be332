"""Bytes of a phase, and what a call of the engine decodes. Needs no torch."""

from dataclasses import dataclass, field

#: A cache grows by so many tokens when it is full (`models/decode_attention.py`).
CACHE_TOKENS = 64


def cache_capacity(tokens: int) -> int:
    """Tokens of the cache of a response of this length."""
    return -(-tokens // CACHE_TOKENS) * CACHE_TOKENS


@dataclass(frozen=True)
class PhaseBytes:
    """Bytes of a phase on the device, by kind."""

    name: str
    kinds: dict[str, float] = field(default_factory=dict)
    note: str = ""
    """What a run does by itself so that the phase fits, such as fewer rows at a time."""
    rows: int = 0
    """Responses that are decoded at a time."""

    @property
    def total(self) -> float:
        """All bytes."""
        return sum(self.kinds.values())


@dataclass(frozen=True)
class DecodingCall:
    """Responses to decode."""

    responses: int
    rows_per_call: int
    """Most responses at a time."""
    tokens: int
    """Longest response."""
    siblings: int
    """Responses that share a prompt."""
