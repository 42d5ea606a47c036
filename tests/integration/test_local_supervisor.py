"""The supervisor with tiny real programs: readiness, restarts, stopping, nothing left behind."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from vllm_batch.errors import StackError
from vllm_batch.local import leftovers, state
from vllm_batch.local.log_file import LogFile
from vllm_batch.local.spec import Backoff, ServiceSpec, ServiceState
from vllm_batch.local.stack import LocalStack

PYTHON = (sys.executable, "-I", "-S", "-c")
NOTIFY = """
import os, signal, socket, subprocess, sys, time
def notify(text):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as s:
        s.sendto(text.encode(), os.environ["NOTIFY_SOCKET"])
"""
STEADY = NOTIFY + "print('hello', flush=True); notify('STATUS=fine\\nREADY=1'); signal.pause()"


def program(name: str, source: str, **options: object) -> ServiceSpec:
    return ServiceSpec(name=name, argv=(*PYTHON, source), **options)  # type: ignore[arg-type]


def stack_of(home: Path, *specs: ServiceSpec, **options: object) -> LocalStack:
    return LocalStack(home, only=set(), extra_services=specs, **options)  # type: ignore[arg-type]


def eventually(condition: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_service_is_ready_when_it_says_so_and_its_words_are_shown(tmp_path: Path) -> None:
    with stack_of(tmp_path, program("steady", STEADY)) as stack:
        status = stack.service("steady").status
        assert (status.state, status.status, status.restarts) == (ServiceState.READY, "fine", 0)
        recorded = state.read(tmp_path / "state.json")
        assert recorded.is_alive
        assert recorded.state == "ready"
        record = recorded.service("steady")
        assert record is not None
        assert record.pid == status.pid
        assert eventually(lambda: "hello" in stack.service("steady").log_text())
    assert not is_running(status.pid or 0)
    assert not state.read(tmp_path / "state.json").is_alive


def test_what_is_killed_comes_back_soon_under_another_pid(tmp_path: Path) -> None:
    with stack_of(tmp_path, program("steady", STEADY)) as stack:
        service = stack.service("steady")
        old = service.kill()
        killed_at = time.monotonic()
        new = service.wait_restarted(old)
        assert new != old
        assert time.monotonic() - killed_at < 15.0
        assert service.status.restarts == 1
        assert "was ended by SIGKILL" in service.log_text()


def test_children_of_a_killed_service_do_not_survive_it(tmp_path: Path) -> None:
    """Neither those in its process group nor those that made a session of their own."""
    source = NOTIFY + textwrap.dedent("""
        sleep = [sys.executable, "-I", "-S", "-c", "import signal; signal.pause()"]
        one = subprocess.Popen(sleep)
        two = subprocess.Popen(sleep, start_new_session=True)
        notify(f"STATUS={one.pid} {two.pid}\\nREADY=1")
        signal.pause()
    """)
    with stack_of(tmp_path, program("parent", source)) as stack:
        service = stack.service("parent")
        children = [int(pid) for pid in service.status.status.split()]
        assert all(map(is_running, children))
        service.wait_restarted(service.kill())
        assert not any(map(is_running, children))
        children = [int(pid) for pid in service.status.status.split()]
    assert not any(map(is_running, children))


def test_a_service_that_cannot_start_shows_its_last_words_and_leaves_nothing(
    tmp_path: Path,
) -> None:
    broken = program("broken", "import sys; print('no such table'); sys.exit(3)")
    steady = program("steady", STEADY)
    stack = stack_of(tmp_path, steady, broken, backoff=Backoff(first=0.01))
    with pytest.raises(StackError, match="broken exited with code 3 while starting") as caught:
        stack.start()
    assert "no such table" in str(caught.value)
    assert leftovers.marked(stack.home.mark) == []
    with stack.home.lock():
        pass


def test_a_service_that_is_never_ready_is_given_up_in_time(tmp_path: Path) -> None:
    silent = program("silent", "import signal; signal.pause()", ready_seconds=0.2)
    with pytest.raises(StackError, match=r"silent was not ready within 0\.2 s"):
        stack_of(tmp_path, silent).start()


def test_a_start_that_fails_once_is_tried_again(tmp_path: Path) -> None:
    source = NOTIFY + textwrap.dedent(f"""
        marker = {str(tmp_path / "marker")!r}
        if not os.path.exists(marker):
            open(marker, "w").close()
            sys.exit("the shared memory is still in use")
        notify("READY=1")
        signal.pause()
    """)
    with stack_of(tmp_path / "home", program("second", source)) as stack:
        assert stack.service("second").status.state is ServiceState.READY


def test_a_program_that_is_not_there_is_named(tmp_path: Path) -> None:
    missing = ServiceSpec(name="missing", argv=(str(tmp_path / "nothing"),))
    with pytest.raises(StackError, match=r"cannot run .*nothing: No such file or directory"):
        stack_of(tmp_path, missing, backoff=Backoff(first=0.01)).start()


def test_a_service_that_cannot_be_started_again_is_tried_until_it_can(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    spec = program("steady", STEADY, cwd=tmp_path / "work")
    with stack_of(tmp_path / "home", spec, backoff=Backoff(first=0.01)) as stack:
        service = stack.service("steady")
        (tmp_path / "work").rename(tmp_path / "away")
        old = service.kill()
        stack.wait_for(lambda: service.status.restarts >= 3, 10, "some attempts")
        assert "cannot be started: [Errno 2]" in service.status.status
        (tmp_path / "away").rename(tmp_path / "work")
        assert service.wait_restarted(old) != old


def test_repeated_deaths_are_shown_as_a_crash_loop_and_still_retried(tmp_path: Path) -> None:
    source = NOTIFY + textwrap.dedent(f"""
        notify("READY=1")
        if os.path.exists({str(tmp_path / "die")!r}):
            sys.exit(1)
        signal.pause()
    """)
    backoff = Backoff(first=0.01, highest=0.2, crash_loop_after=3)
    with stack_of(tmp_path / "home", program("dying", source), backoff=backoff) as stack:
        service = stack.service("dying")
        (tmp_path / "die").touch()
        service.kill()
        assert service.wait_state(ServiceState.CRASH_LOOPING).restarts >= 2
        (tmp_path / "die").unlink()
        service.wait_ready()


def test_a_held_service_stays_down_until_it_is_released(tmp_path: Path) -> None:
    backoff = Backoff(first=0.01)
    with stack_of(tmp_path, program("steady", STEADY), backoff=backoff) as stack:
        service = stack.service("steady")
        old = service.pid
        service.hold()
        service.wait_state(ServiceState.HELD)
        assert service.status.pid is None
        with pytest.raises(StackError, match="steady is not running"):
            _ = service.pid
        service.release()
        assert service.wait_restarted(old) != old


def test_the_polite_signal_comes_first_and_is_waited_for(tmp_path: Path) -> None:
    source = NOTIFY + textwrap.dedent(f"""
        def end(*_):
            time.sleep(0.2)
            open({str(tmp_path / "ended")!r}, "w").close()
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        notify("READY=1")
        signal.pause()
    """)
    with stack_of(tmp_path / "home", program("polite", source)):
        pass
    assert (tmp_path / "ended").exists()


DEAF = NOTIFY + textwrap.dedent("""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    notify("READY=1")
    while True:
        signal.pause()
""")


def test_a_deaf_service_is_killed_after_its_time(tmp_path: Path) -> None:
    with stack_of(tmp_path, program("deaf", DEAF, stop_seconds=0.2)) as stack:
        pid = stack.service("deaf").pid
    assert not is_running(pid)


def test_a_stop_can_be_hurried(tmp_path: Path) -> None:
    stack = stack_of(tmp_path, program("deaf", DEAF, stop_seconds=60.0)).start()
    begun = time.monotonic()
    stack.hurry()
    stack.stop()
    assert time.monotonic() - begun < 10


def test_services_stop_in_reverse_order(tmp_path: Path) -> None:
    source = NOTIFY + textwrap.dedent(f"""
        def end(*_):
            with open({str(tmp_path / "order")!r}, "a") as f:
                f.write(sys.argv[1] + "\\n")
            sys.exit(0)
        signal.signal(signal.SIGTERM, end)
        notify("READY=1")
        signal.pause()
    """)
    stack = stack_of(tmp_path / "home").start()
    for name in ("first", "second", "third"):
        stack.add_service(ServiceSpec(name=name, argv=(*PYTHON, source, name)))
    stack.stop()
    assert (tmp_path / "order").read_text().split() == ["third", "second", "first"]


SUPERVISED = f"""
import sys, signal
from vllm_batch.local.spec import ServiceSpec
from vllm_batch.local.stack import LocalStack
spec = ServiceSpec(name="steady", argv={(*PYTHON, STEADY)!r})
with LocalStack(sys.argv[1], only=set(), extra_services=[spec]) as stack:
    print(stack.service("steady").pid, flush=True)
    signal.pause()
"""


def start_supervisor(home: Path) -> tuple[subprocess.Popen[str], int]:
    supervisor = subprocess.Popen(
        (sys.executable, "-c", SUPERVISED, str(home)), stdout=subprocess.PIPE, text=True
    )
    assert supervisor.stdout is not None
    return supervisor, int(supervisor.stdout.readline())


def test_services_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    supervisor, child = start_supervisor(tmp_path)
    with supervisor:
        assert is_running(child)
        supervisor.kill()
    assert eventually(lambda: not is_running(child))


def test_the_next_start_ends_what_outlived_a_killed_supervisor(tmp_path: Path) -> None:
    supervisor, child = start_supervisor(tmp_path)
    with supervisor:
        sleeper = subprocess.Popen(
            (*PYTHON, "import signal; signal.pause()"),
            env={leftovers.MARK_VARIABLE: f"{LocalStack(tmp_path).home.mark}:orphan"},
            start_new_session=True,
        )
        supervisor.kill()
    assert is_running(sleeper.pid)
    with stack_of(tmp_path, program("steady", STEADY)):
        assert sleeper.wait(10) == -signal.SIGKILL
    assert not is_running(child)


def test_two_homes_run_side_by_side_on_different_ports(tmp_path: Path) -> None:
    with (
        stack_of(tmp_path / "a", program("steady", STEADY)) as one,
        stack_of(tmp_path / "b", program("steady", STEADY)) as two,
    ):
        assert one.api_url != two.api_url
        one.service("steady").wait_restarted(one.service("steady").kill())
        assert two.service("steady").status.restarts == 0


def test_ports_stay_the_same_between_runs(tmp_path: Path) -> None:
    with stack_of(tmp_path, program("steady", STEADY)) as stack:
        before = stack.api_url
    with stack_of(tmp_path, program("steady", STEADY)) as stack:
        assert stack.api_url == before


def test_an_idle_supervisor_uses_next_to_no_cpu(tmp_path: Path) -> None:
    supervisor, child = start_supervisor(tmp_path)
    with supervisor:
        ticks_before = cpu_ticks(supervisor.pid)
        assert not eventually(lambda: not is_running(child), seconds=2.0)
        used = (cpu_ticks(supervisor.pid) - ticks_before) / os.sysconf("SC_CLK_TCK")
        supervisor.kill()
    assert used <= 0.02, f"{used / 2:.1%} of a core"


def cpu_ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


def test_a_log_is_rotated_without_losing_a_line(tmp_path: Path) -> None:
    lines = [f"line {number} {'é' * (number % 40)}" for number in range(100)]
    asyncio.run(write_log(tmp_path / "noisy.log", lines))
    files = sorted(tmp_path.glob("noisy.log*"), key=lambda path: path.name, reverse=True)
    assert len(files) > 3
    assert [line for file in files for line in file.read_text().splitlines()] == lines


async def write_log(path: Path, lines: list[str]) -> None:
    log = LogFile(path, bytes_max=1000, kept=7)
    read_end, write_end = os.pipe()
    log.follow(read_end)
    os.write(write_end, "\n".join(lines).encode())  # the last line has no end
    os.close(write_end)
    log.unfollow()
    log.close()


async def test_a_descriptor_that_is_somebody_elses_by_now_is_left_alone(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "quiet.log")
    read_end, write_end = os.pipe()
    log.follow(read_end)
    os.close(write_end)  # closed before the program has ended, as Postgres does
    async with asyncio.timeout(120):
        while Path(f"/proc/self/fd/{read_end}").exists():
            await asyncio.sleep(0.01)
    ours, theirs = socket.socketpair()
    with theirs:
        if (number := ours.detach()) != read_end:
            os.dup2(number, read_end)
            os.close(number)
        reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=read_end))
        log.unfollow()
        theirs.send(b"still here\n")
        async with asyncio.timeout(120):
            assert await reader.readline() == b"still here\n"
        writer.close()
        await writer.wait_closed()
    log.close()
