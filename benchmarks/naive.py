"""The naive reference of the benchmark.

One row per rollout, the image encoded for each, all logits in memory at once.
"""

import torch
from torch.nn import functional as F

from vistill.types import View
from vistill.views import apply_view


def rows_of(vlm, groups, view):
    """Make padded rows, one image per rollout."""
    rows, pixels, grids, prompt_lengths = [], [], [], []
    for group in groups:
        encoded = vlm.encode(apply_view(group.prompt, view))
        for rollout in group.rollouts:
            rows.append([*encoded.ids, *rollout.ids])
            pixels.append(encoded.pixels["pixel_values"])
            grids.append(encoded.pixels["image_grid_thw"])
            prompt_lengths.append(len(encoded.ids))
    width = max(map(len, rows))
    ids = torch.tensor([row + [vlm.pad_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    inputs = {
        "input_ids": ids,
        "attention_mask": mask,
        "mm_token_type_ids": (ids == vlm.family.image_id).int() * mask.int(),
        "pixel_values": torch.cat(pixels),
        "image_grid_thw": torch.cat(grids),
    }
    return inputs, prompt_lengths


def log_probs(vlm, groups, view):
    """Compute the full log-softmax [N, L, V], then take each rollout's rows."""
    inputs, prompt_lengths = rows_of(vlm, groups, view)
    all_rows = F.log_softmax(vlm.model(**inputs).logits.float(), -1)
    lengths = [len(r.ids) for g in groups for r in g.rollouts]
    return [
        all_rows[n, p - 1 : p - 1 + t]
        for n, (p, t) in enumerate(zip(prompt_lengths, lengths, strict=True))
    ]


def naive_step(student, teacher, groups, va):
    """Compute loss and gradient of OPD or VA-OPD on given rollouts, as a first version would."""
    student.model.zero_grad()
    with torch.no_grad():
        full = log_probs(teacher, groups, View.FULL)
        pixelated = log_probs(teacher, groups, View.PIXELATED) if va else None
    student_rows = log_probs(student, groups, View.FULL)
    ids = [torch.tensor(r.ids) for g in groups for r in g.rollouts]
    loss, n = torch.zeros(()), 0
    for group in groups:
        members = range(n, n + len(group.rollouts))
        n += len(group.rollouts)
        weights = torch.full((len(group.rollouts),), 1 / len(group.rollouts))
        advantage = []
        if va:
            for m in members:
                token = ids[m][:, None]
                gain = full[m].gather(1, token) - pixelated[m].gather(1, token)
                advantage.append(gain[:, 0].clamp_min(0))
            means = torch.stack([a.mean() for a in advantage])
            sigma = means.std(correction=0)
            weights = torch.softmax((means - means.mean()) / (sigma + 1e-6), 0)
        for k, m in enumerate(members):
            kl = (student_rows[m].exp() * (student_rows[m] - full[m])).sum(-1)
            if not va:
                loss = loss + weights[k] * kl.mean()
                continue
            size = max(1, -(-len(kl) // 5))
            high = torch.zeros(len(kl), dtype=torch.bool)
            high[torch.sort(advantage[k], descending=True, stable=True).indices[:size]] = True
            loss = loss + weights[k] * (0.5 * kl[high].mean() + 0.5 * kl[~high].mean())
    loss = loss / len(groups)
    loss.backward()
    return loss.item()
