"""LoRA adapters in a model: add, save, load, merge. peft is imported where adapters are used.

Adapters are injected into the model itself, so it keeps its class, and every reading uses them. A
folder of adapters has the layout of PEFT (`adapter_config.json`, `adapter_model.safetensors`), and
next to it the model's `config.json` and processor.
"""

import itertools
import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vistill.data.keys import keyed_seed
from vistill.errors import ConfigError, MissingExtraError, ModelError, quote_setting
from vistill.lora_settings import TARGETS, LoraSettings
from vistill.runs.chosen_student import resolve_model
from vistill.runs.model_not_found import check_model_exists

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
#: Name of the adapters inside the model. PEFT leaves it out in files.
NAME = "default"
#: Start of the names of weights in files of PEFT.
PREFIX = "base_model.model."


def require_peft() -> Any:
    """The module peft (E301 if it is not installed)."""
    try:
        import peft
    except ImportError as error:
        raise MissingExtraError(
            "E301",
            "LoRA needs the package peft",
            why="student.train=lora, and folders of adapters, use it",
            fix="pip install 'vistill[lora]'",
        ) from error
    return peft


def has_adapters(model: nn.Module) -> bool:
    """Whether adapters were added to the model."""
    return bool(getattr(model, "peft_config", None))


def adapter_config(model: Any) -> Any:
    """PEFT's configuration of a model's adapters."""
    return model.peft_config[NAME]


def adapter_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all adapters, by their names in the model."""
    return {name: p for name, p in model.named_parameters() if is_adapter_name(name)}


def is_adapter_name(name: str) -> bool:
    """Whether a weight with this name belongs to an adapter."""
    return f".{NAME}." in f".{name}." and ".lora_" in f".{name}"


# Add adapters.


def target_layers(vlm: Any, targets: Iterable[str]) -> list[str]:
    """Names of the linear layers of some parts of a model, in the order of the model.

    The parts are those of its family. The head gets no adapter.

    Args:
        vlm: the model.
        targets: `language`, `vision`, `tower`, `projector`.

    Raises:
        ConfigError: C111, one of the parts has no linear layer.
    """
    layers = linear_layers(vlm.model)
    parts = {part: weights_in(modules) for part, modules in vlm.family.parts(vlm.model).items()}
    parts["projector"] = parts["vision"] - parts["tower"]
    matches = {
        part: {name for name, layer in layers.items() if id(layer.weight) in parts[part]}
        for part in TARGETS
    }
    empty = [part for part in targets if not matches[part]]
    if empty:
        raise no_layer_error(list(targets), empty, [p for p, names in matches.items() if names])
    chosen = set().union(*(matches[part] for part in targets))
    return [name for name in layers if name in chosen]


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """The linear layers that adapters can wrap or wrap already, by name: not the head.

    `nn.MultiheadAttention` reads the weight of its output layer without calling the layer.
    """
    left_out = {id(m.out_proj) for m in model.modules() if isinstance(m, nn.MultiheadAttention)}
    left_out.add(id(model.get_output_embeddings()))
    layers: dict[str, nn.Linear] = {}
    for name, module in model.named_modules():
        if is_adapted_layer(module):
            layers[name] = module.get_base_layer()
            left_out |= {id(inner) for inner in module.modules()}
        elif isinstance(module, nn.Linear) and id(module) not in left_out:
            layers[name] = module
    return layers


def weights_in(parts: Iterable[nn.Module | nn.Parameter]) -> set[int]:
    """Ids of the weights of modules and single weights."""
    return {
        id(p)
        for part in parts
        for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    }


def no_layer_error(targets: list[str], empty: list[str], possible: list[str]) -> ConfigError:
    """C111."""
    kept = [part for part in targets if part not in empty] or possible[:1]
    return ConfigError(
        "C111",
        f"the student has no linear layer in {' and '.join(map(repr, empty))}",
        where=f"student.lora.targets=[{','.join(targets)}]",
        why=f"adapters wrap linear layers; parts that have some: {', '.join(possible) or 'none'}",
        fix=quote_setting("student.lora.targets", f"[{','.join(kept)}]")
        if kept
        else "student.train=full",
    )


def add_adapters(vlm: Any, settings: LoraSettings, seed: int, base: str) -> Any:
    """Add adapters to a model in place, and freeze everything else.

    B is 0, so the model computes what it did before. A follows from the seed alone.

    Args:
        vlm: the model.
        settings: rank, alpha and targets.
        seed: of the run.
        base: folder or hub id of the model, which the adapters' folder names.

    Raises:
        MissingExtraError: E301, peft is not installed.
        ConfigError: C111, a target has no linear layer.
    """
    peft, names = require_peft(), target_layers(vlm, settings.targets)
    config = peft.LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=names,
        base_model_name_or_path=base,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(keyed_seed("lora", seed))
        inject(vlm.model, config)
    return vlm


def inject(model: Any, config: Any) -> None:
    """Add adapters to a model and freeze the rest. Adapters are at least float32."""
    model.requires_grad_(False)
    require_peft().inject_adapter_in_model(config, model, adapter_name=NAME)
    for parameter in adapter_parameters(model).values():
        if parameter.element_size() < torch.float32.itemsize:
            parameter.data = parameter.data.float()
        parameter.requires_grad_(True)


def differing_settings(vlm: Any, settings: LoraSettings) -> dict[str, str]:
    """Settings that a model's adapters do not have, each with what they have.

    Targets are empty if no targets give the adapters' layers.
    """
    config = adapter_config(vlm.model)
    wanted = {"rank": settings.rank, "alpha": settings.alpha}
    present = {"rank": config.r, "alpha": config.lora_alpha}
    differing = {key: str(present[key]) for key in wanted if present[key] != wanted[key]}
    layers = {name for name, m in vlm.model.named_modules() if is_adapted_layer(m)}
    if layers != set(target_layers(vlm, settings.targets)):
        differing["targets"] = targets_of(vlm, layers)
    return differing


def settings_of(vlm: Any) -> LoraSettings:
    """The settings behind a model's adapters; default targets if no targets give their layers."""
    config = adapter_config(vlm.model)
    layers = {name for name, m in vlm.model.named_modules() if is_adapted_layer(m)}
    names = targets_of(vlm, layers).strip("[]").split(",")
    targets: Any = tuple(t for t in TARGETS if t in names) or LoraSettings().targets
    return LoraSettings(int(config.r), float(config.lora_alpha), targets)


def targets_of(vlm: Any, layers: set[str]) -> str:
    """Targets whose layers are these, as a list in a recipe; empty if there are none."""
    for count in range(1, len(TARGETS)):
        for targets in itertools.combinations(TARGETS, count):
            with suppress(ConfigError):  # C111: a part without layers
                if set(target_layers(vlm, targets)) == layers:
                    return f"[{','.join(targets)}]"
    return ""


# Merge.


def merge_adapters(model: Any) -> None:
    """Add the adapters to the weights of the layers that they wrap, and remove them."""
    for name, module in list(model.named_modules()):
        if not is_adapted_layer(module):
            continue
        module.merge(adapter_names=[NAME])
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, module.get_base_layer())
    del model.peft_config


@torch.no_grad()
def merged_weights(model: Any) -> dict[str, torch.Tensor]:
    """The weights that a model would have after `merge_adapters`, by name. It keeps its adapters.

    Of a tied weight the first name is taken.
    """
    layers = {name: m for name, m in model.named_modules() if is_adapted_layer(m)}
    weights: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for full, tensor in model.state_dict(keep_vars=True).items():
        if is_adapter_name(full) or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        name = full.replace(".base_layer.", ".")
        layer = layers.get(name.removesuffix(".weight")) if name != full else None
        is_merged = layer is not None and name.endswith(".weight")
        weights[name] = merged_weight(layer).to(tensor) if is_merged else tensor
    return weights


def merged_weight(layer: Any) -> torch.Tensor:
    """The weight of an adapted layer with its adapter: `W + scale B A`, in float32."""
    return layer.get_base_layer().weight.detach().float() + layer.get_delta_weight(NAME)


def is_adapted_layer(module: nn.Module) -> bool:
    """Whether a module wraps a layer together with its adapter."""
    return hasattr(module, "base_layer") and hasattr(module, "lora_A")


# Files.


def is_adapter_folder(source: str | Path) -> bool:
    """Whether a folder holds adapters in PEFT's layout."""
    return (Path(source) / CONFIG).is_file()


def read_adapter_config(folder: str | Path) -> dict[str, Any]:
    """PEFT's configuration in a folder (M107 if it is not that of LoRA)."""
    file = Path(folder) / CONFIG
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind, base = config["peft_type"], config["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise adapter_error(folder, f"{CONFIG}: {type(error).__name__}: {error}") from error
    if kind != "LORA" or not isinstance(base, str) or not base:
        raise adapter_error(folder, f"{CONFIG} has peft_type {kind!r} and the base {base!r:.80}")
    return config


def adapter_base(folder: str | Path) -> str:
    """The model that a folder's adapters were trained on, as a recipe names it."""
    return str(read_adapter_config(folder)["base_model_name_or_path"])


def base_of(source: str, revision: str | None) -> tuple[str, str | None]:
    """Folder or hub id of the weights of a model, and their revision.

    For a folder of adapters they are those of its base (M103 if there is none).
    """
    if not is_adapter_folder(source):
        return source, revision
    base = resolve_model(adapter_base(source))
    try:
        check_model_exists(base)
    except ModelError as error:
        raise ModelError(
            "M103",
            f'the base model "{base}" of the adapters was not found',
            where=source,
            why=error.why,
            fix="move the base model back, or write its new place into adapter_config.json as"
            " base_model_name_or_path",
        ) from error
    return base, read_adapter_config(source).get("revision")


def adapter_error(folder: str | Path, why: str) -> ModelError:
    """M107 for a folder of adapters."""
    return ModelError(
        "M107",
        "the adapters cannot be loaded",
        where=str(folder),
        why=" ".join(why.split())[:300],
        fix="copy the folder again with all its files; base_model_name_or_path in"
        " adapter_config.json names the model that the adapters were trained on",
    )


def file_names(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of all adapters, by their names in files of PEFT."""
    return {
        PREFIX + name.replace(f".{NAME}.", "."): p for name, p in adapter_parameters(model).items()
    }


def save_adapters(model: Any, folder: Path) -> None:
    """Write adapters in PEFT's layout, and the model's configuration."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: p.detach().cpu().contiguous() for name, p in file_names(model).items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    save_configs(model, folder)


def save_configs(model: Any, folder: Path) -> None:
    """Write PEFT's configuration and the model's own."""
    text = json.dumps(plain_config(adapter_config(model)), indent=2, sort_keys=True)
    (folder / CONFIG).write_text(f"{text}\n", encoding="utf-8")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)


def plain_config(config: Any) -> dict[str, Any]:
    """PEFT's configuration as JSON values, sets in order."""
    values = {**config.to_dict(), "inference_mode": True}
    return {
        name: sorted(value) if isinstance(value, (set, frozenset)) else value
        for name, value in values.items()
    }


def add_saved_adapters(model: Any, folder: Path) -> None:
    """Add the adapters of a folder to their base model (M107 if they do not fit)."""
    from vistill.models.save import load_weights_into

    peft, values = require_peft(), read_adapter_config(folder)
    try:
        # without dropout, which would make two readings of a response differ
        changes = {"inference_mode": False, "lora_dropout": 0.0}
        config = peft.LoraConfig.from_peft_type(**{**values, **changes})
        with torch.random.fork_rng(devices=[]):
            inject(model, config)
    except (ValueError, TypeError, KeyError) as error:
        raise adapter_error(folder, f"{type(error).__name__}: {error}") from error
    load_weights_into(folder, model)
