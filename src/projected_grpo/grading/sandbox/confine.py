"""What the kernel can do to contain an answer, through ctypes: namespaces, Landlock, seccomp, capabilities.

Two moments: `enter_namespaces` once, when a fork server starts; `Confinement.enter` in each child, before the
answer's first byte runs. Each layer that the host refuses is left out and missing from the list of active
ones; whether that is good enough is the caller's decision. Linux only: elsewhere no layer is active.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import signal
import struct
from collections.abc import Sequence

STRONG = ("landlock", "seccomp")  # with both, an answer can neither read our files nor touch another process

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
CLONE_THREAD = 0x10000
MS_PRIVATE_RECURSIVE, MS_NOSUID_NODEV = 0x44000, 0x6
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 22, 36, 38
SCRATCH_OPTIONS = b"size=64m,nr_inodes=4096,mode=0755"

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def prctl(option: int, value: int, pointer: object = None) -> None:
    """prctl(2). Raises OSError."""
    _check(_libc.prctl(option, ctypes.c_ulong(value), pointer or 0, 0, 0))


# --- namespaces ---------------------------------------------------------------------------------------------


def enter_namespaces(scratch: str) -> list[str]:
    """Put the calling process into namespaces of its own, with a private file system in memory on `scratch`.

    The pid namespace takes effect for the next fork: its first process cannot be killed from within, and with
    it dies everything in it. Returns the active layers, none where the host allows none.
    """
    base = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC
    uid, gid = os.geteuid(), os.getegid()
    for flags in [base, base | CLONE_NEWUSER] if uid == 0 else [base | CLONE_NEWUSER]:
        if _libc.unshare(flags) == 0:
            break
    else:
        return []
    if flags & CLONE_NEWUSER:
        for name, text in [
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ]:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    active = ["pid namespace", "network namespace", "ipc namespace"]
    try:
        _check(_libc.mount(None, b"/", None, ctypes.c_ulong(MS_PRIVATE_RECURSIVE), None))
        target = os.fsencode(scratch)
        _check(_libc.mount(b"tmpfs", target, b"tmpfs", ctypes.c_ulong(MS_NOSUID_NODEV), SCRATCH_OPTIONS))
        active.append("mount namespace")
    except OSError:
        pass  # the scratch folder then is an ordinary one, removed by its owner
    return active


# --- Landlock: which files ----------------------------------------------------------------------------------

_READ_FILE, _WRITE_FILE, _READ_DIR = 1 << 2, 1 << 1, 1 << 3
_EXECUTE, _REFER, _TRUNCATE, _IOCTL = 1 << 0, 1 << 13, 1 << 14, 1 << 15
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture


def _readable_folders() -> list[str]:
    """Where Python's standard library, the shared libraries and the time zones are."""
    library = os.path.dirname(os.__file__)
    return [library, "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo"]


def landlock_ruleset(scratch: str) -> int | None:
    """A ruleset that allows to read the standard library and to write under `scratch` only; None if
    unsupported.
    """
    abi = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return None
    files = (1 << 13) - 1
    for since, right in [(2, _REFER), (3, _TRUNCATE), (5, _IOCTL)]:
        files |= right if abi >= since else 0
    # Network (bind and connect) is handled since ABI 4, signals and abstract sockets to the outside since 6.
    attributes = struct.pack("QQQ", files, 3, 3)[: 8 if abi < 4 else 16 if abi < 6 else 24]
    ruleset = _libc.syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return None
    reading = _READ_FILE | _READ_DIR
    rules = [(folder, reading) for folder in _readable_folders()]
    rules += [
        ("/dev/null", _READ_FILE | _WRITE_FILE),
        ("/dev/zero", _READ_FILE),
        ("/dev/urandom", _READ_FILE),
    ]
    rules += [(scratch, files & ~(_EXECUTE | _IOCTL | _REFER))]
    for path, rights in rules:
        try:
            target = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue  # not on this host
        try:
            _check(_libc.syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", rights, target), 0))
        finally:
            os.close(target)
    return int(ruleset)


# --- seccomp: which system calls ----------------------------------------------------------------------------

# New processes and programs, signals, other processes' memory, sockets, mounts, and what outlives a process.
_DENIED = {
    "x86_64": (
        57, 58, 59, 322,  # fork vfork execve execveat
        62, 200, 234, 129, 297, 424,  # kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal
        101, 310, 311, 434, 438,  # ptrace process_vm_readv process_vm_writev pidfd_open pidfd_getfd
        41, 425, 426, 427,  # socket io_uring_setup io_uring_enter io_uring_register
        165, 166, 272, 308, 161, 155, 133, 259,  # mount umount2 unshare setns chroot pivot_root mknod mknodat
        29, 64, 68, 319, 248, 249, 250,  # shmget semget msgget memfd_create add_key request_key keyctl
        321, 298, 323,  # bpf perf_event_open userfaultfd
    ),
    "aarch64": (
        221, 281,
        129, 130, 131, 138, 240, 424,
        117, 270, 271, 434, 438,
        198, 425, 426, 427,
        40, 39, 97, 268, 51, 41, 33,
        194, 190, 186, 279, 217, 218, 219,
        280, 241, 282,
    ),
}  # fmt: skip
_CLONE = {"x86_64": 56, "aarch64": 220}
_CLONE3 = 435
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def seccomp_filter(machine: str) -> bytes | None:
    """A BPF program that refuses `_DENIED` with EPERM and every clone that is not a thread; None if
    unsupported.
    """
    if machine not in _DENIED:
        return None
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    denied = _DENIED[machine]
    program = [
        (load, 0, 0, 4),  # the architecture of the call
        (equal, 1, 0, _AUDIT_ARCH[machine]),
        (give, 0, 0, _KILL),
        (load, 0, 0, 0),  # its number
        (at_least, len(denied) + 5, 0, 0x40000000),  # x32 numbers: the denied list would not hold
        (equal, 0, 1, _CLONE3),  # its flags are out of a filter's sight; "unknown" makes libc use clone
        (give, 0, 0, _ERRNO | errno.ENOSYS),
        (equal, 0, 2, _CLONE[machine]),
        (load, 0, 0, 16),  # the flags of clone
        (any_bit, len(denied), len(denied) + 1, CLONE_THREAD),
    ]
    program += [(equal, len(denied) - i, 0, number) for i, number in enumerate(denied)]
    program += [(give, 0, 0, _ALLOW), (give, 0, 0, _ERRNO | errno.EPERM)]
    return b"".join(struct.pack("=HBBI", *line) for line in program)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("lines", ctypes.c_char_p))


class Confinement:
    """Everything a child puts on before it runs an answer; prepared once, since entering happens per
    execution.
    """

    def __init__(self, scratch: str, without: Sequence[str] = ()) -> None:
        self.ruleset = None if "landlock" in without else landlock_ruleset(scratch)
        code = None if "seccomp" in without else seccomp_filter(platform.machine())
        self.program = None if code is None else _Program(len(code) // 8, code)
        # Dropping root's user id costs nothing, but the standard library must stay readable for the new one.
        self.drop_uid = os.geteuid() == 0 and _world_readable(os.__file__) and _maps_nobody()

    def enter(self) -> list[str]:
        """Confine the calling process for good; returns the active layers."""
        active = []
        if self.drop_uid:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            active.append("unprivileged user")
        header, empty = struct.pack("=Ii", 0x20080522, 0), bytes(24)
        if _libc.capset(header, empty) == 0:
            active.append("no capabilities")
        prctl(PR_SET_NO_NEW_PRIVS, 1)
        if self.ruleset is not None and _libc.syscall(_RESTRICT_SELF, self.ruleset, 0) == 0:
            active.append("landlock")
        if self.program is not None:
            try:
                prctl(PR_SET_SECCOMP, 2, ctypes.byref(self.program))
                active.append("seccomp")
            except OSError:
                pass  # not in this kernel: missing from the list
        # Orphaned children die too. Set last, for a change of user clears it.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return active


def _world_readable(path: str) -> bool:
    """Whether a user without rights of their own can reach `path`."""
    while path != "/":
        if not os.stat(path).st_mode & (0o001 if os.path.isdir(path) else 0o004):
            return False
        path = os.path.dirname(path)
    return True


def _maps_nobody() -> bool:
    """Whether user 65534 exists in this user namespace."""
    with open("/proc/self/uid_map") as file:
        return any(int(first) <= 65534 < int(first) + int(count) for first, _, count in map(str.split, file))
