import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.store_race import N_JOBS
from tests.faults.store_readers import N_PER_KILL

ROOT = Path(__file__).parents[2]


def run(module: str, folder: Path, count: int) -> Any:
    command = [sys.executable, "-m", f"tests.faults.{module}", folder, str(count)]
    ended = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


@pytest.mark.fault("W4")
def test_of_jobs_that_start_at_once_one_gets_the_store(tmp_path: Path, campaign, figure):
    rounds = run("store_race", tmp_path / "store", campaign(20, 300))
    n_refused = sum(result["n_refused"] for result in rounds)
    n_named = sum(result["n_named"] for result in rounds)
    n_won_once = sum(result["n_holders"] == 1 for result in rounds)
    slowest_s = max(result["slowest_s"] for result in rounds)
    figure(
        f"{N_JOBS} jobs at once, the holder killed: just one got it {n_won_once} of {len(rounds)} times, {n_refused} "
        f"refused ({n_named} by the holder's name), slowest {slowest_s:.3f} s"
    )
    assert n_won_once == len(rounds)
    assert n_refused == len(rounds) * (N_JOBS - 1)
    assert n_named > 0.8 * n_refused  # the others looked before the holder had written its name
    assert slowest_s < 1


@pytest.mark.fault("W11")
def test_readers_beside_a_job_that_dies_and_starts_again_see_whole_records_only(tmp_path: Path, campaign, figure):
    n_kills = campaign(5, 40)
    result = run("store_readers", tmp_path / "store", n_kills)
    readers = result["readers"]
    figure(
        f"{len(readers)} readers, {n_kills} kills: store opened {sum(r['n_opened'] for r in readers)} times at "
        f"{len({size for r in readers for size in r['sizes']})} sizes, {sum(r['n_read'] for r in readers)} records "
        f"read, verified {sum(r['n_verified'] for r in readers)} times, {sum(len(r['bad']) for r in readers)} bad"
    )
    assert [reader["bad"] for reader in readers] == [[]] * len(readers)
    assert result["n_killed"] == n_kills
    assert result["sound"]
    assert result["n_done"] == N_PER_KILL * (n_kills + 1) * 9 // 10
    assert all(reader["n_read"] == result["n_done"] for reader in readers)
    assert all(len(reader["sizes"]) >= 3 for reader in readers)
