"""The one builder of engines: for training, evaluation and responses of the teacher."""

from collections.abc import Callable

from vistill.errors import ConfigError
from vistill.models.loading import VLM
from vistill.registry import engines
from vistill.rollouts.checked_engine import CheckedEngine
from vistill.rollouts.engine import RolloutEngine
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.image_skips import ImageSkipEngine
from vistill.rollouts.server_engine import ServerEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine
from vistill.rollouts.vllm_engine import VLLMEngine
from vistill.rollouts.weight_copy import writes_with_copy


def make_engine(
    vlm: VLM,
    settings: RolloutSettings,
    poll: Callable[[], None] = lambda: None,
    own: RolloutEngine | None = None,
) -> RolloutEngine:
    """The engine of a recipe for one model; whatever it writes is checked.

    Args:
        vlm: the model that writes.
        settings: `engine` names it, `image_skips` wraps it. Evaluation and the teacher's responses
            use `settings.without_image_skips()`.
        poll: called after every token, or block of tokens, so that a signal is honoured.
        own: an engine of the caller's, taken as it is and checked.
    """
    if own is not None:
        return own if isinstance(own, CheckedEngine) else CheckedEngine(own, vlm)
    engine = engines.get(settings.engine)(vlm, settings, poll)
    if not isinstance(engine, RolloutEngine):
        raise ConfigError(
            "C106",
            f"{settings.engine} gives a {type(engine).__name__}, which is no rollout engine",
            where=str(engines.entry(settings.engine).origin),
            why="vistill/rollouts/engine.py lists the members of one",
            fix="rollout.engine=shared",
        )
    plain = CheckedEngine(engine, vlm)
    return (
        plain
        if settings.image_skips == 0
        else CheckedEngine(ImageSkipEngine(plain, vlm, settings), vlm)
    )


def shared_engine(vlm: VLM, settings: RolloutSettings, poll: Callable[[], None]) -> RolloutEngine:
    """The default engine: encodes a prompt once for all its rollouts and drops finished rows.

    A family that cannot share prompts gets `hf`, with the same results (C101 for settings that `hf`
    does not have).
    """
    if not vlm.shares_prompts:
        settings.refuse_decoder_settings(
            f"{vlm.source} cannot share prompts, so transformers' generate writes"
        )
        return HFEngine(vlm, poll)
    uses_copy = writes_with_copy(vlm, settings.weights)
    return SharedEngine(vlm, poll, uses_copy=uses_copy, uses_graph=settings.cuda_graph)


def hf_engine(vlm: VLM, settings: RolloutSettings, poll: Callable[[], None]) -> RolloutEngine:
    """Transformers' `generate`, one row per response."""
    return HFEngine(vlm, poll)


def vllm_engine(vlm: VLM, settings: RolloutSettings, poll: Callable[[], None]) -> RolloutEngine:
    """VLLM in a process and an environment of its own."""
    return VLLMEngine(vlm, settings, poll)


def server_engine(vlm: VLM, settings: RolloutSettings, poll: Callable[[], None]) -> RolloutEngine:
    """A vLLM server by its address."""
    return ServerEngine(vlm, settings, poll)
