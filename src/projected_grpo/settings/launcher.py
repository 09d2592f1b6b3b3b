"""`scales.<scale>.launcher`: how the processes of training are started."""

from __future__ import annotations

from pydantic import ConfigDict, RootModel

from projected_grpo.settings.section import Name


class Launcher(RootModel[Name | None]):
    """Configuration file of `accelerate launch` that spreads each seed over processes (docs/distributed.md), or null:
    seeds side by side, one process each."""

    model_config = ConfigDict(frozen=True, strict=True)
