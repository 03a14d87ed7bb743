"""docs/mlops.md: what starts jobs by the clock reads the exit codes right."""

import configparser
import os
import re
import subprocess
from datetime import datetime, timedelta
from pathlib import Path

import pytest
import yaml

from mapstack.config import Config
from mapstack.config_files import load_config
from serve.config import ServeConfig
from serve.processes import END_S
from tests.mlops.blocks import ROOT, TEXT, block, write_blocks
from train_like.errors import DONE, SOME_FAILED, STOPPED, TERMINATED, WRONG_STORE, WRONG_USE

# Stands in for a job of hours: notes what it was asked, and ends with the next of the given codes.
STAND_IN = """#!/bin/sh
echo "$@" >> asked
n=$(wc -l < asked)
echo '{"status": "some word"}'
exit $(echo "$CODES" | cut -d' ' -f"$n")
"""


@pytest.fixture
def night(tmp_path: Path) -> Path:
    write_blocks(tmp_path, "nightly.sh")
    (tmp_path / "python").write_text(STAND_IN)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


@pytest.mark.parametrize(
    ("codes", "expected", "n_attempts"),
    [
        ([DONE], 0, 1),
        ([SOME_FAILED], 0, 1),
        ([STOPPED, TERMINATED, DONE], 0, 3),
        ([STOPPED] * 3, STOPPED, 3),
        ([TERMINATED, WRONG_STORE], WRONG_STORE, 2),
        ([WRONG_USE], WRONG_USE, 1),
    ],
)
def test_a_night_goes_on_after_a_stop_and_gives_up_where_that_is_no_use(
    night: Path, codes: list[int], expected: int, n_attempts: int
) -> None:
    environment = {**os.environ, "PATH": f"{night}{os.pathsep}{os.environ['PATH']}", "CODES": " ".join(map(str, codes))}
    run = subprocess.run(
        ["bash", "nightly.sh", "2026-03-01"], cwd=night, env=environment, capture_output=True, text=True, check=False
    )
    asked = (night / "asked").read_text().splitlines()
    assert (run.returncode, len(asked)) == (expected, n_attempts)
    assert asked[-1].split()[-2:] == ["data.shards=incoming/2026-03-01-*.tar", "output=out/2026-03-01"]
    assert (run.stderr == "") == (codes == [DONE])
    assert ("some word" in run.stderr) == (expected != 0)


def test_the_job_of_a_night_is_one_that_the_command_line_takes(night: Path) -> None:
    (night / "archive.yaml").write_text(block("archive.yaml"))
    overrides = ["data.shards=incoming/2026-03-01-*.tar", "output=out/2026-03-01"]
    assert load_config(Config, night / "archive.yaml", overrides).output == "out/2026-03-01"


def test_kubernetes_gives_up_on_the_codes_that_another_try_does_not_mend() -> None:
    spec = yaml.safe_load(block("cronjob.yaml"))["spec"]["jobTemplate"]["spec"]
    give_up = next(rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] == "FailJob")
    assert give_up["onExitCodes"]["values"] == [SOME_FAILED, WRONG_USE, WRONG_STORE]
    pod = spec["template"]["spec"]
    assert pod["restartPolicy"] == "Never"  # podFailurePolicy wants it
    (script,) = pod["containers"][0]["args"]
    assert re.search(r"exec \S+python -m train_like extract", script)  # SIGTERM reaches Python


@pytest.mark.parametrize("scheduled", ["2026-03-02T01:30:00Z", "2026-01-01T01:30:00Z"])
def test_a_pod_of_any_day_works_on_the_day_before_its_schedule(tmp_path: Path, scheduled: str) -> None:
    spec = yaml.safe_load(block("cronjob.yaml"))["spec"]["jobTemplate"]["spec"]
    (container,) = spec["template"]["spec"]["containers"]
    assert [each["name"] for each in container["env"]] == ["JOB"]
    moment = datetime.fromisoformat(scheduled)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text('#!/bin/sh\necho "$@" > asked\n')
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    job = f"mapstack-extract-{int(moment.timestamp()) // 60}"  # as the controller names it
    command = [*container["command"], *container["args"]]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "JOB": job, "TZ": "UTC"}, check=True)
    day = str(moment.date() - timedelta(days=1))
    asked = (tmp_path / "asked").read_text().split()
    assert asked[-2:] == [f"data.shards=/data/incoming/{day}-*.tar", f"output=/data/stores/{day}"]


def test_the_pod_gives_the_server_time_to_drain() -> None:
    pod = yaml.safe_load(block("deployment.yaml"))["spec"]["template"]["spec"]
    server, users, proxy = pod["containers"]
    config = load_config(ServeConfig, ROOT / "configs" / "serve.yaml", server["args"]).server
    assert pod["terminationGracePeriodSeconds"] > config.drain_s + 2 * END_S
    assert server["command"][1:] == ["-m", "serve", "start", "configs/serve.yaml"]
    # The mount point is root's: what is private to the server is a folder inside.
    folder = config.run_folder
    assert str(Path(folder).parent) == server["volumeMounts"][0]["mountPath"]
    for probe in ("startupProbe", "readinessProbe"):
        assert server[probe]["exec"]["command"][-2:] == ["ready.py", folder]
    assert users["command"][-3:] == ["users.py", "/etc/mapstack-users/keys", folder]
    mounts = {each["name"]: each["mountPath"] for each in users["volumeMounts"]}
    assert mounts == {"run": str(Path(folder).parent), "users": "/etc/mapstack-users"}
    (renewed,) = re.findall(r"^RENEW_S = (\d+) \* 3600", block("users.py"), re.MULTILINE)
    assert 60 * int(renewed) * 2 == config.token_minutes
    health = proxy["livenessProbe"]["httpGet"]
    assert f"location = {health['path']} " in (ROOT / "serve" / "nginx.conf").read_text()


def test_the_image_has_what_the_pods_start() -> None:
    text = block("Dockerfile")
    (extras,) = re.findall(r"-c (\S+) -e '\.\[(.*)\]'", text)
    assert (ROOT / extras[0]).is_file()
    declared = configparser.ConfigParser()
    declared.read(ROOT / "setup.cfg")
    assert set(extras[1].split(",")) <= set(declared["options.extras_require"])
    (packed,) = re.findall(r"-m serve pack (\S+)", text)
    config = load_config(ServeConfig, ROOT / packed, [])
    assert (ROOT / config.model.checkpoint).is_dir()
    for name in ("cronjob.yaml", "deployment.yaml"):
        assert re.findall(r"^ +workingDir: (\S+)$", block(name), re.MULTILINE)[0] in text


def test_every_exit_code_is_explained() -> None:
    (row,) = re.findall(r"^\| exit code \|(.*)\|$", TEXT, re.MULTILINE)
    for code in (DONE, SOME_FAILED, WRONG_USE, WRONG_STORE, STOPPED, TERMINATED):
        assert re.search(rf"\b{code}\b", row)
