"""Jobs on all cores: as bytes in forked processes, or in threads where the work is native code.

Forked workers share the data sets' memory with their parent and need nothing pickled, so a user's own networks and
data (closures included) work as they are. They are for work that holds the interpreter's lock, as a training step of
torch's does for a small network; the compiled trainer lets go of it, and threads then save sending bytes about
(``benchmarks/workers.py`` measures both).
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

from ..errors import FedSparsifyError

__all__ = ["JobFailure", "Pool", "can_fork", "default_workers"]

Handler = Callable[[Any], Any]

_DONE, _FAILED = b"\x00", b"\x01"
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class JobFailure(Exception):
    """A job raised, or its worker died; the text says which."""


def can_fork() -> bool:
    """Whether worker processes can be forked on this platform (macOS's frameworks do not survive a fork)."""
    return hasattr(os, "fork") and sys.platform != "darwin"


def default_workers() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """Runs a handler on jobs, each in one thread of arithmetic, whatever the number of workers.

    Args:
        handler: job -> result, bytes -> bytes where processes work; it must not keep state between jobs that changes
            its results, and be safe in several threads where ``threads`` is chosen.
        workers: how many; 1 runs jobs in the calling thread.
        threads: work in threads of this process instead of in processes of their own.

    Use it as a context manager, or call :meth:`close`.
    """

    def __init__(self, handler: Handler, workers: int, *, threads: bool = False) -> None:
        self._handler = handler
        self._inline = workers == 1 or not (threads or can_fork())
        self._executor = ThreadPoolExecutor(workers) if threads and not self._inline else None
        self._workers: dict[Connection, BaseProcess] = {}
        if not self._inline and self._executor is None:
            for _ in range(workers):
                self._start()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, jobs: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        """Yield (index of the job, its result or failure) as jobs finish, in any order."""
        if self._inline:
            for index, job in enumerate(jobs):
                yield index, self._run_here(job)
            return
        if self._executor is not None:
            futures = {self._executor.submit(self._run_here, job): index for index, job in enumerate(jobs)}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            finally:
                for future in futures:
                    future.cancel()
            return
        waiting = deque(enumerate(jobs))
        idle = deque(self._workers)
        busy: dict[Connection, int] = {}
        try:
            while waiting or busy:
                while waiting and idle:
                    index, job = waiting.popleft()
                    connection = idle.popleft()
                    busy[connection] = index
                    with suppress(OSError):  # the worker is gone: reading from it below says so
                        connection.send_bytes(job)
                for ready in wait(list(busy)):
                    assert isinstance(ready, Connection)
                    index = busy.pop(ready)
                    try:
                        answer = ready.recv_bytes()
                    except (EOFError, OSError):
                        # It has closed its end, and is about to go.
                        result: bytes | JobFailure = self._bury(ready, seconds=10)
                        idle.append(self._start())
                    else:
                        body = answer[1:]
                        result = body if answer[:1] == _DONE else JobFailure(body.decode(errors="replace"))
                        idle.append(ready)
                    yield index, result
        finally:
            # Left early (an error, Ctrl-C): a late answer must not be taken for that of a later job.
            for connection in busy:
                if connection in self._workers:  # else the pool was closed before this generator was
                    self._bury(connection)
                    self._start()

    def close(self) -> None:
        """End all workers."""
        if self._executor is not None:
            self._executor.shutdown(cancel_futures=True)
        for connection in list(self._workers):
            self._bury(connection)

    def _run_here(self, job: Any) -> Any:
        threads = torch.get_num_threads()  # of this thread: torch keeps the number for each
        torch.set_num_threads(1)
        try:
            return self._handler(job)
        except Exception as error:
            return JobFailure(_describe(error))
        finally:
            torch.set_num_threads(threads)

    def _start(self) -> Connection:
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        # The child must not hold the parent's ends, or a worker would outlive a parent that was killed.
        inherited = [*self._workers, ours]
        process = context.Process(target=_serve, args=(theirs, self._handler, inherited), daemon=True)
        # A signal that comes before the worker is ready for it waits.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            with warnings.catch_warnings():
                # Python 3.12+ warns of forking beside threads; a worker uses no lock that another thread could hold.
                warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
                process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._workers[ours] = process
        return ours

    def _bury(self, connection: Connection, seconds: float = 0.2) -> JobFailure:
        process = self._workers.pop(connection)
        connection.close()
        process.join(seconds)
        died = process.exitcode is not None
        process.kill()
        process.join()
        if not died:
            return JobFailure("its worker process was stopped")
        return JobFailure(f"its worker process ended with code {process.exitcode} (out of memory, or killed)")


def _serve(connection: Connection, handler: Handler, inherited: Sequence[Connection]) -> None:
    """Answer jobs until the parent is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole process group; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    for other in inherited:
        other.close()
    torch.set_num_threads(1)
    while True:
        try:
            job = connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            answer = _DONE + handler(job)
        except Exception as error:
            answer = _FAILED + _describe(error).encode()
        try:
            connection.send_bytes(answer)
        except OSError:
            return


def _describe(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, FedSparsifyError) else f"{type(error).__name__}: {text}"
