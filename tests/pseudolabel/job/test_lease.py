"""Leases: one holder at a time; the dead lose theirs, the living keep it."""

import json
import os
import threading
import time

import pytest

from pseudolabel.job import lease as leases
from pseudolabel.job.lease import acquire, holder, machine, process_start
from tests.pseudolabel.job.made import start


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lease"


def write(path, age=0.0, **owner):
    """A lease of somebody else; `age` in seconds by the clock of the file system."""
    mine = {"machine": machine(), "pid": os.getpid(), "start": process_start(os.getpid())}
    path.write_text(json.dumps({**mine, "token": "x", **owner}))
    now = path.stat().st_mtime
    os.utime(path, (now - age, now - age))


def test_one_holder_until_it_is_released(path):
    first = acquire(path)
    assert first is not None
    assert acquire(path) is None
    assert f"process {os.getpid()} on " in holder(path)
    first.release()
    assert os.listdir(path.parent) == []
    with acquire(path):
        assert acquire(path) is None
    assert os.listdir(path.parent) == []


@pytest.mark.parametrize(
    ("age", "owner", "free"),
    [
        (0, {}, False),  # a living process of this machine
        (9999, {}, False),  # the same, however long it has not touched it
        (0, {"start": "1"}, True),  # its number belongs to another process now
        (0, {"pid": 2**22 + 1}, True),  # it is dead
        (0, {"machine": "elsewhere", "pid": 2**22 + 1}, False),  # a number means nothing there
        (50, {"machine": "elsewhere"}, False),
        (70, {"machine": "elsewhere"}, True),  # no sign of life for longer than the timeout
        (-9999, {"machine": "elsewhere"}, False),  # touched in the future
    ],
)
def test_who_may_take_a_lease_over(age, owner, free, path):
    write(path, age, **owner)
    before = path.read_text()
    taken = acquire(path, timeout=60)
    assert (taken is not None) == free
    assert (path.read_text() != before) == free
    if taken:
        taken.release()


@pytest.mark.parametrize("text", ["", "junk", "[]", '{"machine": 1}'])
def test_a_lease_that_says_nothing_is_judged_by_its_age(text, path):
    path.write_text(text)
    assert acquire(path, timeout=60) is None
    os.utime(path, (0, 0))
    assert acquire(path, timeout=60) is not None
    assert "process" in holder(path)


def test_clocks_of_machines_may_differ(path, monkeypatch):
    """Only times of the file system are compared; this machine's own clock is years off."""
    write(path, machine="elsewhere")
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert acquire(path, timeout=60) is None


def test_a_heartbeat_keeps_it(path):
    held = acquire(path, timeout=0.12)
    os.utime(path, (0, 0))
    deadline = time.monotonic() + 20
    while path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert path.stat().st_mtime > 0
    held.release()


def test_released_by_its_holder_only(path):
    held = acquire(path)
    write(path, token="taken over")
    held.release()
    assert json.loads(path.read_text())["token"] == "taken over"


def test_a_fresh_lease_in_the_place_of_a_stale_one_is_put_back(path):
    write(path, token="fresh")
    assert not leases._remove(path, "what was read before")
    assert json.loads(path.read_text())["token"] == "fresh"
    assert os.listdir(path.parent) == ["lease"]


def test_where_there_are_no_links(path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    held = acquire(path)
    assert held is not None
    assert acquire(path) is None
    held.release()


def test_a_killed_process_loses_its_lease_at_once(path):
    def hold():
        acquire(path)
        time.sleep(60)

    process = start(hold)
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert acquire(path) is None
    process.kill()
    process.join()
    assert acquire(path) is not None


def test_of_many_at_once_one_gets_a_stale_lease(path):
    write(path, pid=2**22 + 1)
    barrier, taken = threading.Barrier(8), []

    def body():
        barrier.wait()
        taken.append(acquire(path))

    threads = [threading.Thread(target=body) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lease is not None for lease in taken) == 1
