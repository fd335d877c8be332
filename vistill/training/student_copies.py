"""Copies of the student that a method reads: moving average and initial weights."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from vistill.batch import Objective
from vistill.errors import ConfigError
from vistill.models.loading import VLM
from vistill.training.checkpoint import weights_hash
from vistill.training.half_precision import move_towards
from vistill.training.models_of_run import Models
from vistill.training.run_state import RunState
from vistill.types import Reader

#: Roles of the copies.
COPIES = (Reader.EMA, Reader.REFERENCE)


def with_student_copies(models: Models, objective: Objective) -> Models:
    """The models with the copies that the objective reads.

    Call it when parts are frozen, and before a restore.
    """
    roles = {p.reader for p in objective.passes()}
    copies = {role: copy_frozen(models.student) for role in COPIES if role in roles}
    return replace(models, copies=copies)


def copy_frozen(vlm: VLM) -> VLM:
    """The same model, frozen, with trained weights of its own. It shares those that are frozen."""
    shared: dict[int, Any] = {id(p): p for p in vlm.model.parameters() if not p.requires_grad}
    return replace(vlm, model=copy.deepcopy(vlm.model, shared)).freeze()


def copies_to_save(models: Models) -> Mapping[str, VLM]:
    """Copies that a checkpoint must hold: the moving average, not the initial weights."""
    return {str(Reader.EMA): models.copies[Reader.EMA]} if Reader.EMA in models.copies else {}


@torch.no_grad()
def update_ema(models: Models, rate: float, *key: object) -> None:
    """One step of the average: `ema <- (1 - rate) ema + rate student`, in the dtype of `ema`.

    An average in bf16 is rounded at random, as the key decides: to the nearest number it would stay
    where it is.
    """
    if Reader.EMA not in models.copies:
        return
    averages = dict(models.copies[Reader.EMA].model.named_parameters())
    for name, weight in models.student.model.named_parameters():
        if weight.requires_grad:
            move_towards(averages[name], weight, (name, *key), rate)


def check_reference(models: Models, state: RunState) -> None:
    """Check at every resume that the reference has the weights the run began with (C202)."""
    if Reader.REFERENCE not in models.copies:
        return
    sha256 = weights_hash(models.copies[Reader.REFERENCE])
    state.reference_sha256 = state.reference_sha256 or sha256
    if state.reference_sha256 != sha256:
        raise ConfigError(
            "C202",
            "the student is not the one this run began with",
            why="the method compares with the initial weights, which come from the model given now",
            fix="load the initial student again, then continue the run",
        )
