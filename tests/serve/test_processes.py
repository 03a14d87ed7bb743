"""Whose processes `stop` ends, and what a restart of the host takes with it: without a server."""

import json
import os
import signal
import stat
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from mapstack.config_files import load_config
from mapstack.endpoint.cache_files import CacheFolder
from mapstack.errors import ConfigError
from serve import boot, server
from serve.boot import boot_id, forget_entries_of_another_boot
from serve.config import ServeConfig
from serve.errors import ServerError
from serve.processes import Family
from tests.serve.running import ROOT

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system has no /proc")


@pytest.fixture
def leader() -> "Iterator[subprocess.Popen[bytes]]":
    """A process that leads a session, whose child does too little to notice."""
    process = subprocess.Popen(["sh", "-c", "sleep 600 & sleep 600"], start_new_session=True)
    yield process
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(timeout=30)


@needs_proc
def test_a_family_is_known_again_after_the_clock_was_set(
    leader: "subprocess.Popen[bytes]", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Family.of(leader.pid).write(tmp_path / "server.json")
    told = psutil.Process.create_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: told(process) + 3.0)
    family = Family.read(tmp_path / "server.json")
    assert family is not None
    assert family.is_led()
    assert family.end() == []
    assert leader.poll() is not None


@needs_proc
def test_a_process_is_known_by_when_it_was_started(leader: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    """Whatever its name holds, which stands before that time where the system tells of both."""
    odd = tmp_path / "a) b (c"
    odd.symlink_to("/bin/sh")
    with subprocess.Popen(["sh", "-c", "sleep 600 & wait"], executable=odd, start_new_session=True) as second:
        try:
            for process in (leader, second):
                since_boot = psutil.Process(process.pid).create_time() - psutil.boot_time()
                ticks = int(Family.of(process.pid).started)
                assert ticks / os.sysconf("SC_CLK_TCK") == pytest.approx(since_boot, abs=1.0)
        finally:
            os.killpg(second.pid, signal.SIGKILL)


def test_a_family_of_another_boot_or_another_process_is_left_alone(leader: "subprocess.Popen[bytes]") -> None:
    family = Family.of(leader.pid)
    for other in (Family(leader.pid, family.started, "another boot"), Family(leader.pid, "1", family.boot)):
        assert not other.is_led()
        assert other.end() == []
    assert leader.poll() is None
    assert family.end() == []


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)


def test_what_a_leader_leaves_behind_is_ended_on_its_own_boot_only(leader: "subprocess.Popen[bytes]") -> None:
    family, first = Family.of(leader.pid), psutil.Process(leader.pid)
    while not first.children():
        time.sleep(0.01)
    left = first.children()
    first.kill()  # nobody has asked for its exit code yet
    while is_alive(first):
        time.sleep(0.01)
    assert not family.is_led()
    assert replace(family, boot="another boot").end() == []
    assert all(is_alive(process) for process in left)
    assert family.end() == []
    assert not any(is_alive(process) for process in left)


@pytest.fixture
def config_of(tmp_path: Path) -> Callable[..., ServeConfig]:
    """Configure a server that has an archive, though an empty one."""
    with zipfile.ZipFile(tmp_path / "medclip.mar", "w") as archive:
        archive.writestr("endpoint.json", json.dumps({"endpoint": {}}))

    def configure(folder: Path, *overrides: str) -> ServeConfig:
        own = [f"server.run_folder={folder}", f"output={tmp_path}", *overrides]
        return load_config(ServeConfig, ROOT / "configs" / "serve.yaml", own)

    return configure


def test_a_run_folder_that_cannot_be_prepared_is_said(
    config_of: Callable[..., ServeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted", str(path))

    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run folder '.*file/run' cannot be prepared \(Not a directory"):
        server._prepare(tmp_path / "file" / "run", config_of(tmp_path / "file" / "run"))
    monkeypatch.setattr(Path, "chmod", refuse)  # as of a mount point that is root's
    with pytest.raises(ConfigError, match="Operation not permitted.*set server.run_folder"):
        server._prepare(tmp_path / "run", config_of(tmp_path / "run"))


def test_the_cache_of_another_boot_is_emptied(
    config_of: Callable[..., ServeConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config_of(tmp_path / "run")
    root = server.cache_folder(config)
    assert root == tmp_path / "run" / "cache"
    server._prepare(tmp_path / "run", config)
    cache = CacheFolder(root, max_bytes=10**6)
    assert cache.put("entry.a", {"rows": np.zeros(3, np.float32)}, {})
    (root / "mine").mkdir()
    server._prepare(tmp_path / "run", config)
    assert cache.read("entry.a") is not None  # a server that is started again on the same boot
    monkeypatch.setattr(boot, "boot_id", lambda: "another boot")
    server._prepare(tmp_path / "run", config)
    assert cache.read("entry.a") is None
    assert (root / "mine").is_dir()  # nothing but entries is taken away
    assert cache.put("entry.b", {"rows": np.zeros(3, np.float32)}, {})
    server._prepare(tmp_path / "run", config)
    assert cache.read("entry.b") is not None
    assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_where_no_boot_is_told_nothing_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "_BOOT_ID", tmp_path / "no-such-file")
    assert boot_id() == ""
    cache = CacheFolder(tmp_path / "cache", max_bytes=10**6)
    assert cache.put("entry.a", {"rows": np.zeros(3, np.float32)}, {})
    forget_entries_of_another_boot(tmp_path / "cache")
    assert cache.read("entry.a") is None


@pytest.fixture
def watched(
    leader: "subprocess.Popen[bytes]",
    config_of: Callable[..., ServeConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> server.Server:
    """A server whose Java process does nothing; the tests answer for its management API."""
    (tmp_path / "run" / "logs").mkdir(parents=True)
    monkeypatch.setattr(server, "_WATCH_S", 0.05)
    return server.Server(config_of(tmp_path / "run", "server.startup_timeout_s=2"), leader)


def answer(monkeypatch: pytest.MonkeyPatch, *statuses: str) -> None:
    """Answer so, one status of the worker after the other, the last again and again."""
    waiting = list(statuses)

    def describe(_: object) -> dict[str, object]:
        status = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        return {"maxRetryTimeoutInSec": 0, "workers": [{"status": status}]}

    monkeypatch.setattr(server.Server, "_describe", describe)


def test_a_server_that_is_without_a_worker_for_too_long_ends_with_the_reason(
    watched: server.Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, "READY", "UNLOADING")
    (tmp_path / "run" / "logs" / "server.log").write_text(
        "[mapstack] the model cannot be loaded: old\n[mapstack] the model cannot be loaded: CheckpointError: gone\n"
    )
    begun = time.monotonic()
    with pytest.raises(ServerError, match="no worker of the model is READY.*: CheckpointError: gone$"):
        watched.wait()
    assert time.monotonic() - begun > 2


def test_a_worker_that_comes_back_in_time_ends_nothing(
    watched: server.Server, leader: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, *["UNLOADING"] * 25, "READY", *["UNLOADING"] * 25, "READY")
    end = threading.Timer(4.0, leader.kill)
    end.start()
    assert watched.wait() == -signal.SIGKILL
    end.join()


def test_a_server_whose_start_fails_at_once_leaves_no_process(
    leader: "subprocess.Popen[bytes]",
    config_of: Callable[..., ServeConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def vanish(pid: int) -> Family:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(server, "_require_free_ports", lambda *_: None)
    monkeypatch.setattr(server, "_launch", lambda *_: leader)
    monkeypatch.setattr(Family, "of", vanish)
    with pytest.raises(psutil.NoSuchProcess):
        server.start(config_of(tmp_path / "run"))
    assert leader.wait(timeout=30) == -signal.SIGKILL
