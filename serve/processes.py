"""The processes of a server that somebody else may end: found again by a small file, ended as a family."""

import json
import os
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from serve.boot import boot_id

END_S = 20.0  # for SIGTERM, and as long again for SIGKILL


@dataclass(frozen=True)
class Family:
    """A process that leads a session of its own, with all that it started.

    Attributes:
        pid: Of the leader.
        started: When the leader was started: a pid is given out again, with its start time it names one process.
        boot: Of this host, when it was.
    """

    pid: int
    started: str
    boot: str = ""

    @classmethod
    def of(cls, pid: int) -> "Family":
        """Return the family of a process that has just been started as the leader of a session.

        Raises:
            psutil.Error: There is no such process.
        """
        return cls(pid, _started(pid), boot_id())

    @classmethod
    def read(cls, file: Path) -> "Family | None":
        """Return the family that a file names; None where it names none."""
        try:
            return cls(**json.loads(file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def write(self, file: Path) -> None:
        """Write down which family this is."""
        file.write_text(json.dumps(asdict(self)), encoding="utf-8")

    def is_led(self) -> bool:
        """Say whether the leader is running."""
        try:
            return self._is_leader_its_own() and bool(psutil.Process(self.pid).status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    def end(self) -> list[int]:
        """End all processes, whether the leader is still there or not; return the pids of those that stay."""
        for send in (_terminate, _kill):
            members = self._members()
            for process in members:
                send(process)
            psutil.wait_procs(members, timeout=END_S)
            if not self._members():
                return []
        return [process.pid for process in self._members()]

    def _members(self) -> list[psutil.Process]:
        """List who is in the leader's session: its children stay in there when it dies."""
        if self.boot != boot_id():
            return []
        found = []
        for process in psutil.process_iter():
            try:
                if os.getsid(process.pid) != self.pid or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.pid == self.pid and not self._is_leader_its_own():
                    return []  # the pid went to another, which the system does only when the whole session is gone
            except (OSError, psutil.Error):  # it ended meanwhile
                continue
            found.append(process)
        return found

    def _is_leader_its_own(self) -> bool:
        """Say whether the pid still names the process that it was written down for."""
        return _started(self.pid) == self.started and self.boot == boot_id()


def _started(pid: int) -> str:
    """Return when a process was started, in a form that setting the clock does not change.

    Raises:
        psutil.Error: There is no such process.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return str(psutil.Process(pid).create_time())
    # Ticks since the boot; the name before it may hold blanks and brackets.
    return text.rpartition(")")[2].split()[19]


def _quietly(act: Callable[[psutil.Process], None]) -> Callable[[psutil.Process], None]:
    def try_to(process: psutil.Process) -> None:
        try:
            act(process)
        except psutil.NoSuchProcess:
            return

    return try_to


_terminate = _quietly(lambda process: process.send_signal(signal.SIGTERM))
_kill = _quietly(lambda process: process.kill())
