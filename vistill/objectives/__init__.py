"""One file a method. A method says what must be seen, what is measured and what is minimised.

Everything else (rollouts, scoring, reduction, the loop, checkpoints, evaluation, reports) is shared.
To add one: a file here, one line in `METHODS`, one golden test.
"""

from vistill.objectives.opd import OPD
from vistill.objectives.sft import SFT
from vistill.objectives.va_opd import VAOPD

METHODS: dict[str, type] = {
    "sft": SFT,
    "opd": OPD,
    "va_opd": VAOPD,
}

__all__ = ["METHODS", "OPD", "SFT", "VAOPD"]
