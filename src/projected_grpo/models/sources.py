"""Where a base comes from. All end up as a plain checkpoint: config, tokenizer, one file of weights."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from projected_grpo.errors import LabError
from projected_grpo.settings.base import BaseSettings
from projected_grpo.storage import sha256_file, sha256_tree

WEIGHTS = "model.safetensors"
FILES = ("config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json")
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # no code, no second copy of the weights
ONE_FILE = "1TB"  # whoever reads a base hashes and opens one file of weights


def fetch(settings: BaseSettings, target: Path) -> None:
    """Write the base that `settings` name into the existing folder `target`.

    Raises:
        LabError: it is not there, its weights are not those that `base.sha256` names, or its tokenizer cannot be used.
    """
    if settings.source == "gguf":
        _from_gguf(settings, target)
        return
    folder = _snapshot(settings) if settings.source == "hub" else Path(settings.path)
    check_hash(settings, weights_hash(settings, folder))
    if settings.source == "shipped":
        for name in FILES:
            shutil.copyfile(folder / name, target / name)
        return
    tokenizer = _checked(AutoTokenizer.from_pretrained(folder), settings)
    _write(AutoModelForCausalLM.from_pretrained(folder, dtype="auto"), tokenizer, target)


def weights_hash(settings: BaseSettings, folder: Path) -> str:
    """Of the one file of weights in `folder`, or of its several.

    Raises:
        LabError: there is none.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        rule, fix = f"{folder} must hold a checkpoint with *.safetensors", "name the folder that holds config.json"
        raise LabError(setting="base.path", value=settings.path, rule=rule, fix=fix)
    return sha256_file(files[0]) if len(files) == 1 else sha256_tree(folder, "*.safetensors")


def check_hash(settings: BaseSettings, found: str) -> None:
    """Refuse weights other than those that the settings name; where they name none, say what would pin these.

    Raises:
        LabError: another hash.
    """
    if settings.sha256 is None:
        print(f"base: {settings.path} at {settings.revision}; to pin its weights too, base.sha256: {found}")
    elif found != settings.sha256:
        raise LabError(
            setting="base.sha256",
            value=settings.sha256,
            rule=f"must be the hash of the weights in {settings.path}, which is {found}",
            fix="restore the file, or set the hash if you mean to use these weights",
        )


def gguf_file(path: str) -> Path:
    """A file by its path, or as package:file.

    Raises:
        LabError: no such file or package.
    """
    package, colon, name = path.partition(":")
    if not colon:
        file, fix = Path(path), "name an existing file, or package:file"
    else:
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            rule, fix = f"the package {package} must be installed", f"pip install {package.replace('_', '-')}"
            raise LabError(setting="base.path", value=path, rule=rule, fix=fix)
        file, fix = Path(next(iter(found.submodule_search_locations))) / name, f"look what the package {package} ships"
    if not file.is_file():
        raise LabError(setting="base.path", value=path, rule=f"{file} must exist", fix=fix)
    return file


def _snapshot(settings: BaseSettings) -> Path:
    """The hub's files at the pinned revision, from its cache if they are there."""
    try:
        return Path(snapshot_download(settings.path, revision=settings.revision, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        rule = f"must be a model of the hub that can be fetched at {settings.revision}: {error}"
        fix = "check name, revision and network; or copy the model here and set source: folder"
        raise LabError(setting="base.path", value=settings.path, rule=rule, fix=fix) from error


def _from_gguf(settings: BaseSettings, target: Path) -> None:
    """transformers loads a GGUF file but refuses to save it: its weights go into a plain model of the same config."""
    file = gguf_file(settings.path)
    check_hash(settings, sha256_file(file))
    tokenizer = _checked(AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name), settings)
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict())
    _write(plain, tokenizer, target)


def _checked(tokenizer: PreTrainedTokenizerBase, settings: BaseSettings) -> PreTrainedTokenizerBase:
    """Batches are padded and completions end: without these two tokens nothing can be sampled."""
    for name in ("pad_token", "eos_token"):
        if getattr(tokenizer, name) is None:
            rule = f"its tokenizer must have a {name}"
            fix = "set it in the folder's tokenizer_config.json; a copy with source: folder can be changed"
            raise LabError(setting="base.path", value=settings.path, rule=rule, fix=fix)
    return tokenizer


def _write(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, target: Path) -> None:
    model.save_pretrained(target, max_shard_size=ONE_FILE)
    tokenizer.save_pretrained(target)
