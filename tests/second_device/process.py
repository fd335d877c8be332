"""Train in a process whose second device is that of `device.cpp`.

    python process.py LIBRARY stages FOLDER STAGES [key=value ...]
    python process.py LIBRARY resume FOLDER STAGE  [key=value ...]

A device is registered once per process, so tests start a process for it. `stages` trains each of
these stages of `every_method.yaml`. `resume` trains one in FOLDER/whole, once more in FOLDER/again
with an interrupt in its second step, continues it, and replays its steps. Both write
`FOLDER/calls.json`: how many operators of each stage ran on the second device.
"""

import json
import sys
import types
from pathlib import Path

import torch

NAME = "second"
RECIPE = Path(__file__).parents[2] / "recipes" / "every_method.yaml"


def register(library):
    """Make `second` a device of torch in this process."""
    torch.ops.load_library(library)
    torch.utils.rename_privateuse1_backend(NAME)
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = lambda device: None
    module._is_in_bad_fork = lambda: False
    module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device=None: torch.zeros(1, dtype=torch.uint8)
    module.set_rng_state = lambda state, device=None: None
    module.get_amp_supported_dtype = lambda: [torch.bfloat16]
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()


def train_stages(folder, names, *overrides):
    """Train each stage, and count its operators on the second device."""
    import vistill
    from vistill.config import load_stages

    stages, calls = load_stages(RECIPE, [f"run={folder}", *overrides]), {}
    for name in names.split(","):
        before = torch.ops.second_device.calls()
        vistill.train(stages[name], progress=lambda record: None)
        calls[name] = torch.ops.second_device.calls() - before
    (Path(folder) / "calls.json").write_text(json.dumps(calls))


def stop_in_second_step(record):
    """Interrupt the run when its second step is logged, and not yet saved."""
    if record.get("step") == 2 and "loss" in record:
        raise KeyboardInterrupt


def resume(folder, name, *overrides):
    """Train a stage whole, and again with an interrupt; replay its steps."""
    import vistill
    from vistill.config import load_stages
    from vistill.studies.replay import replay

    train_stages(f"{folder}/whole", name, *overrides)
    again = load_stages(RECIPE, [f"run={folder}/again", *overrides])[name]
    try:
        vistill.train(again, progress=stop_in_second_step)
    except KeyboardInterrupt:
        saved = [path.name for path in Path(again.run).glob("checkpoint-*")]
        assert saved == ["checkpoint-000001"]
    else:
        raise AssertionError("the run was not interrupted")
    vistill.train(again, progress=lambda record: None)
    for step in range(1, again.train.steps + 1):
        result, _ = replay(again.run, step, lambda text: None)
        assert result.same, result


def main(library, task, *arguments):
    """Register the device, and do a task."""
    torch.set_num_threads(1)
    register(library)
    {"stages": train_stages, "resume": resume}[task](*arguments)


if __name__ == "__main__":
    main(*sys.argv[1:])
