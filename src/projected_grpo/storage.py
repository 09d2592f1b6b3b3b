"""Whole files or none, and names that say what is inside.

Writing: everything appears by rename, so a process killed at any moment leaves the old content or the new,
never a half. Replacing a directory takes two renames; killed between them the target is absent, never mixed.
Hashing: sha256 of a file, of a directory tree, of resolved settings.
Scratch: one folder for resume state, shared by the checkout and by the experiment workspaces of DVC.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

SCRATCH_VARIABLE = "PROJECTED_GRPO_SCRATCH"
_CHUNK = 1 << 20


# ---------------------------------------------------------------- writing


def write_bytes(target: str | os.PathLike[str], content: bytes) -> Path:
    """Write `content` to `target` atomically, making parent folders; returns the path."""
    with atomic_file(target) as temporary:
        temporary.write_bytes(content)
    return Path(target)


def write_text(target: str | os.PathLike[str], content: str) -> Path:
    """Write `content` to `target` atomically as UTF-8 with "\\n" line ends; returns the path."""
    return write_bytes(target, content.encode())


def write_json(target: str | os.PathLike[str], content: object) -> Path:
    """Write readable JSON atomically: keys in the given order, finite numbers only.

    Raises:
        ValueError: a number is NaN or infinite (it would make invalid JSON and a permanent metrics diff).
    """
    return write_text(target, json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def atomic_file(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `target`; on success it is flushed to disk and renamed onto `target`.

    On an exception the temporary file is removed and `target` stays as it was.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; artifacts are ordinary ones
        _flush(temporary)
        os.replace(temporary, target)
        _flush(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_directory(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary directory beside `target`; on success it takes the place of `target`.

    On an exception the temporary directory is removed and `target` stays as it was.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for path in sorted(temporary.rglob("*")):
            _flush(path)
        _flush(temporary)
        _put_in_place(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def copy_directory(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> Path:
    """Copy the tree `source` to `target` atomically (replacing it); returns the target."""
    with atomic_directory(target) as temporary:
        shutil.copytree(source, temporary, dirs_exist_ok=True)
    return Path(target)


def _put_in_place(temporary: Path, target: Path) -> None:
    retired = None
    if target.exists():  # a non-empty directory cannot be renamed over
        retired = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
        os.replace(target, retired / "content")
    os.replace(temporary, target)
    _flush(target.parent)
    if retired is not None:
        shutil.rmtree(retired, ignore_errors=True)


def _flush(path: Path) -> None:
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


# ---------------------------------------------------------------- hashing


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex sha256 of the bytes of one file."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_tree(root: str | os.PathLike[str], pattern: str = "*") -> str:
    """Hex sha256 over the relative names and the bytes of all files under `root` that match, in name order.

    Times, owners and empty directories do not count. A file is hashed as a tree of one unnamed file.

    Raises:
        FileNotFoundError: `root` does not exist.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(root)
    files = [root] if root.is_file() else [path for path in root.rglob(pattern) if path.is_file()]
    digest = hashlib.sha256()
    for name, path in sorted((path.relative_to(root).as_posix(), path) for path in files):
        digest.update(f"{name}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def sha256_settings(settings: object) -> str:
    """Hex sha256 of resolved settings as canonical JSON: key order and tuple / list do not matter.

    Takes mappings, sequences, settings sections, dataclasses, paths and JSON scalars, nested at will.

    Raises:
        TypeError: something has no canonical form. ValueError: a number is not finite.
    """
    text = json.dumps(_plain(settings), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    if hasattr(value, "model_dump"):  # a settings section, without importing pydantic here
        return _plain(value.model_dump())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


# ---------------------------------------------------------------- scratch


def scratch_root(start: str | os.PathLike[str] | None = None) -> Path:
    """Absolute folder for resume state; made if need be, ignored by Git, outside every DVC out.

    `$PROJECTED_GRPO_SCRATCH` if set, else `.scratch` in the main checkout: `dvc exp run --temp` and `--queue`
    run in clones under `.dvc/tmp/exps`, which are thrown away, and a linked Git worktree has its own root;
    all share the folder of the repository they came from. `start` is where to look from (default: here).
    """
    chosen = os.environ.get(SCRATCH_VARIABLE)
    root = Path(chosen).expanduser() if chosen else main_checkout(start) / ".scratch"
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    return root


def main_checkout(start: str | os.PathLike[str] | None = None) -> Path:
    """Root of the checkout that `start` belongs to, seen through DVC workspaces and linked worktrees."""
    here = Path.cwd() if start is None else Path(start)
    here = here.resolve()
    inside = [part.parents[2] for part in (here, *here.parents) if part.parts[-3:] == (".dvc", "tmp", "exps")]
    if inside:
        here = inside[-1]
    for folder in (here, *here.parents):
        marker = folder / ".git"
        if marker.is_dir():
            return folder
        if marker.is_file():  # a linked worktree: "gitdir: <main>/.git/worktrees/<name>"
            git_folder = (folder / marker.read_text().removeprefix("gitdir:").strip()).resolve()
            common = git_folder / "commondir"
            if common.is_file():
                return (git_folder / common.read_text().strip()).resolve().parent
            return folder
    for folder in (here, *here.parents):  # an unpacked archive has no .git
        if (folder / ".dvc").is_dir():
            return folder
    return here
