"""Child processes that never outlive the run: pinned, bounded in time, logged, and always stopped."""

import ctypes
import os
import signal
import socket
import subprocess
import time

PR_SET_PDEATHSIG = 1
START_SECONDS_MAX = 30
STOP_SECONDS_MAX = 20
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

_libc = ctypes.CDLL(None, use_errno=True)


class Failure(Exception):
    """Something that the run cannot go on without; its text is for the user."""


class Interrupted(Failure):
    """Somebody has seen enough."""


def _prepare(cpus):
    """Runs in the child: dies with this process, even by SIGKILL, and stays on its CPUs."""

    def run():
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os.sched_setaffinity(0, cpus)

    return run


class Process:
    def __init__(self, argv, cpus, log):
        self.argv = argv
        self.log = log
        with open(log, "ab") as output:
            self.child = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=_prepare(cpus),
            )

    def check(self):
        if self.child.poll() is not None:
            raise Failure(f"{' '.join(self.argv)} ended with {self.child.returncode}:\n{self.tail()}")

    def tail(self):
        with open(self.log, errors="replace") as file:
            return "".join(file.readlines()[-20:])

    def wait_for(self, what, ready):
        """Polls `ready` until it is true; the process must live meanwhile."""
        end = time.monotonic() + START_SECONDS_MAX
        while not ready():
            self.check()
            if time.monotonic() > end:
                raise Failure(f"{what} did not come within {START_SECONDS_MAX} s:\n{self.tail()}")
            time.sleep(0.02)

    def cpu_seconds(self):
        """User and system time of all its threads, io_uring workers included."""
        with open(f"/proc/{self.child.pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_PER_SECOND

    def stop(self):
        """Returns the exit code."""
        return _end(self.child)


def _end(child):
    """SIGTERM, so that it can clean up after itself, then SIGKILL to its whole session. Returns the exit code."""
    try:
        if child.poll() is None:
            child.terminate()
            child.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        pass
    finally:
        # Also when somebody interrupts the wait.
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    return child.wait()


def stopping_signals():
    """Makes signals that end the run raise, so that everything is cleaned up on the way out."""

    def interrupted(number, _frame):
        raise Interrupted(f"stopped by {signal.Signals(number).name}")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupted)


def run(argv, cpus=None, seconds_max=60):
    """Runs to the end and returns stdout; a failure or overrun is told with the output."""
    child = subprocess.Popen(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
        preexec_fn=_prepare(cpus or os.sched_getaffinity(0)),
    )
    try:
        output, errors = child.communicate(timeout=seconds_max)
    except subprocess.TimeoutExpired:
        raise Failure(f"{' '.join(argv)} took more than {seconds_max} s") from None
    finally:
        if child.poll() is None:
            _end(child)
    if child.returncode != 0:
        raise Failure(f"{' '.join(argv)} ended with {child.returncode}:\n{output[-2000:]}{errors[-2000:]}")
    return output


def listens(path):
    """Whether somebody accepts on a Unix socket."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def free_port(kind=socket.SOCK_STREAM):
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
