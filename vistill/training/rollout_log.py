"""Rollouts with their signals as JSON lines, for reports and disputes."""

from collections.abc import Sequence

from vistill.batch import Signals
from vistill.models.loading import VLM
from vistill.runs.storage import to_json
from vistill.types import RolloutGroup

#: Prompt groups of a step that are written out.
MAX_GROUPS = 8


def rollout_records(vlm: VLM, groups: Sequence[RolloutGroup], signals: Signals) -> str:
    """One line per rollout: prompt, sibling, token ids and texts, and every signal cut to it."""
    lines = []
    token, index = 0, 0
    num_tokens = sum(len(r.ids) for group in groups for r in group.rollouts)
    for number, group in enumerate(groups):
        for rollout in group.rollouts:
            rows = slice(token, token + len(rollout.ids))
            record: dict[str, object] = {
                "prompt": group.prompt.id,
                "sibling": rollout.sibling,
                "finish": str(rollout.finish),
                "ids": list(rollout.ids),
                "tokens": vlm.tokens(rollout.ids),
            }
            for name, value in signals.items():
                cut = value[rows] if len(value) == num_tokens else value[index]
                record[name] = (
                    [round(float(x), 6) for x in cut] if cut.ndim else round(float(cut), 6)
                )
            if number < MAX_GROUPS:
                lines.append(to_json(record))
            token += len(rollout.ids)
            index += 1
    return "".join(line + "\n" for line in lines)
