"""nginx itself with the shipped configuration, on free ports."""

import contextlib
import http.client
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.serve.running import ROOT

NGINX = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
SHIPPED = ROOT / "serve" / "nginx.conf"


@dataclass(frozen=True)
class Proxy:
    port: int
    folder: Path
    process: "subprocess.Popen[bytes]"

    def ask(
        self, verb: str, content: bytes, token: str | None, path: str = "/predictions/medclip", **more: str
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send a call; return status, body and headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            headers = {"content-type": "application/json", **more} | (
                {} if token is None else {"authorization": f"Bearer {token}"}
            )
            connection.request(verb, path, content, headers)
            response = connection.getresponse()
            return response.status, response.read(), {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()

    def send(
        self, verb: str, content: bytes, token: str | None, path: str = "/predictions/medclip"
    ) -> tuple[int, bytes]:
        return self.ask(verb, content, token, path)[:2]

    def n_connections(self) -> int:
        """Count the clients that nginx holds."""
        workers = psutil.Process(self.process.pid).children()
        held = [each for worker in workers for each in worker.net_connections("tcp")]
        return sum(each.status == "ESTABLISHED" and each.laddr.port == self.port for each in held)

    def memory(self) -> int:
        parent = psutil.Process(self.process.pid)
        return sum(each.memory_full_info().uss for each in (parent, *parent.children()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@contextlib.contextmanager
def proxying(text: str, folder: Path, changes: Mapping[str, str], port: int) -> Iterator[Proxy]:
    """Run nginx with a configuration in which each change is made exactly once."""
    for shipped, here in changes.items():
        assert text.count(shipped) == 1, shipped
        text = text.replace(shipped, here)
    (folder / "nginx.conf").write_text(text)
    options = "daemon off;" + (" user root;" if os.getuid() == 0 else "")
    process = subprocess.Popen(
        [str(NGINX), "-p", f"{folder}/", "-c", str(folder / "nginx.conf"), "-g", options], stderr=subprocess.DEVNULL
    )
    try:
        wait_for(port)
        yield Proxy(port, folder, process)
    finally:
        process.terminate()
        process.wait(timeout=30)


def wait_for(port: int) -> None:
    end = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            assert time.monotonic() < end
            time.sleep(0.05)
