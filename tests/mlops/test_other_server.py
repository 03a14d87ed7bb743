"""docs/mlops.md: readiness by the management API, and the endpoint behind another server."""

import base64
import http.client
import json
import os
import re
import socket
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from tests.mlops.blocks import ROOT, TEXT, block, write_blocks
from tests.serve.asked import PROMPTS
from tests.serve.running import Running


def is_ready(folder: Path, url: str) -> tuple[int, str]:
    run = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", block("ready.py"), str(folder), url],
        cwd=folder.parent,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not re.search(r"\| +torch$", run.stderr, re.MULTILINE)  # a probe runs every few seconds
    return run.returncode, run.stderr


def test_a_server_is_ready_when_a_worker_is(server: Running, tmp_path: Path) -> None:
    url = server.config.server.url("management_port")
    assert is_ready(server.folder, url)[0] == 0
    code, error = is_ready(tmp_path / "nobody", url)
    assert (code, "token file" in error) == (1, True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        code, error = is_ready(server.folder, f"http://127.0.0.1:{probe.getsockname()[1]}")
    assert (code, "no answer from" in error) == (1, True)


def test_the_endpoint_answers_the_same_behind_another_server(server: Running, tmp_path: Path, image: bytes) -> None:
    with zipfile.ZipFile(server.config.archive) as archive:
        archive.extractall(tmp_path / "archive")
    write_blocks(tmp_path, "door.py")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    fields = {"prompts": PROMPTS, "method": "gradient"}
    request = json.dumps({"image": base64.b64encode(image).decode(), **fields}).encode()
    process = subprocess.Popen(
        [sys.executable, "door.py", "archive", str(port)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path / "archive"), "OMP_NUM_THREADS": "1"},
        stderr=subprocess.DEVNULL,
    )
    try:
        status, answer = post(port, request, process)
    finally:
        process.terminate()
        process.wait(timeout=30)
    assert status == 200
    expected = server.client().explain(image, **fields)["maps"]
    for row, same in zip(json.loads(answer)["maps"], expected, strict=True):
        assert (row["name"], row["peak"]["row"]) == (same["name"], same["peak"]["row"])
        assert row["map_sum"] == pytest.approx(same["map_sum"], rel=1e-4, abs=1e-4)


def post(port: int, request: bytes, process: "subprocess.Popen[bytes]") -> tuple[int, bytes]:
    """Ask as soon as the server listens."""
    end = time.monotonic() + 120
    while True:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        try:
            connection.request("POST", "/explanations/medclip", request)
            response = connection.getresponse()
            return response.status, response.read()
        except ConnectionRefusedError:
            assert process.poll() is None
            assert time.monotonic() < end
            time.sleep(0.1)
        finally:
            connection.close()


def test_the_files_that_another_server_would_change_are_there() -> None:
    for path in re.findall(r"`((?:serve|handlers|mapstack)/[\w./]*)`", TEXT):
        assert (ROOT / path).exists(), path
    n_lines = len((ROOT / "handlers" / "medclip_handler.py").read_text().splitlines())
    assert n_lines < 100  # "about 90 lines"
