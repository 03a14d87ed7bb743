"""Fixtures that every room's tests share."""

from pathlib import Path

import pytest

from mapstack.models import EmbeddingModel, load_model
from mapstack.models.medclip import save_random_medclip
from tests.toys import SMALL_TEXT, SMALL_VISION, VOCABULARY


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    save_random_medclip(
        folder, tower="vit", sizes={"vision": SMALL_VISION, "text": SMALL_TEXT}, vocabulary=VOCABULARY, seed=0
    )
    return folder


@pytest.fixture(scope="session")
def small_model(small_checkpoint: Path) -> EmbeddingModel:
    return load_model("medclip-vit", small_checkpoint)
