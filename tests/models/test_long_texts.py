"""Texts with more tokens than a model reads: cut as upstream cuts them, and said to be."""

from pathlib import Path

import numpy as np
import pytest
import torch

import mapstack
from mapstack.endpoint.texts import RememberingText
from mapstack.models import EmbeddingModel, load_model
from mapstack.models.medclip import save_random_medclip
from mapstack.prompts import TextGroup
from mapstack.readouts import truncated_groups
from tests.toys import SMALL_TEXT, SMALL_VISION, VOCABULARY, SeededText

N_READ = 75  # of 77, without the two marks around a text


def words(n: int) -> str:
    return " ".join(["lung"] * n)


def test_what_is_cut_is_said(small_model: EmbeddingModel) -> None:
    texts = ["heart", words(N_READ), words(N_READ) + " heart", words(N_READ) + " nodule"]
    for text in (small_model.text, RememberingText(small_model.text)):
        assert text.is_truncated(texts) == [False, False, True, True]
    embedded = small_model.text.embed_texts(texts)
    assert torch.equal(embedded[2], embedded[3])
    assert SeededText(4).is_truncated(texts) == [False] * 4


def test_groups_are_cut_by_any_of_their_texts() -> None:
    class Short(SeededText):
        def is_truncated(self, texts: object) -> list[bool]:
            return [len(text) > 3 for text in texts]  # type: ignore[attr-defined]

    groups = [TextGroup("a", ("a", "long")), TextGroup("b", ("b",)), TextGroup("c", ("c",), against=("long",))]
    assert [group.name for group in truncated_groups(groups, Short(4))] == ["a", "c"]


def test_an_answer_names_the_texts_that_were_cut(small_model: EmbeddingModel) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (60, 90), dtype=np.uint8)
    long = words(N_READ + 1)
    found = mapstack.explain(picture, ["heart", long], model=small_model, method="gradient", route="direct")
    assert found.truncated == (long,)


@pytest.mark.parametrize("n_positions", [20, 512])
def test_no_more_tokens_are_read_than_there_are_places(n_positions: int, tmp_path: Path) -> None:
    sizes = {"vision": SMALL_VISION, "text": {**SMALL_TEXT, "max_position_embeddings": n_positions}}
    save_random_medclip(tmp_path, tower="vit", sizes=sizes, vocabulary=VOCABULARY, seed=0)
    text = load_model("medclip-vit", tmp_path).text
    n_read = min(n_positions, 77) - 2
    assert text.is_truncated([words(n_read), words(n_read + 1)]) == [False, True]
    embedded = text.embed_texts([words(n_read), words(n_read) + " heart", "heart"])
    assert torch.equal(embedded[0], embedded[1])
    assert not torch.equal(embedded[0], embedded[2])
