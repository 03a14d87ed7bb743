"""An endpoint in this process, with the demo model or a small one, and its cache in a private folder."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mapstack.basis import Basis
from mapstack.config_files import merge
from mapstack.endpoint import Endpoint, EndpointConfig
from mapstack.explainer import Explainer
from mapstack.methods import make_method
from mapstack.models import EmbeddingModel, load_model
from mapstack.prompts import PromptSet, load_prompt_set, text_groups
from tests.serve.asked import PROMPTS, picture_file
from tests.serve.running import Running, shared_server
from tests.serve.stores import write_store

# Small limits, so that what goes beyond them is small too.
LIMITS = ["endpoint.limits.max_image_bytes=1000000", "endpoint.limits.max_answer_bytes=700000", "server.threads=1"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    return ROOT / "model_store" / "phantom-medclip"


@pytest.fixture(scope="session")
def demo_model(demo_checkpoint: Path) -> EmbeddingModel:
    return load_model("medclip-vit", demo_checkpoint)


@pytest.fixture(scope="session")
def classes() -> PromptSet:
    return load_prompt_set(ROOT / "configs" / "prompts" / "phantom.yaml")


@pytest.fixture(scope="session")
def image() -> bytes:
    return picture_file()


@pytest.fixture
def make_endpoint(small_checkpoint: Path, classes: PromptSet, tmp_path: Path) -> Callable[..., Endpoint]:
    def make(
        folder: Path | None = tmp_path / "cache", model: EmbeddingModel | None = None, **options: object
    ) -> Endpoint:
        config = merge(EndpointConfig, [options])
        return Endpoint(model or load_model("medclip-vit", small_checkpoint), config, classes, folder)

    return make


@pytest.fixture
def endpoint(make_endpoint: Callable[..., Endpoint]) -> Endpoint:
    return make_endpoint()


@pytest.fixture
def store(small_model: EmbeddingModel, tmp_path: Path, image: bytes) -> Path:
    """A stack store of two pictures along the span of two prompts."""
    explainer = Explainer(small_model, make_method("gradient"))
    groups = text_groups(prompt_set=None, texts=PROMPTS, use="prompts", ensemble="mean", classes=None, against=None)
    basis = Basis.of(explainer.readout(groups).span)
    folder = tmp_path / "store"
    write_store(folder, explainer, basis, {"first": image, "second/\u00e9": picture_file(seed=3)})
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One TorchServe with the demo model for the whole run, whichever of its workers comes first."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "serving"
    root.mkdir(exist_ok=True)
    with shared_server(root, LIMITS) as running:
        yield running
