"""Rows G1 to G3 on a CUDA device, at the shapes of Qwen3-VL 8B -> 2B with random weights: `python benchmarks/gpu.py`.

Correctness comes first and stops the script. `--tiny` runs the same code at toy sizes on any machine.
G1: loss time over its bare products in bf16, both kernels. G2: a VA-OPD step over a row-per-rollout OPD step.
G3: matrix rate of the training phase over the best rate of one large product.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import torch
from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from vistill.batch import reduce_terms
from vistill.data.diagrams import diagram_prompts
from vistill.experiments.raising import raising_tokenizer
from vistill.functional.divergences import reverse_kl
from vistill.functional.heads import Head
from vistill.functional.rows import States, per_row
from vistill.meter import counting
from vistill.models.backends import with_kernels
from vistill.models.families.qwen3_vl import Qwen3VLFamily
from vistill.models.loading import VLM
from vistill.models.tiny import SPECIAL, TinySize, tiny_processor
from vistill.objectives import OPD, VAOPD
from vistill.training.clock import measured_rate, peak_mib
from vistill.training.precision import autocast
from vistill.training.reading import Cast, lay_out, learning_parts, prepare, read_without_gradient
from vistill.training.settings import TrainSettings
from vistill.types import Finish, Rollout, RolloutGroup

OUT = Path(__file__).parent / "results" / "gpu.json"


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Qwen3-VL of one size: the numbers of its published configuration."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    feed_forward: int
    tied: bool
    vision_hidden: int
    vision_depth: int
    vision_feed_forward: int
    deepstack: tuple[int, ...]
    head_dim: int = 128
    vocabulary: int = 151_936


STUDENT = Shape(2048, 28, 16, 8, 6144, True, 1024, 24, 4096, (5, 11, 17))
TEACHER = Shape(4096, 36, 32, 8, 12_288, False, 1152, 27, 4304, (8, 16, 24))
TOY = Shape(64, 2, 4, 2, 96, True, 64, 2, 96, (1,), 32, 2048)
TOY_TEACHER = Shape(96, 3, 4, 2, 128, False, 64, 2, 96, (1,), 32, 2048)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """What a step is made of: G prompts, K siblings, T response tokens, a picture of so many pixels a side."""

    prompts: int = 4
    siblings: int = 4
    tokens: int = 768
    side: int = 768
    rows: int = 8192


def model_of(shape, side, device, dtype):
    """Random weights in the real classes; patches of 16, merged 2 x 2, as in the released models."""
    tokenizer = raising_tokenizer()
    ids = {token: int(tokenizer.convert_tokens_to_ids(token)) for token in SPECIAL}
    third = shape.head_dim // 2 // 3
    section = [24, 20, 20] if shape.head_dim == 128 else [shape.head_dim // 2 - 2 * third, third, third]
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": shape.vocabulary, "hidden_size": shape.hidden, "intermediate_size": shape.feed_forward,
            "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
            "head_dim": shape.head_dim, "max_position_embeddings": 262_144, "tie_word_embeddings": shape.tied,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": section, "mrope_interleaved": True},
            "pad_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"], "bos_token_id": None,
        },
        vision_config={
            "depth": shape.vision_depth, "hidden_size": shape.vision_hidden, "intermediate_size": shape.vision_feed_forward,
            "num_heads": 16, "patch_size": 16, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "out_hidden_size": shape.hidden, "num_position_embeddings": 2304, "deepstack_visual_indexes": list(shape.deepstack),
        },
        image_token_id=ids["<|image_pad|>"], video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"], vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=shape.tied,
    )  # fmt: skip
    with torch.device(device):
        torch.manual_seed(0)
        model = Qwen3VLForConditionalGeneration(config).to(dtype)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    processor = tiny_processor(TinySize(patch=16, min_pixels=side**2, max_pixels=side**2))
    return VLM(model, tokenizer, Qwen3VLFamily(config, tokenizer, processor), "random")


def timed(function, device, repeats=5):
    """Best seconds, after one run that warms up."""
    best = float("inf")
    for _ in range(1 + repeats):
        wait(device)
        start = time.perf_counter()
        function()
        wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def loss_inputs(student, teacher, rows, vocabulary, device, dtype):
    g = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=g).to(device, dtype)
    heads = [draw(vocabulary, width) * width**-0.5 for width in (student, teacher)]  # logits of spread 1
    return draw(rows, student), draw(rows, teacher), heads, torch.rand(rows, generator=g).to(device)


def loss_row(row, sizes, shapes, device, kernels):
    """G1: correctness against float64 on a few rows, then time over floor, then peak beyond inputs and gradients."""
    student, teacher = shapes
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    hs, ht, (ws, wt), weights = loss_inputs(
        student.hidden, teacher.hidden, sizes.rows, student.vocabulary, device, dtype
    )

    def loss(n, precision=dtype):
        h, w = (x.to(precision).detach().requires_grad_() for x in (hs[:n], ws))
        values = per_row(
            reverse_kl, h, Head(w, kernels=kernels), [States(ht[:n].to(precision), Head(wt.to(precision)))], weights[:n]
        )
        (weights[:n] * values).sum().backward()
        return values.detach(), h.grad

    few = min(64, sizes.rows)
    for found, exact in zip(loss(few), loss(few, torch.float64), strict=True):
        difference = float((found - exact).abs().max() / exact.abs().max())
        assert difference <= (0.02 if dtype == torch.bfloat16 else 1e-5), f"{kernels}: {difference:.1e} from float64"
    a = torch.empty(512, student.vocabulary, device=device, dtype=dtype)
    dw = torch.zeros_like(ws)

    def floor():
        for s, t in zip(hs.split(512), ht.split(512), strict=True):
            torch.mm(s, ws.T, out=a[: len(s)])
            torch.mm(t, wt.T, out=a[: len(s)])
            torch.mm(a[: len(s)], ws)
            torch.addmm(dw, a[: len(s)].T, s, out=dw)

    seconds = timed(lambda: loss(sizes.rows), device), timed(floor, device)
    text = f"bare products, N={sizes.rows:,}, V={student.vocabulary:,}, {dtype}, kernels {kernels}"
    return row(f"G1_loss_time_over_floor_{kernels}", seconds[0] / seconds[1], "ratio", text)


def step_of(cast, objective, sizes, train, apart):
    """A step after the rollouts; apart every rollout is a row with a picture of its own."""
    g = torch.Generator().manual_seed(0)
    draw = lambda: tuple(torch.randint(20, 500, (sizes.tokens,), generator=g).tolist())
    prompts = diagram_prompts("train", sizes.prompts, 0)
    groups = [RolloutGroup(p, tuple(Rollout(draw(), k, Finish.LENGTH) for k in range(sizes.siblings))) for p in prompts]
    if apart:
        groups = [RolloutGroup(group.prompt, (r,)) for group in groups for r in group.rollouts]
    device = cast.student.device

    def step():
        cast.student.model.zero_grad()
        responses = lay_out(groups, 0, 0, device)
        reading = prepare(cast, groups, objective.passes(), responses)
        with autocast(train, device):
            batch = read_without_gradient(cast, reading, objective.passes())
        signals = objective.signals(batch)
        for micro, cut in learning_parts(
            cast, reading, batch, objective.passes(), signals, lambda: autocast(train, device)
        ):
            reduce_terms(objective.terms(micro, cut), responses.counts())[0].backward()

    return step


def step_rows(row, sizes, shapes, device, attention):
    """G2 and G3."""
    half = torch.bfloat16 if device.type == "cuda" else torch.float32
    student = with_kernels(model_of(shapes[0], sizes.side, device, torch.float32), "auto")
    teacher = with_kernels(model_of(shapes[1], sizes.side, device, half).freeze(), "auto")
    student, teacher = (dataclasses.replace(m, attention=attention) for m in (student, teacher))
    train, vocabulary = TrainSettings(), shapes[0].vocabulary
    shared = Cast(student, teacher, vocabulary)
    apart = Cast(*(dataclasses.replace(m, share_prompts=False) for m in (student, teacher)), vocabulary)
    gradients = []
    for cast, alone in ((shared, False), (apart, True)):
        step_of(cast, OPD(), dataclasses.replace(sizes, prompts=1, tokens=min(64, sizes.tokens)), train, alone)()
        gradients.append(
            torch.cat([p.grad.flatten().float() for p in student.model.parameters() if p.grad is not None])
        )
    scale = float(gradients[0] @ gradients[1] / (gradients[1] @ gradients[1]))  # apart each rollout counts as a prompt
    difference = float((gradients[0] - scale * gradients[1]).norm() / gradients[0].norm())
    assert difference <= (0.05 if half == torch.bfloat16 else 1e-5), f"gradients differ by {difference:.1e}"
    gradients.clear()
    ours, rows = step_of(shared, VAOPD(), sizes, train, False), step_of(apart, OPD(), sizes, train, True)
    seconds = timed(ours, device, 3), timed(rows, device, 3)
    with counting() as work:
        ours()
    rate = measured_rate(device, half)
    text = f"G={sizes.prompts}, K={sizes.siblings}, T={sizes.tokens}, {sizes.side} px, attention {attention}; gradients differ by {difference:.1e}"
    return [
        row("G2_va_step_over_rows_opd", seconds[0] / seconds[1], "ratio", f"row-per-rollout OPD; {text}"),
        row(
            "G3_matrix_rate_over_peak",
            work["flops"] / seconds[0] / rate,
            "share",
            f"{rate / 1e12:.3g} TFLOP/s measured",
        ),
        row("va_step_seconds", seconds[0], "s", text),
        row("va_step_peak_mib", peak_mib(device), "MiB", text),
    ]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tiny", action="store_true", help="toy sizes, on any machine: shows that the script runs")
    parser.add_argument("--attention", choices=("blocks", "flex"), default="blocks")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args()
    if not args.tiny and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here: nothing was measured. --tiny runs the same code at toy sizes.")
    device = torch.device("cpu" if args.tiny else "cuda")
    shapes = (TOY, TOY_TEACHER) if args.tiny else (STUDENT, TEACHER)
    sizes = Sizes(2, 2, 8, 64, 128) if args.tiny else Sizes()
    row = lambda name, value, unit, beside: {
        "name": name,
        "value": float(f"{float(value):.4g}"),
        "unit": unit,
        "reference": beside,
    }
    rows = [loss_row(row, sizes, shapes, device, kernels) for kernels in kernels_here(device)]
    rows += step_rows(row, sizes, shapes, device, args.attention)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "toy sizes on a CPU: no measurement"
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(
        json.dumps({"rows": rows, "about": {"device": name, "torch": torch.__version__}}, indent=2) + "\n"
    )
    for r in rows:
        print(f"{r['name']:<32} {r['value']:>10.4g} {r['unit']:<6} beside: {r['reference']}")
    print(f"{name}; written to {args.out}")


def kernels_here(device):
    """Both backends where Triton proves itself, else torch's."""
    from vistill.models.backends import why_not

    reason = why_not(device)
    if reason is not None:
        print(f"Triton kernels left out: {reason}")
    return ("torch",) if reason else ("torch", "triton")


if __name__ == "__main__":
    main()
