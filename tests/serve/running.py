"""A real server for the tests: TorchServe on free ports, in a private folder, shared by all workers of a test run."""

import fcntl
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from mapstack.config_files import load_config
from serve.client import Client
from serve.config import ServeConfig
from serve.keys import Keys

ROOT = Path(__file__).parents[2]
PORTS = ("inference_port", "management_port", "metrics_port", "grpc_inference_port", "grpc_management_port")
START_S = 240
_STARTED: "list[subprocess.Popen[bytes]]" = []  # held until they end: Python warns of a handle that is dropped before


def free_ports() -> list[str]:
    """Overrides that give a server ports of its own."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in PORTS]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [f"server.{name}={probe.getsockname()[1]}" for name, probe in zip(PORTS, probes, strict=True)]


def command(name: str, overrides: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "serve", name, "configs/serve.yaml", *overrides]


def serve(name: str, overrides: Sequence[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    """Run a command of `python -m serve` to its end."""
    with subprocess.Popen(
        command(name, overrides), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    ) as process:
        try:
            out, err = process.communicate(timeout=START_S)
        except BaseException:
            process.terminate()  # not killed: a server that is coming up is ended with it
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def last_line(output: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(output.strip().splitlines()[-1])
    return found


@dataclass(frozen=True)
class Running:
    """A server that is READY."""

    overrides: tuple[str, ...]

    @property
    def config(self) -> ServeConfig:
        return load_config(ServeConfig, ROOT / "configs" / "serve.yaml", self.overrides)

    @property
    def folder(self) -> Path:
        return Path(self.config.server.run_folder)

    def client(self, **options: Any) -> Client:
        server = self.config.server
        return Client(
            server.url("inference_port"),
            "medclip",
            **{
                "keys": Keys(self.folder / "key_file.json"),
                "management_url": server.url("management_port"),
                "retries": 0,
                "timeout_s": 120.0,
                **options,
            },
        )

    def logs(self) -> str:
        return "".join(path.read_text(encoding="utf-8", errors="replace") for path in (self.folder / "logs").iterdir())

    def java(self) -> psutil.Process:
        return psutil.Process(json.loads((self.folder / "server.json").read_text())["pid"])

    def workers(self) -> list[psutil.Process]:
        return [child for child in self.java().children() if "model_service_worker" in " ".join(child.cmdline())]


def start_in_background(overrides: Sequence[str], folder: Path) -> "tuple[subprocess.Popen[bytes], dict[str, Any]]":
    """Start a server that outlives this process; return it with the line that it printed when it was READY."""
    output = folder / "start.out"
    with output.open("wb") as out, (folder / "start.err").open("wb") as err:
        process = subprocess.Popen(
            command("start", overrides), cwd=ROOT, stdout=out, stderr=err, start_new_session=True
        )
    deadline = time.monotonic() + START_S
    while not output.read_text().strip():
        if process.poll() is not None or time.monotonic() > deadline:
            process.terminate()
            raise RuntimeError((folder / "start.err").read_text())
        time.sleep(0.1)
    return process, last_line(output.read_text())


@contextmanager
def shared_server(root: Path, overrides: Sequence[str]) -> Iterator[Running]:
    """Start a server where none of this test run is up, and stop it when its last user goes."""
    state, lock = root / "server-users.json", root / "server-users.lock"
    with lock.open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if not state.exists():
            chosen = [*overrides, *free_ports(), f"output={root}", f"server.run_folder={root / 'run'}"]
            packed = serve("pack", chosen)
            assert packed.returncode == 0, packed.stderr
            _STARTED.append(start_in_background(chosen, root)[0])
            state.write_text(json.dumps({"overrides": chosen, "users": 0}))
        known = json.loads(state.read_text())
        state.write_text(json.dumps({**known, "users": known["users"] + 1}))
    try:
        yield Running(tuple(known["overrides"]))
    finally:
        with lock.open("wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            known = json.loads(state.read_text())
            known["users"] -= 1
            state.write_text(json.dumps(known))
            if not known["users"]:
                state.unlink()
                stopped = serve("stop", known["overrides"])
                assert stopped.returncode == 0, stopped.stderr
                for process in _STARTED:
                    process.wait(timeout=60)
