"""The one builder of engines: for training, evaluation and responses of the teacher."""

from collections.abc import Callable

from vistill.models.loading import VLM
from vistill.rollouts.checked_engine import CheckedEngine
from vistill.rollouts.engine import RolloutEngine
from vistill.rollouts.hf import HFEngine
from vistill.rollouts.image_skips import ImageSkipEngine
from vistill.rollouts.settings import RolloutSettings
from vistill.rollouts.shared import SharedEngine


def make_engine(
    vlm: VLM,
    settings: RolloutSettings,
    poll: Callable[[], None] = lambda: None,
    own: RolloutEngine | None = None,
) -> RolloutEngine:
    """The engine of a recipe for one model; whatever it writes is checked.

    Args:
        vlm: the model that writes.
        settings: `engine` names it (a family that cannot share prompts gets `hf`: the same numbers),
            `image_skips` wraps it. Evaluation and the teacher's responses take
            `settings.without_image_skips()`.
        poll: called after every token, so that a signal is honoured.
        own: an engine of the caller's, taken as it is and checked.
    """
    if own is not None:
        return own if isinstance(own, CheckedEngine) else CheckedEngine(own, vlm)
    shared = settings.engine == "shared" and vlm.shares_prompts
    plain = CheckedEngine(SharedEngine(vlm, poll) if shared else HFEngine(vlm, poll), vlm)
    return (
        plain
        if settings.image_skips == 0
        else CheckedEngine(ImageSkipEngine(plain, vlm, settings), vlm)
    )
