"""Leases: who is at work on what, on one machine or several with a shared folder.

A lease is a file that only one process can create. Its holder touches it; one that has not been
touched for `TIMEOUT` seconds, or whose process on this machine is gone, may be taken over. Times
are compared by the clock of the file system alone, so the clocks of the machines may differ. Should
two processes hold a lease after all (one was suspended, say), the work is done twice, harmlessly.
"""

import json
import os
import platform
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

TIMEOUT = 120.0
# Touched several times before it counts as abandoned.
BEATS = 6


def machine() -> str:
    """This machine since its start, as its processes see each other: a pid means something here."""
    parts = [platform.node()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def process_start(pid: int) -> str | None:
    """When a process of this machine began, in the kernel's ticks; None if it is gone.

    With it, a number that the system has given to another process is no longer taken for it. Where
    there is no /proc, "unknown" for every process that exists.
    """
    if not Path("/proc/self/stat").exists():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return None
        except PermissionError:
            pass
        return "unknown"
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    # State, then the 19th field after it; a zombie does nothing any more.
    return None if fields[0] in "ZX" else fields[19]


class Lease:
    """A lease that this process holds, touched by a thread until `release`.

    Args:
        path: its file, which `acquire` has created.
        token: what the file says.
        timeout: seconds after which others may take it.
    """

    def __init__(self, path: Path, token: str, timeout: float):
        self.path, self._token = path, token
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, args=(timeout / BEATS,), daemon=True)
        self._thread.start()

    def _beat(self, period: float) -> None:
        while not self._stop.wait(period):
            # Without explicit times a file server stamps the file by its own clock.
            with suppress(OSError):
                os.utime(self.path)

    def release(self) -> None:
        """Gives the lease up; one that another process has taken over stays."""
        self._stop.set()
        # First of all, since a second Ctrl-C may cut the rest off.
        with suppress(OSError):
            if self.path.read_text() == self._token:
                self.path.unlink()
        self._thread.join()

    def __enter__(self) -> "Lease":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def acquire(path: Path, timeout: float = TIMEOUT) -> Lease | None:
    """Takes a lease, a stale one over; None where another process holds it.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    token = json.dumps(
        {
            "machine": machine(),
            "pid": os.getpid(),
            "start": process_start(os.getpid()),
            "token": uuid.uuid4().hex,
        }
    )
    if _create(path, token):
        return Lease(path, token, timeout)
    seen = _text_of(path)
    if seen is not None and not _is_stale(path, seen, timeout):
        return None
    if seen is not None and not _remove(path, seen):
        return None
    return Lease(path, token, timeout) if _create(path, token) else None


def holder(path: Path) -> str:
    """Who holds a lease, for a message."""
    owner = _owner(_text_of(path))
    return f"process {owner.get('pid', '?')} on {str(owner.get('machine', '?')).split(' ')[0]}"


def _create(path: Path, token: str) -> bool:
    """A linked file appears with its content: no other process ever reads half a lease."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.write_text(token)
    try:
        os.link(draft, path)
    except FileExistsError:
        return False
    except OSError:
        # A file system without links.
        try:
            with open(path, "x", encoding="utf-8") as file:
                file.write(token)
        except FileExistsError:
            return False
    finally:
        draft.unlink(missing_ok=True)
    return True


def _is_stale(path: Path, token: str, timeout: float) -> bool:
    owner = _owner(token)
    if owner.get("machine") == machine() and isinstance(owner.get("pid"), int):
        return process_start(owner["pid"]) != owner.get("start")
    clock = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        clock.touch()
        return clock.stat().st_mtime - path.stat().st_mtime > timeout
    except FileNotFoundError:
        return False
    finally:
        clock.unlink(missing_ok=True)


def _remove(path: Path, token: str) -> bool:
    """Removes a stale lease, but no fresh one that has come into its place meanwhile."""
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return True
    try:
        if _text_of(aside) == token:
            return True
        with suppress(FileExistsError):
            os.link(aside, path)
        return False
    finally:
        aside.unlink(missing_ok=True)


def _text_of(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None


def _owner(token: str | None) -> dict[str, Any]:
    try:
        owner = json.loads(token or "")
    except ValueError:
        return {}
    return owner if isinstance(owner, dict) else {}
