"""Names that TRL, transformers, ms-swift, verl and LLaMA-Factory give to settings, and ours.

A name whose meaning differs stands in `NO_SUCH_KEY`, with one sentence on what to do instead.
"""

#: Their name -> our key of the same meaning.
OUR_KEYS: dict[str, str] = {
    # models
    "model": "student.model",
    "model_name_or_path": "student.model",
    "model_id": "student.model",
    "student_model": "student.model",
    "teacher_model": "teacher.model",
    "teacher_model_name_or_path": "teacher.model",
    "model_revision": "student.revision",
    "teacher_model_revision": "teacher.revision",
    # LoRA
    "tuner_type": "student.train",
    "train_type": "student.train",
    "finetuning_type": "student.train",
    "lora_r": "student.lora.rank",
    "lora_rank": "student.lora.rank",
    "lora_alpha": "student.lora.alpha",
    # data
    "dataset": "data.train",
    "dataset_name": "data.train",
    "train_dataset": "data.train",
    "train_files": "data.train",
    "val_dataset": "data.eval",
    "eval_dataset": "data.eval",
    "val_files": "data.eval",
    "prompt_key": "data.columns.prompt",
    "image_key": "data.columns.images",
    "answer_key": "data.columns.answer",
    "image_dir": "data.images",
    "media_dir": "data.images",
    "image_folder": "data.images",
    "system_prompt": "data.system",
    "default_system": "data.system",
    "max_samples": "data.limit",
    "min_pixels": "data.min_pixels",
    "max_pixels": "data.max_pixels",
    "image_min_pixels": "data.min_pixels",
    "image_max_pixels": "data.max_pixels",
    "max_prompt_length": "data.max_prompt_tokens",
    "cutoff_len": "data.max_prompt_tokens",
    # rollouts
    "num_generations": "rollout.per_prompt",
    "num_return_sequences": "rollout.per_prompt",
    "num_rollouts": "rollout.per_prompt",
    "group_size": "rollout.per_prompt",
    "rollout.n": "rollout.per_prompt",
    "actor_rollout_ref.rollout.n": "rollout.per_prompt",
    "temperature": "rollout.temperature",
    "top_p": "rollout.top_p",
    "max_completion_length": "rollout.max_new_tokens",
    "max_new_tokens": "rollout.max_new_tokens",
    "max_response_length": "rollout.max_new_tokens",
    "response_length": "rollout.max_new_tokens",
    "max_tokens": "rollout.max_new_tokens",
    # update
    "lr": "train.lr",
    "learning_rate": "train.lr",
    "num_train_epochs": "train.epochs",
    "total_epochs": "train.epochs",
    "num_epochs": "train.epochs",
    "max_steps": "train.steps",
    "total_training_steps": "train.steps",
    "batch_size": "train.prompts_per_step",
    "train_batch_size": "train.prompts_per_step",
    "global_batch_size": "train.prompts_per_step",
    "micro_batch_size": "train.micro_batch",
    "ppo_micro_batch_size_per_gpu": "train.micro_batch",
    "lr_scheduler_type": "train.schedule.kind",
    "lr_scheduler": "train.schedule.kind",
    "warmup_ratio": "train.schedule.warmup",
    "lr_warmup_steps_ratio": "train.schedule.warmup",
    "adam_epsilon": "train.eps",
    "max_grad_norm": "train.clip_norm",
    "grad_clip": "train.clip_norm",
    "dtype": "train.precision",
    "torch_dtype": "train.precision",
    "full_determinism": "train.deterministic",
    # policy gradient
    "epsilon": "grpo.clip_low",
    "epsilon_high": "grpo.clip_high",
    "clip_ratio_low": "grpo.clip_low",
    "clip_ratio_high": "grpo.clip_high",
    "kl_coef": "grpo.reference_weight",
    "kl_loss_coef": "grpo.reference_weight",
    "num_iterations": "grpo.updates",
    # run
    "output_dir": "run",
    "default_local_dir": "run",
    "run_name": "run",
    "data_seed": "seed",
    "save_steps": "save.every",
    "save_freq": "save.every",
    "save_total_limit": "save.keep",
    "eval_steps": "eval.every",
    "test_freq": "eval.every",
    "per_device_eval_batch_size": "eval.rows_per_call",
    "num_eval_samples": "eval.samples",
}

LORA = (
    "student.train=lora trains adapters, of student.lora.rank and student.lora.alpha, and keeps "
    "all other weights"
)
LORA_TARGETS = (
    "student.lora.targets names parts of the model, such as [language,vision]; all linear layers "
    "of a part get adapters"
)
QUANTISED = (
    "teacher.precision=int8 or nf4 quantises the teacher, student.precision the weights that LoRA "
    "keeps"
)
ONE_GPU = (
    "vistill trains on one device; train.micro_batch and train.offload_teacher save memory there"
)
ENGINE = "rollout.engine=vllm writes with vLLM in a process of its own"
TRACKER = (
    "vistill reports to no tracker yet; every step is a line of RUN/metrics.jsonl, and vistill "
    "report RUN draws it"
)
BATCH = (
    "train.prompts_per_step counts the prompts of one update, on any hardware; how they are cut "
    "into pieces for memory (train.micro_batch) changes nothing"
)
BOTH_BETAS = "train.betas=[0.9,0.95] holds both of AdamW's decay rates"
ONE_OPTIMIZER = "AdamW is the one optimizer: train.betas, train.eps and train.weight_decay set it"
HUB = (
    "vistill uploads nothing; the chosen student is an ordinary model folder, which hf upload takes"
)
ATTENTION = (
    "attention is the model's own; train.attention=flex packs the rollouts of a prompt into one row"
)
LENGTH = (
    "prompt and response have limits of their own: data.max_prompt_tokens and "
    "rollout.max_new_tokens"
)
REWARDS = "rewards are reward.accuracy (answer checkers) and reward.format (reward.pattern)"
WARMUP = "train.schedule.warmup is a share of the steps: warm-up steps / train.steps"

#: Their name -> one sentence: why there is no such key, and what to do instead.
NO_SUCH_KEY: dict[str, str] = {
    **dict.fromkeys(
        ("use_lora", "use_peft", "peft", "peft_config", "adapter", "adapters", "qlora"), LORA
    ),
    **dict.fromkeys(("dora", "use_dora"), LORA),
    "lora_dropout": "adapters have no dropout: the readings of a response in a step must agree",
    **dict.fromkeys(("lora_target", "lora_target_modules", "target_modules"), LORA_TARGETS),
    **dict.fromkeys(
        ("load_in_4bit", "load_in_8bit", "quantization", "quantization_bit", "quant_method"),
        QUANTISED,
    ),
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config", "zero_stage", "accelerator_config"), ONE_GPU
    ),
    **dict.fromkeys(
        (
            "n_gpus_per_node",
            "nnodes",
            "num_gpus",
            "world_size",
            "tensor_parallel_size",
            "num_processes",
        ),
        ONE_GPU,
    ),
    **dict.fromkeys(("use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "sglang"), ENGINE),
    **dict.fromkeys(("gpu_memory_utilization", "infer_backend", "vllm_server_host"), ENGINE),
    **dict.fromkeys(
        (
            "report_to",
            "wandb",
            "wandb_project",
            "use_wandb",
            "swanlab_project",
            "trackio",
            "tensorboard",
        ),
        TRACKER,
    ),
    **dict.fromkeys(("logging_dir", "logger", "project_name", "mlflow"), TRACKER),
    **dict.fromkeys(
        ("gradient_accumulation_steps", "gradient_accumulation", "accumulate_grad"), BATCH
    ),
    **dict.fromkeys(("per_device_train_batch_size", "per_gpu_train_batch_size"), BATCH),
    **dict.fromkeys(("adam_beta1", "adam_beta2"), BOTH_BETAS),
    **dict.fromkeys(("optim", "optimizer"), ONE_OPTIMIZER),
    **dict.fromkeys(("push_to_hub", "hub_model_id", "hub_token", "hub_strategy"), HUB),
    "bf16": "train.precision=bf16 asks for bfloat16; auto takes it where a CUDA device has it",
    "fp16": "vistill has no float16: train.precision is auto, bf16 or fp32",
    "tf32": "vistill leaves TF32 to torch: torch.set_float32_matmul_precision in your own script",
    "warmup_steps": WARMUP,
    "num_warmup_steps": WARMUP,
    "gradient_checkpointing": (
        "vistill checkpoints no activations; train.micro_batch=auto and train.memory bound them"
    ),
    "use_liger_kernel": (
        "train.kernels=triton takes the package's own fused kernels; auto takes them on CUDA"
    ),
    "attn_implementation": ATTENTION,
    "flash_attn": ATTENTION,
    "logging_steps": "every step is a line of RUN/metrics.jsonl; there is nothing to set",
    "logging_strategy": "every step is a line of RUN/metrics.jsonl; there is nothing to set",
    "save_strategy": "save.every=50 saves every 50 steps; 0 saves only at the end",
    "eval_strategy": "eval.every=50 evaluates every 50 steps; 0 never",
    "do_eval": "eval.every=50 evaluates every 50 steps; 0 never",
    "do_train": "vistill train trains, vistill eval evaluates; there is nothing to set",
    "eval_on_start": "a run is evaluated before its first step unless eval.every is 0",
    "load_best_model_at_end": "save.keep_best=accuracy hands out the best checkpoint",
    "metric_for_best_model": "save.keep_best=accuracy chooses by accuracy on the evaluation rows",
    "resume_from_checkpoint": (
        "the same command resumes by itself from the newest checkpoint of its run folder"
    ),
    "overwrite_output_dir": "vistill never overwrites a run: name another folder, run=runs/NAME-2",
    "top_k": "sampling has rollout.temperature and rollout.top_p, and no top_k",
    "min_p": "sampling has rollout.temperature and rollout.top_p, and no min_p",
    "repetition_penalty": (
        "sampling has rollout.temperature and rollout.top_p, and no repetition penalty"
    ),
    "max_length": LENGTH,
    "max_seq_length": LENGTH,
    "lmbda": "method=gkd has gkd.off_policy_share, which is 1 - lmbda",
    "beta": (
        "beta is gkd.beta for a divergence and grpo.reference_weight for the KL to the reference"
    ),
    "alpha": "a method has knobs of its own names: vistill explain METHOD lists them",
    "seq_kd": "method=kd kd.loss=cross_entropy is SeqKD",
    "loss_type": "the method decides the loss: vistill explain methods",
    "rl_type": "the method decides the loss: vistill explain methods",
    "rlhf_type": "the method decides the loss: vistill explain methods",
    "stage": "the method decides the loss: vistill explain methods; several runs in order: stages:",
    "scale_rewards": "advantages are always scaled by the deviation within a prompt",
    "reward_funcs": REWARDS,
    "reward_model": REWARDS,
    "reward_weights": "reward.accuracy and reward.format are the weights of the two rewards",
    "ppo_mini_batch_size": "grpo.updates cuts a step into so many updates",
    "chat_template": "the chat template is the model's own; data.template words the question",
    "template": "the chat template is the model's own; data.template words the question",
    "split_dataset_ratio": "data.holdout is a number of rows that are set aside for evaluation",
    "val_size": "data.holdout is a number of rows that are set aside for evaluation",
    "freeze_vit": "train.freeze=[tower] keeps the weights of the vision tower",
    "freeze_vision_tower": "train.freeze=[tower] keeps the weights of the vision tower",
    "freeze_aligner": (
        "train.freeze=[vision] keeps the weights of the vision tower and its projector"
    ),
    "freeze_llm": "train.freeze=[language] keeps the weights of the decoder",
    "dataloader_num_workers": "rows are read as they are needed; there is nothing to set",
    "remove_unused_columns": (
        "columns that data.columns does not name are ignored; there is nothing to set"
    ),
    "trust_remote_code": "vistill runs no code of a model folder or hub id",
    "ddp_timeout": ONE_GPU,
}
