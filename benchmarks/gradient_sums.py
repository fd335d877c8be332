"""What it costs that the gradient of a bf16 weight is summed in bf16: an error by backward passes.

`python benchmarks/gradient_sums.py` takes the shipped tiny student with bf16 weights, the negative
log-likelihood of a short answer to each of 512 diagrams, and one backward pass per diagram. It
compares the sum in bf16, as autograd makes it, with a float32 sum of the same passes.
"""

import torch
from torch import nn

import vistill
from vistill.data.diagrams import diagram_prompts
from vistill.models.scoring import EncodedGroup, open_reading
from vistill.runtime import quiet_libraries, use_one_thread

PASSES, SHOWN = 512, (1, 8, 64, 256, 512)


def gradients(vlm):
    """Make the gradient of one prompt after another."""
    for prompt in diagram_prompts("train", PASSES, 0):
        ids = tuple(vlm.response_ids(f"The answer is {prompt.answer}."))
        with torch.autocast("cpu", torch.bfloat16):
            reading = open_reading(vlm, [EncodedGroup(vlm.encode(prompt), (ids,))], cut=True)
            head = vlm.head(vlm.vocabulary_size).weight
            logits = (reading.read([(0, 0)]) @ head.t()).float()
        loss = nn.functional.cross_entropy(logits, torch.tensor(ids)) / PASSES
        loss.backward()
        reading.close()
        yield


def main():
    use_one_thread()
    quiet_libraries()
    vlm = vistill.load("vistill:student", device="cpu")
    vlm.model.to(torch.bfloat16).train()
    weights = list(vlm.model.parameters())
    exact = [torch.zeros(w.shape) for w in weights]
    half = [torch.zeros(w.shape, dtype=w.dtype) for w in weights]
    print("| passes | error | norm | cosine | worst tensor |\n|---|---|---|---|---|")
    for number, _ in enumerate(gradients(vlm), 1):
        for weight, e, h in zip(weights, exact, half, strict=True):
            if weight.grad is not None:
                e += weight.grad.float()
                h += weight.grad  # rounded to the nearest bf16, as autograd adds
                weight.grad = None
        if number in SHOWN:
            a, b = (torch.cat([x.float().flatten() for x in xs]) for xs in (exact, half))
            cosine = float(a.double().dot(b.double()) / (a.double().norm() * b.double().norm()))
            error, norm = float((a - b).norm() / a.norm()), float(b.norm() / a.norm())
            pairs = zip(exact, half, strict=True)
            worst = max(float((e - h.float()).norm() / e.norm().clamp_min(1e-30)) for e, h in pairs)
            cells = f"{number} | {error:.4f} | {norm:.4f} | {cosine:.4f} | {worst:.3f}"
            print(f"| {cells} |", flush=True)


if __name__ == "__main__":
    main()
