"""The shape of a model from its `config.json`: built on the meta device, its tensors counted."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForImageTextToText

from vistill.models.adapters import linear_layers, weights_in
from vistill.models.families.layers import base_model, tower_weights, weights_except
from vistill.models.loading import load_config
from vistill.planning.shapes import LinearSizes, ModelShape, Parameters, shape_of_config


def shape_on_meta(folder: Path, config: Mapping[str, Any], name: str) -> ModelShape:
    """Sizes from the configuration; parameters from the tensors of a model without data.

    Raises:
        ModelError: M103 or M105, transformers does not know the configuration.
        KeyError, TypeError, ValueError: the configuration lacks a size.
    """
    sizes = shape_of_config(config, name)
    loaded = load_config(str(folder), None, "model")
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(loaded)
    model.tie_weights()
    linear = count_linear_sizes(model)
    return replace(sizes, parameters=count_parts(model), linear_sizes=linear, source=str(folder))


def count_parts(model: Any) -> Parameters:
    """Parameters of a model by part. A tied head is counted in the language part."""
    base, decoder, head = base_model(model), model.get_decoder(), model.get_output_embeddings()
    tower = count(tower_weights(base))
    vision = count(weights_except(base, decoder))
    is_tied = head.weight is model.get_input_embeddings().weight
    return Parameters(tower, vision - tower, count([decoder]), 0 if is_tied else count([head]))


def count_linear_sizes(model: Any) -> LinearSizes:
    """Inputs plus outputs of all linear layers that adapters can wrap, by part."""
    base, decoder = base_model(model), model.get_decoder()
    parts = {
        "vision": weights_in(tower_weights(base)),
        "projector": weights_in(weights_except(base, decoder)),
        "language": weights_in([decoder]),
    }
    sums = dict.fromkeys(parts, 0)
    for layer in linear_layers(model).values():
        part = next(name for name, weights in parts.items() if id(layer.weight) in weights)
        sums[part] += layer.in_features + layer.out_features
    return LinearSizes(**sums)


def count(parts: Iterable[nn.Module | nn.Parameter]) -> int:
    """Parameters of modules and single parameters."""
    return sum(
        p.numel()
        for part in parts
        for p in ([part] if isinstance(part, nn.Parameter) else part.parameters())
    )
