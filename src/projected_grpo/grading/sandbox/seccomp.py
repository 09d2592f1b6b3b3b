"""Which system calls an answer may make: a seccomp filter, as the BPF program that the kernel takes."""

from __future__ import annotations

import errno
import struct

# What makes new processes and programs, reaches other processes, talks to the outside, or outlives the answer.
_DENIED = {
    "x86_64": (
        57, 58, 59, 322,  # fork vfork execve execveat
        62, 200, 234, 129, 297, 424,  # kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal
        101, 310, 311, 434, 438,  # ptrace process_vm_readv process_vm_writev pidfd_open pidfd_getfd
        203, 142, 144, 314, 141, 251,  # sched_setaffinity _setparam _setscheduler _setattr setpriority ioprio_set
        41, 425, 426, 427,  # socket io_uring_setup io_uring_enter io_uring_register
        165, 166, 272, 308, 161, 155, 133, 259,  # mount umount2 unshare setns chroot pivot_root mknod mknodat
        29, 64, 68, 240, 241, 319,  # shmget semget msgget mq_open mq_unlink memfd_create
        248, 249, 250, 321, 298, 323,  # add_key request_key keyctl bpf perf_event_open userfaultfd
    ),
    "aarch64": (
        221, 281,
        129, 130, 131, 138, 240, 424,
        117, 270, 271, 434, 438,
        122, 118, 119, 274, 140, 30,
        198, 425, 426, 427,
        40, 39, 97, 268, 51, 41, 33,
        194, 190, 186, 180, 181, 279,
        217, 218, 219, 280, 241, 282,
    ),
}  # fmt: skip
_CLONE = {"x86_64": 56, "aarch64": 220}
_PRLIMIT = {"x86_64": 302, "aarch64": 261}
_FCNTL = {"x86_64": 72, "aarch64": 25}
_SET_OWNER, _SET_SIGNAL, _SET_OWNER_EX = 8, 10, 15  # commands of fcntl that have signals sent to someone
_CLONE3 = 435
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT, _SECOND_ARGUMENT = (
    0,
    4,
    16,
    24,
)  # where they stand in the kernel's struct seccomp_data
_CLONE_THREAD = 0x10000


def seccomp_filter(machine: str) -> bytes | None:
    """A program that refuses `_DENIED`, every clone that is not a thread, and other processes' limits, with
    EPERM. None for a machine whose call numbers are not known.
    """
    if machine not in _DENIED:
        return None
    load, equal, at_least, any_bit, give = 0x20, 0x15, 0x35, 0x45, 0x06
    denied = _DENIED[machine]
    allow = 18 + len(denied)  # line numbers; a jump counts from the line after it
    refuse = allow + 1
    program = [
        (load, 0, 0, _ARCHITECTURE),
        (equal, 1, 0, _AUDIT_ARCH[machine]),
        (give, 0, 0, _KILL),
        (load, 0, 0, _NUMBER),
        (at_least, refuse - 5, 0, 0x40000000),  # x32 numbers: the denied list would not hold
        (equal, 0, 1, _CLONE3),  # its flags are out of a filter's sight; "unknown" makes libc use clone
        (give, 0, 0, _ERRNO | errno.ENOSYS),
        (equal, 0, 2, _CLONE[machine]),
        (load, 0, 0, _FIRST_ARGUMENT),  # its flags
        (any_bit, allow - 10, refuse - 10, _CLONE_THREAD),
        (equal, 0, 2, _PRLIMIT[machine]),
        (load, 0, 0, _FIRST_ARGUMENT),  # whose limits; 0 is the caller
        (equal, allow - 13, refuse - 13, 0),
        (equal, 0, 4, _FCNTL[machine]),
        (load, 0, 0, _SECOND_ARGUMENT),  # its command
        (equal, refuse - 16, 0, _SET_OWNER),
        (equal, refuse - 17, 0, _SET_SIGNAL),
        (equal, refuse - 18, allow - 18, _SET_OWNER_EX),
    ]
    program += [(equal, refuse - line - 1, 0, number) for line, number in enumerate(denied, start=18)]
    program += [(give, 0, 0, _ALLOW), (give, 0, 0, _ERRNO | errno.EPERM)]
    return b"".join(struct.pack("=HBBI", *line) for line in program)
