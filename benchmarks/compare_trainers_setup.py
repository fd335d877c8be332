"""Settings and helpers that both parts of the comparison with other trainers use."""

import vistill.models  # isort: skip  # noqa: F401  torchvision, before transformers is imported

import torch
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

PROMPTS, PER_STEP, EPOCHS, TOKENS, RATE, KEPT = 8, 2, 3, 6, 3e-3, 2
STEPS = PROMPTS * EPOCHS // PER_STEP


class UpdateCallback(TrainerCallback):
    """Report every update; end the training after a step, with a checkpoint like any other."""

    def __init__(self, on_update, stop):
        self.on_update, self.stop = on_update, stop

    def on_step_end(self, args, state, control, **kwargs):
        self.on_update()
        if state.global_step == self.stop:
            control.should_training_stop = True


def arguments(folder):
    """Return the arguments of both Hugging Face trainers."""
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": PER_STEP,
        "gradient_accumulation_steps": 1,
        "num_train_epochs": EPOCHS,
        "learning_rate": RATE,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": KEPT,
        "use_cpu": True,
        "report_to": [],
        "logging_strategy": "no",
        "disable_tqdm": True,
    }


def train_or_resume(trainer, folder):
    """Start, or continue from the last checkpoint, as transformers' own examples do."""
    last = get_last_checkpoint(str(folder))
    trainer.train(resume_from_checkpoint=True if last else None)


def left_padded(tokenizer):
    """Set the tokenizer's padding side as TRL requires."""
    tokenizer.padding_side = "left"
    return tokenizer


def small_gpt(tokenizer, seed=0):
    """Build a GPT-2 of the size of the other models, with its default dropout of 0.1."""
    torch.manual_seed(seed)
    ids = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=len(tokenizer), n_positions=1024, n_embd=32, n_layer=2, n_head=2, **ids
        )
    )


def is_update(record):
    """Return whether a progress record is an update, not an event or an evaluation."""
    return "seconds" in record
