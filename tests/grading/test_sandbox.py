"""Execution: values, outcomes, limits, isolation, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from grading_helpers import LIMITS

from projected_grpo.grading.sandbox import Job, JobResult, Sandbox, SandboxLimits, SandboxUnavailable
from projected_grpo.grading.sandbox.folder import remove_tree
from projected_grpo.grading.sandbox.replies import interpret
from projected_grpo.grading.sandbox.wire import Opaque

DOUBLE = "class Solution:\n    def double(self, n):\n        return n * 2"


def run(sandbox: Sandbox, code: str, *expressions: str, **options: object) -> JobResult:
    (result,) = sandbox.run([Job("", code, expressions, **options)])  # type: ignore[arg-type]
    assert result.machinery_error is None
    return result


def children(pid: int) -> list[int]:
    """Process ids of all descendants."""
    own = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return own + [below for child in own for below in children(child)]


def test_values_come_back_in_order_with_their_types(sandbox: Sandbox) -> None:
    result = run(sandbox, DOUBLE, "Solution().double(3)", "Solution().double(n='ab')", "Solution().double(1.5)")
    assert result.outcome == "ok"
    assert result.values == (6, "abab", 3.0)
    assert [type(value) for value in result.values] == [int, str, float]
    assert 0 < result.cpu_seconds < 1


def test_results_keep_the_order_of_the_batch(sandbox: Sandbox) -> None:
    jobs = [Job("", f"x = {number}", ("x",), exports=("x",)) for number in range(30)]
    assert [result.values for result in sandbox.run(jobs)] == [(number,) for number in range(30)]


def test_several_workers_share_a_batch() -> None:
    with Sandbox(dataclasses.replace(LIMITS, workers=2)) as two:
        jobs = [Job("", f"x = {number}", ("x",), exports=("x",)) for number in range(20)]
        assert [result.values for result in two.run(jobs)] == [(number,) for number in range(20)]
        assert len(two.server_pids) == 2


def test_set_up_names_are_there_and_helpers_cannot_be_overridden(sandbox: Sandbox) -> None:
    setup = "from math import *\ndef helper(x):\n    return [x]"
    code = (
        "def helper(x):\n    return 'mine'\n"
        "class Solution:\n    def f(self, x):\n        return x, helper(0), pow(2, 5, 7)"
    )
    (result,) = sandbox.run([Job(setup, code, ("Solution().f(x=helper(1))",))])
    assert result.values == (([1], "mine", 4),)


def test_the_answer_is_a_module_of_its_own(sandbox: Sandbox) -> None:
    code = (
        "from __future__ import annotations\nimport dataclasses\n"
        "@dataclasses.dataclass\nclass P:\n    a: Missing = 1\n"
        "class Solution:\n    def f(self):\n        return P().a\n"
        "if __name__ == '__main__':\n    raise SystemExit(3)"
    )
    assert run(sandbox, code, "Solution().f()").values == (1,)


@pytest.mark.parametrize(
    ("code", "outcome", "reason"),
    [
        ("def (", "compile", "SyntaxError"),
        ("x = 1\0", "compile", "null bytes"),
        ("raise ValueError('no')", "exception", "ValueError: no"),
        ("import sys\nsys.exit(0)", "exception", "SystemExit"),
        ("raise KeyboardInterrupt", "exception", "KeyboardInterrupt"),
        ("class E(Exception):\n    def __str__(self): return 'x' * (200 << 20)\nraise E()", "exception", "E"),
        ("import os\nos._exit(0)", "killed", "exit status 0"),
        ("import ctypes\nctypes.string_at(0)", "killed", "SIGSEGV"),
        ("import time\ntime.sleep(60)", "timeout", "2 s"),
        ("x = bytes(1 << 30)", "memory", "MemoryError"),
        ("input()", "exception", "EOFError"),
        ("def f(): f()\nf()", "exception", "RecursionError"),
        ("import os\nos.setrlimit = 0\nopen('big', 'wb').write(bytes(64 << 20))", "exception", "OSError"),
    ],
)
def test_outcome_and_reason(sandbox: Sandbox, code: str, outcome: str, reason: str) -> None:
    result = run(sandbox, code, "1")
    assert (result.outcome, result.values) == (outcome, ())
    assert reason in result.reason


def test_cpu_time_is_limited_apart_from_time() -> None:
    with Sandbox(dataclasses.replace(LIMITS, wall_seconds=60.0)) as patient:  # so that a busy host decides nothing
        result = run(patient, "while True: pass", "1")
    assert (result.outcome, result.values) == ("timeout", ())
    assert "1 s of CPU time" in result.reason


def test_expressions_stop_at_the_first_exception(sandbox: Sandbox) -> None:
    result = run(sandbox, DOUBLE, "Solution().double(1)", "Solution().double()", "Solution().double(2)")
    assert (result.outcome, result.values) == ("exception", (2,))


def test_ignored_signals_and_raised_limits_do_not_buy_time(sandbox: Sandbox) -> None:
    code = (
        "import signal, resource\nfor s in (signal.SIGXCPU, signal.SIGTERM, signal.SIGALRM):\n"
        "    signal.signal(s, signal.SIG_IGN)\n"
        "try: resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))\nexcept (OSError, ValueError): pass\n"
        "while True: pass"
    )
    result = run(sandbox, code)
    assert result.outcome == "timeout"
    assert result.cpu_seconds < 1.2


def test_output_is_captured_up_to_the_cap_and_the_rest_drained(sandbox: Sandbox) -> None:
    result = run(sandbox, "for _ in range(20000): print('y' * 99)", "1", stdout=True)
    assert (result.outcome, result.values) == ("ok", (1,))
    assert result.stdout == ("y" * 99 + "\n") * 655 + "y" * 36  # 64 KiB
    assert run(sandbox, "print('hidden')", "1").stdout == ""


def test_values_are_capped(sandbox: Sandbox) -> None:
    result = run(sandbox, "x = 'a' * (2 << 20)", "x", exports=("x",))
    assert (result.outcome, result.values) == ("exception", ())
    assert "exceed" in result.reason


def test_only_regular_result_files_come_back(sandbox: Sandbox) -> None:
    code = (
        "import os\nopen('good', 'w').write('PASS' + 'x' * 9000)\nos.symlink('/etc/hostname', 'link')\n"
        "os.mkdir('folder')"
    )
    result = run(sandbox, code, files=("good", "link", "folder", "absent"))
    assert result.outcome == "ok"
    assert result.files == {"good": b"PASS" + b"x" * 4092}


@pytest.mark.parametrize("name", ["", "..", "a/b", "/etc/passwd", "a\0b"])
def test_result_files_have_bare_names(name: str) -> None:
    with pytest.raises(ValueError, match="bare file name"):
        Job("", "", files=(name,))


FRAMES = """
import os
def number(n):
    body = b'i%d:%x' % (len(b'%x' % n), n)
    return b'V' + len(body).to_bytes(4, 'big') + body
def send(data):
    os.write(3, data)
    os._exit(0)
"""
END = "b'E' + (3).to_bytes(4, 'big') + b'N0:'"


def test_a_forged_reply_is_worth_the_values_it_claims(sandbox: Sandbox) -> None:
    forged = run(sandbox, FRAMES + f"send(number(6) + {END})", "1 / 0")
    assert (forged.outcome, forged.values) == ("ok", (6,))  # no more than an answer that returns 6


@pytest.mark.parametrize(
    "data",
    ["b'passed'",
     "b'V' + (9).to_bytes(4, 'big') + b'N0:'", "b'E' + (3).to_bytes(4, 'big') + b'N0:' + b'more'",
     "b'X' + (3).to_bytes(4, 'big') + b'N0:'", "b'Q' + (3).to_bytes(4, 'big') + b'N0:'", "b'x' * (5 << 20)"],
)  # fmt: skip
def test_a_malformed_reply_is_the_answers_fault(sandbox: Sandbox, data: str) -> None:
    result = run(sandbox, FRAMES + f"send({data})", "1")
    assert result.outcome == "protocol"
    assert result.values == ()


def test_objects_come_back_as_type_names(sandbox: Sandbox) -> None:
    assert run(sandbox, "class Z: pass\nx = Z()", "x", exports=("x",)).values == (Opaque("Z"),)


def test_the_child_knows_nothing_and_owns_nothing(sandbox: Sandbox) -> None:
    code = (
        "import os, sys\n"
        "state = [dict(os.environ), sys.argv, os.listdir('.'), os.getpid() == os.getsid(0), sys.path[0],\n"
        "         [n for n in sys.modules if 'fork_server' in n or 'projected' in n], []]\n"
        "for fd in range(4, 5000):\n"
        "    try: state[-1].append(os.fstat(fd).st_mode)\n"
        "    except OSError: pass"
    )
    (state,) = run(sandbox, code, "state", exports=("state",)).values
    assert state[:4] == [{}, [""], [], True]  # type: ignore[index]
    assert "projected" not in state[4]  # type: ignore[index]
    assert state[5:] == [[], []]  # type: ignore[index]


def test_hashing_and_random_repeat_in_every_server(sandbox: Sandbox) -> None:
    code = "import random\nx = (hash('abc'), random.random())"
    first = run(sandbox, code, "x", exports=("x",)).values
    with Sandbox(LIMITS) as other:
        assert run(other, code, "x", exports=("x",)).values == first


ESCAPES = {
    "read": "open({secret!r}).read()",
    "write": "open({secret!r}, 'w')",
    "list": "import os\nos.listdir({folder!r})",
    "signal": "import os\nos.kill(os.getppid(), 9)",
    "fork": "import os\nos.fork()",
    "exec": "import os\nos.execv('/bin/true', ['true'])",
    "spawn": "import subprocess\nsubprocess.Popen(['/bin/true'])",
    "socket": "import socket\nsocket.socket()",
    "ptrace": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.ptrace(16, 1, 0, 0) < 0: raise OSError(ctypes.get_errno())",
    "unshare": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) < 0: raise OSError",
    "limit the server": "import os, resource\nresource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))",
    "slow the server": "import os\nos.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
    "pin the server": "import os\nos.sched_setaffinity(os.getppid(), [0])",
    "queue that stays": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    "if libc.mq_open(b'/left', 0o102, 0o600, None) < 0: raise OSError(ctypes.get_errno())",
    "outside its folder": "open('../left', 'w')",
}


@pytest.mark.parametrize("attempt", ESCAPES)
def test_the_way_out_is_closed(sandbox: Sandbox, tmp_path: Path, attempt: str) -> None:
    if sandbox.missing:
        pytest.skip(f"this host has no {sandbox.missing}")
    secret = tmp_path / "answers.jsonl"
    secret.write_text("expected")
    before = sandbox.server_pids
    code = ESCAPES[attempt].format(secret=str(secret), folder=str(tmp_path))
    result = run(sandbox, code, "1")
    assert result.outcome == "exception", result
    assert result.reason.startswith(("PermissionError", "OSError"))
    assert sandbox.server_pids == before
    assert secret.read_text() == "expected"


def test_landlock_and_seccomp_close_it_alone(tmp_path: Path) -> None:
    secret = tmp_path / "answers.jsonl"
    secret.write_text("expected")
    with Sandbox(LIMITS, without=("namespaces",)) as opened:
        if opened.missing:
            pytest.skip(f"this host has no {opened.missing}")
        codes = [code.format(secret=str(secret), folder=str(tmp_path)) for code in ESCAPES.values()]
        results = opened.run([Job("", code, ("1",)) for code in codes])
    through = {name: result for name, result in zip(ESCAPES, results, strict=True) if result.outcome != "exception"}
    assert through == {}
    assert secret.read_text() == "expected"


def test_its_own_limits_hold_and_cannot_be_raised(sandbox: Sandbox) -> None:
    code = (
        "import resource\nkinds = ('CPU', 'AS', 'NPROC', 'FSIZE', 'NOFILE', 'CORE')\n"
        "x = [resource.getrlimit(getattr(resource, 'RLIMIT_' + kind)) for kind in kinds]\n"
        "try:\n    resource.setrlimit(resource.RLIMIT_AS, (-1, -1))\n    x.append('raised')\n"
        "except (OSError, ValueError): pass"
    )
    (limits,) = run(sandbox, code, "x", exports=("x",)).values
    (cpu, memory, processes, *rest) = limits  # type: ignore[misc]
    assert (cpu, memory) == ((2, 2), (256 << 20, 256 << 20))
    assert 512 < processes[0] == processes[1] < 1 << 20
    assert rest == [(16 << 20, 16 << 20), (64, 64), (0, 0)]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has a user id to drop")
def test_root_is_dropped_wherever_the_library_lies(sandbox: Sandbox) -> None:
    if "mount namespace" not in sandbox.isolation:
        pytest.skip("this host has no mount namespace")
    assert "unprivileged user" in sandbox.isolation
    code = "import os, colorsys\nx = [os.getuid(), os.geteuid(), os.getgid(), os.getgroups()]"
    assert run(sandbox, code, "x", exports=("x",)).values == ([65534, 65534, 65534, []],)


@pytest.mark.parametrize(
    "code",
    ["open('f', 'w').write('x')", "import os\nos.chmod('.', 0o777)", "import os\nos.mkdir('d')\nos.chmod('d', 0)"],
)
def test_the_next_answer_finds_the_folder_as_new(sandbox: Sandbox, code: str) -> None:
    look = "import os\nx = (os.listdir('.'), os.stat('.').st_mode & 0o777, os.access('.', os.W_OK))"
    for _ in range(2):
        assert run(sandbox, code, "1").outcome == "ok"
        assert run(sandbox, look, "x", exports=("x",)).values == (([], 0o700, True),)


def test_a_set_up_runs_once_and_no_answer_changes_it_for_the_next(sandbox: Sandbox) -> None:
    setup = "import time\nborn = time.monotonic_ns()\nitems = []"
    spoil = "items.append(1)\nborn = 0\nimport sys\nsys.modules['answer'].__dict__['born'] = 0"
    jobs = [Job(setup, code, ("born", "items")) for code in ("x = 1", spoil, "x = 2")]
    first, _, last = sandbox.run(jobs)
    assert first.values == last.values
    assert first.values[1] == []


def test_more_test_sets_than_a_server_keeps(sandbox: Sandbox) -> None:
    jobs = [Job(f"base = {n % 20}", "x = 1", (f"base * 1000 + {n}",)) for n in range(100)] * 2
    assert [result.values[0] for result in sandbox.run(jobs)] == [n % 20 * 1000 + n for n in range(100)] * 2


def test_threads_are_allowed(sandbox: Sandbox) -> None:
    code = (
        "from concurrent.futures import ThreadPoolExecutor\n"
        "with ThreadPoolExecutor(2) as pool:\n    x = list(pool.map(abs, [-1, 2]))"
    )
    assert run(sandbox, code, "x", exports=("x",)).values == ([1, 2],)


def test_nothing_is_left_after_some_hundred_executions(sandbox: Sandbox) -> None:
    hostile = [
        "import os\nos.mkdir('d')\nopen('d/f', 'w').write('x')\nos.chmod('d', 0)\nos.chmod('.', 0)",
        "import os\nfor _ in range(150):\n    os.mkdir('d')\n    os.chdir('d')",
        "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()",
        "import os\nos.rmdir(os.getcwd())",
        "import os\nfor fd in range(64):\n    try: os.close(fd)\n    except OSError: pass",
    ]
    server = sandbox.server_pids[0]
    sandbox.run([Job("", code, ("1",)) for code in hostile])
    processes = children(server)
    opened, resident = len(os.listdir(f"/proc/{processes[-1]}/fd")), memory_kb(processes[-1])
    results = sandbox.run([Job("", f"{code}\n#{n}", ("1",)) for n in range(30) for code in hostile])
    assert all(result.machinery_error is None for result in results)
    assert children(server) == processes
    assert len(os.listdir(f"/proc/{processes[-1]}/fd")) == opened
    assert memory_kb(processes[-1]) - resident < 2000
    scratch = Path(f"/proc/{processes[-1]}/root{Path(f'/proc/{processes[-1]}/cwd').resolve()}")
    assert [path.relative_to(scratch).as_posix() for path in scratch.rglob("*")] == ["work"]


@pytest.mark.slow
def test_ten_thousand_executions_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    codes = [DOUBLE, "open('f', 'w').write('x')", "raise ValueError", "import os\nos._exit(3)", "print('x' * 999)"]
    with Sandbox(dataclasses.replace(LIMITS, workers=2)) as opened:

        def thousand(batch: int) -> None:
            jobs = [
                Job("", f"{codes[n % 5]}\n# {batch} {n}", (f"{n % 300} + 1",), stdout=n % 5 == 4) for n in range(1000)
            ]
            assert all(result.machinery_error is None for result in opened.run(jobs))

        def state() -> tuple[list[int], list[int], int]:
            tree = [process for pid in opened.server_pids for process in (pid, *children(pid))]
            descriptors = [len(os.listdir(f"/proc/{process}/fd")) for process in (os.getpid(), *tree)]
            return tree, descriptors, sum(memory_kb(process) for process in tree)

        thousand(0)  # fills the caches
        tree, descriptors, memory = state()
        for batch in range(1, 10):
            thousand(batch)
        assert state()[:2] == (tree, descriptors)
        assert state()[2] - memory < 1000
    assert list(tmp_path.iterdir()) == []
    assert not any(Path(f"/proc/{process}").exists() for process in tree)


def test_folders_nested_beyond_every_limit_are_removed(sandbox: Sandbox) -> None:
    code = "import os\nfor _ in range(1100):\n    os.mkdir('d')\n    os.chdir('d')"
    assert run(sandbox, code, "1").values == (1,)


def memory_kb(pid: int) -> int:
    """Resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


def test_closing_leaves_no_folder_and_no_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Sandbox(LIMITS) as opened:
        (pid,) = opened.server_pids
        assert len(list(tmp_path.iterdir())) == 1
        run(opened, "open('left', 'w').write('x')")
        below = children(pid)
    assert list(tmp_path.iterdir()) == []
    assert not any(Path(f"/proc/{process}").exists() for process in [pid, *below])
    with pytest.raises(RuntimeError, match="not open"):
        opened.run([])


@pytest.mark.parametrize("without", [(), ("namespaces",)])
def test_a_killed_parent_leaves_no_folder_and_no_process(tmp_path: Path, without: tuple) -> None:
    code = (
        "from projected_grpo.grading.sandbox import *\n"
        f"with Sandbox(SandboxLimits(workers=2, allow_weak=True), without={without}) as opened:\n"
        "    print(*opened.server_pids, flush=True)\n"
        "    opened.run([Job('', 'import time; open(\"left\", \"w\"); time.sleep(1)')])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)},
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    ) as parent:  # fmt: skip
        assert parent.stdout is not None
        servers = [int(pid) for pid in parent.stdout.readline().split()]
        below = [child for pid in servers for child in children(pid)]
        assert len(list(tmp_path.glob("sandbox-*/worker*"))) == len(servers) == 2
        time.sleep(0.2)  # the answer is at work
        parent.kill()
    deadline = time.monotonic() + 20
    while list(tmp_path.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert list(tmp_path.iterdir()) == []
    while any(Path(f"/proc/{pid}").exists() for pid in servers + below) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(Path(f"/proc/{pid}").exists() for pid in servers + below)


def test_a_killed_server_is_restarted_and_its_job_retried() -> None:
    with Sandbox(LIMITS) as opened:
        (pid,) = opened.server_pids
        os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
        result = run(opened, DOUBLE, "Solution().double(4)")
        assert result.values == (8,)
        assert opened.server_pids != [pid]


def test_a_job_that_loses_two_servers_is_our_error_not_a_verdict() -> None:
    with Sandbox(LIMITS) as opened:
        jobs = [Job("import os\nos._exit(1)", "x = 1", ("1",)), Job("", "x = 1", ("x",), exports=("x",))]
        broken, fine = opened.run(jobs)
    assert broken.machinery_error is not None
    assert "server lost" in broken.machinery_error
    assert (fine.machinery_error, fine.values) == (None, (1,))


def test_a_set_up_that_fails_is_our_error_and_takes_nothing_with_it() -> None:
    with Sandbox(LIMITS) as opened:
        (pid,) = opened.server_pids
        bad = "import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (0, 64))\nraise ValueError('set-up')"
        (result,) = opened.run([Job(bad, "x = 1")])
        assert result.machinery_error == "ValueError: set-up"
        assert opened.server_pids != [pid]  # the damaged server is gone, with its damage
        assert run(opened, DOUBLE, "Solution().double(4)").values == (8,)


def test_an_interrupted_batch_does_not_answer_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with Sandbox(LIMITS) as opened:
        worker = opened._workers[0]
        send = worker.send

        def interrupted(job: Job) -> None:
            send(job)
            raise KeyboardInterrupt

        monkeypatch.setattr(worker, "send", interrupted)
        with contextlib.suppress(KeyboardInterrupt):
            opened.run([Job("", "x = 'old'", ("x",), exports=("x",))])
        monkeypatch.undo()
        assert run(opened, "x = 'new'", "x", exports=("x",)).values == ("new",)


@pytest.mark.parametrize("without", [("namespaces",), ("seccomp",), ("namespaces", "landlock", "seccomp")])
def test_weaker_hosts_still_grade_and_clean_up(without: tuple) -> None:
    with Sandbox(LIMITS, without=without) as weak:
        hidden = {"pid namespace" if layer == "namespaces" else layer for layer in without}
        assert not hidden & set(weak.isolation)
        assert all(weak.layers[layer] == "left out" for layer in hidden)
        result = run(weak, DOUBLE + "\nopen('f', 'w').write('x')", "Solution().double(4)", files=("f",))
        assert (result.values, result.files) == ((8,), {"f": b"x"})
        (server,) = weak.server_pids
        before = children(server)
        fork = "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n    time.sleep(60)"
        expected = "ok" if "seccomp" in without else "exception"
        assert run(weak, fork).outcome == expected
        assert children(server) == before


def test_what_contains_the_answers_is_said_once(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projected_grpo.grading.sandbox.sandbox._announced", set())
    for _ in range(2):
        with Sandbox(LIMITS) as opened:
            names = ", ".join(opened.isolation)
    with Sandbox(LIMITS, without=("seccomp",)):
        pass
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(names)
    assert first.startswith("WARNING") == bool(opened.missing)
    assert second.startswith("WARNING")
    assert "no seccomp (left out)" in second
    assert "allow_weak" in second


def test_there_are_as_many_workers_as_cores_unless_told() -> None:
    with Sandbox(dataclasses.replace(LIMITS, workers=None)) as opened:
        assert len(opened.server_pids) == len(os.sched_getaffinity(0))


def test_a_weak_host_is_refused_unless_allowed() -> None:
    strict = dataclasses.replace(LIMITS, allow_weak=False)
    with (
        pytest.raises(SandboxUnavailable, match=r"no seccomp.*allow_weak"),
        Sandbox(strict, without=("seccomp",)),
    ):
        pass


@pytest.mark.parametrize(
    "change", [{"workers": 0}, {"cpu_seconds": 0.0}, {"wall_seconds": 0.5}, {"max_error_share": 1.5}]
)
def test_limits_are_checked(change: dict) -> None:
    with pytest.raises(ValueError, match=r"must|share"):
        dataclasses.replace(SandboxLimits(), **change)


def test_a_signal_without_a_name_is_still_a_verdict() -> None:
    """An answer can have a timer end it with a real-time signal."""
    result = interpret(("exit", 40, b"", b"", {}, 0.0), LIMITS)
    assert (result.outcome, result.reason, result.machinery_error) == ("killed", "signal 40", None)


def test_a_reply_beyond_the_limit_is_not_even_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("projected_grpo.grading.sandbox.replies.read_frames", lambda _: pytest.fail("decoded"))
    result = interpret(("exit", 0, b"V" * (1 << 22), b"", {}, 0.0), LIMITS)
    assert (result.outcome, result.reason) == ("protocol", "reply too large")


def test_a_folder_full_of_the_names_that_we_would_give_is_removed(tmp_path: Path) -> None:
    used = tmp_path / "used"
    for number in range(4):
        (used / f"moved {number}" / "y").mkdir(parents=True)
        (used / f"a{number}" / "x" / "q").mkdir(parents=True)
    remove_tree(str(used))
    assert not used.exists()
