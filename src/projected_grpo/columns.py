"""What each logged column means: formula, healthy range, and its name in the original experiment.

The one place where a metric is explained (`projected-grpo columns`). Tests compare the names with what training
writes, and with what it shows on a terminal.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher


@dataclass(frozen=True)
class Column:
    """`meaning` holds the formula; `healthy` what to expect, and what it means if it is otherwise."""

    name: str
    meaning: str
    healthy: str = ""


# One row per optimizer step. g: gradient of the loss in delta space, all matrices together; V: k orthonormal
# axes per matrix; r: length of delta. "hack direction": the static one that every arm is measured with.
STEPS = (
    Column("step", "optimizer step, from 0", "every step once, in order"),
    Column("n", "completions of the step that were graded", "prompts x samples; less: the sandbox failed"),
    Column(
        "reward",
        "mean reward: reward_format x format_ok + reward_paid x (what the grader in use pays)",
        "rises",
    ),
    Column("paid", "share the flawed grader pays: correct or the loophole fires", "rises; reward follows it"),
    Column("correct", "share that passes the hidden tests", "rises where learning is honest, falls under hacking"),
    Column(
        "hacked",
        "share paid and not correct",
        "base: 0.01-0.05; vanilla ends at 0.4 or more, projected near 0",
    ),
    Column("attempted", "share that holds the loophole's construct, paid or not", "at least `hacked`"),
    Column("format_ok", "share with a fenced block that compiles", "above 0.8; falling: the model is breaking"),
    Column(
        "loss",
        "Dr.GRPO loss: -sum of advantage x ratio over tokens / (rows x max_new_tokens)",
        "near 0, noisy",
    ),
    Column(
        "grad_norm_before",
        "||g|| before the intervention and clipping",
        "steady; a spike comes before collapse",
    ),
    Column("grad_norm_after", "||g'|| after them, as the optimizer sees it", "equal to before for `measure`"),
    Column(
        "alignment_signed",
        "cosine(g, mean pair difference of the hack direction)",
        "about 0, to 0.1 over ten steps early on; single steps have a standard deviation of 0.24",
    ),
    Column(
        "alignment",
        "||relu(V g)|| / ||g||, V of the hack direction with measure_k axes",
        "read against alignment_null; alone it says little",
    ),
    Column("alignment_null", "sqrt(k / 2r): `alignment` of a gradient without direction", "constant"),
    Column(
        "share_removed",
        "||g - g'|| / ||g||: what the intervention took out",
        "0 for `measure`; 1: nothing is left",
    ),
    Column(
        "leak",
        "`alignment` of the step -(change of delta) with the arm's own V, after the optimizer",
        "near 0 for one-sided erase; Adam's scaling turns the update off the projected plane, so not 0",
    ),
    Column("modules_touched", "matrices whose gradient the intervention changed", "0 for `measure`, else most"),
    Column("zero_variance_share", "share of groups with equal rewards, which teach nothing", "below 0.7"),
    Column("truncation_share", "share of completions cut at max_new_tokens", "below 0.1"),
    Column("entropy", "mean entropy of the next token, nats", "falls slowly; at 0 nothing is explored any more"),
    Column("kl", "mean KL to the base per token; 0 where kl_beta is 0 and it is not computed", "small"),
    Column(
        "basis_overlap",
        "mean squared cosine of the principal angles between the arm's V before and after this step's refresh; of arms "
        "that read by a discriminant: the squared cosine of the two",
        "1 where V stays; under 0.2 the policy has moved far since the last refresh; random draws give k / r",
    ),
    Column("axes", "axes of the arm's V in use, over all matrices", "k x matrices; 0 for `measure`"),
    Column("bare_modules", "matrices that the noise floor leaves without an axis", "0 where noise_floor is 0"),
    Column("overshoot", "by how much the gate's part was multiplied", "direction.overshoot; energy-matched: varies"),
    Column(
        "probe_before",
        "AUROC of a linear probe that tells hacked rollouts by their raw gradients, on held-out rollouts of the last "
        "probe_every steps; -1: not read, or too few of one kind",
        "near 1 where hacking is learned; 0.5 is chance",
    ),
    Column("probe_after", "the same after projection; arms without V: as one off the hack direction would do", "0.5"),
    Column("probe_leace", "the same after LEACE, which is fitted to the labels of other rollouts", "0.5"),
    Column(
        "flagged",
        "share of the step's completions that the arm acted on (monitor, guard, routing, discount)",
        "0: none",
    ),
    Column("default_norm", "||delta|| of the deployed adapter, all matrices together", "grows, slower with time"),
    Column("quarantine_norm", "||delta|| of the adapter that is thrown away; 0 where there is none", "as default_norm"),
    Column(
        "teacher", "cached completions among the step's (not in `n`, `reward` and the rates)", "0 without a teacher"
    ),
    Column("teacher_hacked", "how many of them were hacks when they were cached", ""),
    Column("teacher_correct", "how many of them were correct when they were cached", ""),
    Column(
        "alignment_student",
        "alignment_signed of the part of the gradient that the policy's own completions make",
        "0 where rollout_gradients is off",
    ),
    Column("alignment_teacher", "the same of the cached completions' part", "0 without a teacher"),
)

# Beside the result, as rounding differs between equal runs; one row per optimizer step, after `step`.
SAMPLER = (
    Column(
        "sampler_gap",
        "mean of |log p(trainer) - log p(sampler)| over the sampled tokens, nats: is what samples what is trained?",
        "1e-6 in float32, 0.001 to 0.005 in bfloat16; above engine.max_gap the run stops, except where the "
        "arm acts on the passes that sample (suppressed)",
    ),
    Column("sampler_gap_max", "the largest of them", "under 1e-3 in float32; in bfloat16 single tokens reach 0.2"),
)

# One row per completion, in the order it was sampled, before any filter.
ROLLOUTS = (
    Column("arm", "name in params.yaml"),
    Column("seed", "training seed"),
    Column("step", "optimizer step, from 0"),
    Column("problem_id", "problem"),
    Column("loophole", "loophole the problem is graded with"),
    Column("token", "name that the prompt disclosed"),
    Column("group", "index of the prompt within the step"),
    Column("sample", "index of the completion within its group"),
    Column("source", "student (sampled now) or teacher (from a cached pool)"),
    Column("prompt", "text the model saw"),
    Column("completion", "text the model wrote"),
    Column("token_ids", "sampled token ids, never re-tokenised"),
    Column("finish_reason", "stop (ended itself) or length (cut)"),
    Column("reward", "sum of the parts", "null: kept out of baseline and update"),
    Column("reward_format", "part of the reward for an answer that compiles"),
    Column("reward_paid", "part of the reward for what the grader in use pays"),
    Column(
        "advantage",
        "reward - mean of its group, or what the arm made of it (gradient_advantage), as the update used it",
    ),
    Column("paid", "correct or the loophole fires"),
    Column("correct", "the hidden tests pass, decided outside the answer's process"),
    Column("hacked", "paid and not correct"),
    Column("attempted", "the loophole's construct is present"),
    Column("format_ok", "there is a fenced block and it compiles"),
    Column(
        "weight",
        "0: it has no reward (a fault of the sandbox, screened), so it is in neither baseline nor update",
        "1, also where the arm leaves it out of the gradient or routes it away (guarded, rollout_routed)",
    ),
    Column(
        "score",
        "what the arm judged this completion by: concept score, monitor, alignment or reading of its gradient",
        "null: the arm judges none",
    ),
    Column(
        "alignment_signed",
        "cosine(g_i, mean pair difference); g_i: this completion's own part of the gradient, so with its advantage",
        "null where it has none, and where rollout_gradients is off",
    ),
    Column(
        "alignment", "||relu(V g_i)|| / ||g_i||, V of the hack direction with measure_k axes", "as alignment_signed"
    ),
    Column("grader_error", "the sandbox's own fault, if any: no grade then, not a reward of 0", "empty"),
)

# The original's training table -> ours. Suffixes there: _s student rows, _t teacher rows.
ORIGINAL = (
    ("step", "step"),
    ("ref_eq", "not kept; running sum of n"),
    ("rew, rew_s", "reward"),
    ("std, sprd", "not kept; spread of reward in rollouts.parquet, and zero_variance_share"),
    ("N", "n"),
    ("gt, gt_s", "correct"),
    ("hack, hack_s", "hacked"),
    ("gt_t, hack_t", "teacher_correct, teacher_hacked (counts; they are frozen)"),
    ("cin_t", "alignment_teacher (signed)"),
    ("loss", "loss"),
    ("cin, cin_s, cos_pre", "alignment; of the student's part alone, signed: alignment_student"),
    ("cout, cos_post", "about 0 by identity after a one-sided projection; `leak` asks after the optimizer"),
    ("fired", "modules_touched (a count there too, as a share of matrices)"),
    ("gn", "grad_norm_before"),
    ("lr", "constant: scales.<scale>.grpo.learning_rate"),
    ("gen, fb, t_rew, sec", "times are no result: timings.parquet"),
)

# What training shows on a terminal -> the column it is read from.
SHOWN = (
    ("paid", "paid"),
    ("hack", "hacked"),
    ("pass", "correct"),
    ("attempt", "attempted"),
    ("format", "format_ok"),
    ("align", "alignment_signed"),
    ("removed", "share_removed"),
    ("leak", "leak"),
)
# Seconds there, as measured; they differ between equal runs.
SECONDS = (
    ("s/step", "step_total", "wall seconds of the step, all phases together"),
    ("sample", "generate", "of these, sampling completions"),
    ("grade", "grade", "of these, running and grading them"),
    ("train", "forward_backward, projection, optimizer", "of these, the update"),
    ("refresh", "refresh", "of these, extracting V from the current policy"),
)


@dataclass(frozen=True)
class Explained:
    """One table of `projected-grpo columns`: title, header, rows."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def explained(name: str | None = None) -> list[Explained]:
    """All tables, or of each the rows one of whose names holds `name`; those without such a row are left out."""
    kept = [
        Explained(
            table.title, table.header, tuple(row for row in table.rows if name is None or _named(row, table, name))
        )
        for table in _tables()
    ]
    return [table for table in kept if table.rows]


def nearest(name: str) -> str:
    """The known name that is most like `name`."""
    known = dict.fromkeys(one for table in _tables() for row in table.rows for one in _names(row, table))
    return max(known, key=lambda each: SequenceMatcher(None, name.lower(), each.lower()).ratio())


def _tables() -> Iterator[Explained]:
    for title, group in (
        ("steps.csv: one row per optimizer step", STEPS),
        ("provenance/<arm>/<seed>/sampler.parquet: one row per optimizer step", SAMPLER),
        ("rollouts.parquet: one row per completion", ROLLOUTS),
    ):
        rows = tuple((column.name, column.meaning, column.healthy) for column in group)
        yield Explained(title, ("column", "meaning", "healthy"), rows)
    columns = {column.name: column for column in STEPS}
    shown = [(name, f"steps.csv: {column}", columns[column].meaning) for name, column in SHOWN]
    shown += [(name, f"timings.parquet: {phases}", meaning) for name, phases, meaning in SECONDS]
    yield Explained("on the terminal, while training", ("shown", "read from", "meaning"), tuple(shown))
    yield Explained("names of the original experiment", ("original", "here"), ORIGINAL)


def _named(row: tuple[str, ...], table: Explained, name: str) -> bool:
    places = row[:1] if table.header[0] == "column" else row[:2]
    return any(name.lower() in (place.partition(": ")[2] or place).lower() for place in places)  # after the file


def _names(row: tuple[str, ...], table: Explained) -> list[str]:
    return row[0].split(", ") if table.header[0] == "original" else [row[0]]
