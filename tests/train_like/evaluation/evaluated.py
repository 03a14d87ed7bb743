"""What the tests of the command share: shards, a model that has learned nothing, and a configuration."""

import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest

from mapstack.models import medclip
from mapstack.phantom import phantom
from mapstack.store.lines import decode_line
from tests.train_like.conftest import save_checkpoint
from tests.train_like.jobs import encode_png
from train_like.cli import main
from train_like.tarshards import Sample, write_shards

VALIDATION = (["Cardiomegaly"], ["Pleural Effusion"], ["Cardiomegaly", "Pleural Effusion"])
TEST = (["Cardiomegaly"], [], ["Cardiomegaly", "Pleural Effusion"], ["Pleural Effusion"])
SENTENCES = {"No Finding": ["The lungs are clear.", "Normal heart."], "Cardiomegaly": ["Large heart.", "Wide heart."]}
SENTENCES["Pleural Effusion"] = ["Left effusion.", "Pleural effusion on the right."]
SHAP, OCCLUSION = "gradient_shap", "occlusion"
TOGETHER = f"gradient + {OCCLUSION}"
CONFIG = """
model: {{name: medclip-vit, checkpoint: {checkpoint}}}
validation: {{shards: "{folder}/validation-*.tar"}}
data: {{shards: "{folder}/test-*.tar"}}
prompts: {{file: {folder}/prompts.yaml, against: No Finding}}
candidates:
  - {{name: gradient}}
  - {{name: occlusion, sliding_window_shapes: 112, strides: 112}}
  - {{name: gradient_shap, n_samples: 1}}
aggregates: [[gradient, occlusion]]
n: 3
n_validation: 3
n_matrix: 1
n_axes: 1
workers: 0
output: {folder}/out
"""


def refuse_constant(name: str) -> NoReturn:
    raise AssertionError(f"{name} is no JSON")


def phantoms(contents: tuple[list[str], ...], seed: int) -> Iterator[Sample]:
    for number, labels in enumerate(contents):
        film = phantom(seed + number, size=224, labels=labels)
        findings = [{"label": each.label, "prompt": each.prompt, "box": list(each.box)} for each in film.findings]
        masks = {each.label: each.mask for each in film.findings}
        info = {"labels": list(film.labels), "findings": findings}
        yield Sample(f"film-{number}", encode_png(film.pixels), "png", info, masks)


def evaluate(config: Path, *overrides: object) -> tuple[int, dict[str, Any]]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main(["evaluate", str(config), *map(str, overrides)])
    return code, json.loads(out.getvalue().splitlines()[-1])


def scored(journal: Path) -> list[tuple[str, str]]:
    lines = [decode_line(line) for line in journal.read_bytes().splitlines(keepends=True)]
    return [(line["stage"], line["key"]) for line in lines[1:] if line is not None]


def write_healthy(folder: Path) -> None:
    write_shards(phantoms(([], []), seed=90), folder, "healthy", 2)


def prepared(folder: Path) -> Path:
    """Write shards, prompts, a checkpoint and a configuration, and return its path."""
    write_shards(phantoms(VALIDATION, seed=50), folder, "validation", 2)
    write_shards(phantoms(TEST, seed=70), folder, "test", 2)
    classes = [{"label": label, "prompts": prompts} for label, prompts in SENTENCES.items()]
    (folder / "prompts.yaml").write_text(json.dumps({"classes": classes}), encoding="utf-8")
    checkpoint = save_checkpoint(folder / "checkpoint", seed=0)
    config = folder / "evaluate.yaml"
    config.write_text(CONFIG.format(checkpoint=checkpoint, folder=folder), encoding="utf-8")
    return config


@contextlib.contextmanager
def narrow_models() -> Iterator[None]:
    """Make models of 32 dimensions instead of 512: a stack along the axes takes a sixteenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(medclip, "_EMBED_DIM", 32)
        patch.setattr(medclip.MedCLIP, "embed_dim", 32)
        yield
