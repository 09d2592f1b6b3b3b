"""`scales.<scale>.seeds`: repetitions, the same for every arm, so that arms compare in pairs."""

from __future__ import annotations

from pydantic import ConfigDict, RootModel

from projected_grpo.settings.section import Seed, Unique


class Seeds(RootModel[Unique[Seed]]):
    """Training seeds in the order they run; `seeds.root` is the tuple of integers."""

    model_config = ConfigDict(frozen=True, strict=True)
