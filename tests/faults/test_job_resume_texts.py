"""Resuming with other texts: the logits of a record have no names, so that one store holds those of one list."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from mapstack.prompts import TextGroup, digest_groups
from mapstack.store.manifest import read_manifest, write_manifest
from tests.train_like.jobs import Ended

Command = Callable[..., Ended]
Figure = Callable[[str], None]

PROMPTS = Path(__file__).parents[2] / "configs" / "prompts" / "phantom.yaml"
LIMITED = "data.limit=1"
TEXTS = "prompts.texts=[heart, no nodule]"
CLASSES = f"prompts={{file: {PROMPTS}, classes: [Pneumothorax, Cardiomegaly]}}"
OTHER_TEXTS = {
    "prompts.texts=[heart, left nodule]": "prompts",
    "prompts.texts=[no nodule, heart]": "prompts",
    "prompts.texts=[heart]": "prompts",
    "prompts.texts=[]": "prompts",
    "prompts.against=left lung": "prompts",
    "model.prompt_padding=longest": "prompts_padding",
}
OTHER_CLASSES = {
    "prompts.ensemble=max": "prompts",
    "prompts.use=labels": "prompts",
    "prompts.classes=[Pneumothorax]": "prompts",
    "prompts.against=No Finding": "prompts",
}


@pytest.mark.fault("W6")
def test_other_texts_are_refused_and_named_whatever_the_stack_is_along(
    job_config: Path, command: Command, tmp_path: Path, figure: Figure
) -> None:
    """Along the axes and along fitted rows no text decides the stack, and all of them its logits."""
    n_refused = 0
    for given, others in ((TEXTS, OTHER_TEXTS), (CLASSES, OTHER_CLASSES)):
        assert command("extract", job_config, given, LIMITED, "overwrite=true").code == 0
        kept = (tmp_path / "store" / "manifest.json").read_bytes()
        for override, field in others.items():
            ended = command("extract", job_config, given, override, LIMITED)
            assert (ended.code, ended.line["status"]) == (3, "wrong_store"), override
            assert f"was written with {field} = " in ended.err, override
            n_refused += 1
        assert (tmp_path / "store" / "manifest.json").read_bytes() == kept
        assert command("extract", job_config, given, LIMITED).line["computed_by_rank_0"] == 0
    assert n_refused == len(OTHER_TEXTS) + len(OTHER_CLASSES)
    figure(f"axes: {n_refused} of {n_refused} other texts, orders, ensembles, contrasts and paddings refused and named")


def test_a_store_without_texts_takes_none_later(job_config: Path, command: Command) -> None:
    assert command("extract", job_config, LIMITED).code == 0
    assert "was written with prompts = null, this run has" in command("extract", job_config, TEXTS).err
    # Nothing is embedded, so that the padding decides nothing.
    assert command("extract", job_config, LIMITED, "model.prompt_padding=longest").code == 0


def test_a_store_that_does_not_say_its_texts_is_gone_on_with(
    job_config: Path, command: Command, tmp_path: Path
) -> None:
    """As every store of an earlier version."""
    store = tmp_path / "store"
    assert command("extract", job_config, TEXTS, LIMITED).code == 0
    manifest = read_manifest(store)
    del manifest["identity"]["prompts"], manifest["identity"]["prompts_padding"], manifest["prompt_names"]
    write_manifest(store, manifest)
    assert command("extract", job_config, TEXTS, "data.limit=2").line["computed_by_rank_0"] == 1
    assert command("extract", job_config, "prompts.texts=[heart]").code == 3


def test_the_manifest_names_classes_and_no_free_text(job_config: Path, command: Command, tmp_path: Path) -> None:
    def names(*overrides: str) -> object:
        assert command("extract", job_config, *overrides, LIMITED, "overwrite=true").code == 0
        path = tmp_path / "store" / "manifest.json"
        assert "nodule" not in path.read_text()
        return json.loads(path.read_text())["prompt_names"]

    assert names() == []
    assert names(TEXTS) == [None, None]
    assert names(CLASSES) == ["Pneumothorax", "Cardiomegaly"]
    assert names(CLASSES, "prompts.ensemble=none", "prompts.classes=[Lung Lesion]")[:2] == [
        "Lung Lesion 1",
        "Lung Lesion 2",
    ]  # type: ignore[index]
    against = [f"{label} rather than No Finding" for label in ("Pneumothorax", "Cardiomegaly")]
    assert names(CLASSES, "prompts.against=No Finding") == against
    assert names(CLASSES, "prompts.against=no nodule") == [None, None]


def test_the_digest_tells_apart_what_joining_would_not() -> None:
    groups = (
        TextGroup("a", ("b", "c")),
        TextGroup("a", ("b",), against=("c",)),
        TextGroup("a", ("b c",)),
        TextGroup("a", ("b", "c"), "max"),
        TextGroup("ab", ("c",)),
    )
    assert len({digest_groups([group]) for group in groups}) == len(groups)
    assert digest_groups(groups[:1]) == digest_groups([TextGroup("a", ("b", "c"), is_free=False)])
