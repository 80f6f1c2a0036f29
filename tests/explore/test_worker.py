"""Work in a thread can be cancelled wherever it is, and what is left cannot; progress bars can be told."""

import threading
import time
from contextlib import suppress

import pytest

from lib.explore.worker import Cancelled, Worker
from lib.progress import is_told, telling, tqdm

PATIENCE = 60  # s; a busy machine is no failure


class Endless:
    """Work that ends when it is cancelled."""

    def __init__(self, worker):
        self.worker, self.begun, self.raised = worker, threading.Event(), None

    def __call__(self):
        try:
            with self.worker.cancellable():
                self.begun.set()
                until = time.monotonic() + PATIENCE
                while time.monotonic() < until:
                    time.sleep(0.005)
        except Cancelled as error:
            self.raised = error


def test_work_that_knows_nothing_of_it_is_cancelled_and_the_next_is_done():
    worker, done = Worker(), []
    work = Endless(worker)
    worker.ask(work)
    assert work.begun.wait(PATIENCE)
    worker.ask(lambda: done.append("forgotten"))
    worker.cancel()
    worker.wait()
    assert isinstance(work.raised, Cancelled) and not done
    worker.ask(lambda: done.append("next"))
    worker.wait()
    assert done == ["next"]


def test_what_is_no_more_cancellable_is_finished():
    worker, inside, done = Worker(), threading.Event(), []

    def work():
        with worker.cancellable():
            pass
        inside.set()
        for _ in range(50):
            time.sleep(0.002)
        done.append("whole")

    worker.ask(work)
    assert inside.wait(PATIENCE)
    worker.cancel()
    worker.wait()
    assert done == ["whole"]


def test_a_second_click_does_not_reach_what_cleans_up_after_the_first():
    worker, begun, cleaning, done = Worker(), threading.Event(), threading.Event(), []

    def work():
        with suppress(Cancelled), worker.cancellable():
            try:
                begun.set()
                while True:
                    time.sleep(0.002)
            finally:
                cleaning.set()
                for _ in range(50):
                    time.sleep(0.002)
                done.append("clean")

    worker.ask(work)
    assert begun.wait(PATIENCE)
    worker.cancel()
    assert cleaning.wait(PATIENCE)
    worker.cancel()
    worker.wait()
    assert done == ["clean"]


def test_what_waits_already_is_asked_for_once_and_a_failure_ends_nothing(monkeypatch):
    worker, hold, done, told = Worker(), threading.Event(), [], []
    monkeypatch.setattr(threading, "excepthook", lambda arguments: told.append(arguments.exc_value))

    def fails():
        hold.wait(PATIENCE)
        raise ValueError("broken")

    def again():
        done.append("done")

    worker.ask(fails)
    for _ in range(3):
        worker.ask(again)
    hold.set()
    worker.wait()
    assert done == ["done"] and str(told[0]) == "broken"


def test_bars_are_told_in_place_of_drawn_where_they_would_be_drawn(capsys):
    told = []
    with telling(lambda done, total: told.append((done, total))):
        assert is_told()
        assert list(tqdm("abc")) == list("abc")
        assert list(tqdm("abc", disable=True)) == list("abc")
        assert list(tqdm(iter("ab"))) == list("ab")  # nobody knows how long it is
        other = threading.Thread(target=lambda: told.append(is_told()))
        other.start()
        other.join()
    assert told == [(0, 3), (1, 3), (2, 3), False] and not is_told()
    assert "".join(capsys.readouterr()) == ""
    list(tqdm("abc"))
    assert "3/3" in "".join(capsys.readouterr())


def test_bars_are_drawn_again_after_an_error():
    with pytest.raises(ValueError), telling(lambda done, total: None):
        raise ValueError
    assert not is_told()
