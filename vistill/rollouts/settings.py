"""How responses are sampled. Needs no torch."""

from dataclasses import dataclass, replace
from typing import Literal

from vistill.ranges import check_ranges, ranged


@dataclass(frozen=True)
class RolloutSettings:
    """Sampling of the student's responses. K, temperature and nucleus default to VA-OPD's (4.1, appendix A)."""

    engine: Literal["shared", "hf"] = "shared"
    """Which engine writes: ours, which reads a prompt once and drops finished rows, or transformers' generate."""
    per_prompt: int = ranged(4, 1)
    """Sibling rollouts of each prompt (K)."""
    temperature: float = ranged(0.7, 0)
    """Sampling temperature. Scores are always taken at temperature 1."""
    top_p: float = ranged(0.95, 0, 1, above=True)
    """Nucleus: the smallest set of tokens with this probability."""
    max_new_tokens: int = ranged(1024, 1)
    """A response longer than this is cut off and kept (VA-OPD: 4096)."""
    all_truncated: Literal["stop", "go_on"] = "stop"
    """Three steps without one response that ends by itself: stop (R401), or go on (short responses on purpose)."""
    rows_per_call: int = ranged(256, 1)
    """Rows decoded together. Only speed and memory depend on it."""
    image_skips: int = ranged(0, 0)
    """How often a response that wants to draw is reopened as text instead (Visual-OPSD: 1); 0 turns it off."""
    image_marker: str = "<image_start>"
    """Literal text by which a model announces a drawing."""
    reopen: str = "\n<|im_start|>assistant\n"
    """What opens the next turn after one was closed."""

    def __post_init__(self) -> None:
        check_ranges(self)

    def without_image_skips(self) -> "RolloutSettings":
        """For evaluation and the teacher's responses: what a model says without its turns being reopened."""
        return replace(self, image_skips=0)
