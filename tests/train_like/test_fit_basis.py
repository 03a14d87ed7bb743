"""`basis`, and stacks along the rows that it finds."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mapstack.models import EmbeddingModel
from mapstack.store import Store
from tests.train_like.jobs import Ended

Command = Callable[..., Ended]
GRADIENT = ("method={name: gradient}", "stack={map_size: 56, codec: float32}")


@pytest.fixture
def job(write_config: Callable[[str | Path], Path], job_shards: str, tmp_path: Path) -> tuple[object, ...]:
    return (write_config(job_shards), *GRADIENT, f"stack.basis_file={tmp_path}/rows/basis.npy")


@pytest.fixture
def fitted(job: tuple[object, ...], command: Command) -> Ended:
    return command("basis", *job, "stack.basis_tolerance=0.1", "data.limit=4")


def maps_of(command: Command, job: tuple[object, ...], store: Path) -> dict[str, np.ndarray]:
    texts = ["prompts.texts=[heart, left pleural effusion]", f"project={{output: {store}-maps, pictures: false}}"]
    ended = command("project", *job, *texts, f"output={store}")
    assert ended.code == 0, ended.err
    return {path.name: np.load(path) for path in Path(f"{store}-maps").glob("*.maps.npy")}


def test_few_rows_answer_texts_that_nobody_named_within_the_error_that_is_told(
    job: tuple[object, ...], fitted: Ended, command: Command, job_model: EmbeddingModel, tmp_path: Path
) -> None:
    assert (fitted.code, fitted.line["pictures"], fitted.line["of"]) == (0, 4, job_model.embed_dim)
    assert 0 < fitted.line["rows"] < job_model.embed_dim
    assert fitted.line["error"] <= 0.1
    errors = [*fitted.line["error_by_rows"].values()]
    assert errors == sorted(errors, reverse=True)

    whole, short = tmp_path / "whole", tmp_path / "short"
    assert command("extract", *job, f"output={whole}").code == 0
    along_rows = ("stack.basis=pictures", f"output={short}")
    ended = command("extract", *job, *along_rows)
    assert ended.code == 0, ended.err
    store = Store(short)
    assert store.manifest["identity"]["basis"] == "pictures"
    errors = [record.info["map_error"] for record in store]
    assert len(errors) == 7
    assert 0 < max(errors) < 0.5
    assert {record.arrays["stack"].shape[0] for record in store} == {fitted.line["rows"]}
    assert {record.info["route"] for record in store} == {"pictures"}

    expected, found = maps_of(command, job, whole), maps_of(command, job, short)
    assert len(found) == 7
    told = [json.loads(path.read_text())["map_error"] for path in Path(f"{short}-maps").glob("*.json")]
    assert sorted(told) == sorted(errors)
    lost = [np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name]) for name in expected]
    assert 0 < np.mean(lost) < 3 * np.mean(errors)
    again = command("extract", *job, *along_rows)
    assert (again.code, again.line["computed_by_rank_0"]) == (0, 0)


def test_other_rows_are_another_store(job: tuple[object, ...], fitted: Ended, command: Command, tmp_path: Path) -> None:
    along_rows = (*job, "stack.basis=pictures", f"output={tmp_path}/store", "data.limit=2")
    assert command("extract", *along_rows).code == 0
    file = Path(fitted.line["output"])
    np.save(file, np.load(file)[:-1])
    assert command("extract", *along_rows).code == 3


REFUSED = {
    "stack.basis_file=null": "stack.basis_file is not set; the rows are written there",
    "stack.basis_tolerance=0": "stack.basis_tolerance is 0; fewer rows cost an error",
    "method={name: occlusion}": "method 'occlusion' has no stack that fewer rows could stand for",
    "method={name: saliency}": "method 'saliency' has no stack that fewer rows could stand for",
    "data.limit=1": "1 pictures cannot be fitted",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_makes_no_sense_is_refused(override: str, job: tuple[object, ...], command: Command) -> None:
    ended = command("basis", *job, "stack.basis_tolerance=0.1", override)
    assert ended.code == 2
    assert REFUSED[override] in ended.err


def test_a_file_that_is_no_basis_is_refused(job: tuple[object, ...], command: Command, tmp_path: Path) -> None:
    def refused(*overrides: object) -> str:
        ended = command("extract", *job, "stack.basis=pictures", *overrides)
        assert ended.code == 2
        assert not (tmp_path / "store").exists()
        return str(json.loads(ended.out.splitlines()[-1])["error"])

    file = tmp_path / "rows" / "basis.npy"
    assert "stack.basis_file is not set" in refused("stack.basis_file=null")
    assert "cannot be read (FileNotFoundError)" in refused()
    file.parent.mkdir()
    file.write_bytes(b"no array")
    assert "cannot be read (ValueError)" in refused()
    np.save(file, np.eye(4, dtype=np.float32))
    assert "belongs to another model" in refused()
    np.save(file, np.ones((2, 512), np.float32))
    assert "must be orthonormal" in refused()
