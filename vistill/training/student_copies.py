"""Copies of the student that a method reads: a moving average that follows it, and the weights the run began with."""

import copy
from collections.abc import Mapping
from dataclasses import replace

import torch

from vistill.batch import Objective
from vistill.errors import ConfigError
from vistill.models.loading import VLM
from vistill.training.checkpoint import weights_hash
from vistill.training.run_state import RunState
from vistill.training.step_inputs import Models
from vistill.types import Reader

COPIES = (Reader.EMA, Reader.REFERENCE)


def with_student_copies(models: Models, objective: Objective) -> Models:
    """The models and the copies the objective reads. Call it before a checkpoint is restored into the student."""
    wanted = {p.reader for p in objective.passes()}
    made = {role: copy_of(models.student) for role in COPIES if role in wanted}
    return replace(models, copies=made)


def copy_of(vlm: VLM) -> VLM:
    """The same model with its own frozen weights."""
    return replace(vlm, model=copy.deepcopy(vlm.model)).freeze()


def copies_to_save(models: Models) -> Mapping[str, VLM]:
    """Companions that a checkpoint must carry: the moving average. The reference is the run's start."""
    return {str(Reader.EMA): models.copies[Reader.EMA]} if Reader.EMA in models.copies else {}


@torch.no_grad()
def update_ema(models: Models, rate: float) -> None:
    """One step of the moving average: `ema <- (1 - rate) ema + rate student`, in the average's own precision."""
    if Reader.EMA not in models.copies:
        return
    average = models.copies[Reader.EMA].model
    pairs = zip(average.parameters(), models.student.model.parameters(), strict=True)
    for slow, fast in pairs:
        slow.lerp_(fast.detach().to(slow.dtype), rate)


def check_reference(models: Models, state: RunState) -> None:
    """The reference must be the weights the run began with, on every resume (C202)."""
    if Reader.REFERENCE not in models.copies:
        return
    found = weights_hash(models.copies[Reader.REFERENCE])
    state.reference_sha256 = state.reference_sha256 or found
    if state.reference_sha256 != found:
        raise ConfigError(
            "C202",
            "the student is not the one this run began with",
            why="the method compares with the initial weights, and those are made from the model handed in now",
            fix="load the initial student again before the run is continued",
        )
