"""M103: a model that is not there, and which one was meant. Needs no torch."""

import json
import os
from collections.abc import Iterable
from pathlib import Path

from vistill.errors import ModelError, closest

ASSETS = Path(__file__).parent.parent / "assets"
#: Model families with an adapter; a test holds it equal to the adapters'.
KNOWN_FAMILIES = ("qwen3_vl",)
#: Hub ids that a misspelt one is held against.
HUB_MODELS = tuple(
    f"Qwen/Qwen3-VL-{size}-{kind}"
    for size in ("2B", "4B", "8B", "32B")
    for kind in ("Instruct", "Thinking")
)


def model_name(source: str) -> str:
    """A model as a recipe would name it."""
    folder = Path(source)
    return f"vistill:{folder.name}" if folder.parent == ASSETS else source


def is_model_folder(folder: Path) -> bool:
    """A folder with weights of a family that can be trained."""
    try:
        family = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        return False
    return family in KNOWN_FAMILIES and any(folder.glob("*.safetensors"))


def looks_like_hub_id(name: str) -> bool:
    """`owner/name`, and no local folder is called like the owner; anything else is a path."""
    owner, _, rest = name.partition("/")
    return bool(rest) and "/" not in rest and not Path(owner).is_dir()


def models_in(folder: Path) -> list[str]:
    """The models that lie in a folder."""
    inside = sorted(folder.iterdir())[:200] if folder.is_dir() else []
    return [model_name(str(path)) for path in inside if is_model_folder(path)]


def nearby_models(source: str) -> list[str]:
    """The models inside a path and beside it, then those of the hub's cache, as a recipe would name them."""
    place = Path(source)
    return [
        m for m in [*models_in(place), *models_in(place.parent)] if m != model_name(source)
    ] + cached_models()


def cached_models() -> list[str]:
    """Hub ids of the models in the local cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = [
        p for p in sorted(Path(HF_HUB_CACHE).glob("models--*--*/snapshots/*")) if is_model_folder(p)
    ]
    names = [p.parent.parent.name.removeprefix("models--").replace("--", "/", 1) for p in found]
    return list(dict.fromkeys(names))


def similar_names(name: str, known: Iterable[str]) -> list[str]:
    """Models that are spelt like this one. Of a path only the last part is compared: its folder is shared by all."""
    by_end = {
        (m if looks_like_hub_id(name) else Path(m).name.removeprefix("vistill:")): m for m in known
    }
    return [
        by_end[end] for end in closest(name if looks_like_hub_id(name) else Path(name).name, by_end)
    ]


def model_not_found_error(name: str, role: str = "model") -> ModelError:
    """M103 with the model that was probably meant."""
    hub, inside = looks_like_hub_id(name), models_in(Path(name))
    near = similar_names(name, [*nearby_models(name), *(HUB_MODELS if hub else ())])
    if inside:  # the folder of the models in place of one of them
        near = sorted(inside, key=lambda model: role not in Path(model).name)
    key = "" if role == "model" else f"{role}.model="
    return ModelError(
        "M103",
        f'{role} "{name}" not found',
        why=hub_reason() if hub else folder_reason(Path(name), models_in(Path(name).parent)),
        fix=f"{key}{near[0]}"
        if near
        else f"{key}FOLDER_OR_HUB_ID   of config.json and model.safetensors",
    )


def hub_reason() -> str:
    """Where a hub id was looked for."""
    offline = os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}
    asked = (
        "the hub was not asked, HF_HUB_OFFLINE is set"
        if offline
        else "not on the hub, or it cannot be reached"
    )
    return f"no such folder; not in the local cache; {asked}"


def folder_reason(folder: Path, beside: list[str]) -> str:
    """What is there instead of a model folder."""
    if folder.is_dir():
        return "the folder is there, but holds no config.json of a model"
    return f"no such folder; models beside it: {', '.join(beside[:4]) or 'none'}"
