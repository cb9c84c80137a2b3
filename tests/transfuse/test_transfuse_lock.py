"""A run's folder belongs to one process, and to nobody once that has died."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import needs_train  # noqa: F401
import pytest

from fastclip.transfuse.safety import lock as lock_module
from fastclip.transfuse.safety.holder import Holder
from fastclip.transfuse.safety.lock import FILE, FolderLock

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")


@contextmanager
def child(work: Callable[[], object]) -> Iterator[int]:
    """A process that has done `work` and then waits to be killed."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            kept = work()  # noqa: F841
            os.write(writer, b"done")
            time.sleep(600)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        assert os.read(reader, 4) == b"done"
        yield pid
    finally:
        os.close(reader)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.fixture(params=["flock", "no flock"])
def either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With the kernel's lock, and on a file system without it."""
    monkeypatch.setattr(lock_module, "SETTLE_S", 0.02)
    if request.param == "no flock":

        def unsupported(*args: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", unsupported)
    return request.param


@pytest.mark.usefixtures("either")
def test_the_second_process_is_told_who_is_in(tmp_path: Path) -> None:
    with child(lambda: FolderLock(tmp_path)) as pid:
        with pytest.raises(ValueError, match=rf"in use by process {pid} on ") as caught:
            FolderLock(tmp_path)
        assert str(tmp_path) in str(caught.value)
    assert FolderLock(tmp_path).held()  # the holder was killed, and its lock went with it


@pytest.mark.usefixtures("either")
def test_the_same_process_does_not_enter_twice_and_release_leaves_nothing(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    with pytest.raises(ValueError, match=f"in use by process {os.getpid()} "):
        FolderLock(tmp_path)
    lock.release()
    assert not lock.held()
    assert list(tmp_path.iterdir()) == []
    other = FolderLock(tmp_path)
    lock.release()  # a second time: not the other's
    assert other.held()
    del other
    assert list(tmp_path.iterdir()) == []


def test_a_forked_worker_does_not_keep_the_folder(tmp_path: Path) -> None:
    def with_worker() -> object:
        lock = FolderLock(tmp_path)
        if os.fork() == 0:
            time.sleep(30)  # outlives its trainer
            os._exit(0)
        return lock

    with child(with_worker):
        pass
    assert FolderLock(tmp_path).held()


def test_a_later_process_of_the_same_number_is_not_the_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_module, "SETTLE_S", 0.02)
    monkeypatch.setattr(lock_module, "fcntl", None)
    me = Holder.this_process()
    if not me.started:
        pytest.skip("needs the start times of processes")
    (tmp_path / FILE).write_text(json.dumps(asdict(replace(me, started="1", token="other"))))
    assert FolderLock(tmp_path).held()


@pytest.mark.usefixtures("either")
@pytest.mark.parametrize("content", ["", "{", "[1]", '{"pid": 1}'])
def test_a_file_that_says_nothing_belongs_to_nobody(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    assert FolderLock(tmp_path).held()


def elsewhere(folder: Path) -> Holder:
    """Write the name of a process of another machine."""
    holder = replace(Holder.this_process(), machine="another", host="node-7", token="abc")
    (folder / FILE).write_text(holder.text())
    return holder


@pytest.mark.usefixtures("either")
def test_another_machine_is_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_module, "WATCH_S", 0.5)
    monkeypatch.setattr(lock_module, "SIGN_EVERY_S", 0.1)
    holder, ended = elsewhere(tmp_path), threading.Event()
    signs = threading.Thread(
        target=lock_module._give_signs, args=(tmp_path / FILE, holder, ended), daemon=True
    )
    signs.start()
    said: list[str] = []
    with pytest.raises(ValueError, match=r"in use by process \d+ on node-7"):
        FolderLock(tmp_path, said.append)
    ended.set()
    signs.join()
    assert FolderLock(tmp_path, said.append).held()
    assert len(said) == 2
    assert "node-7" in said[0]
    assert "sign of life" in said[0]


def test_a_lock_that_was_taken_or_removed_is_not_held(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    elsewhere(tmp_path)
    assert not lock.held()
    lock.release()
    assert (tmp_path / FILE).exists()  # not ours to remove
    (tmp_path / FILE).unlink()
    lock = FolderLock(tmp_path)
    (tmp_path / FILE).unlink()
    assert not lock.held()


def test_a_link_is_not_followed_and_a_read_only_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("kept")
    (tmp_path / FILE).symlink_to(tmp_path / "other")
    with pytest.raises(ValueError, match=r"\.lock cannot be written"):
        FolderLock(tmp_path)
    assert (tmp_path / "other").read_text() == "kept"
    with pytest.raises(ValueError, match=r"absent/\.lock cannot be written"):
        FolderLock(tmp_path / "absent")


def test_of_many_that_come_at_once_one_gets_in(tmp_path: Path) -> None:
    locks: list[FolderLock] = []
    refused: list[str] = []

    def come() -> None:
        try:
            locks.append(FolderLock(tmp_path))
        except ValueError as error:
            refused.append(str(error))

    for _ in range(20):
        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(locks) == 1
        assert len(refused) == 7
        locks.pop().release()
        refused.clear()
