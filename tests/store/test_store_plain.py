"""A store is read, and its maps are projected, with webdataset, numpy and zstandard: none of our code.

That is done by the code which docs/stack_format.md shows; its maps are compared with those in memory.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mapstack.basis import Basis, fit_rows
from mapstack.codecs import Encoding
from mapstack.explainer import Explainer
from mapstack.methods import Gradient, IntegratedGradients, Method, Occlusion
from mapstack.prompts import TextGroup
from mapstack.store import StoreWriter, finish, open_store_for_writing
from mapstack.stored_stack import describe_store, stack_arrays, stack_info
from tests.store.few_features import FewFeatures
from tests.toys import random_inputs

TEXTS = tuple(f"text {number}" for number in range(12))
KEYS = ("plain-1", "1.2.840")


# webdataset leaves its files to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(scope="module")
def recipe() -> dict[str, Any]:
    """What the code of docs/stack_format.md defines."""
    page = (Path(__file__).parents[2] / "docs" / "stack_format.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert "mapstack" not in code
    defined: dict[str, Any] = {}
    exec(compile(code, "stack_format.md", "exec"), defined)
    return defined


IG = IntegratedGradients(n_steps=3)
CASES: dict[str, tuple[Method, str, Encoding, float]] = {  # method, basis, encoding, tolerance
    "dense float32": (IG, "axes", Encoding("float32"), 1e-5),
    "dense float16, zstd": (IG, "axes", Encoding("float16", compress="zstd"), 1e-3),
    "dense int8": (IG, "axes", Encoding("int8"), 3e-2),
    "dense along prompts": (IG, "prompts", Encoding("float16"), 1e-3),
    "dense, raw gradients": (Gradient(), "axes", Encoding("float32"), 1e-5),
    "lowrank": (IG, "axes", Encoding("lowrank", 0.01), 5e-2),
    "lowrank, zstd": (Gradient(), "axes", Encoding("lowrank", 0.01, "zstd"), 5e-2),
    "lowrank along prompts": (IG, "prompts", Encoding("lowrank", 1e-4), 1e-3),
    "dense along rows fitted to pictures": (IG, "pictures", Encoding("float32"), 1e-4),
    "occlusion": (Occlusion(sliding_window_shapes=6, strides=4), "axes", Encoding(), 1e-5),
    "occlusion, zstd": (Occlusion(sliding_window_shapes=4, strides=4), "axes", Encoding(compress="zstd"), 1e-5),
}


@pytest.mark.parametrize(("method", "along", "encoding", "tolerance"), CASES.values(), ids=CASES)
def test_maps_are_projected_by_hand(
    method: Method,
    along: str,
    encoding: Encoding,
    tolerance: float,
    tmp_path: Path,
    recipe: dict[str, Any],
) -> None:
    model = FewFeatures().float()
    explainer = Explainer(model, method)
    readout = explainer.readout([TextGroup(text, (text,)) for text in TEXTS])
    inputs = random_inputs(2, model)
    basis = Basis.of(readout.directions) if along == "prompts" else None
    if along == "pictures":
        whole = explainer.stack(inputs).axis_maps().flatten(2)
        basis = Basis.of_pictures(fit_rows([each @ each.T for each in whole], 1e-4)[0])
        assert len(basis) < model.embed_dim
    stack = explainer.stack(inputs, basis)
    manifest = describe_store(explainer, basis, encoding=encoding, shards_digest="")
    rows = None if basis is None else basis.rows.numpy()
    with open_store_for_writing(tmp_path, manifest, basis=rows) as session:
        with StoreWriter(tmp_path, session.run, 0, compress=encoding.compress) as writer:
            for i, key in enumerate(KEYS):
                writer.write(key, stack_arrays(stack[i : i + 1], encoding), stack_info(stack[i : i + 1]))
        finish(session, 2)
    expected = stack.project(readout.directions).numpy()

    texts = model.text.embed_texts(TEXTS).numpy()
    found = {}
    for arrays, info in recipe["samples"](tmp_path):
        # No case passes by falling back to another form.
        is_factored = method.name == "occlusion"
        is_lowrank = encoding.codec == "lowrank" and not is_factored
        assert ("u" in arrays, "scores" in arrays) == (is_lowrank, is_factored)
        found[info["key"]] = recipe["maps_of_the_logit"](tmp_path, arrays, texts)
    assert list(found) == list(KEYS)
    for i, key in enumerate(KEYS):
        assert np.abs(found[key] - expected[i]).max() <= tolerance * np.abs(expected[i]).max()


def test_version_1_is_read_in_the_same_way(recipe: dict[str, Any]) -> None:
    data = Path(__file__).parent / "data" / "version_1"
    expected = np.load(data / "expected.npz")
    texts = expected["directions"] / np.linalg.norm(expected["directions"], axis=1, keepdims=True)
    folder = data / "gradient-axes-int8"
    found = [recipe["maps_of_the_logit"](folder, arrays, texts) for arrays, _ in recipe["samples"](folder)]
    assert np.abs(found - expected[folder.name]).max() <= 2e-2 * np.abs(expected[folder.name]).max()
