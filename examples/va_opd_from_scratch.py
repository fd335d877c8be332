"""VA-OPD (arXiv 2605.21924) in one linear file, for reading. The library does the same with checks.

    python examples/va_opd_from_scratch.py --steps 20

A tiny student answers questions about diagrams. A teacher scores each answer twice, once with the
image and once with a pixelated image. The *visual advantage* of a token is how much the image
raises the teacher's log-probability of it. Answers with more visual advantage get more weight, and
so do their tokens with the most visual advantage. The loss is the reverse KL, KL(student ||
teacher), on the student's own answers.

Only three things come from vistill: the diagrams, the shipped tiny models, and the conversion of a
prompt into token ids and image tensors. Sampling, scoring, weights, loss and update are below.
"""

import argparse
import math

import torch
from torch.nn import functional as F

import vistill
from vistill.data.diagrams import diagrams
from vistill.types import View
from vistill.views import apply_view

# ----------------------------------------------------------------------------------------- settings

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=20)
parser.add_argument("--prompts", type=int, default=8, help="B: prompts in an update")
parser.add_argument("--siblings", type=int, default=4, help="K: answers to each prompt")
parser.add_argument("--lr", type=float, default=3e-4)
parser.add_argument(
    "--high-share",
    type=float,
    default=0.2,
    help="p_v: share of an answer's tokens in the high group",
)
parser.add_argument(
    "--high-weight", type=float, default=0.5, help="lambda: weight that the high group shares"
)
parser.add_argument(
    "--tau", type=float, default=1.0, help="temperature of the softmax over siblings"
)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()

torch.manual_seed(args.seed)
torch.set_num_threads(1)

# ------------------------------------------------------------------------------------------- models

student = vistill.load("vistill:student", device="cpu")
teacher = vistill.load("vistill:teacher", frozen=True, device="cpu")
tokenizer, end = student.tokenizer, student.stop_ids[0]
banned = [i for i in {*student.family.banned_ids(), student.pad_id} if i != end]
optimizer = torch.optim.AdamW(
    student.model.parameters(), lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0
)
stream = diagrams("train", args.steps * args.prompts, args.seed)


def inputs_of(prompt, count):
    """Make model inputs for `count` copies of a prompt: token ids and image tensors."""
    encoded = student.encode(prompt)
    ids = torch.tensor([encoded.ids] * count)
    return ids, {
        "pixel_values": encoded.pixels["pixel_values"].repeat(count, 1),
        "image_grid_thw": encoded.pixels["image_grid_thw"].repeat(count, 1),
    }


def sample_answers(prompt):
    """Sample K answers as lists of token ids, each up to and including the end-of-turn token."""
    ids, pixels = inputs_of(prompt, args.siblings)
    out = student.model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        mm_token_type_ids=(ids == student.family.image_id).int(),
        **pixels,
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        max_new_tokens=96,
        suppress_tokens=banned,
        eos_token_id=end,
        pad_token_id=student.pad_id,
    )
    answers = []
    for row in out[:, ids.shape[1] :].tolist():
        answers.append(row[: row.index(end) + 1] if end in row else row)
    return answers


def logits_of(vlm, prompt, answers):
    """Compute the logits that predict each answer's tokens, one [T, V] tensor per answer.

    The hidden state at a position predicts the NEXT token, so the rows of an answer start one
    position before it.
    """
    ids, pixels = inputs_of(prompt, len(answers))
    length = ids.shape[1]
    width = max(len(a) for a in answers)
    tail = torch.tensor([a + [vlm.pad_id] * (width - len(a)) for a in answers])
    mask = torch.tensor([[1] * (length + len(a)) + [0] * (width - len(a)) for a in answers])
    full = torch.cat([ids, tail], dim=1)
    logits = vlm.model(
        input_ids=full,
        attention_mask=mask,
        mm_token_type_ids=(full == student.family.image_id).int() * mask.int(),
        **pixels,
    ).logits
    return [logits[k, length - 1 : length - 1 + len(a)] for k, a in enumerate(answers)]


# --------------------------------------------------------------------------------------------- loop

for step in range(args.steps):
    items = stream[step * args.prompts : (step + 1) * args.prompts]
    prompts = [item.prompt(f"train-{step}-{i}") for i, item in enumerate(items)]
    optimizer.zero_grad()
    total_loss, total_advantage, total_tokens, num_correct = 0.0, 0.0, 0, 0

    for item, prompt in zip(items, prompts, strict=True):
        # 1. Sample K answers from the current student.
        student.model.eval()
        with torch.no_grad():
            answers = sample_answers(prompt)
        num_correct += sum(f"\\boxed{{{item.answer}}}" in tokenizer.decode(a) for a in answers)

        # 2. Visual advantage at temperature 1:
        #    a = max(log pT(token | image) - log pT(token | pixelated image), 0).
        with torch.no_grad():
            full_rows = [F.log_softmax(x, -1) for x in logits_of(teacher, prompt, answers)]
            pixelated_rows = [
                F.log_softmax(x, -1)
                for x in logits_of(teacher, apply_view(prompt, View.PIXELATED), answers)
            ]
        advantage = []
        for a, full, pixelated in zip(answers, full_rows, pixelated_rows, strict=True):
            ids = torch.tensor(a)[:, None]
            advantage.append((full.gather(1, ids) - pixelated.gather(1, ids))[:, 0].clamp_min(0))

        # 3. Answer weights: softmax over siblings of the z-scored mean advantage (population
        #    standard deviation).
        means = torch.stack([a.mean() for a in advantage]).double()
        sigma = ((means - means.mean()) ** 2).mean().sqrt()
        weights = torch.softmax((means - means.mean()) / (sigma + 1e-6) / args.tau, 0).float()

        # 4. Token weights: the top p_v of an answer's tokens share lambda of its weight; the others
        #    share the rest.
        coefficients = []
        for w, a in zip(weights, advantage, strict=True):
            num_high = max(1, math.ceil(args.high_share * len(a) - 1e-9))
            high = torch.zeros(len(a), dtype=torch.bool)
            high[torch.sort(a, descending=True, stable=True).indices[:num_high]] = True
            num_low = len(a) - num_high
            if num_low == 0:
                coefficients.append(torch.full((len(a),), float(w) / num_high))
            else:
                weight_high = w * args.high_weight / num_high
                weight_low = w * (1 - args.high_weight) / num_low
                coefficients.append(torch.where(high, weight_high, weight_low))

        # 5. Loss: weighted reverse KL(student || teacher with the ORIGINAL image), mean over
        #    prompts.
        student.model.train()
        student_rows = [F.log_softmax(x, -1) for x in logits_of(student, prompt, answers)]
        loss = torch.zeros(())
        for c, p, q in zip(coefficients, student_rows, full_rows, strict=True):
            kl = (p.exp() * (p - q)).sum(-1)
            loss = loss + (c * kl).sum()
        (loss / args.prompts).backward()

        total_loss += loss.item() / args.prompts
        total_advantage += sum(a.sum().item() for a in advantage)
        total_tokens += sum(len(a) for a in advantage)

    # 6. One update with clipped gradient for all prompts.
    norm = torch.nn.utils.clip_grad_norm_(student.model.parameters(), 1.0)
    optimizer.step()
    accuracy = num_correct / (args.prompts * args.siblings)
    print(
        f"step {step + 1:3d}   loss {total_loss:.4f}   accuracy of the answers {accuracy:.2f}   "
        f"mean VA {total_advantage / total_tokens:.3f} nats   gradient norm {float(norm):.2f}",
        flush=True,
    )
