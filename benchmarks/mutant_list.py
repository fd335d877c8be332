"""Small defects that the first tier of the tests must detect.

`make mutants` plants each of them in a copy of the package. Every mutant is one edit: a text that
occurs exactly once in its file, its replacement, and what goes wrong. The tests of its group must
detect it. Most mutants change numbers without a message.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One planted defect."""

    file: str
    old: str
    new: str
    why: str
    tests: tuple[str, ...]


def group(file: str, tests: str, *edits: tuple[str, str, str]) -> list[Mutant]:
    """Mutants of one file, with the tests that must detect them."""
    return [
        Mutant(f"vistill/{file}", *edit, tuple(f"tests/{name}" for name in tests.split()))
        for edit in edits
    ]


NUMBERS = (
    "golden objectives/test_properties.py objectives/test_terms.py"
    " objectives/test_slow_reference.py objectives/test_dense_references.py"
    " objectives/test_neighbours.py objectives/test_every_method.py"
)
LOOP = "training/test_loop.py"

MUTANTS = [
    *group(
        "functional/divergences.py",
        NUMBERS,
        (
            "return (log_p.exp() * (log_p - log_q)).sum(-1)",
            "return (log_q.exp() * (log_q - log_p)).sum(-1)",
            "reverse KL becomes forward KL",
        ),
        (
            "return (log_p.exp() * (log_p - log_q)).sum(-1)",
            "return (log_p.exp() * (log_p - log_q)).mean(-1)",
            "a mean over the vocabulary instead of the sum",
        ),
        (
            "return expected_difference(log_q, log_p)\n",
            "return expected_difference(log_p, log_q)\n",
            "forward KL becomes reverse KL",
        ),
        ("math.log1p(-share)", "math.log(share)", "the mixture is no distribution"),
        ("if beta == 0.0:", "if beta == 1.0:", "the end of JSD at beta 0 is the one at 1"),
        (
            "entries = beta * log_q.exp() * (log_q - log_m) + (1 - beta)",
            "entries = (1 - beta) * log_q.exp() * (log_q - log_m) + (1 - beta)",
            "JSD weighs the teacher's half with 1 - beta",
        ),
        (
            "entries = entries.clamp_max(clip)",
            "entries = entries.clamp_min(clip)",
            "entries are clipped from below",
        ),
        (
            "return total.clamp_max(clip) if",
            "return total if",
            "the clip of a token's divergence is not applied",
        ),
        (
            "target_logits.topk(top_k, -1)",
            "student_logits.topk(top_k, -1)",
            "the student chooses the entries that are kept",
        ),
        ("logits.scatter(-1, index, -torch.inf)", "logits", "the tail holds the kept entries too"),
        (
            "return -(log_p.exp() * log_p).sum(-1)",
            "return (log_p.exp() * log_p).sum(-1)",
            "entropy has the wrong sign",
        ),
        (
            "(other_log_prob - log_prob).clamp(-20, 20)",
            "(log_prob - other_log_prob).clamp(-20, 20)",
            "k3 in the other direction",
        ),
        (
            "(difference.exp() - difference - 1).clamp(-10, 10)",
            "(difference.exp() - difference - 1)",
            "k3 is not clamped to 10",
        ),
    ),
    *group(
        "functional/policy.py",
        NUMBERS,
        (
            "(segment_count(group, num) - 1).clamp_min(1)",
            "segment_count(group, num).clamp_min(1)",
            "the biased deviation of a group",
        ),
        (
            "REWARD_EPSILON = 1e-6",
            "REWARD_EPSILON = 1e-2",
            "advantages of a group are smaller than they should be",
        ),
        (
            "ratio.clamp(1 - clip_low, 1 + clip_high)",
            "ratio.clamp(1 - clip_low, 1 + clip_low)",
            "the upper clip is the lower one",
        ),
        (
            "torch.minimum(ratio * advantage, inside * advantage)",
            "torch.maximum(ratio * advantage, inside * advantage)",
            "an optimistic surrogate",
        ),
        (
            "torch.where(advantage < 0, bounded, surrogate)",
            "torch.where(advantage > 0, bounded, surrogate)",
            "the dual clip on good responses",
        ),
        (
            "(log_prob - old_log_prob).clamp(-20, 20).exp()",
            "(old_log_prob - log_prob).clamp(-20, 20).exp()",
            "the ratio upside down",
        ),
    ),
    *group(
        "functional/segments.py",
        NUMBERS,
        (
            "lengths.double() * share - 1e-9).long()",
            "lengths.double() * share + 1e-9).long()",
            "one token too many in the high group",
        ),
        (
            "< top_share_size(lengths",
            "<= top_share_size(lengths",
            "the high group has one token too many",
        ),
        (
            "order = order[torch.argsort(values[order], descending=True, stable=True)]",
            "order = order[torch.argsort(values[order], descending=False, stable=True)]",
            "the smallest values are ranked first",
        ),
        ("(count - 1).double() * share", "count.double() * share", "a quantile one place too high"),
        (
            "running = torch.cumsum(values.double(), 0) - values.double()",
            "running = torch.cumsum(values.double(), 0)",
            "a token counts itself as earlier",
        ),
        (
            "segment_sum(values, segment, num) / count",
            "segment_sum(values, segment, num) / count.max()",
            "means of short segments are too small",
        ),
    ),
    *group(
        "functional/siblings.py",
        NUMBERS,
        (
            "/ (sigma[group] + SIGMA_EPSILON) / temperature",
            "/ (sigma[group] + SIGMA_EPSILON) * temperature",
            "the temperature of the siblings upside down",
        ),
        (
            "segment_mean((values - mu[group]) ** 2, group, num).sqrt()",
            "segment_mean((values - mu[group]) ** 2, group, num)",
            "the variance instead of the deviation",
        ),
        (
            "no_low = num_low == 0",
            "no_low = num_low < 0",
            "a response without a low group loses weight",
        ),
        (
            "in_low = rollout_weight * (1 - high_weight)",
            "in_low = rollout_weight * high_weight",
            "the low group gets the weight of the high one",
        ),
        ("/ count.clamp_min(1)[rollout]", "/ count.max()", "short responses weigh less per token"),
        (
            "return 1.0 / segment_count(group",
            "return 2.0 / segment_count(group",
            "uniform siblings weigh twice",
        ),
    ),
    *group(
        "functional/targets.py",
        NUMBERS,
        (
            "return torch.log_softmax(student_text_only, -1) + ratio",
            "return torch.log_softmax(student_text_only, -1) - ratio",
            "steering away from the image",
        ),
        (
            "(1 + strength) * log_q - strength *",
            "(1 + strength) * log_q + strength *",
            "contrast with the wrong sign",
        ),
        (
            "ratio.clamp(-ratio_clamp, ratio_clamp)",
            "ratio.clamp(-ratio_clamp, -ratio_clamp)",
            "the ratio is a constant where it is clamped",
        ),
        ("+ math.log(support))", "- math.log(support))", "the support is empty"),
    ),
    *group(
        "signals/visual_advantage.py",
        NUMBERS,
        (
            "log_prob_full.float() - log_prob_degraded.float()",
            "log_prob_degraded.float() - log_prob_full.float()",
            "visual advantage with the wrong sign",
        ),
        (
            "return difference.clamp_min(0)",
            "return difference",
            "misread tokens get a negative advantage",
        ),
    ),
    *group(
        "signals/visual_dependency.py",
        NUMBERS
        + " training/test_finite.py"
        + "::test_a_nan_in_a_pass_leaves_running_thresholds_and_later_steps_have_a_gate",
        (
            "torch.where(token_has_image(responses), values, torch.zeros_like(values))",
            "values",
            "rows without an image have a dependency",
        ),
        (
            "RUNNING_DECAY * previous + (1 - RUNNING_DECAY)",
            "(1 - RUNNING_DECAY) * previous + RUNNING_DECAY",
            "a running threshold forgets at once",
        ),
        (
            'if scope == "response":',
            'if scope == "batch":',
            "thresholds over a response are taken over the step",
        ),
        (
            "// scope_prompts",
            "* scope_prompts",
            "thresholds of a micro-batch are those of a prompt",
        ),
    ),
    *group(
        "signals/concentration.py",
        "golden evaluation/test_evaluation.py objectives/test_terms.py",
        (
            "math.ceil(share * len(values) - 1e-9)",
            "math.floor(share * len(values) - 1e-9)",
            "the top tenth is one token too small",
        ),
        ("- (n + 1) / n", "- 1", "the Gini coefficient of equal values is not 0"),
    ),
    *group(
        "batch.py",
        NUMBERS + " training/test_loop.py::test_gradients_of_micro_batches_agree_within_1e_6",
        (
            "(term.weights.detach() * kept).sum() / counts.of(term.per)",
            "(term.weights.detach() * kept).mean()",
            "a mean over this part instead of the step",
        ),
        (
            "inside = term.weights != 0",
            "inside = term.weights == term.weights",
            "a NaN under weight 0 reaches the loss",
        ),
        (
            "minimised.append(term.coefficient * parts[term.name])",
            "minimised.append(parts[term.name])",
            "coefficients are not applied",
        ),
        (
            "siblings=old.num_siblings()[keep]",
            "siblings=None",
            "a part of a prompt forgets how many siblings there were",
        ),
    ),
    *group(
        "objectives/va_opd.py",
        NUMBERS,
        (
            "without_image = ~responses.has_image[responses.group]",
            "without_image = responses.has_image[responses.group]",
            "tokens of rows with an image weigh the same",
        ),
        (
            "segment_mean(advantage, responses.rollout, responses.num_rollouts)",
            "segment_sum(advantage, responses.rollout, responses.num_rollouts)",
            "long responses weigh more",
        ),
        ('"low": -advantage', '"low": advantage', "the ablation drops the wrong tokens"),
    ),
    *group(
        "objectives/iw_opd.py",
        NUMBERS,
        (
            "1 + strength * (1 - before /",
            "1 + strength * (before /",
            "late disagreement weighs more",
        ),
    ),
    *group(
        "objectives/eopd.py",
        NUMBERS,
        (
            "> self.entropy_above",
            "< self.entropy_above",
            "the gate opens where the teacher is certain",
        ),
    ),
    *group(
        "objectives/papo.py",
        NUMBERS,
        (
            "-self.perception_weight * left",
            "self.perception_weight * left",
            "perception is minimised instead of maximised",
        ),
        ("left = 1 - batch.progress", "left = batch.progress", "annealing upside down"),
    ),
    *group(
        "objectives/norm_correction.py",
        NUMBERS
        + " training/test_finite.py"
        + "::test_a_probe_that_is_not_finite_leaves_eta_and_the_run_can_resume",
        (
            '0.9 * memory["eta"] + 0.1 * ratio',
            '0.1 * memory["eta"] + 0.9 * ratio',
            "dynamic eta hardly averages",
        ),
        ("norms[0] / max(norms[1], 1e-12)", "norms[1] / max(norms[0], 1e-12)", "eta upside down"),
    ),
    *group(
        "data/answers.py",
        "data/test_answers.py",
        (
            "candidates[0 if take",
            "candidates[-1 if take",
            "the last answer is judged where the first one counts",
        ),
        ('text = THINK.sub("", response)', "text = response", "answers inside the thoughts count"),
        (
            "letters[0] if len(set(letters)) == 1",
            "letters[0] if letters",
            "an undecided response counts as its first letter",
        ),
        (
            "chosen_letters(extracted, choices) == parse_letters(answer)",
            "bool(chosen_letters(extracted, choices))",
            "every letter is correct",
        ),
        (
            "return number == gold_number",
            "return abs(number - gold_number) < 1",
            "numbers that are near count as equal",
        ),
        ('bare.replace(",", "")', 'bare.replace(",", ".")', "1,234 is read as 1.234"),
        (
            "return frozenset(same) if len(same) == 1 else",
            "return frozenset(same) if same else",
            "an ambiguous option counts",
        ),
        (
            'replace("\\\\dfrac", "\\\\frac")',
            'replace("\\\\dfrac", "")',
            "display fractions lose their fraction",
        ),
        ("if depth == 0:", "if depth <= 1:", "a box ends at its first inner brace"),
    ),
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
