"""lib.paths: locks and half-written files between processes. tests/test_faults.py kills real writers."""

import errno
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest

from lib import paths


def start(code: str, *arguments: Path) -> subprocess.Popen:
    """A process that runs `code` and says when it has come to a line that prints."""
    command = [sys.executable, "-c", f"import os, sys, time\nfrom lib import paths\nfrom pathlib import Path\n{code}"]
    return subprocess.Popen([*command, *map(str, arguments)], cwd=paths.ROOT, stdout=subprocess.PIPE, text=True)


def test_whoever_waits_says_so_once_and_no_lock_file_is_left(tmp_path):
    code = """
with paths.locked(Path(sys.argv[1]), waiting="waits"):
    print(Path(sys.argv[1]).exists(), flush=True)
"""
    with paths.locked(tmp_path / "net.resume", waiting="nobody is waited for"):
        second = start(code, tmp_path / "net.resume")
        select.select([second.stdout], [], [], 60)  # or for ever, where it says nothing
        assert (tmp_path / "net.lock").exists()
        time.sleep(0.2)  # in which it would go on if it did not wait
        (tmp_path / "net.resume").touch()
    assert second.communicate()[0] == "waits\nTrue\n"
    assert [path.name for path in tmp_path.iterdir()] == ["net.resume"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no forks")
def test_a_lock_ends_with_its_process_though_a_child_lives_on(tmp_path):
    code = """
with paths.locked(Path(sys.argv[1])):
    if child := os.fork():
        print(child, flush=True)
    time.sleep(600)
"""
    parent = start(code, tmp_path / "net.resume")
    child = int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait()
        lock = filelock.FileLock(tmp_path / "net.lock")
        with lock.acquire(timeout=60):
            os.kill(child, 0)  # it lives
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_folder_without_locks_is_written_all_the_same(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(filelock, "lock_descriptor", refuse)
    monkeypatch.setattr(filelock.FileLock, "acquire", refuse)
    with (
        paths.locked(tmp_path / "run.json", waiting="nobody is waited for"),
        paths.atomic(tmp_path / "run.json") as new,
    ):
        new.write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


@pytest.mark.skipif(not filelock.has_fcntl, reason="this system marks no files of living processes")
def test_the_next_write_removes_what_a_killed_one_left_and_nothing_of_a_living_one(tmp_path):
    code = """
with paths.atomic(Path(sys.argv[1])) as new:
    new.write_text("half")
    print(new.name, flush=True)
    time.sleep(600)
"""
    killed, living = (start(code, tmp_path / "run.json") for _ in range(2))
    try:
        left, unfinished = (process.stdout.readline().strip() for process in (killed, living))
        killed.kill()
        killed.wait()
        assert {left, unfinished} == {path.name for path in tmp_path.iterdir()}
        with paths.atomic(tmp_path / "run.json") as new:
            new.write_text("whole")
        assert {"run.json", unfinished} == {path.name for path in tmp_path.iterdir()}
    finally:
        living.kill()
        living.wait()
