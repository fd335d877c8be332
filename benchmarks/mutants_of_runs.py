"""Small defects in optimizer, steps, journal, order and checkpoints.

Every mutant is one edit: a text that occurs exactly once in its file, its replacement, and what
goes wrong. The tests of its group must detect it.
"""

from mutant import group

LOOP = "training/test_loop.py"

MUTANTS = [
    *group(
        "training/optim.py",
        "training/test_optim.py"
        " training/test_freezing.py::test_exactly_the_weights_of_the_named_parts_are_frozen",
        (
            "return int(schedule.warmup * steps + 1e-9)",
            "return round(schedule.warmup * steps + 1e-9)",
            "the warm-up is rounded up",
        ),
        ("return (step + 1) / warmup", "return step / warmup", "the first update has a rate of 0"),
        (
            "return (step + 1) / warmup",
            "return (step + 1) / (schedule.warmup * steps)",
            "the rate passes its peak",
        ),
        (
            "(step - warmup) / max(1, steps - warmup)",
            "step / max(1, steps)",
            "the decay begins before its peak",
        ),
        (
            "return floor + (1 - floor) * shape",
            "return shape",
            "the smallest rate is not respected",
        ),
        (
            '"weight_decay": settings.weight_decay',
            '"weight_decay": 0.0',
            "matrices are not decayed",
        ),
        (
            "betas=settings.betas, eps=settings.eps)",
            "betas=settings.betas)",
            "epsilon is not the recipe's",
        ),
        ("weight.requires_grad_(False)", "weight.requires_grad_(True)", "a frozen part learns"),
    ),
    *group(
        "training/step.py",
        f"{LOOP}::test_too_many_updates_that_are_not_finite_stop_the_run_though_never_in_a_row "
        f"{LOOP}::test_one_update_that_is_not_finite_is_skipped_and_stored_and_the_run_continues "
        f"{LOOP}::test_a_method_sees_how_much_of_the_run_is_done training/test_finite.py",
        (
            "finite = math.isfinite(norm) and math.isfinite(loss)",
            "finite = math.isfinite(norm)",
            "a NaN loss updates the weights",
        ),
        (
            "    if not update.finite:\n        memory = dict(state.memory)",
            "    if not update.finite:\n        pass",
            "a skipped update writes the method's memory",
        ),
        (
            "progress=step / context.num_steps",
            "progress=(step + 1) / context.num_steps",
            "schedules of methods are one step ahead",
        ),
        ("weights=step)", "weights=0)", "the engine is asked for the weights of the start"),
    ),
    *group(
        "training/journal.py",
        "training/test_journal.py faults/test_other_pasts.py",
        (
            "past != (step, self.fingerprint, chain,",
            'past != (step, self.fingerprint, record["chain"],',
            "responses of another past are taken",
        ),
        (
            'if record["digest"] != hash_values(record["rollouts"]):',
            "if False:",
            "changed responses are taken",
        ),
        ("if number >= step]", "if number == step]", "later entries of another past stay"),
        ("if number <= step:", "if number < step:", "the journal keeps one entry too many"),
        (
            "return hash_values(chain, to_json(record), sorted(replaced_rows), fingerprint)",
            "return hash_values(to_json(record), sorted(replaced_rows), fingerprint)",
            "a past is known by its last step alone",
        ),
        (
            "return hash_values(chain, sorted(replaced_rows))",
            "return hash_values(chain)",
            "rows that were replaced do not count as another past",
        ),
    ),
    *group(
        "data/keys.py",
        "data/test_loading.py faults/test_bad_rows.py"
        "::test_the_slot_of_a_missing_row_takes_the_next_row_and_all_other_slots_stay",
        (
            'keyed_generator("order", seed, epoch)',
            'keyed_generator("order", seed)',
            "every epoch has the same order",
        ),
        (
            "divmod(position, num_rows)",
            "divmod(position, num_rows + 1)",
            "rows are left out or read beyond the end",
        ),
        (
            "range(step * per_step, (step + 1) * per_step)",
            "range(step, step + per_step)",
            "neighbouring steps share prompts",
        ),
        (
            "while is_replaced(row) or row in rows:",
            "while is_replaced(row):",
            "a replacement may be in the step already",
        ),
        ('"\\x1f".join', '"".join', "two keys whose parts join to the same text share their noise"),
        (
            "return max(1, int(num_rows * epochs) // per_step)",
            "return max(1, int(num_rows * epochs / per_step + 0.5))",
            "a step more than the epochs hold",
        ),
    ),
    *group(
        "training/checkpoint.py",
        "training/test_checkpoint.py",
        (
            'value if slot == "step" else value.to(parameter.device)',
            'value if slot == "step" else torch.zeros_like(value)',
            "moments are lost at a restart",
        ),
        (
            'torch.set_rng_state(load_file(path / NOISE)["torch"])',
            "pass",
            "the noise state is not restored",
        ),
        (
            "if file_hash(file) != digest else None",
            "if file_hash(file) == digest + digest else None",
            "damaged weights are loaded",
        ),
        (
            'protected.add(folder.checkpoint(int(best["step"])).name)',
            "pass",
            "the best checkpoint is deleted",
        ),
        ("[-max(1, keep) :]", "[: max(1, keep)]", "the oldest checkpoints are kept"),
        (
            "if checkpoint_step(path) <= step]",
            "if checkpoint_step(path) >= 0]",
            "a rejected later checkpoint counts among the newest",
        ),
        (
            "for path in reversed(published):",
            "for path in published:",
            "a run resumes from its oldest checkpoint",
        ),
        (
            'state.step == manifest["step"] else',
            "True else",
            "the state of another step is restored",
        ),
    ),
    *group(
        "training/student_copies.py",
        "training/test_preparation.py",
        (
            "rate)\n\n\ndef check_reference",
            "1 - rate)\n\n\ndef check_reference",
            "the moving average follows at once",
        ),
    ),
    *group(
        "training/micro_batches.py",
        "training/test_memory_budget.py"
        " training/test_oom.py::test_halving_keeps_every_prompt_in_order",
        ("total + size > budget", "total + size >= budget", "a part is smaller than its budget"),
        (
            "[n + self.overhead for n in lengths]",
            "[n for n in lengths]",
            "keys that a response copies are not counted",
        ),
    ),
]
