"""What the kernel can do to contain an answer, through ctypes: namespaces, Landlock, seccomp, capabilities.

Two moments: `enter_namespaces` once, when a fork server starts; `Confinement.enter` in each child, before the
answer's first byte runs. Both return `Layers`: each layer by name, with "" if it is active, else why not. Whether
what is missing can be done without is the caller's decision. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import platform
import signal
import struct
from collections.abc import Sequence

from .seccomp import seccomp_filter

Layers = dict[str, str]  # layer -> "" if active, else the reason why it is not

STRONG = ("landlock", "seccomp")  # with both, an answer can neither read our files nor touch another process

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
MS_PRIVATE_RECURSIVE, MS_BIND, MS_NOSUID_NODEV, MNT_DETACH = 0x44000, 0x1000, 0x6, 0x2
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
SCRATCH_OPTIONS = b"size=64m,nr_inodes=4096,mode=0755"
NOBODY = 65534

_libc = ctypes.CDLL(None, use_errno=True)
for _name in ("capset", "syscall", "prctl"):
    hasattr(_libc, _name)  # looks it up here, once, and not in every child


def _check(result: int) -> int:
    """The result of a C function. Raises OSError if it says that the call failed."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def prctl(option: int, value: int, pointer: object = None) -> None:
    """prctl(2). Raises OSError."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), pointer or 0, 0, 0))


# --- namespaces ---------------------------------------------------------------------------------------------


def enter_namespaces(scratch: str, left_out: bool = False) -> Layers:
    """Put the calling process into namespaces of its own, with a private file system in memory on `scratch`.

    The pid namespace takes effect for the next fork: its first process cannot be killed from within, and with
    it dies everything in it.
    """
    layers = dict.fromkeys(("pid namespace", "network namespace", "ipc namespace", "mount namespace"), "")
    if left_out:
        return dict.fromkeys(layers, "left out")
    base = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
    uid, gid = os.geteuid(), os.getegid()
    for flags in [base, base | CLONE_NEWUSER] if uid == 0 else [base | CLONE_NEWUSER]:
        if _libc.unshare(flags) == 0:
            break
    else:
        return dict.fromkeys(layers, f"the host refuses unshare(2): {os.strerror(ctypes.get_errno())}")
    if flags & CLONE_NEWUSER:
        for name, text in [
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ]:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    try:
        _mount(None, "/", None, MS_PRIVATE_RECURSIVE)
        if _maps_nobody() and not reachable(os.__file__):
            _uncover_library()
        os.makedirs(scratch, exist_ok=True)  # it may lie in the folder that has just been covered
        _mount("tmpfs", scratch, "tmpfs", MS_NOSUID_NODEV, SCRATCH_OPTIONS)
    except OSError as error:  # the scratch folder then is an ordinary one, removed by its owner
        layers["mount namespace"] = f"the host refuses mount(2): {error.strerror}"
    return layers


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: bytes | None = None) -> None:
    """mount(2). Raises OSError."""
    names = [None if name is None else os.fsencode(name) for name in (source, target, kind)]
    _check(_libc.mount(*names, ctypes.c_ulong(flags), options))


def unmount(target: str) -> None:
    """Take away what is mounted on `target`, if anything is."""
    _libc.umount2(os.fsencode(target), MNT_DETACH)


def _uncover_library() -> None:
    """Let a user without rights reach a standard library that lies in a private folder, such as root's home.

    In this mount namespace only, the private folder is covered by an empty one that holds nothing but the way to
    the library, at its usual path. The rest of the private folder is out of sight.
    """
    library = os.path.dirname(os.__file__)
    above = [library[:end] for end, letter in enumerate(library) if letter == "/" and end > 0]
    private = [folder for folder in above if not os.stat(folder).st_mode & 0o001]
    if not private:
        return  # it is the library itself that is private: no mount can change that
    held = os.open(library, os.O_PATH | os.O_CLOEXEC)
    try:
        _mount("tmpfs", private[0], "tmpfs", MS_NOSUID_NODEV, b"size=1m,mode=0755")
        os.makedirs(library)
        _mount(f"/proc/self/fd/{held}", library, None, MS_BIND)
    finally:
        os.close(held)


def reachable(path: str) -> bool:
    """Whether a user without rights of their own can read the file `path`."""
    if not os.stat(path).st_mode & 0o004:
        return False
    while (path := os.path.dirname(path)) != "/":
        if not os.stat(path).st_mode & 0o001:
            return False
    return True


def _maps_nobody() -> bool:
    """Whether we are root, in a user namespace that knows user NOBODY."""
    with open("/proc/self/uid_map") as file:
        ranges = [(int(first), int(count)) for first, _, count in map(str.split, file)]
    return os.geteuid() == 0 and any(first <= NOBODY < first + count for first, count in ranges)


# --- Landlock: which files ----------------------------------------------------------------------------------

_READ_FILE, _WRITE_FILE, _READ_DIR = 1 << 2, 1 << 1, 1 << 3
_EXECUTE, _REFER, _TRUNCATE, _IOCTL = 1 << 0, 1 << 13, 1 << 14, 1 << 15
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture


def _readable_folders() -> list[str]:
    """Where Python's standard library, the shared libraries and the time zones are."""
    library = os.path.dirname(os.__file__)
    return [library, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"]


def landlock_ruleset(folder: str) -> int:
    """A ruleset that allows to read the standard library and to write in `folder` only. Raises OSError where
    Landlock is missing.
    """
    abi = _check(_libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1))
    files = (1 << 13) - 1
    for since, right in [(2, _REFER), (3, _TRUNCATE), (5, _IOCTL)]:
        files |= right if abi >= since else 0
    # Network (bind and connect) is handled since ABI 4, signals and abstract sockets to the outside since 6.
    attributes = struct.pack("QQQ", files, 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _check(_libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0))
    reading = _READ_FILE | _READ_DIR
    rules = [(readable, reading) for readable in _readable_folders()]
    rules += [
        ("/dev/null", _READ_FILE | _WRITE_FILE),
        ("/dev/zero", _READ_FILE),
        ("/dev/urandom", _READ_FILE),
    ]
    rules += [(folder, files & ~(_EXECUTE | _IOCTL | _REFER))]
    for path, rights in rules:
        try:
            target = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not on this host
        try:
            _check(_libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, target), 0))
        finally:
            os.close(target)
    return ruleset


# --- all of it, in a child ----------------------------------------------------------------------------------


_NO_CAPABILITIES = struct.pack("=Ii", 0x20080522, 0), bytes(24)  # header of version 3, three empty sets


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))


class Confinement:
    """Everything a child puts on before it runs an answer; prepared once, since entering happens per
    execution.
    """

    def __init__(self, without: Sequence[str] = ()) -> None:
        self.ruleset = -1
        self._landlocked = False
        self.no_landlock = "left out" if "landlock" in without else ""
        machine = platform.machine()
        code = None if "seccomp" in without else seccomp_filter(machine)
        self.program = None if code is None else _Program(len(code) // 8, code)
        self.no_seccomp = "left out" if "seccomp" in without else "" if code else f"not known for {machine}"
        # Dropping root's user id costs nothing, but the standard library must stay readable for the new one.
        self.drop_uid = _maps_nobody() and reachable(os.__file__)

    def open_folder(self, folder: str) -> None:
        """Make `folder` the one place where children may write; the one before is closed to them."""
        if self.ruleset >= 0:
            os.close(self.ruleset)
            self.ruleset = -1
        if self.drop_uid:
            os.chown(folder, NOBODY, NOBODY)
        if self.no_landlock:
            return
        try:
            self.ruleset = landlock_ruleset(folder)
        except OSError as error:
            if self._landlocked:
                raise  # a layer that was there must not go missing without a word
            self.no_landlock = f"the kernel does not offer it: {error.strerror}"
        else:
            self._landlocked = True

    def enter(self) -> Layers:
        """Confine the calling process for good."""
        layers = {"landlock": self.no_landlock, "seccomp": self.no_seccomp}
        if self.drop_uid:
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            layers["unprivileged user"] = ""
        elif os.geteuid() == 0:
            layers["unprivileged user"] = f"{os.__file__} is readable for root only"
        layers["no capabilities"] = "" if _libc.capset(*_NO_CAPABILITIES) == 0 else "the host refuses capset(2)"
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if self.ruleset >= 0 and _libc.syscall(_RESTRICT_SELF, self.ruleset, 0) != 0:
            layers["landlock"] = f"the kernel refuses it: {os.strerror(ctypes.get_errno())}"
        if self.program is not None:
            try:
                prctl(PR_SET_SECCOMP, 2, ctypes.byref(self.program))
            except OSError as error:
                layers["seccomp"] = f"the kernel refuses it: {error.strerror}"
        # Orphaned children die too. Set last, for a change of user clears it.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return layers
