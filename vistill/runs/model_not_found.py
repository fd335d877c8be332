"""M103: a model that does not exist, with the names of similar models. Needs no torch."""

import json
from collections.abc import Iterable
from pathlib import Path

from vistill.errors import ModelError, closest, quote_command, quote_setting
from vistill.runs.hub import ask_hub, is_offline, offline_is_set
from vistill.runs.model_families import check_family
from vistill.runs.near_runs import runs_in

ASSETS = Path(__file__).parent.parent / "assets"
#: What peft writes next to the weights of an adapter.
ADAPTER = "adapter_config.json"
#: Hub ids to suggest for a misspelled one.
HUB_MODELS = tuple(
    f"Qwen/Qwen3-VL-{size}-{kind}"
    for size in ("2B", "4B", "8B", "32B")
    for kind in ("Instruct", "Thinking")
)


def model_name(source: str) -> str:
    """The name of a model in a recipe: `vistill:NAME` for an included one, else the source."""
    folder = Path(source)
    return f"vistill:{folder.name}" if folder.parent == ASSETS else source


def is_model_folder(folder: Path) -> bool:
    """Whether the folder has weights of a family that can be read."""
    try:
        check_family(json.loads((folder / "config.json").read_text(encoding="utf-8")), "")
    except (OSError, ValueError, AttributeError):
        return False
    return any(folder.glob("*.safetensors"))


def looks_like_hub_id(name: str) -> bool:
    """Whether it has the form `owner/name` and no local folder has the owner's name."""
    owner, _, rest = name.partition("/")
    return bool(rest) and "/" not in rest and not Path(owner).is_dir()


def models_in(folder: Path) -> list[str]:
    """The models in a folder."""
    paths = sorted(folder.iterdir())[:200] if folder.is_dir() else []
    return [model_name(str(path)) for path in paths if is_model_folder(path)]


def nearby_models(source: str) -> list[str]:
    """The models in a folder, in its parent and in the hub's cache, as a recipe names them."""
    path = Path(source)
    runs = [str(path.parent / name) for name in runs_in(path.parent)]  # stands for its student
    local = [*models_in(path), *models_in(path.parent), *runs]
    return [model for model in local if model != model_name(source)] + cached_models()


def cached_models() -> list[str]:
    """Hub ids of the models in the local cache."""
    from huggingface_hub.constants import HF_HUB_CACHE

    snapshots = sorted(Path(HF_HUB_CACHE).glob("models--*--*/snapshots/*"))
    folders = [path.parent.parent.name for path in snapshots if is_model_folder(path)]
    names = [name.removeprefix("models--").replace("--", "/", 1) for name in folders]
    return list(dict.fromkeys(names))


def similar_names(name: str, known: Iterable[str]) -> list[str]:
    """Known models with a similar name. Of a path, only the last part is compared."""
    if looks_like_hub_id(name):
        return closest(name, list(known))
    by_last_part = {Path(model).name.removeprefix("vistill:"): model for model in known}
    return [by_last_part[part] for part in closest(Path(name).name, by_last_part)]


def check_model_exists(name: str, role: str = "model") -> None:
    """M103 for a path without a folder; of a hub id, ask once whether the hub answers."""
    if Path(name).exists():
        return
    if not looks_like_hub_id(name):
        raise model_not_found_error(name, role)
    ask_hub()


def model_not_found_error(name: str, role: str = "model") -> ModelError:
    """M103 with the model that the user probably meant."""
    if (Path(name) / ADAPTER).is_file():
        return adapter_error(name, role)
    is_hub_id, inside = looks_like_hub_id(name), models_in(Path(name))
    on_hub = HUB_MODELS if is_hub_id and not is_offline() else ()
    others = [model for model in (*nearby_models(name), *on_hub) if model != name]
    candidates = similar_names(name, others)
    if inside:  # the path is a folder of models, not a model
        candidates = sorted(inside, key=lambda model: role not in Path(model).name)
    fix = as_setting(role, candidates[0]) if candidates else other_model_fix(name, role)
    return ModelError(
        "M103",
        f'{role} "{name}" not found',
        why=hub_reason() if is_hub_id else folder_reason(Path(name)),
        fix=fix,
    )


def adapter_error(name: str, role: str) -> ModelError:
    """M103 for a folder of LoRA weights: they are no model without their base."""
    try:
        base = json.loads((Path(name) / ADAPTER).read_text(encoding="utf-8"))
        base = str(base["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError):
        base = "a base that it does not name"
    return ModelError(
        "M103",
        f'{role} "{name}" is an adapter, not a model',
        why=f"it holds weights to add to {base:.100}, and no config.json and processor",
        fix=f"{as_setting(role, 'FOLDER_OR_HUB_ID')}   after PeftModel.merge_and_unload and "
        "save_pretrained of model and processor",
    )


def as_setting(role: str, model: str) -> str:
    """The setting that names a model; of a model without a role its name alone."""
    return model if role == "model" else quote_setting(f"{role}.model", model)


def other_model_fix(name: str, role: str) -> str:
    """The fix where no model has a similar name."""
    if not looks_like_hub_id(name) or not is_offline():
        return f"{as_setting(role, 'FOLDER_OR_HUB_ID')}   with config.json and model.safetensors"
    online = "unset HF_HUB_OFFLINE" if offline_is_set() else quote_command("hf", "download", name)
    return f"{as_setting(role, 'FOLDER')}   or, with a network,   {online}"


def hub_reason() -> str:
    """Where the search for a hub id looked."""
    hub = "not on the hub, or it is private"
    if is_offline():
        why = "HF_HUB_OFFLINE is set" if offline_is_set() else "it does not answer"
        hub = f"the hub was not asked: {why}"
    return f"no such folder; not in the local cache; {hub}"


def folder_reason(folder: Path) -> str:
    """What exists instead of a model folder."""
    if folder.is_dir():
        return "the folder exists, but has no config.json of a model"
    neighbours = [
        *models_in(folder.parent),
        *(str(folder.parent / n) for n in runs_in(folder.parent)),
    ]
    return f"no such folder; models and runs next to it: {', '.join(neighbours[:4]) or 'none'}"
