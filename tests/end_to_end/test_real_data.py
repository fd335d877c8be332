"""Real images with the shipped models: another image changes the log-probabilities."""

import pytest
import torch

from vistill.data.loading import load_rows
from vistill.data.settings import Columns, DataSettings
from vistill.models.loading import load_vlm
from vistill.models.scoring import EncodedGroup, score
from vistill.runs.chosen_student import resolve_model
from vistill.types import View
from vistill.views import ViewContext, apply_view


@pytest.mark.more
def test_swapping_or_pixelating_a_real_figure_changes_the_log_probabilities(shared_data):
    vlm = load_vlm(resolve_model("vistill:teacher"), max_image_tokens=64).freeze()
    path = str(shared_data / "geometry_mathv" / "data.jsonl")
    settings = DataSettings(
        train=path, columns=Columns(id="id", choices="choices"), template="{prompt}\n{choices}"
    )
    prompts = load_rows(path, settings, 12).prompts
    ids = vlm.response_ids("The answer is \\boxed{7}.")

    def log_probs(prompt):
        with torch.no_grad():
            return score(
                vlm,
                [EncodedGroup(vlm.encode(prompt), (ids,))],
                torch.tensor(ids),
                vlm.vocabulary_size,
                "log_prob",
            ).sampled()

    for prompt, other in zip(prompts, prompts[1:] + prompts[:1], strict=True):
        context = ViewContext(partner=other)
        full = log_probs(prompt)
        swapped = log_probs(apply_view(prompt, View.SWAPPED, context))
        pixelated = log_probs(apply_view(prompt, View.PIXELATED, context))
        assert float((swapped - full).abs().max()) > 1e-5
        assert float((pixelated - full).abs().max()) > 1e-6
