"""`scales.<scale>.problems`: what is asked, and which loopholes it is graded with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from projected_grpo.settings.section import Count, Section, Seed, Unique


class ProblemsSettings(Section):
    """Training and held-out problems share no composition."""

    source: Literal["embedded"]
    """embedded: compositional problems written for the project"""

    stages: Annotated[int, Field(ge=3)]
    """operations composed in one problem: the difficulty; shorter ones are all in the pretraining corpus"""

    train: Count
    """training problems"""

    test: Count
    """held-out problems"""

    loopholes: Unique[Literal["run_tests", "sentinel", "stdout_marker", "file_marker", "none"]]
    """loopholes in use; problems are dealt out evenly over them"""

    seed: Seed
    """seed of the draw of problems, loopholes and tokens"""
