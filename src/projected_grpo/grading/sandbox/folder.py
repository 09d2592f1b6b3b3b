"""The folder that answers run in, one after the other, each finding it as if new."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

FILE_LIMIT = 4096  # bytes of a result file that are handed back


class WorkFolder:
    """A folder inside `scratch`. Most answers never touch it, so it is kept until one does.

    `opened` is called with its path each time it has been made anew.
    """

    def __init__(self, scratch: str, opened: Callable[[str], None]) -> None:
        self.path = os.path.join(scratch, "work")
        self._opened = opened
        self._make()

    def _make(self) -> None:
        os.mkdir(self.path, 0o700)
        self._opened(self.path)
        self.fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._untouched = self._state()

    def _state(self) -> tuple[int, ...]:
        state = os.fstat(self.fd)  # whatever is done to a folder, to the entries in it or its rights, sets its ctime
        return state.st_ctime_ns, state.st_mode, state.st_uid, state.st_nlink, state.st_size

    def renew(self) -> None:
        """Bring it back to what it was; no process that ran in it is alive."""
        if self._state() == self._untouched and not os.listdir(self.fd):
            return
        os.close(self.fd)
        remove_tree(self.path)
        self._make()

    def read(self, name: str) -> bytes | None:
        """The first bytes of a regular file in it, never following a link; None where there is none."""
        try:
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.fd)
        except OSError:
            return None
        try:
            return os.read(fd, FILE_LIMIT) if stat.S_ISREG(os.fstat(fd).st_mode) else None
        finally:
            os.close(fd)


def remove_tree(path: str) -> None:
    """Remove a folder that an answer has used, whatever it left there; none of its processes is alive.

    Folders are emptied into the top one before they go, so that no depth of nesting breaks a limit.
    """
    try:
        os.rmdir(path)  # nearly always empty
        return
    except OSError:
        pass
    if os.path.islink(path) or not os.path.isdir(path):
        if os.path.lexists(path):
            os.unlink(path)
        return
    os.chmod(path, 0o700)
    moved = 0
    while names := os.listdir(path):
        for name in names:
            entry = os.path.join(path, name)
            if os.path.islink(entry) or not os.path.isdir(entry):
                os.unlink(entry)
                continue
            os.chmod(entry, 0o700)
            for inner in os.listdir(entry):
                while os.path.lexists(target := os.path.join(path, f"moved {moved}")):  # the answer may have taken it
                    moved += 1
                os.rename(os.path.join(entry, inner), target)
            os.rmdir(entry)
    os.rmdir(path)
