"""How a server comes up, what it survives, and how it goes: each test has one of its own."""

import json
import os
import signal
import socket
import subprocess
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from mapstack.errors import MapstackError
from serve.errors import AnswerError
from tests.serve.asked import PROMPTS
from tests.serve.running import ROOT, Running, command, free_ports, last_line, serve, start_in_background

# Computed anew every time: a route that is asked for is not answered from the cache.
SLOW = {"name": "integrated_gradients", "n_steps": 60}
SLOWER = {**SLOW, "n_steps": 200}
QUEUE, BATCH = 8, 4


@pytest.fixture
def overrides(tmp_path: Path, small_checkpoint: Path) -> list[str]:
    return [
        *free_ports(),
        f"output={tmp_path}",
        f"server.run_folder={tmp_path / 'run'}",
        f"model.checkpoint={small_checkpoint}",
        "server.threads=1",
        "server.startup_timeout_s=200",
        f"server.queue={QUEUE}",
    ]


@pytest.fixture
def own_server(overrides: list[str], tmp_path: Path) -> Iterator[Running]:
    packed = serve("pack", overrides)
    assert packed.returncode == 0, packed.stderr
    process, _ = start_in_background(overrides, tmp_path)
    yield Running(tuple(overrides))
    serve("stop", overrides)
    process.wait(timeout=60)


@pytest.mark.fault("S10")
@pytest.mark.fault("S12")
@pytest.mark.fault("S14")
def test_a_full_queue_a_killed_worker_and_a_stop(
    own_server: Running, image: bytes, figure: Callable[[str], None]
) -> None:
    client = own_server.client()
    assert client.predict(image, prompts=PROMPTS)["predictions"]
    n_answered, waited = crowd(own_server, image)
    assert min(waited) <= 2
    assert max(waited) <= 10
    figure(
        f"40 at once for a queue of {QUEUE}: {n_answered} answered, the rest got 503; one more alone got its 503 after "
        f"{min(waited) * 1000:.0f} ms"
    )

    n_failed, restarted_s, loaded_s = outage(own_server, image)
    figure(
        f"a worker killed with 8 requests before it: {n_failed} failed, {8 - n_failed} answered; another worker after "
        f"{restarted_s:.1f} s, its model READY {loaded_s:.1f} s later"
    )
    assert own_server.config.server.batch_size == BATCH
    assert n_failed <= BATCH
    assert restarted_s <= 40

    family = [own_server.java(), *own_server.java().children(recursive=True)]
    answered: list[object] = []
    threads = [
        threading.Thread(
            target=lambda: answered.append(client.explain(image, prompts=PROMPTS, method=SLOW, route="direct")["maps"])
        )
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: not is_free(own_server.folder / "busy"))
    stopped = serve("stop", own_server.overrides)
    for thread in threads:
        thread.join()
    line = last_line(stopped.stdout)
    assert (stopped.returncode, line["was_running"], line["drained"]) == (0, True, True)
    assert len(answered) == 2
    assert [process.pid for process in family if process.is_running() and process.status() != "zombie"] == []
    assert not (own_server.folder / "key_file.json").exists()
    again = serve("stop", own_server.overrides)
    assert (again.returncode, last_line(again.stdout)["was_running"]) == (0, False)
    figure(f"stop: 2 of 2 requests in flight answered, {len(family)} processes gone")


def crowd(server: Running, image: bytes) -> tuple[int, list[float]]:
    """Ask for more than the queue holds; say how many were answered, and how long one more waits for its 503 [s]."""
    barrier, refused, answered = threading.Barrier(40), list[int](), list[object]()

    def one(_: int) -> None:
        barrier.wait()
        try:
            answered.append(server.client().explain(image, prompts=PROMPTS, method=SLOWER, route="direct"))
        except AnswerError as error:
            refused.append(error.status)

    with ThreadPoolExecutor(40) as threads:
        done = threads.map(one, range(40))
        wait_until(lambda: len(refused) >= 40 - QUEUE - 2 * BATCH)
        waited = [seconds for _ in range(3) if (seconds := refusal_alone(server, image)) is not None]
        list(done)
    assert answered
    assert len(answered) + len(refused) == 40
    assert set(refused) == {503}
    return len(answered), waited


def refusal_alone(server: Running, image: bytes) -> float | None:
    """Ask a server whose queue is full; say how long its 503 took [s], None where there was room again."""
    begun = time.monotonic()
    try:
        server.client().predict(image, prompts=PROMPTS)
    except AnswerError as error:
        assert error.status == 503  # noqa: PT017
        return time.monotonic() - begun
    return None


def n_pending(server: Running) -> int:
    found: int = server.client().describe_model()[0]["jobQueueStatus"]["pendingRequests"]
    return found


def outage(server: Running, image: bytes) -> tuple[int, float, float]:
    """Kill a worker at work; say how many of 8 requests failed, and when another worker came and was READY [s]."""
    failed, answered = list[MapstackError](), list[object]()

    def one(_: int) -> None:
        try:
            answered.append(server.client(timeout_s=200.0).explain(image, prompts=PROMPTS, method=SLOW, route="direct"))
        except MapstackError as error:
            failed.append(error)

    (worker,) = server.workers()
    with ThreadPoolExecutor(8) as threads:
        done = threads.map(one, range(8))
        wait_until(lambda: n_pending(server) > 0 and not is_free(server.folder / "busy"))
        worker.send_signal(signal.SIGKILL)
        begun = time.monotonic()
        wait_until(lambda: has_another(server, worker))
        restarted_s = time.monotonic() - begun
        wait_until(lambda: server.client().describe_model()[0]["workers"][0]["status"] == "READY")
        loaded_s = time.monotonic() - begun - restarted_s
        list(done)
    assert len(failed) + len(answered) == 8
    assert server.client().predict(image, prompts=PROMPTS)["predictions"]
    return len(failed), restarted_s, loaded_s


def has_another(server: Running, worker: psutil.Process) -> bool:
    try:
        return any(each.pid != worker.pid for each in server.workers())
    except psutil.Error:  # one that has just ended
        return False


def is_free(busy: Path) -> bool:
    from serve.draining import _is_free

    return _is_free(busy)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.fault("S2")
@pytest.mark.long
def test_a_token_that_is_too_old_is_renewed(overrides: list[str], tmp_path: Path, image: bytes) -> None:
    brief = [*overrides, "server.token_minutes=1"]
    assert serve("pack", brief).returncode == 0
    process, _ = start_in_background(brief, tmp_path)
    server = Running(tuple(brief))
    try:
        old = json.loads((server.folder / "key_file.json").read_text())["inference"]["key"]
        time.sleep(65)
        with pytest.raises(AnswerError) as caught:
            server.client(token=old, keys=None).predict(image, prompts=PROMPTS)
        assert caught.value.status in (400, 401)
        assert server.client().predict(image, prompts=PROMPTS)["predictions"]
        assert json.loads((server.folder / "key_file.json").read_text())["inference"]["key"] != old
    finally:
        stopped = serve("stop", brief)
        process.wait(timeout=60)
    assert last_line(stopped.stdout)["drained"] is True  # its token of the management API was too old as well


@pytest.mark.fault("S13")
def test_a_model_that_cannot_be_loaded_ends_the_start_with_the_reason(overrides: list[str], tmp_path: Path) -> None:
    assert serve("pack", overrides).returncode == 0
    spoil(tmp_path / "medclip.mar")
    begun = time.monotonic()
    run = serve("start", overrides)
    assert run.returncode == 4
    assert "the model cannot be loaded: CheckpointError" in last_line(run.stdout)["error"]
    assert time.monotonic() - begun < 200
    left = [each for each in psutil.process_iter() if str(tmp_path / "run") in " ".join(command_line(each))]
    assert left == []


@pytest.mark.fault("S13")
@pytest.mark.parametrize("when", ["while it starts", "while it answers"])
def test_a_start_ends_when_torchserve_dies(overrides: list[str], tmp_path: Path, image: bytes, when: str) -> None:
    """A worker that computes does not notice that its server is gone: it must be ended."""
    assert serve("pack", overrides).returncode == 0
    server, output = Running(tuple(overrides)), tmp_path / "start.out"
    if when == "while it starts":
        with output.open("wb") as out:
            process = subprocess.Popen(command("start", overrides), cwd=ROOT, stdout=out, stderr=subprocess.DEVNULL)
        wait_until((server.folder / "server.json").exists)
    else:
        process, _ = start_in_background(overrides, tmp_path)
        long = {"name": "integrated_gradients", "n_steps": 1000}
        asking = threading.Thread(target=lambda: explain_in_vain(server, image, long))
        asking.start()
        wait_until(lambda: not is_free(server.folder / "busy"))
    server.java().kill()
    assert process.wait(timeout=60) == 4
    line = last_line(output.read_text())
    assert (line["status"], "TorchServe ended" in line["error"]) == ("stopped", True)
    assert [each for each in psutil.process_iter() if str(server.folder) in " ".join(environment(each))] == []
    assert not (server.folder / "key_file.json").exists()
    if when == "while it answers":
        asking.join()
    assert last_line(serve("stop", overrides).stdout)["was_running"] is False


def explain_in_vain(server: Running, image: bytes, method: dict[str, object]) -> None:
    with pytest.raises(MapstackError):
        server.client().explain(image, prompts=PROMPTS, method=method, route="direct")


def environment(process: psutil.Process) -> list[str]:
    """Workers do not name the run folder in their command line."""
    try:
        return [str(value) for value in process.environ().values()]
    except psutil.Error:
        return []


@pytest.mark.long
def test_a_start_ends_when_no_worker_can_be_had_any_more(overrides: list[str], tmp_path: Path) -> None:
    """TorchServe itself stays up, without one, for ever."""
    assert serve("pack", overrides).returncode == 0
    rewrite(tmp_path / "medclip.mar", "model-config.yaml", lambda text: text + "maxRetryTimeoutInSec: 5\n")
    brief = [*overrides, "server.startup_timeout_s=60"]
    process, _ = start_in_background(brief, tmp_path)
    server = Running(tuple(brief))
    (unpacked,) = (server.folder / "tmp" / "models").glob("*/endpoint.json")
    unpacked.write_text("{}")
    (worker,) = server.workers()
    worker.kill()
    assert process.wait(timeout=200) == 4
    assert "given up starting one: ConfigError" in last_line((tmp_path / "start.out").read_text())["error"]
    assert [each for each in psutil.process_iter() if str(server.folder) in " ".join(environment(each))] == []


def test_who_stops_reading_ends_nothing_and_a_hang_up_ends_all(overrides: list[str], tmp_path: Path) -> None:
    assert serve("pack", overrides).returncode == 0
    # As `serve start | head -1` and `serve start 2>&1 | head -1`: nobody reads when it is READY.
    process = subprocess.Popen(
        command("start", overrides),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),  # the tests themselves may be run by nohup
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    process.stderr.close()
    server = Running(tuple(overrides))
    try:
        wait_until(lambda: is_ready(server))
        time.sleep(2.0)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGHUP)
        code = process.wait(timeout=120)
    assert code == 143
    assert [each for each in psutil.process_iter() if str(server.folder) in " ".join(environment(each))] == []


def is_ready(server: Running) -> bool:
    try:
        return bool(server.client().describe_model()[0]["workers"][0]["status"] == "READY")
    except (MapstackError, LookupError):
        return False


@pytest.mark.fault("S14")
def test_a_start_that_is_interrupted_leaves_no_process(overrides: list[str], tmp_path: Path) -> None:
    assert serve("pack", overrides).returncode == 0
    with (tmp_path / "out").open("wb") as out:
        process = subprocess.Popen(command("start", overrides), cwd=ROOT, stdout=out, stderr=out)
        wait_until((tmp_path / "run" / "server.json").exists)
        process.terminate()
        assert process.wait(timeout=120) == 143
    left = [each for each in psutil.process_iter() if str(tmp_path / "run") in " ".join(command_line(each))]
    assert left == []


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def spoil(archive: Path) -> None:
    """Flip a byte of the weights, and mend the checksum of the member, so that only the fingerprint tells."""

    def flip(text: str) -> str:
        at = text.index('"weights": "') + len('"weights": "')
        return text[:at] + ("0" if text[at] != "0" else "1") + text[at + 1 :]

    rewrite(archive, "endpoint.json", flip)


def rewrite(archive: Path, member: str, change: Callable[[str], str]) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = {name: opened.read(name) for name in opened.namelist()}
    (name,) = (each for each in members if each.rpartition("/")[2] == member)
    members[name] = change(members[name].decode()).encode()
    with zipfile.ZipFile(archive, "w") as opened:
        for each, content in members.items():
            opened.writestr(each, content)


def test_what_stands_in_the_way_of_a_start_is_said(overrides: list[str], tmp_path: Path) -> None:
    run = serve("start", overrides)
    assert (run.returncode, "does not exist" in last_line(run.stdout)["error"]) == (2, True)
    (tmp_path / "medclip.mar").write_bytes(b"")
    with socket.socket() as taken:
        port = next(int(each.split("=")[1]) for each in overrides if "inference_port" in each and "grpc" not in each)
        taken.bind(("127.0.0.1", port))
        taken.listen()
        run = serve("start", overrides)
    assert run.returncode == 2
    assert f"port {port} of 127.0.0.1 cannot be opened" in last_line(run.stdout)["error"]
    wrong = serve("start", [*overrides, "server.prot=1"])
    assert (wrong.returncode, "server" in last_line(wrong.stdout)["error"]) == (2, True)


def test_a_pid_that_was_given_to_another_process_is_left_alone(overrides: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "server.json").write_text(f'{{"pid": {os.getpid()}, "started": 1.0}}')
    assert last_line(serve("stop", overrides).stdout)["was_running"] is False
