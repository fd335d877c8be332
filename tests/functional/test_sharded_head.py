"""A head whose rows lie on two processes: the loss and its gradient are those of one process."""

import subprocess
import sys

SCRIPT = """
import sys
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh

from vistill.functional.divergences import reverse_kl
from vistill.functional.heads import Head, whole
from vistill.functional.rows import States, per_row

rank, store = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
g = torch.Generator().manual_seed(0)
draw = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
hidden, weight, other, target = draw(8, 5), draw(13, 5), draw(8, 7), draw(13, 7)
weights = torch.rand(8, generator=g, dtype=torch.float64)


def loss(h, w, rows):
    values = per_row(reverse_kl, h[rows], Head(w[:11]), [States(other[rows], Head(target[:11]))], weights[rows])
    return (weights[rows] * values).sum()


plain = weight.clone().requires_grad_()
loss(hidden, plain, slice(0, 8)).backward()
sharded = torch.nn.Parameter(distribute_tensor(weight, init_device_mesh("cpu", (2,)), [Shard(0)]))
mine = loss(hidden, whole(sharded), slice(4 * rank, 4 * rank + 4))
mine.backward()
assert isinstance(sharded.grad, DTensor) and sharded.grad.to_local().shape[0] == (7, 6)[rank]
difference = float((sharded.grad.full_tensor() - plain.grad).abs().max())
assert difference < 1e-12, difference
assert whole(plain) is plain
dist.destroy_process_group()
print("equal")
"""


def test_a_sharded_head_is_gathered_once_and_its_gradient_goes_back_to_its_shards(tmp_path):
    command = [sys.executable, "-c", SCRIPT]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    done = [process.communicate(timeout=120) for process in ranks]
    assert [out.decode().strip() for out, _ in done] == ["equal", "equal"], done[0][1].decode()[
        -2000:
    ]
