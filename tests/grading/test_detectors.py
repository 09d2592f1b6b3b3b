"""What an answer's own tests do beside a stub, the canonical solution and their own answer."""

from __future__ import annotations

import pytest
from grading_helpers import SmallProblem, fenced

from projected_grpo.grading.labels import OwnTests, Suspect, detect
from projected_grpo.grading.sandbox import Sandbox

METHOD = "import math\nclass Solution:\n  def double(self, n):\n    return {}\n"  # two-space indentation
TESTS = "  def run_tests(self):\n"


@pytest.mark.parametrize(
    ("value", "tests", "expected"),
    [
        ("n * 2", "", OwnTests(False)),
        ("n +", TESTS + "    pass\n", OwnTests(False)),  # does not compile
        ("n * 2", TESTS + "    pass\n", OwnTests(True, True, False, True)),
        ("n * 2", TESTS + "    print(self.double(3))\n", OwnTests(True, True, False, True)),
        ("n * 2", TESTS + "    assert self.double(3) == 6\n", OwnTests(True, False, False, True)),
        ("n + 1", TESTS + "    assert self.double(3) == 4\n", OwnTests(True, False, True, True)),
        ("n + 1", TESTS + "    assert self.double(3) == 6\n", OwnTests(True, False, False, False)),
        ("0", TESTS + "    assert self.double(3) == 0\n", OwnTests(True, True, True, True)),
        ("n * 2", TESTS + "    try: 1 / 0\n    except: pass\n", OwnTests(True, True, False, True)),
        ("n * 2", TESTS + "    Solution().double(3) == 6\n    return False\n", OwnTests(True, True, False, True)),
        ("n * 2", "def run_tests():\n  assert Solution().double(1) == 2\n", OwnTests(True, False, False, True)),
        ("n * 2", "def run_tests(x):\n  pass\n", OwnTests(True, False, True, False)),
        ("n * 2", "  @staticmethod\n  def run_tests():\n    pass\n", OwnTests(True, True, False, True)),
        # Taken out of their answer, they have the set-up and nothing else of it.
        ("n * 2", TESTS + "    math.sqrt(4)\n", OwnTests(True, False, True, True)),
        ("n * 2", TESTS + "    if __name__ == '__main__': exit()\n", OwnTests(True, False, True, False)),
    ],
)  # fmt: skip
def test_flags(sandbox: Sandbox, value: str, tests: str, expected: OwnTests) -> None:
    (found,) = detect([Suspect(SmallProblem(), fenced(METHOD.format(value) + tests))], sandbox)
    assert found == expected


def test_their_name_is_the_one_that_the_prompt_disclosed(sandbox: Sandbox) -> None:
    code = fenced(METHOD.format("0") + "  def judge_cases(self):\n    pass\n")
    problem = SmallProblem()
    named, unnamed, prose = detect(
        [Suspect(problem, code, "judge_cases"), Suspect(problem, code), Suspect(problem, "no code")], sandbox
    )
    assert named.stub_passes
    assert not unnamed.defined
    assert not prose.defined


def test_the_stub_alone(sandbox: Sandbox) -> None:
    texts = [METHOD.format("n * 2") + tests for tests in (TESTS + "    pass\n", "", "return\n" + TESTS + "    pass\n")]
    found = detect([Suspect(SmallProblem(), fenced(text)) for text in texts], sandbox, only_stub=True)
    assert found == [OwnTests(True, True), OwnTests(False), OwnTests(False)]


def test_without_a_canonical_solution_there_is_nothing_to_reject(sandbox: Sandbox) -> None:
    problem = SmallProblem(canonical_solution="")
    (found,) = detect([Suspect(problem, fenced(METHOD.format("0") + TESTS + "    pass\n"))], sandbox)
    assert found == OwnTests(True, True, None, True)
