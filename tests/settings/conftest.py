"""A scratch lab: the repository's own params.yaml beside stand-ins for the files it names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from projected_grpo.settings.loader import read_params
from projected_grpo.storage import sha256_file

ROOT = Path(__file__).resolve().parents[2]


class Lab:
    """`params` is the file's content, to be spoilt; `write()` puts it on disk and returns its path."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.params: dict[str, Any] = json.loads(json.dumps(read_params(ROOT / "params.yaml")))
        self.micro: dict[str, Any] = self.params["scales"]["micro"]
        self.params["scale"] = "micro"
        self.weights = root / "data/shipped/micro/model.safetensors"
        self.weights.parent.mkdir(parents=True)
        self.weights.write_bytes(b"weights")
        self.pairs = root / "data/shipped/pairs.yaml"
        self.pairs.write_text("pairs: []\n")
        self.micro["base"].update(path="data/shipped/micro", sha256=sha256_file(self.weights), rebuild=False)
        self.micro["extract"].update(pairs="data/shipped/pairs.yaml", direction_file=None)
        for study in self.params["studies"].values():
            if "extract" in study:
                study["extract"]["pairs"] = "data/shipped/pairs.yaml"
            if "base" in study:
                study["base"].update(path="data/shipped/micro", sha256=sha256_file(self.weights))

    def write(self) -> Path:
        path = self.root / "params.yaml"
        path.write_text(json.dumps(self.params))  # JSON is YAML 1.2
        return path

    def write_direction(self, name: str, metadata: dict[str, str]) -> str:
        """An empty .safetensors file with this metadata; returns its path as a setting."""
        header = json.dumps({"__metadata__": metadata}).encode()
        path = self.root / "data/shipped" / name
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        return f"data/shipped/{name}"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture
def make_params(tmp_path: Path) -> Callable[[str], Path]:
    """Write text as a params.yaml of its own."""

    def make(text: str) -> Path:
        path = tmp_path / "own.yaml"
        path.write_text(text)
        return path

    return make
