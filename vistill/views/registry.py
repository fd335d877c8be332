"""Apply a view to a prompt: look up its function by name, and check what it returns."""

from collections.abc import Iterable
from dataclasses import dataclass

from vistill.errors import ConfigError
from vistill.plugin_calls import checked_function
from vistill.registry import views
from vistill.types import Prompt, View


@dataclass(frozen=True)
class ViewContext:
    """What a view may need besides the prompt."""

    pixel_share: float = 0.10
    """Side of the reduced picture as a share of the original (VA-OPD: 0.10)."""
    partner: Prompt | None = None
    """The prompt whose pictures `swapped` shows, and whose thoughts `privileged_mismatched` shows
    (`Partners`)."""
    mask_share: float = 0.6
    """Share of the patches that `masked` blanks."""
    patch: int = 14
    """Side of a masked patch in pixels."""
    degrade: str = "either"
    """What `degraded` does: downsample, noise, or one of them by a keyed coin."""
    thought: str = "data"
    """The thought source: data, crop, box, or one of a plug-in."""
    noise: str = "gaussian"
    """What `noise` and `privileged_noise` show: gaussian (the code of Visual-OPSD) or uniform."""
    seed: int = 0
    """Key of whatever a view draws at random."""


def apply_view(prompt: Prompt, view: View | str, context: ViewContext | None = None) -> Prompt:
    """The prompt as a view shows it.

    Raises:
        ConfigError: C105, the view is unknown; C106, it does not return the prompt with other
            parts.
    """
    shown = checked_function(views, str(view))(prompt, context or ViewContext())
    if not isinstance(shown, Prompt) or shown.id != prompt.id:
        raise ConfigError(
            "C106",
            f"the view {view} returns no prompt of the same id",
            where=str(views.entry(view).origin),
            why="rollouts, noise and caches know a prompt by its id",
            fix="return prompt.with_images(images)",
        )
    return shown


def plugin_views(names: Iterable[View | str]) -> list[str]:
    """Those of some views that do not come with vistill, each once."""
    return [str(name) for name in dict.fromkeys(map(str, names)) if name not in views.builtin]
