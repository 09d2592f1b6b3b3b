"""Files appear whole or not at all; hashes see content and nothing else; scratch is one place."""

import dataclasses
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from projected_grpo import storage


class Interrupted(Exception):
    pass


def write_half(writing: AbstractContextManager[Path], write: Callable[[Path], object]) -> None:
    with writing as temporary:
        write(temporary)
        raise Interrupted


class TestAtomicWrites:
    def test_content_and_parents(self, tmp_path):
        path = storage.write_text(tmp_path / "a/b/c.txt", "käse\n")
        assert path.read_bytes() == "käse\n".encode()
        assert [entry.name for entry in path.parent.iterdir()] == ["c.txt"]

    def test_replaces(self, tmp_path):
        storage.write_bytes(tmp_path / "x", b"old")
        storage.write_bytes(tmp_path / "x", b"new")
        assert (tmp_path / "x").read_bytes() == b"new"

    def test_a_failure_keeps_the_old_file_and_leaves_no_rest(self, tmp_path):
        storage.write_bytes(tmp_path / "x", b"old")
        with pytest.raises(Interrupted):
            write_half(storage.atomic_file(tmp_path / "x"), lambda temporary: temporary.write_bytes(b"half"))
        assert (tmp_path / "x").read_bytes() == b"old"
        assert [entry.name for entry in tmp_path.iterdir()] == ["x"]

    def test_ordinary_permissions(self, tmp_path):
        (tmp_path / "plain").write_bytes(b"")
        storage.write_bytes(tmp_path / "x", b"")
        (tmp_path / "folder").mkdir()
        with storage.atomic_directory(tmp_path / "y"):
            pass
        assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode
        assert (tmp_path / "y").stat().st_mode == (tmp_path / "folder").stat().st_mode

    def test_json_refuses_nan_and_keeps_the_old_file(self, tmp_path):
        storage.write_json(tmp_path / "m.json", {"b": 1, "a": 0.5})
        assert (tmp_path / "m.json").read_text() == '{\n  "b": 1,\n  "a": 0.5\n}\n'
        with pytest.raises(ValueError, match="not JSON compliant"):
            storage.write_json(tmp_path / "m.json", {"a": float("nan")})
        assert (tmp_path / "m.json").read_text() == '{\n  "b": 1,\n  "a": 0.5\n}\n'

    def test_a_killed_writer_leaves_the_old_file(self, tmp_path):
        storage.write_bytes(tmp_path / "x", b"old")
        code = (
            "import os, sys\n"
            "from projected_grpo.storage import atomic_file\n"
            "with atomic_file(sys.argv[1]) as temporary:\n"
            "    temporary.write_bytes(b'half')\n"
            "    os.kill(os.getpid(), 9)\n"
        )
        done = subprocess.run([sys.executable, "-c", code, tmp_path / "x"], check=False)
        assert done.returncode == -9
        assert (tmp_path / "x").read_bytes() == b"old"


class TestAtomicDirectories:
    def test_appears_whole(self, tmp_path):
        with storage.atomic_directory(tmp_path / "out") as temporary:
            (temporary / "deep").mkdir()
            (temporary / "deep/file").write_text("1")
            assert not (tmp_path / "out").exists()
        assert (tmp_path / "out/deep/file").read_text() == "1"
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]

    def test_replaces_all_of_the_old(self, tmp_path):
        for name in ("first", "second"):
            with storage.atomic_directory(tmp_path / "out") as temporary:
                (temporary / name).write_text(name)
        assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["second"]
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]

    def test_a_failure_keeps_the_old(self, tmp_path):
        with storage.atomic_directory(tmp_path / "out") as temporary:
            (temporary / "kept").write_text("1")
        with pytest.raises(Interrupted):
            write_half(storage.atomic_directory(tmp_path / "out"), lambda root: (root / "half").write_text("2"))
        assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["kept"]
        assert [entry.name for entry in tmp_path.iterdir()] == ["out"]

    def test_copy(self, tmp_path):
        (tmp_path / "from/deep").mkdir(parents=True)
        (tmp_path / "from/deep/file").write_text("1")
        storage.copy_directory(tmp_path / "from", tmp_path / "to")
        assert storage.sha256_tree(tmp_path / "to") == storage.sha256_tree(tmp_path / "from")


class TestHashes:
    def test_file(self, tmp_path):
        (tmp_path / "x").write_bytes(b"abc" * 1_000_000)
        assert storage.sha256_file(tmp_path / "x") == hashlib.sha256(b"abc" * 1_000_000).hexdigest()

    def test_tree_sees_names_and_bytes_but_not_times(self, tmp_path):
        def tree(name: str, files: dict[str, str]) -> str:
            for path, content in files.items():
                (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name / path).write_text(content)
            return storage.sha256_tree(tmp_path / name)

        first = tree("one", {"a": "1", "b/c": "2"})
        os.utime(tmp_path / "one/a", (0, 0))
        (tmp_path / "one/empty").mkdir()
        assert storage.sha256_tree(tmp_path / "one") == first
        assert tree("same", {"b/c": "2", "a": "1"}) == first
        assert tree("renamed", {"a": "1", "b/d": "2"}) != first
        assert tree("changed", {"a": "1", "b/c": "3"}) != first
        assert tree("swapped", {"a": "2", "b/c": "1"}) != first

    def test_tree_needs_a_root(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            storage.sha256_tree(tmp_path / "nowhere")

    def test_settings_are_canonical(self):
        @dataclasses.dataclass
        class Record:
            a: int
            b: tuple[int, ...]

        expected = hashlib.sha256(b'{"a":1,"b":[2,3]}').hexdigest()
        assert storage.sha256_settings({"b": [2, 3], "a": 1}) == expected
        assert storage.sha256_settings({"a": 1, "b": (2, 3)}) == expected
        assert storage.sha256_settings(Record(1, (2, 3))) == expected
        assert storage.sha256_settings({"a": 1, "b": [3, 2]}) != expected

    def test_settings_sections_hash_by_content(self):
        from projected_grpo.settings.arms import ArmSettings

        arm = ArmSettings(intervention="measure")
        plain = {"intervention": "measure", "direction": None, "grader": "loophole"}
        plain |= {"axes": {}, "options": {}, "teacher": None}
        assert storage.sha256_settings({"arm": arm}) == storage.sha256_settings({"arm": plain})

    def test_settings_refuse_what_has_no_canonical_form(self):
        with pytest.raises(TypeError):
            storage.sha256_settings({"a": object()})
        with pytest.raises(ValueError, match="not JSON compliant"):
            storage.sha256_settings({"a": float("inf")})


class TestScratch:
    @pytest.fixture(autouse=True)
    def _unset(self, monkeypatch):
        monkeypatch.delenv(storage.SCRATCH_VARIABLE, raising=False)

    @pytest.fixture
    def checkout(self, tmp_path: Path) -> Path:
        root = tmp_path / "lab"
        (root / ".dvc").mkdir(parents=True)
        git(root, "init", "-q")
        git(root, "-c", "user.name=x", "-c", "user.email=x@x", "commit", "-q", "--allow-empty", "-m", "x")
        return root

    def test_is_absolute_and_made(self, checkout, monkeypatch):
        monkeypatch.chdir(checkout)
        assert storage.scratch_root() == checkout / ".scratch"
        assert (checkout / ".scratch").is_dir()

    def test_from_a_folder_inside(self, checkout):
        (checkout / "study").mkdir()
        assert storage.scratch_root(checkout / "study") == checkout / ".scratch"

    def test_is_shared_by_experiment_workspaces(self, checkout):
        """`dvc exp run --temp` makes a repository of its own under .dvc/tmp/exps."""
        workspace = checkout / ".dvc/tmp/exps/tmpabc"
        (workspace / ".dvc").mkdir(parents=True)
        git(workspace, "init", "-q")
        assert storage.scratch_root(workspace) == checkout / ".scratch"

    def test_is_shared_by_linked_worktrees(self, checkout, tmp_path):
        git(checkout, "worktree", "add", "-q", str(tmp_path / "other"))
        assert storage.scratch_root(tmp_path / "other") == checkout / ".scratch"

    def test_of_an_unpacked_archive(self, tmp_path):
        (tmp_path / "lab/.dvc").mkdir(parents=True)
        (tmp_path / "lab/deep").mkdir()
        assert storage.main_checkout(tmp_path / "lab/deep") == tmp_path / "lab"

    def test_the_variable_decides(self, checkout, tmp_path, monkeypatch):
        monkeypatch.setenv(storage.SCRATCH_VARIABLE, str(tmp_path / "elsewhere"))
        assert storage.scratch_root(checkout) == tmp_path / "elsewhere"


def git(root: Path, *arguments: str) -> None:
    subprocess.run(["git", *arguments], cwd=root, check=True)
