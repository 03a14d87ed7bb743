"""The books of a job: what is lost on the way shows in its exit code, and what failed is named without its content."""

import io
import json
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from mapstack.models import EmbeddingModel
from tests.train_like.jobs import Ended, failures, png, write_shard
from train_like import source
from train_like.module import StackModule

Command = Callable[..., Ended]
Figure = Callable[[str], None]
WriteConfig = Callable[[str | Path], Path]

CANARY = "Jane-Doe-1949"
REPORT = json.dumps({"report": f"Patient {CANARY}: no effusion."}).encode()


# --- done + failed = expected, or the exit code is not 0 ---


def drop_a_result(patch: pytest.MonkeyPatch) -> None:
    step = StackModule.predict_step
    patch.setattr(StackModule, "predict_step", lambda *arguments: step(*arguments)[:1])


def drop_a_sample(patch: pytest.MonkeyPatch) -> None:
    read = source.IndexedSource.__iter__

    def read_fewer(self: source.IndexedSource) -> Iterator[source.Sample]:
        return (sample for sample in read(self) if sample["__key__"] != "1.2.3")

    patch.setattr(source.IndexedSource, "__iter__", read_fewer)


def end_the_loop_early(patch: pytest.MonkeyPatch) -> None:
    load = source.sample_pipeline

    def load_fewer(entries: Any, **settings: Any) -> Any:
        return load(entries[:2], **settings)

    patch.setattr("train_like.data.sample_pipeline", load_fewer)


@pytest.mark.fault("R1")
@pytest.mark.parametrize("lose", [drop_a_result, drop_a_sample, end_the_loop_early])
def test_what_is_lost_on_the_way_shows_in_the_exit_code(
    lose: Callable[[pytest.MonkeyPatch], None], job_config: Path, command: Command, tmp_path: Path, figure: Figure
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        lose(patch)
        ended = command("extract", job_config)
    assert (ended.code, ended.line["expected"], ended.line["failed"]) == (1, 7, 0)
    n_lost = 7 - ended.line["done"]
    assert n_lost > 0
    verified = command("verify", tmp_path / "store")
    assert (verified.code, verified.line["missing"]) == (1, n_lost)
    again = command("extract", job_config)
    assert (again.code, again.line["done"], again.line["computed_by_rank_0"]) == (0, 7, n_lost)
    figure(f"a loop seeded with a loss ({lose.__name__}): {n_lost} of 7 missing, exit code 1; then 7 of 7 done")


# --- errors.jsonl names key, shard and reason, and nothing of the content ---


def chunk(kind: bytes, content: bytes, checksum: int | None = None) -> bytes:
    body = kind + content
    return (
        struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body) if checksum is None else checksum)
    )


def insert(picture: bytes, chunks: bytes) -> bytes:
    """Put chunks behind the header of a PNG."""
    return picture[:33] + chunks + picture[33:]


def save(image: Image.Image, kind: str, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


TEXT = chunk(b"tEXt", b"Comment\0" + CANARY.encode())
NAMED = insert(png(0, 60, 90), TEXT)  # a sound picture whose text chunk names the patient


def wide_png() -> bytes:
    """16-bit colour; Pillow writes none."""
    header = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    rows = zlib.compress(bytes(4 * (1 + 4 * 6)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + TEXT + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def animated_png() -> bytes:
    frames = [Image.new("L", (40, 40), grey) for grey in (0, 255)]
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", CANARY)
    return save(frames[0], "PNG", save_all=True, append_images=frames[1:], pnginfo=info)


def hidden_pictures() -> dict[str, bytes]:
    """Pictures that are refused, each with the canary in it."""
    grey = Image.fromarray(np.full((40, 40), 90, dtype=np.uint8))
    name = CANARY.encode()
    return {
        "text": name * 20,
        "html": b"<html>" + name,
        "gif": save(grey, "GIF", comment=name),
        "tiff": save(grey, "TIFF", description=CANARY),
        "dicom": bytes(128) + b"DICM" + name,
        "cut": NAMED[: len(NAMED) // 2],
        "checksum": insert(png(0, 60, 90), chunk(b"tEXt", b"Comment\0" + name, checksum=1)),
        "chunk": insert(png(0, 60, 90), chunk(b"J\xffne", name)),
        "length": insert(png(0, 60, 90), struct.pack(">I", 2**31) + b"tEXt" + name),
        "header": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", name[:13]) + TEXT,
        "bomb": b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)) + TEXT,
        "thin": insert(save(Image.new("L", (1, 40)), "PNG"), TEXT),
        "wide": wide_png(),
        "animated": animated_png(),
        "jpeg": save(grey, "JPEG", comment=name)[:-40],
        "exif": b"\xff\xd8\xff\xe1\x00\x40Exif\0\0" + name,
    }


def hidden_samples() -> dict[str, dict[str, bytes]]:
    """Samples that fail, in each way that there is, all of whose contents hold the canary."""
    found = {f"picture.{kind}": {"png": data, "json": REPORT} for kind, data in hidden_pictures().items()}
    records = {
        "broken": REPORT[:-1],
        "list": json.dumps([CANARY]).encode(),
        "text": json.dumps(CANARY).encode(),
        "nan": f'{{"report": "{CANARY}", "age": NaN}}'.encode(),
        "bytes": b'{"report": "' + CANARY.encode() + b'\xff"}',
        "deep": b'{"report": ' + b"[" * 40 + json.dumps(CANARY).encode() + b"]" * 40 + b"}",
        "long": json.dumps({"report": CANARY * 100_000}).encode(),
        "sha256": json.dumps({"report": CANARY, "sha256": "0" * 64}).encode(),
        "no.sha256": json.dumps({"report": CANARY, "sha256": CANARY}).encode(),
    }
    found |= {f"json.{kind}": {"png": NAMED, "json": record} for kind, record in records.items()}
    return found | {
        "no.picture": {"json": REPORT},
        "two.pictures": {"png": NAMED, "jpg": NAMED, "json": REPORT},
        "empty.picture": {"png": b"", "json": REPORT},
        "empty.json": {"png": NAMED, "json": b""},
        "no.json": {"png": NAMED},
        "model": {"png": insert(save(Image.new("L", (224, 224), 255), "PNG"), TEXT), "json": REPORT},
        "twice": {"png": NAMED, "json": REPORT},
    }


@pytest.fixture
def dazzled(monkeypatch: pytest.MonkeyPatch, job_model: EmbeddingModel) -> None:
    """A model that answers NaN for a white picture."""
    embed = type(job_model).embed_images

    def embed_images(self: Any, pixel_values: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = embed(self, pixel_values)
        return embedding * torch.where(pixel_values.mean(dim=(1, 2, 3)) > 1, math.nan, 1.0)[:, None]

    monkeypatch.setattr(type(job_model), "embed_images", embed_images)


@pytest.mark.fault("R6")
@pytest.mark.fault("R7")
def test_failures_are_named_without_a_word_of_what_they_hold(
    write_config: WriteConfig, command: Command, tmp_path: Path, dazzled: None, figure: Figure
) -> None:
    bad = hidden_samples()
    content = [("sound", {"png": NAMED, "json": REPORT}), *bad.items(), ("twice", bad["twice"])]
    shard = write_shard(tmp_path / "bad.tar", content)
    torn = write_shard(tmp_path / "torn.tar", [("torn", {"png": NAMED, "json": REPORT})])
    torn.write_bytes(torn.read_bytes()[: 512 + len(NAMED) // 2])
    ended = command(
        "extract",
        write_config(f"{shard}::{torn}"),
        "data={duplicates: first, max_bad_share: 1}",
        "prompts.texts=[heart, no nodule]",
    )
    assert (ended.code, ended.line["done"]) == (1, 2)  # "sound", and the first "twice"
    assert ended.line["done"] + ended.line["failed"] == ended.line["expected"]
    named = failures(tmp_path / "store")
    assert set(bad) - {"twice"} <= set(named)
    assert len(named) == ended.line["failed"]
    for where, reason in named.values():
        assert where in (str(shard), str(torn))
        assert reason.endswith((".", "?"))
    said = (tmp_path / "store" / "errors.jsonl").read_text() + ended.out + ended.err
    for line in said.splitlines():
        assert "Jane" not in line
        assert "J\\xffne" not in line
    assert all(set(json.loads(line)) == {"key", "shard", "reason", "crc32"} for line in said.splitlines()[: len(named)])
    figure(f"{len(named)} failures of {len(named)} named with key, shard and reason, 0 words of their content")
