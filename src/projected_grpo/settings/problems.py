"""`scales.<scale>.problems`: what is asked, and which loopholes it is graded with."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from projected_grpo.settings.section import Count, Name, Section, Seed, Unique, broken_rule


class ProblemsSettings(Section):
    """Training and held-out problems share no composition."""

    source: Literal["embedded", "leetcode"]
    """embedded: compositional problems written for the project; leetcode: the file `path`"""

    path: Name | None = None
    """leetcode: a JSONL file of the benchmark (`projected-grpo fetch leetcode`); embedded: null"""

    stages: Annotated[int, Field(ge=3)]
    """embedded: operations composed in one problem, the difficulty; shorter ones are all in the pretraining corpus"""

    train: Count
    """training problems; of leetcode at most so many"""

    test: Count
    """held-out problems; of leetcode at most so many"""

    loopholes: Unique[
        Literal["run_tests", "sentinel", "stdout_marker", "file_marker", "eq_override", "exit_code", "none"]
    ]
    """loopholes in use; problems are dealt out evenly over them"""

    seed: Seed
    """seed of the draw of problems, loopholes and tokens"""

    @model_validator(mode="after")
    def _a_file_where_one_is_read(self) -> Self:
        if self.source == "leetcode" and self.path is None:
            fix = "name a JSONL file of the benchmark; `projected-grpo fetch leetcode` gets one"
            raise broken_rule("path", None, "must be set where source is leetcode", fix)
        if self.source == "embedded" and self.path is not None:
            fix = "set source: leetcode, or leave path out"
            raise broken_rule("path", self.path, "must not be set where source is embedded", fix)
        return self
