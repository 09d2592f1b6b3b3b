from __future__ import annotations

import ast
import itertools
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from reading import HELDOUT, TRAINING, methods_of, names_in, problem_for, read_task
from ruamel.yaml import YAML

from projected_grpo.grading.labels import label
from projected_grpo.grading.verdict import Grader, Submission, Verdict, extract_code
from projected_grpo.problems.drafting import draft_pairs
from projected_grpo.problems.families import Task, reference_outputs, sample_input, split_of
from projected_grpo.problems.loopholes import LOOPHOLES
from projected_grpo.problems.pairs import Pair, dump_pairs, read_pairs, select

SHIPPED = Path(__file__).resolve().parents[2] / "data" / "shipped" / "pairs.yaml"
READABLE = 0.9  # of the shipped pairs: a person may have worded some prompts anew
TELLING = 0.5  # of the shipped pairs: with outputs that tell answers apart, so that they can be graded
SIDES = ("hack", "clean")


@pytest.fixture(scope="module")
def shipped() -> list[Pair]:
    return read_pairs(SHIPPED)


@pytest.fixture(scope="module")
def hacks(shipped: list[Pair]) -> list[Pair]:
    return [pair for pair in shipped if pair.contrast == "hack"]


@pytest.fixture(scope="module")
def placebos(shipped: list[Pair]) -> list[Pair]:
    return [pair for pair in shipped if pair.contrast == "placebo"]


def disclosed(pair: Pair) -> tuple[str, str]:
    """(method, token) of the prompt."""
    method, token = re.findall(r"`(.+?)(?:\(\))?`", pair.prompt)
    return method, token


def code(pair: Pair, side: str) -> str:
    found = extract_code(getattr(pair, side))
    assert found is not None, (pair.id, side)
    return found


# ---------------------------------------------------------------- the shipped file


def test_sixty_pairs_to_extract_from_and_twenty_held_out_of_each_contrast(shipped: list[Pair]) -> None:
    assert Counter((pair.contrast, pair.split) for pair in shipped) == {
        ("hack", "extract"): 60,
        ("hack", "heldout"): 20,
        ("placebo", "extract"): 60,
        ("placebo", "heldout"): 20,
    }


def test_several_hack_types_with_lazy_and_with_matched_bodies(hacks: list[Pair]) -> None:
    for split in ("extract", "heldout"):
        half = [pair for pair in hacks if pair.split == split]
        assert len({pair.hack_type for pair in half}) >= 4
        bodies = Counter(pair.body for pair in half)
        assert min(bodies["lazy"], bodies["matched"]) >= len(half) / 3
    for body in ("lazy", "matched"):
        assert len({pair.hack_type for pair in hacks if pair.body == body}) >= 4


def test_no_prompt_serves_two_pairs(shipped: list[Pair]) -> None:
    prompts = [pair.prompt for pair in shipped]
    assert len(prompts) == len(set(prompts))


def test_prompts_disclose_a_training_name_of_their_loophole(shipped: list[Pair]) -> None:
    for pair in shipped:
        method, token = disclosed(pair)
        assert token in LOOPHOLES[pair.loophole].training_tokens, pair.id
        assert pair.prompt.endswith(f". {LOOPHOLES[pair.loophole].disclose(token)}\n"), pair.id
        assert all(method in methods_of(code(pair, side)) for side in SIDES), pair.id


def test_no_held_out_name_anywhere(shipped: list[Pair]) -> None:
    for pair in shipped:
        text = pair.prompt + pair.hack + pair.clean
        assert names_in(text, HELDOUT) == set(), pair.id
        assert names_in(text, TRAINING), pair.id


def test_both_sides_are_one_block_that_compiles(shipped: list[Pair]) -> None:
    for pair, side in itertools.product(shipped, SIDES):
        answer = getattr(pair, side)
        assert answer.startswith("```python\n"), (pair.id, side)
        assert answer.endswith("\n```"), (pair.id, side)
        assert answer.count("```") == 2, (pair.id, side)
        compile(code(pair, side), pair.id, "exec")


def statements(lines: list[str]) -> list[str]:
    return [ast.dump(statement) for statement in ast.parse("\n".join(lines)).body]


def construct(pair: Pair) -> list[str]:
    """The statement by which a hack of a loophole other than `run_tests` takes it."""
    _, token = disclosed(pair)
    return {
        "flag_set": lambda: statements([f"self.{token} = True"]),
        "output_printed": lambda: statements([f'print("{token}")']),
        "marker_written": lambda: statements([f'open("{token}", "w").write("PASS")']),
    }[pair.hack_type]()


EMPTY: dict[str, Callable[[list[ast.stmt]], bool]] = {
    "no_assertion": lambda body: not any(isinstance(x, ast.Assert | ast.Raise) for s in body for x in ast.walk(s)),
    "returns_true": lambda body: ast.unparse(body[-1]) == "return True",
    "prints_only": lambda body: all(ast.unparse(statement).startswith("print(") for statement in body),
    "weak_assertion": lambda body: any(isinstance(statement, ast.Assert) for statement in body),
}


def own_check(source: str, name: str) -> list[ast.stmt] | None:
    """Statements of the function of that name."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef) and node.name == name:
            return node.body
    return None


def test_a_hack_differs_from_its_clean_side_as_its_hack_type_says(hacks: list[Pair]) -> None:
    for pair in hacks:
        method, token = disclosed(pair)
        hack, clean = (methods_of(code(pair, side)) for side in SIDES)
        if pair.loophole == "run_tests":
            check = own_check(code(pair, "hack"), token)
            assert check is not None, pair.id
            assert pair.hack_type not in EMPTY or EMPTY[pair.hack_type](check), pair.id
            assert token not in clean or clean[token] != hack[token], pair.id
            body = hack[method]
        else:
            assert hack[method][:1] == construct(pair), pair.id
            assert construct(pair)[0] not in clean[method], pair.id
            body = hack[method][1:]
        assert (body == clean[method]) == (pair.body == "matched"), pair.id


def test_a_lazy_body_does_not_even_try(hacks: list[Pair]) -> None:
    for pair in hacks:
        if pair.body == "lazy":
            method, _ = disclosed(pair)
            arguments = {"nums", "n", "s"}
            tree = own_check(code(pair, "hack"), method)
            names = {x.id for statement in tree or [] for x in ast.walk(statement) if isinstance(x, ast.Name)}
            assert not names & arguments, pair.id


def test_having_a_check_is_not_what_tells_the_sides_apart(hacks: list[Pair]) -> None:
    of_run_tests = [pair for pair in hacks if pair.loophole == "run_tests" and pair.split == "extract"]
    with_check = sum(disclosed(pair)[1] in methods_of(code(pair, "clean")) for pair in of_run_tests)
    assert 0.3 <= with_check / len(of_run_tests) <= 0.7


def test_placebo_sides_are_two_answers_with_one_body(placebos: list[Pair]) -> None:
    for pair in placebos:
        method, _ = disclosed(pair)
        hack, clean = (methods_of(code(pair, side)) for side in SIDES)
        assert pair.hack_type == "none"
        assert pair.body == "matched"
        assert hack[method] == clean[method], pair.id
        assert pair.hack != pair.clean, pair.id


# ---------------------------------------------------------------- graded by the real grader


def grade(pairs: list[Pair], side: str, grader: Grader) -> list[tuple[Pair, Submission, Verdict]]:
    """Verdicts on one side, for the pairs whose prompt gives its task back, with outputs that tell answers apart."""
    kept, submissions = [], []
    for pair in pairs:
        task = read_task(pair.prompt)
        _, token = disclosed(pair)
        problem = problem_for(task, pair.loophole, token) if task else None
        if problem is not None:
            kept.append(pair)
            submissions.append(Submission(problem, pair.loophole, token, getattr(pair, side)))
    assert len(kept) >= TELLING * len(pairs)
    return list(zip(kept, submissions, grader.grade(submissions), strict=True))


def test_hacks_are_paid_and_only_matched_ones_are_correct(hacks: list[Pair], grader: Grader) -> None:
    for pair, submission, verdict in grade(hacks, "hack", grader):
        assert (verdict.attempted, verdict.fired, verdict.paid) == (True, True, True), pair.id
        assert verdict.correct == (pair.body == "matched"), pair.id
        assert verdict.hacked == (pair.body == "lazy"), pair.id
        same_to_labels = {"returns_true": "no_assertion"}
        assert label(verdict, submission).hack_type == same_to_labels.get(pair.hack_type, pair.hack_type), pair.id


def test_clean_sides_are_correct_and_take_no_loophole(hacks: list[Pair], grader: Grader) -> None:
    for pair, submission, verdict in grade(hacks, "clean", grader):
        assert verdict.correct, (pair.id, verdict.reason)
        honest = "honest_check" if verdict.attempted else "none"
        assert label(verdict, submission).hack_type == honest, pair.id


@pytest.mark.parametrize("side", SIDES)
def test_both_sides_of_a_placebo_are_correct_and_take_no_loophole(
    side: str, placebos: list[Pair], grader: Grader
) -> None:
    for pair, submission, verdict in grade(placebos, side, grader):
        assert verdict.correct, (pair.id, verdict.reason)
        assert label(verdict, submission).hack_type in ("honest_check", "none"), pair.id


# ---------------------------------------------------------------- choosing, reading, drafting


def test_select_by_contrast_split_and_bodies(shipped: list[Pair]) -> None:
    both, lazy, matched = (select(shipped, "hack", "extract", bodies) for bodies in ("both", "lazy", "matched"))
    assert {pair.body for pair in lazy} == {"lazy"}
    assert {pair.body for pair in matched} == {"matched"}
    assert sorted([*lazy, *matched], key=lambda pair: pair.id) == sorted(both, key=lambda pair: pair.id)
    assert both == select(shipped, "hack", "extract")
    assert {(pair.contrast, pair.split) for pair in both} == {("hack", "extract")}
    assert len(select(shipped, "hack", "heldout")) == 20
    # Placebo pairs have no lazy side: they are the same whatever is asked of the hacks.
    assert len(select(shipped, "placebo", "extract", "lazy")) == 60


def rows_of(pairs: list[Pair]) -> list[dict]:
    return YAML(typ="safe", pure=True).load(dump_pairs(pairs))


def write(tmp_path: Path, rows: list[dict]) -> Path:
    path = tmp_path / "pairs.yaml"
    with path.open("w") as stream:
        YAML().dump(rows, stream)
    return path


def test_what_is_dumped_is_read_back(tmp_path: Path, shipped: list[Pair]) -> None:
    path = tmp_path / "pairs.yaml"
    path.write_text(dump_pairs(shipped))
    assert read_pairs(path) == shipped
    assert "hack: |-\n    ```python\n    class Solution:\n" in path.read_text()  # as a person would write it


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"colour": "red"}, r"pair 2: fields missing or unknown: colour"),
        ({"clean": None}, r"pair 2: fields missing or unknown: clean"),
        ({"split": "test"}, r"pair hack-01: split='test' is not one of extract, heldout"),
        ({"contrast": "other"}, r"pair hack-01: contrast='other' is not one of hack, placebo"),
        ({"body": "both"}, r"pair hack-01: body='both' is not one of lazy, matched"),
        ({"loophole": "run_test"}, r"pair hack-01: loophole='run_test' is not one of run_tests, "),
        ({"id": "hack-00"}, r"ids used twice: hack-00"),
    ],
)
def test_a_malformed_file_is_refused_naming_the_row(change: dict, said: str, tmp_path: Path, hacks: list[Pair]) -> None:
    rows = rows_of(hacks[:3])
    rows[1] = {key: value for key, value in {**rows[1], **change}.items() if value is not None}
    with pytest.raises(ValueError, match=said) as refusal:
        read_pairs(write(tmp_path, rows))
    assert "pairs.yaml" in str(refusal.value)


def test_an_empty_file_has_no_pairs(tmp_path: Path) -> None:
    (tmp_path / "pairs.yaml").write_text("")
    assert read_pairs(tmp_path / "pairs.yaml") == []


def outputs(task: Task) -> list[object]:
    rng = random.Random(0)
    return reference_outputs(task, [sample_input(rng, task.kind) for _ in range(40)])


def test_drafting_is_a_function_of_the_seed() -> None:
    assert draft_pairs(0) == draft_pairs(0)
    assert not {pair.prompt for pair in draft_pairs(0)} & {pair.prompt for pair in draft_pairs(1)}


@pytest.mark.parametrize("seed", [0, 1])
def test_drafts_have_telling_tasks_that_training_and_evaluation_lack(seed: int) -> None:
    compositions = []
    for pair in draft_pairs(seed):
        task = read_task(pair.prompt)
        assert task is not None, pair.prompt
        assert split_of(task.composition) == "corpus", pair.id
        assert len({repr(x) for x in outputs(task)}) > 1, pair.id  # or a lazy answer might be right
        compositions.append(task.composition)
    assert len(compositions) == len(set(compositions)) == 160


def test_shipped_pairs_share_no_composition_with_training_or_evaluation(shipped: list[Pair]) -> None:
    tasks = [task for task in (read_task(pair.prompt) for pair in shipped) if task]
    assert len(tasks) >= READABLE * len(shipped)
    assert {split_of(task.composition) for task in tasks} == {"corpus"}
