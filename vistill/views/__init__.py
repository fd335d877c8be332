"""What a reader sees of a prompt: views, the rows they borrow from, and visual thoughts."""

from vistill.views.partners import Partners
from vistill.views.pictures import pixelate
from vistill.views.registry import ViewContext, apply_view
from vistill.views.thoughts import has_thoughts

__all__ = ["Partners", "ViewContext", "apply_view", "has_thoughts", "pixelate"]
