"""docs/mlops.md: users with keys of their own, in front of TorchServe and its tokens."""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serve.client import Client
from tests.mlops.blocks import ROOT, block
from tests.serve.asked import PROMPTS
from tests.serve.proxying import NGINX, free_port, proxying, wait_for
from tests.serve.running import Running
from tests.serve.test_client import Tokens

# Stands in for the cluster: notes what it was asked.
KUBECTL = '#!/bin/sh\necho "$@" >> asked\n'


@pytest.fixture
def pod(tmp_path: Path) -> tuple[Path, str]:
    """What pod.sh makes, and the key of one user."""
    (tmp_path / "serve").symlink_to(ROOT / "serve")
    (tmp_path / "kubectl").write_text(KUBECTL)
    (tmp_path / "kubectl").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    script = block("pod.sh") + 'printf %s "$key" > key\n'
    subprocess.run(["bash", "-euc", script], cwd=tmp_path, env=environment, check=True)
    return tmp_path, (tmp_path / "key").read_text()


def test_what_the_deployment_mounts_is_made(pod: tuple[Path, str]) -> None:
    folder, _ = pod
    asked = (folder / "asked").read_text().splitlines()
    made = {line.split()[-2]: line.rpartition("--from-file=")[2] for line in asked}
    assert made == {"mapstack-nginx": "nginx.conf", "mapstack-users": "keys"}
    for name in made:
        assert re.search(rf"[nN]ame: {name}}}", block("deployment.yaml"))
    assert re.fullmatch(r"[0-9a-f]{64}\n", (folder / "keys").read_text())


@contextmanager
def lending(folder: Path, run_folder: Path, management_port: int, renew_s: str = "12 * 3600") -> Iterator[int]:
    """users.py at work; gives its port."""
    port, text = free_port(), block("users.py")
    for shipped, here in (("8010", str(port)), ("8081", str(management_port)), ("12 * 3600", renew_s)):
        assert text.count(shipped) == 1
        text = text.replace(shipped, here)
    process = subprocess.Popen(
        [sys.executable, "-c", text, str(folder / "keys"), str(run_folder)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    try:
        wait_for(port)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_a_user_calls_with_a_key_of_their_own(pod: tuple[Path, str], server: Running, image: bytes) -> None:
    folder, key = pod
    ports, port = server.config.server, free_port()
    with lending(folder, server.folder, ports.management_port) as users_port:
        changes = {
            "127.0.0.1:8080;": f"127.0.0.1:{ports.inference_port};",
            "127.0.0.1:8082;": f"127.0.0.1:{ports.metrics_port};",
            "127.0.0.1:8010/;": f"127.0.0.1:{users_port}/;",
            "listen 8000;": f"listen 127.0.0.1:{port};",
        }
        with proxying((folder / "nginx.conf").read_text(), folder, changes, port) as proxy:
            client = Client(f"http://127.0.0.1:{port}", token=key)
            assert client.predict(image, prompts=PROMPTS)["predictions"]
            for wrong in (None, "", "x", token_of(server)):
                status, answer = proxy.send("POST", b"{}", wrong)
                assert (status, json.loads(answer)["error"]["code"]) == (401, "bad_token")
            server.client().renew_token()
            assert client.predict(image, prompts=PROMPTS)["predictions"]  # the key stays good
            (folder / "keys").write_text("")  # until its line is taken out
            assert proxy.send("POST", b"{}", key)[0] == 401


def lent(port: int, key: str) -> tuple[int, str | None]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request("GET", "/", headers={"authorization": f"Bearer {key}"})
        response = connection.getresponse()
        return response.status, response.getheader("x-token")
    finally:
        connection.close()


def test_the_token_is_renewed_before_its_time_and_lent_to_users_alone(pod: tuple[Path, str], tmp_path: Path) -> None:
    folder, key = pod
    (tmp_path / "run").mkdir()
    tokens = Tokens(tmp_path / "run")
    with lending(folder, tmp_path / "nowhere", 1) as port:
        assert lent(port, key) == (503, None)  # the server is not up
    with tokens.serving() as url, lending(folder, tmp_path / "run", int(url.rpartition(":")[2]), "0.2") as port:
        end = time.monotonic() + 60
        while tokens.made["inference"] < 2:
            assert time.monotonic() < end
            time.sleep(0.05)
        status, token = lent(port, key)
        assert (status, str(token).startswith("Bearer inference-")) == (204, True)
        assert int(str(token).rpartition("-")[2]) >= 2
        assert lent(port, "x") == (401, None)


def token_of(server: Running) -> str:
    token: str = json.loads((server.folder / "key_file.json").read_text())["inference"]["key"]
    return token
