"""The papers' values of keys whose default in vistill is different.

Sources: VA-OPD arXiv 2605.21924, section 4.1 and appendix A (pixel limits: its released code);
VGS-LP arXiv 2606.00564, section 5.2 and appendix B; Visual-OPSD arXiv 2606.18974, appendix C, with
its released code; PAPO arXiv 2507.06448, 3B and 7B, with its released code. A key that a paper does
not state is left out.
"""

from typing import Any

#: Key, then paper, then its value, as a recipe would hold it.
PAPERS: dict[str, dict[str, Any]] = {
    "rollout.per_prompt": {"Visual-OPSD": 1, "PAPO": 5},
    "rollout.temperature": {"VGS-LP": 1.0, "Visual-OPSD": 1.0, "PAPO": 1.0},
    "rollout.top_p": {"VGS-LP": 1.0, "PAPO": 0.99},
    "rollout.max_new_tokens": {"VA-OPD": 4096, "VGS-LP": 2048, "PAPO": 2048},
    "rollout.image_skips": {"Visual-OPSD": 1},
    "data.max_prompt_tokens": {"VGS-LP": 16384, "Visual-OPSD": 10240, "PAPO": 4096},
    "data.max_image_tokens": {"VA-OPD": 4096},
    "data.min_pixels": {"VA-OPD": 262144, "PAPO": 200704},
    "data.max_pixels": {"VA-OPD": 4194304, "PAPO": 1003520},
    "train.prompts_per_step": {"VGS-LP": 512, "PAPO": 384},
    "train.epochs": {"VGS-LP": 1.0, "PAPO": 2.0},
    "train.steps": {"Visual-OPSD": 1000},
    "train.lr": {"Visual-OPSD": 1e-5},
    "train.schedule.kind": {"VGS-LP": "constant"},
    "train.schedule.warmup": {"Visual-OPSD": 0.2},
    "train.schedule.min_lr": {"Visual-OPSD": 1e-7},
    "train.eps": {"Visual-OPSD": 1e-15},
    "train.weight_decay": {"VGS-LP": 0.01, "Visual-OPSD": 0.0, "PAPO": 0.01},
    "reward.accuracy": {"PAPO": 0.9},
    "reward.format": {"PAPO": 0.1},
    "eval.samples": {"VA-OPD": 8, "VGS-LP": 16, "PAPO": 8},
    "eval.max_new_tokens": {"VA-OPD": 4096},
    "vgs.eta_value": {"VGS-LP, 4B student": 0.36},
    "papo.perception_weight": {"PAPO, Qwen3-VL-2B-Thinking": 0.01},
    "papo.entropy_weight": {"PAPO, 3B": 0.0, "PAPO, 7B": 0.05},
    "papo.masked_entropy_weight": {"PAPO, 3B": 0.0, "PAPO, 7B": 0.05},
    "papo.updates": {"PAPO": 3},
}
