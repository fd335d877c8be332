"""What `vistill eval` and `vistill probe` were pointed at."""

import json
from pathlib import Path

from vistill.config import Recipe, build_recipe, load_recipe, override, set_dotted, split_override


def recipe_for(target: str, overrides: list[str], verb: str) -> Recipe:
    """A recipe file, a run folder (its own recipe, its chosen student), or a model (evaluated on diagrams).

    Results go into `run`, by default a new folder beside the target.
    """
    pairs = dict(split_override(text) for text in overrides)
    if target.endswith((".yaml", ".toml")):
        return load_recipe(target, pairs)
    stored = Path(target) / "recipe.json"
    if stored.is_file():
        tree = json.loads(stored.read_text(encoding="utf-8"))
        tree |= {"run": f"{target.rstrip('/')}-{verb}"}
        tree["eval"]["limit"] = tree["eval"]["final_limit"]
    else:
        tree = {"run": f"runs/{verb}-{Path(target).name.replace(':', '-')}", "method": "sft", "eval": {"limit": 200}}
        tree |= {"student": {}, "data": {"train": "diagrams"}}
    set_dotted(tree, "student.model", target)
    override(tree, pairs)
    return build_recipe(tree, name=verb)
