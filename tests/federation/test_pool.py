"""The pool answers every job once, whoever works and whatever happens to workers."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedsparsify.errors import ArgumentError
from fedsparsify.federation.pool import JobFailure, Pool, can_fork, default_workers
from tests.commands import alive, children, wait_until

pytestmark = pytest.mark.skipif(not can_fork(), reason="no forked processes here")

KINDS = [
    pytest.param(lambda handler: Pool(handler, 1), id="inline"),
    pytest.param(lambda handler: Pool(handler, 3), id="processes"),
    pytest.param(lambda handler: Pool(handler, 3, threads=True), id="threads"),
]
MakePool = Callable[[Callable[[bytes], bytes]], Pool]


def double(job: bytes) -> bytes:
    return job + job


def slowly(job: bytes) -> bytes:
    time.sleep(0.01)
    return job


@pytest.mark.parametrize("make", KINDS)
def test_every_job_is_answered_once_under_its_own_index(make: MakePool) -> None:
    jobs = [bytes([k]) * (1 + 10_000 * k) for k in range(20)]
    with make(double) as pool:
        for _ in range(2):
            answers = list(pool.run(jobs))
            assert len(answers) == 20
            assert dict(answers) == {k: job + job for k, job in enumerate(jobs)}
        assert list(pool.run([])) == []


@pytest.mark.parametrize("make", KINDS)
def test_a_handler_that_raises_fails_its_own_job_only(make: MakePool) -> None:
    def handler(job: bytes) -> bytes:
        if job == b"1":
            raise ZeroDivisionError("by\nzero")
        if job == b"2":
            raise ArgumentError("a sentence of ours")
        if job == b"3":
            raise RuntimeError
        return job

    with make(handler) as pool:
        answers = dict(pool.run([b"0", b"1", b"2", b"3", b"4"]))
        assert (answers.pop(0), answers.pop(4)) == (b"0", b"4")
        assert all(isinstance(failure, JobFailure) for failure in answers.values())
        assert [str(answers[k]) for k in (1, 2, 3)] == [
            "ZeroDivisionError: by zero",
            "a sentence of ours",
            "RuntimeError: no message",
        ]
        assert dict(pool.run([b"5", b"6"])) == {0: b"5", 1: b"6"}


def test_a_worker_that_is_killed_in_mid_job_fails_that_job_and_is_replaced() -> None:
    def handler(job: bytes) -> bytes:
        if job == b"die":
            os.kill(os.getpid(), signal.SIGKILL)
        return job + str(os.getpid()).encode()

    with Pool(handler, 2) as pool:
        jobs = [b"a", b"die", b"b", b"die", b"die", b"c", b"d"]
        answers = dict(pool.run(jobs))
        for index, job in enumerate(jobs):
            if job == b"die":
                assert str(answers[index]) == "its worker process ended with code -9 (out of memory, or killed)"
            else:
                answer = answers[index]
                assert isinstance(answer, bytes) and answer.startswith(job)
        assert len(children(os.getpid())) >= 2
        assert len(dict(pool.run([b"x"] * 6))) == 6


def test_a_worker_that_is_killed_while_idle_is_noticed_and_replaced() -> None:
    with Pool(lambda job: str(os.getpid()).encode(), 2) as pool:
        first = {int(answer) for _, answer in pool.run([b""] * 8) if isinstance(answer, bytes)}
        victim = first.pop()
        os.kill(victim, signal.SIGKILL)
        wait_until(lambda: not alive(victim), "the victim's end")
        results = [result for _, result in pool.run([b""] * 8)]
        assert sum(isinstance(result, JobFailure) for result in results) <= 1
        assert all(isinstance(result, bytes) for _, result in pool.run([b""] * 8))


@pytest.mark.parametrize("make", KINDS)
def test_leaving_early_mixes_up_no_answers(make: MakePool) -> None:
    def handler(job: bytes) -> bytes:
        time.sleep(0.02 * (job != b"0"))
        return job

    with make(handler) as pool:
        for start in range(0, 30, 10):
            for index, answer in pool.run([b"%d" % k for k in range(start, start + 10)]):
                assert answer == b"%d" % (start + index)
                break
        jobs = [b"%d" % k for k in range(100, 106)]
        assert dict(pool.run(jobs)) == dict(enumerate(jobs))


@pytest.mark.parametrize("make", KINDS)
def test_a_pool_that_is_closed_before_its_answers_were_read_ends_all_workers(
    make: MakePool, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {*children(os.getpid())}
    pool = make(slowly)
    answers = pool.run([b""] * 6)
    next(answers)
    pool.close()
    del answers
    gc.collect()
    assert {*children(os.getpid())} <= before
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("make", KINDS)
def test_work_is_done_with_one_thread_of_arithmetic_and_the_caller_keeps_its_own(make: MakePool) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with make(lambda job: b"%d" % torch.get_num_threads()) as pool:
            assert {answer for _, answer in pool.run([b""] * 6)} == {b"1"}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_inline_jobs_run_in_this_thread_and_threads_in_others() -> None:
    def handler(job: bytes) -> bytes:
        return b"%d %d" % (os.getpid(), threading.get_ident())

    here = handler(b"")
    with Pool(handler, 1) as pool:
        assert {answer for _, answer in pool.run([b""] * 3)} == {here}
    with Pool(handler, 2, threads=True) as pool:
        answers = [answer for _, answer in pool.run([b""] * 3)]
        assert all(isinstance(answer, bytes) and answer.startswith(b"%d " % os.getpid()) for answer in answers)
        assert here not in answers


def test_workers_share_what_was_there_when_it_was_made(tmp_path: Path) -> None:
    secret = object()  # nothing that could be pickled
    with Pool(lambda job: b"%d" % id(secret), 2) as pool:
        assert {answer for _, answer in pool.run([b""] * 4)} == {b"%d" % id(secret)}


def test_ctrl_c_does_not_reach_workers() -> None:
    def handler(job: bytes) -> bytes:
        os.kill(os.getpid(), signal.SIGINT)
        return job

    with Pool(handler, 2) as pool:
        assert dict(pool.run([b"a", b"b"])) == {0: b"a", 1: b"b"}


def test_there_is_a_worker_for_each_core_that_may_be_used() -> None:
    assert default_workers() == len(os.sched_getaffinity(0))
