import gc
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from mapstack.errors import InputError, ShardError
from mapstack.phantom import phantom
from train_like.tarshards import Sample, phantom_samples, write_shards

N, PER_SHARD = 5, 2


@pytest.fixture(scope="module")
def samples() -> list[Sample]:
    return list(phantom_samples(N, seed=2, size=(224, 240)))


@pytest.fixture(scope="module")
def shards(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_shards(samples, tmp_path_factory.mktemp("shards") / "new", "phantom", PER_SHARD)


def toy(key: str = "a", **changes: object) -> Sample:
    values = {"image": b"image", "suffix": "png", "info": {}, "masks": {}} | changes
    return Sample(key, **values)


def read(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_samples_are_divided_in_order(shards: list[Path]) -> None:
    assert [path.name for path in shards] == [f"phantom-00000{i}.tar" for i in range(3)]
    keys = [list(dict.fromkeys(name.split(".")[0] for name in read(path))) for path in shards]
    names = [f"phantom-{i:06d}" for i in range(N)]
    assert keys == [names[:2], names[2:4], names[4:]]
    assert sorted(path.name for path in shards[0].parent.iterdir()) == [path.name for path in shards]


def test_a_shard_holds_what_the_phantom_has(shards: list[Path]) -> None:
    members = {name: content for path in shards for name, content in read(path).items()}
    n_findings = 0
    for index in range(N):
        film = phantom(2_000_000 + index, size=(224, 240))
        image, info = members[f"phantom-{index:06d}.png"], json.loads(members[f"phantom-{index:06d}.json"])
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(image))), film.pixels)
        assert info["sha256"] == hashlib.sha256(image).hexdigest()
        assert info["labels"] == list(film.labels)
        assert info["report"] == film.report
        expected = [{"label": f.label, "prompt": f.prompt, "box": list(f.box)} for f in film.findings]
        assert info["findings"] == expected
        if not film.findings:
            assert f"phantom-{index:06d}.masks.npz" not in members
            continue
        masks = np.load(io.BytesIO(members[f"phantom-{index:06d}.masks.npz"]), allow_pickle=False)
        assert set(masks) == set(film.labels)
        for finding in film.findings:
            np.testing.assert_array_equal(masks[finding.label], finding.mask, strict=True)
            n_findings += 1
    assert n_findings >= N - 2


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves the tar open
def test_webdataset_reads_the_shards(shards: list[Path], samples: list[Sample]) -> None:
    dataset = webdataset.WebDataset([str(path) for path in shards], shardshuffle=False)
    found = {sample["__key__"]: sample for sample in dataset}
    del dataset
    gc.collect()  # so that its warning falls here and not into the next test
    assert list(found) == [sample.key for sample in samples]
    for sample in samples:
        assert found[sample.key]["png"] == sample.image
        assert json.loads(found[sample.key]["json"])["report"] == sample.info["report"]
        assert ("masks.npz" in found[sample.key]) == bool(sample.masks)


def test_the_same_samples_give_the_same_bytes(shards: list[Path], tmp_path: Path) -> None:
    again = write_shards(phantom_samples(N, seed=2, size=(224, 240)), tmp_path, "phantom", PER_SHARD)
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in shards]


def test_the_tar_is_what_tarfile_writes(shards: list[Path]) -> None:
    for path in shards:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in read(path).items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
        assert path.read_bytes() == buffer.getvalue()


def test_the_tar_names_no_time_and_no_user(shards: list[Path]) -> None:
    with tarfile.open(shards[0]) as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")
            assert member.isreg()
            assert not member.pax_headers


def test_a_longer_set_begins_with_the_shorter_and_another_seed_shares_nothing(samples: list[Sample]) -> None:
    shorter = list(phantom_samples(2, seed=2, size=(224, 240)))
    assert [sample.image for sample in shorter] == [sample.image for sample in samples[:2]]
    (other,) = phantom_samples(1, seed=3, size=(224, 240))
    assert other.image not in [sample.image for sample in samples]


def test_samples_are_taken_one_by_one(tmp_path: Path) -> None:
    sizes = []

    def stream() -> Iterator[Sample]:
        for i in range(5):
            sizes.append((tmp_path / "x-000000.tar").exists())
            yield toy(f"k{i}")

    write_shards(stream(), tmp_path, "x", 2)
    assert sizes == [False, False, True, True, True]


def test_an_interrupted_shard_never_gets_its_name(tmp_path: Path) -> None:
    def stream() -> Iterator[Sample]:
        yield from (toy("a"), toy("b"), toy("c"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shards(stream(), tmp_path, "x", 2)
    assert [path.name for path in tmp_path.iterdir()] == ["x-000000.tar"]
    assert set(read(tmp_path / "x-000000.tar")) == {"a.png", "a.json", "b.png", "b.json"}


def test_the_sha256_is_that_of_the_image_whatever_the_info_says(tmp_path: Path) -> None:
    (path,) = write_shards([toy(info={"sha256": "0" * 64, "report": "Ödem."})], tmp_path, "x", 1)
    info = json.loads(read(path)["a.json"])
    assert info == {"sha256": hashlib.sha256(b"image").hexdigest(), "report": "Ödem."}


def test_any_label_can_name_a_mask(tmp_path: Path) -> None:
    masks = {
        "file": np.eye(3, dtype=bool),
        "Pleural Effusion": np.ones((2, 3), dtype=bool),
        "Verdichtung ß": np.eye(2) > 0,
    }
    (path,) = write_shards([toy(masks=masks)], tmp_path, "x", 1)
    found = np.load(io.BytesIO(read(path)["a.masks.npz"]), allow_pickle=False)
    assert list(found) == list(masks)
    for label, mask in masks.items():
        np.testing.assert_array_equal(found[label], mask, strict=True)


def test_shards_of_an_earlier_longer_series_are_named(tmp_path: Path) -> None:
    write_shards([toy("a"), toy("b"), toy("c")], tmp_path, "x", 1)
    write_shards([toy("d"), toy("e"), toy("f")], tmp_path, "x", 1)
    with pytest.raises(ShardError, match=r"x-000001\.tar' is left from an earlier, longer series; "):
        write_shards([toy("g")], tmp_path, "x", 1)


def test_no_sample_makes_no_shard(tmp_path: Path) -> None:
    assert write_shards([], tmp_path / "new", "x", 4) == []


@pytest.mark.parametrize("key", ["", "1.2.840", "../a", "a/b", "a b", "a\n", "a" * 81])
def test_a_key_that_webdataset_would_change_is_refused(key: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is malformed; a key is 1 to 80 letters, digits, '-' and '_'"):
        write_shards([toy(key)], tmp_path, "x", 4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n_per_shard", [1, 4])
def test_a_key_that_comes_twice_is_refused(n_per_shard: int, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="key 'a' comes twice; "):
        write_shards([toy("a"), toy("b"), toy("a")], tmp_path, "x", n_per_shard)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="suffix 'gif' of key 'a' is unknown; choose one of png, jpg, dcm"):
        write_shards([toy(suffix="gif")], tmp_path, "x", 4)
    with pytest.raises(InputError, match="n_per_shard 0 is too small; "):
        write_shards([toy()], tmp_path, "x", 0)
    for n, seed in ((-1, 0), (1_000_001, 0), (1, -1)):
        with pytest.raises(InputError, match=f"{n} phantoms of seed {seed} are out of range; "):
            next(phantom_samples(n, seed=seed, size=224))
