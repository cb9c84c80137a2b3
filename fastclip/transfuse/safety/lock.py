"""One run in one folder: a lock that the death of its holder opens."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path

from fastclip.transfuse.data.samples import printable
from fastclip.transfuse.safety.holder import Holder

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FILE = ".lock"
SIGN_EVERY_S = 15.0  # a holder's signs of life, which other machines look at
WATCH_S = 60.0  # without one: the holder on another machine is dead
SETTLE_S = 0.5  # where two may have written their names at once
UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class FolderLock:
    """The right of this process to write into a folder, until `release()` or its end.

    The kernel's lock on a file (flock) is the judge between processes of one machine: it goes
    with the process, however that ends. A folder may be shared by machines that do not see each
    other's flock, or lie on a file system without it. There the file's content says who holds
    the folder; the holder touches the file now and then, and whoever finds the name of another
    machine watches it before taking over.

    Args:
        folder: exists.
        say: called with a sentence where a holder has to be watched, which takes `WATCH_S` seconds.

    Raises:
        ValueError: another process holds the folder, which the text names; or it cannot be
            written to.
    """

    def __init__(self, folder: Path, say: Callable[[str], object] = print) -> None:
        self.folder, self.file, self._say = folder, folder / FILE, say
        self.me = Holder.this_process()
        self.former: Holder | None = None  # whose end left the folder locked
        self._descriptor = self._take()
        ended = threading.Event()
        self._finish = weakref.finalize(self, _release, self.file, self.me, self._descriptor, ended)
        _held.add(self)
        sign = threading.Thread(target=_give_signs, args=(self.file, self.me, ended), daemon=True)
        sign.start()

    def release(self) -> None:
        """Let others in; a second call does nothing."""
        self._finish()

    def held(self) -> bool:
        """Whether the folder is still this lock's: its file was neither removed nor taken."""
        return self._finish.alive and _read(self.file) == self.me

    def _take(self) -> int:
        while True:
            descriptor = _open(self.file)
            try:
                flock = _flock(descriptor)
                self._require_free(flock)
                if _is_file(descriptor, self.file):
                    self._sign_in(descriptor)
                    if flock is None:
                        self._require_alone()
                    return descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)  # the former holder has removed it meanwhile: again

    def _sign_in(self, descriptor: int) -> None:
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, self.me.text().encode())
            os.fsync(descriptor)
        except OSError as error:
            raise ValueError(f"{printable(self.file)}: {error.strerror}") from error

    def _require_free(self, flock: bool | None) -> None:
        holder = _read(self.file)
        if flock is False:
            raise self._refusal(holder)
        if holder is None:
            return
        if not holder.here():
            if not self._silent(holder):
                raise self._refusal(holder)
        elif flock is None and holder.runs():
            raise self._refusal(holder)
        self.former = holder

    def _require_alone(self) -> None:
        time.sleep(SETTLE_S)
        holder = _read(self.file)
        if holder != self.me:
            raise self._refusal(holder)

    def _silent(self, holder: Holder) -> bool:
        """Watch the file; False as soon as the holder gives a sign of life."""
        self._say(
            f"{printable(self.folder)} was held by {holder}: taken over in {WATCH_S:.0f} s if it "
            "gives no sign of life"
        )
        first, end = _sign(self.file), time.monotonic() + WATCH_S
        while first is not None and time.monotonic() < end:
            time.sleep(min(1.0, WATCH_S / 20))
            now = _sign(self.file)
            if now is not None and now != first:
                return False
        return True

    def _refusal(self, holder: Holder | None) -> ValueError:
        return ValueError(
            f"--out {printable(self.folder)} is in use by {holder or 'another process'}: wait for "
            "its end, stop it, or choose another folder"
        )


_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


def _forget() -> None:
    """In a forked child: a worker that outlives its trainer must not keep the folder locked."""
    for lock in list(_held):
        if lock._finish.detach() is not None:
            os.close(lock._descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def _open(file: Path) -> int:
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise ValueError(f"{printable(file)} cannot be written: {error.strerror}") from error


def _flock(descriptor: int) -> bool | None:
    """Lock an open file; False where another process has, None where there are no such locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in UNSUPPORTED:
            return None
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        raise
    return True


def _is_file(descriptor: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(file))
    except FileNotFoundError:
        return False


def _read(file: Path) -> Holder | None:
    try:
        return Holder.parse(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def _sign(file: Path) -> tuple[int, bytes] | None:
    """What changes with each sign of life; None where the file is gone."""
    try:
        # A network file system asks its server again when a file is opened, not when it is stat'ed.
        with open(file, "rb") as stream:
            return os.fstat(stream.fileno()).st_mtime_ns, stream.read()
    except OSError:
        return None


def _give_signs(file: Path, me: Holder, ended: threading.Event) -> None:
    while not ended.wait(SIGN_EVERY_S):
        if _read(file) == me:
            with contextlib.suppress(OSError):
                os.utime(file)


def _release(file: Path, me: Holder, descriptor: int, ended: threading.Event) -> None:
    ended.set()
    # Removed before the lock goes, or it could be the next holder's.
    with contextlib.suppress(OSError):
        if _read(file) == me:
            file.unlink()
    os.close(descriptor)
