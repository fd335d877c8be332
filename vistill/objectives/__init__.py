"""One file a method. A method says what must be seen, what is measured and what is minimised.

Everything else (rollouts, scoring, reduction, the loop, checkpoints, evaluation, reports) is shared.
To add one: a file here, one line in `METHODS`, one golden test, one page in `vistill/pages/`.
"""

from vistill.objectives.distillm import DistiLLM
from vistill.objectives.eopd import EOPD
from vistill.objectives.gkd import GKD
from vistill.objectives.grpo import GRPO
from vistill.objectives.hybrid import GRPOWithOPD, GRPOWithVGS
from vistill.objectives.iw_opd import IWOPD
from vistill.objectives.kd import KD
from vistill.objectives.opd import OPD
from vistill.objectives.papo import PAPO
from vistill.objectives.s2vopd import S2VOPD
from vistill.objectives.sft import SFT
from vistill.objectives.va_opd import VAOPD
from vistill.objectives.vcsd import VCSD
from vistill.objectives.vgs import VGS
from vistill.objectives.vgs_language import VGSLanguage
from vistill.objectives.visual_opsd import VisualOPSD
from vistill.objectives.vppo import VPPO

METHODS: dict[str, type] = {
    "sft": SFT,
    "kd": KD,
    "opd": OPD,
    "va_opd": VAOPD,
    "vgs": VGS,
    "vgs_language": VGSLanguage,
    "visual_opsd": VisualOPSD,
    "grpo": GRPO,
    "papo": PAPO,
    "grpo_opd": GRPOWithOPD,
    "grpo_vgs": GRPOWithVGS,
    "gkd": GKD,
    "distillm": DistiLLM,
    "s2vopd": S2VOPD,
    "vcsd": VCSD,
    "eopd": EOPD,
    "iw_opd": IWOPD,
    "vppo": VPPO,
}

__all__ = [
    "EOPD",
    "GKD",
    "GRPO",
    "IWOPD",
    "KD",
    "METHODS",
    "OPD",
    "PAPO",
    "S2VOPD",
    "SFT",
    "VAOPD",
    "VCSD",
    "VGS",
    "VPPO",
    "DistiLLM",
    "GRPOWithOPD",
    "GRPOWithVGS",
    "VGSLanguage",
    "VisualOPSD",
]
