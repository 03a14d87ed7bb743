"""A disk that is too small is found out before the work, and what is there stays."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mapstack.explainer import Explainer
from mapstack.stack import OcclusionStack, Stack
from mapstack.store import Store
from tests.train_like.jobs import Ended, record_bytes
from train_like import writer
from train_like.module import StackModule

Command = Callable[..., Ended]
Figure = Callable[[str], None]
Free = Callable[[int], None]

GRADIENT = "method={name: gradient}"
# Forms of a record: what is configured, and whether every record takes the same.
FORMS = {
    "occlusion": ([], True),
    "float32": ([GRADIENT, "stack={map_size: 28, codec: float32}"], True),
    "float16": ([GRADIENT, "stack={map_size: 28, codec: float16}"], True),
    "int8": ([GRADIENT, "stack={map_size: 28, codec: int8}"], True),
    "prompts": (
        [
            "method={name: integrated_gradients, n_steps: 2}",
            "stack={basis: prompts, codec: float32}",
            "prompts.texts=[heart, no nodule]",
        ],
        True,
    ),
    "lowrank": ([GRADIENT, "stack={map_size: 28, codec: lowrank}"], False),
    "zstd": ([GRADIENT, "stack={map_size: 28, codec: int8, compress: zstd}"], False),
}


@pytest.fixture(autouse=True)
def cheap_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradient stacks of noise: 512 true rows take seconds, and decide no size."""
    make_stack = Explainer.stack

    def stack(self: Explainer, inputs: Any, basis: Any = None, check: Any = None) -> Stack | OcclusionStack:
        if self.method.name != "gradient":
            return make_stack(self, inputs, basis, check)
        n_rows, source = self.model.embed_dim, torch.Generator().manual_seed(0)
        values = torch.randn(len(inputs), n_rows, self.frame_size, self.frame_size, generator=source)
        return Stack(torch.randn(len(inputs), n_rows, generator=source), self.normalize, values, is_raw=True)

    monkeypatch.setattr(Explainer, "stack", stack)


@pytest.fixture
def set_free(monkeypatch: pytest.MonkeyPatch) -> Free:
    """Let every disk have so many bytes free."""

    def install(n_bytes: int) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=n_bytes))

    return install


@pytest.mark.fault("W3")
@pytest.mark.parametrize("form", FORMS)
def test_what_a_job_will_write_is_known_before(
    form: str, job_config: Path, command: Command, tmp_path: Path, figure: Figure
) -> None:
    overrides, is_exact = FORMS[form]
    ended = command("extract", job_config, *overrides, "data.limit=1")
    assert ended.code == 0
    n_bytes = len(next(iter(record_bytes(tmp_path / "store").values())))
    estimate = ended.line["bytes_estimated"]
    assert n_bytes <= estimate
    if is_exact:
        assert estimate <= 1.1 * n_bytes + 24_000  # names, numbers and padding are taken at their largest
        assert " written" in ended.err
        assert "at most" not in ended.err
    else:
        assert "at most" in ended.err
    figure(f"{form}: at most {estimate / 1e6:.2f} MB were foreseen, {n_bytes / 1e6:.2f} MB are written")


@pytest.mark.fault("W3")
def test_a_job_that_will_not_fit_is_refused_before_it_starts(
    job_config: Path, command: Command, tmp_path: Path, set_free: Free, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    one = command("extract", job_config, "data.limit=1", f"output={tmp_path / 'one'}").line["bytes_estimated"]
    set_free(7 * one - 1)
    with monkeypatch.context() as patch:
        patch.setattr(StackModule, "predict_step", lambda *_: pytest.fail("a batch was begun"))
        refused = command("extract", job_config)
    assert (refused.code, refused.line["status"]) == (4, "stopped")
    assert refused.err.startswith(f"extract: stack store '{tmp_path / 'store'}' needs ")
    assert "the whole store must fit" in refused.err
    assert not (tmp_path / "store").exists()
    set_free(7 * one)
    assert command("extract", job_config).line["done"] == 7
    figure(f"7 records of {one / 1e3:.0f} kB: refused with 1 byte less than they need, exit code 4, 0 files made")


@pytest.mark.fault("W3")
def test_only_what_is_still_to_do_must_fit(
    job_config: Path, command: Command, tmp_path: Path, set_free: Free, figure: Figure
) -> None:
    assert command("extract", job_config, "data.limit=4").code == 0
    kept = record_bytes(tmp_path / "store")
    one = command("extract", job_config, "data.limit=5").line["bytes_estimated"]
    set_free(2 * one - 1)
    assert command("extract", job_config).code == 4
    assert len(Store(tmp_path / "store")) == 5
    assert record_bytes(tmp_path / "store").items() >= kept.items()
    set_free(2 * one)
    assert command("extract", job_config).line["done"] == 7
    figure("5 of 7 done: 2 records' room is asked for; with 1 byte less refused, and 5 kept")


@pytest.mark.fault("W3")
def test_what_overwrite_discards_makes_room_and_a_refusal_discards_nothing(
    job_config: Path, command: Command, tmp_path: Path, set_free: Free, figure: Figure
) -> None:
    strides = "method.strides=28"
    one = command("extract", job_config, strides, "data.limit=1", f"output={tmp_path / 'one'}").line["bytes_estimated"]
    assert command("extract", job_config).code == 0
    kept = {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()}
    set_free(0)
    assert command("extract", job_config, strides, "overwrite=true").code == 4
    assert {path.name: path.read_bytes() for path in (tmp_path / "store").iterdir()} == kept
    need, held = 7 * one, sum(len(content) for content in kept.values())
    assert need > held
    set_free(need - held)
    ended = command("extract", job_config, strides, "overwrite=true")
    assert (ended.code, ended.line["done"]) == (0, 7)
    figure("overwrite without room: refused, 0 files changed; with the room of what it discards: 7 of 7 done")


@pytest.mark.fault("W3")
def test_records_whose_size_the_pictures_decide_are_weighed_first(
    job_config: Path, command: Command, tmp_path: Path, set_free: Free, monkeypatch: pytest.MonkeyPatch, figure: Figure
) -> None:
    """Their dense form would refuse a disk on which they fit many times over."""
    monkeypatch.setattr(writer, "_N_WEIGHED", 2)
    overrides, _ = FORMS["zstd"]
    one = command("extract", job_config, *overrides, "data.limit=1", f"output={tmp_path / 'one'}").line
    assert one["bytes"] < one["bytes_estimated"]
    set_free(3 * one["bytes"])
    ended = command("extract", job_config, *overrides, "data.limit=2")
    assert (ended.code, ended.line["done"]) == (0, 2)
    set_free(one["bytes"] // 2)
    ended = command("extract", job_config, *overrides, "data.batch_size=1")
    assert (ended.code, ended.line["status"]) == (4, "stopped")
    n_kept = len(Store(tmp_path / "store"))
    assert 4 <= n_kept < 7
    set_free(one["bytes"] * 6)
    assert command("extract", job_config, *overrides).line["done"] == 7
    figure(f"zstd: 2 records are weighed, the rest does not fit: exit code 4, {n_kept} of 7 kept")
