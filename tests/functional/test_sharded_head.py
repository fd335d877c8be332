"""A head sharded over two processes: loss and gradient equal those of one process."""

import subprocess
import sys

import pytest

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

from vistill.functional.divergences import reverse_kl
from vistill.functional.heads import Head, full_tensor
from vistill.functional.rows import States, per_row

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
g = torch.Generator().manual_seed(0)


def draw(*shape):
    return torch.randn(*shape, generator=g, dtype=torch.float64)


hidden, weight, other, target = draw(8, 5), draw(13, 5), draw(8, 7), draw(13, 7)
weights = torch.rand(8, generator=g, dtype=torch.float64)


def loss(h, w, rows):
    others = [States(other[rows], Head(target[:11]))]
    values = per_row(reverse_kl, h[rows], Head(w[:11]), others, weights[rows])
    return (weights[rows] * values).sum()


dense = weight.clone().requires_grad_()
loss(hidden, dense, slice(0, 8)).backward()
mesh = init_device_mesh("cpu", (2,))
sharded = torch.nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]))
loss(hidden, full_tensor(sharded), slice(4 * rank, 4 * rank + 4)).backward()
assert isinstance(sharded.grad, DTensor)
assert sharded.grad.to_local().shape[0] == (7, 6)[rank]
difference = float((sharded.grad.full_tensor() - dense.grad).abs().max())
assert difference < 1e-12, difference
assert full_tensor(dense) is dense
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.more
def test_a_sharded_head_is_gathered_once_and_each_shard_gets_its_gradient(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    outputs = [process.communicate(timeout=120) for process in ranks]
    errors = outputs[0][1].decode()[-2000:]
    assert [out.decode().strip() for out, _ in outputs] == ["equal", "equal"], errors
