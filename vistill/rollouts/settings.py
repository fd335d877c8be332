"""How responses are sampled. Needs no torch."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RolloutSettings:
    """Sampling of the student's responses. Class defaults are the paper's (VA-OPD appendix A)."""

    engine: str = "hf"
    """Which engine writes: hf (transformers' generate)."""
    per_prompt: int = 4
    """Sibling rollouts of each prompt (K)."""
    temperature: float = 0.7
    """Sampling temperature. Scores are always taken at temperature 1."""
    top_p: float = 0.95
    """Nucleus: the smallest set of tokens with this probability."""
    max_new_tokens: int = 1024
    """A response longer than this is cut off and kept."""
    rows_per_call: int = 256
    """Rows decoded together. Only speed and memory depend on it."""
