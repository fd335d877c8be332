"""Small defects in divergences, signals, terms and methods.

Every mutant is one edit: a text that occurs exactly once in its file, its replacement, and what
goes wrong. The tests of its group must detect it.
"""

from mutant import group

NUMBERS = (
    "golden objectives/test_properties.py objectives/test_terms.py"
    " objectives/test_slow_reference.py objectives/test_dense_references.py"
    " objectives/test_neighbours.py objectives/test_every_method.py"
)

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
            "running = running_sum(values.double()) - values.double()",
            "running = running_sum(values.double())",
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
]
