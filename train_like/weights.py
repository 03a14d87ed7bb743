"""`weights`: MedCLIP's own weights into a checkpoint folder, or random ones in their layout."""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from mapstack.errors import CheckpointError, ConfigError
from mapstack.job_configs import WeightsConfig
from mapstack.models import EmbeddingModel, load_model
from mapstack.models.checkpoint import OFFICIAL_NAME, SAFETENSORS_NAME, fingerprint, read_weights
from train_like.downloads import Download, Fetched
from train_like.errors import DONE, StoppedError
from train_like.make_weights import make_weights
from train_like.result import Result
from train_like.trained import EmbeddingStatistics, embedding_statistics

ORIGIN = "origin.json"
VOCABULARY = "vocab.txt"

_SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_WORD_TABLE = "text_model.model.embeddings.word_embeddings.weight"
_MAX_WEIGHT_BYTES = 4 * 2**30
_GOLDEN_TOLERANCE = 1e-3  # cosine; other builds of torch differ by some 1e-6


def fetch_weights(config: WeightsConfig) -> Result:
    """Write a checkpoint folder and say whether its weights are really in.

    Raises:
        ConfigError: A key is missing, or random sizes build no model.
        CheckpointError: A file is damaged, refused, or does not fit the model.
        StoppedError: The network or the disk gave up; what came is kept.
    """
    if config.source == "random":
        return make_weights(config)
    for key in ("weights", "vocabulary"):
        if not getattr(config, key):
            raise ConfigError(f"{key} is empty; of official weights it is a URL or a path; see configs/.")
    archive_download = _download(config, config.weights, config.weights_sha256)
    vocabulary_download = _download(config, config.vocabulary, config.vocabulary_sha256)
    archive, vocabulary = archive_download.fetch(), vocabulary_download.fetch()
    output = Path(config.output)
    with _new_folder(output) as folder:
        try:
            weights = _unpack(archive.path, folder)
        except CheckpointError:
            archive_download.discard()
            raise
        try:
            _add_vocabulary(vocabulary.path, folder, len(weights[_WORD_TABLE]) if _WORD_TABLE in weights else None)
        except CheckpointError:
            vocabulary_download.discard()
            raise
        sizes = {name: dict(block) for name, block in (("vision", config.vision), ("text", config.text)) if block}
        if sizes:
            (folder / "config.json").write_text(json.dumps(sizes, indent=1) + "\n", encoding="utf-8")
        # Cloned, since two names of one tensor cannot be stored.
        copies = {name: value.contiguous().clone() for name, value in weights.items()}
        save_file(copies, folder / SAFETENSORS_NAME)
        model = load_model(config.model, folder)
        statistics = embedding_statistics(model)
        _require_golden(statistics, config.golden)
        origin = {**_origin("weights", config.weights, archive), **_origin("vocabulary", config.vocabulary, vocabulary)}
        (folder / ORIGIN).write_text(json.dumps(origin, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        _publish(folder, output, model)
    return Result(DONE, _summary(config, model, weights, origin, statistics))


def _download(config: WeightsConfig, source: str, sha256: str | None) -> Download:
    return Download(source, Path(config.cache), sha256=sha256, timeout_s=config.timeout_s, n_tries=config.n_tries)


def _origin(name: str, source: str, fetched: Fetched) -> dict[str, object]:
    # Of a local file its name alone: its folder can name a person.
    told = source if "://" in source else os.path.basename(source)
    return {name: told, f"{name}_sha256": fetched.sha256, f"{name}_bytes": fetched.n_bytes}


@contextmanager
def _new_folder(output: Path) -> Iterator[Path]:
    """Give a folder beside the output, which takes its place in the end; what goes wrong leaves none."""
    output.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        yield folder
    except OSError as error:
        raise StoppedError(
            f"checkpoint '{output}' could not be written ({error.strerror or type(error).__name__}); free or mend the "
            "disk, then run the same command again."
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _unpack(archive: Path, folder: Path) -> dict[str, Tensor]:
    """Read the weights out of the zip, or of the bare file, without running any code that is in them.

    Raises:
        CheckpointError: The file is no zip of weights, is damaged, or unpacks to more than weights have.
    """
    target = folder / OFFICIAL_NAME
    try:
        with zipfile.ZipFile(archive) as packed:
            # torch's own files are zips as well.
            names = [each for each in packed.infolist() if os.path.basename(each.filename) == OFFICIAL_NAME]
            is_bare = any(each.filename.endswith("/data.pkl") for each in packed.infolist())
            if not names and not is_bare:
                raise CheckpointError(
                    f"archive '{archive}' holds no {OFFICIAL_NAME}; the official zip does; check weights in the "
                    "configuration."
                )
            if names:
                _extract(packed, names[0], target, archive)
    except CheckpointError:
        raise
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(
            f"archive '{archive}' is no whole zip ({type(error).__name__}); it is damaged; fetch it again."
        ) from None
    if not target.exists():
        shutil.copyfile(archive, target)
    weights = read_weights(folder)
    target.unlink()
    return weights


def _extract(packed: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, archive: Path) -> None:
    """Unpack one member to a path of ours, whatever it calls itself; the zip's checksum is looked at on the way."""
    n_bytes = 0
    with packed.open(member) as source, target.open("wb") as file:
        while chunk := source.read(2**20):
            n_bytes += len(chunk)
            if n_bytes > _MAX_WEIGHT_BYTES:
                raise CheckpointError(
                    f"archive '{archive}' unpacks to more than {_MAX_WEIGHT_BYTES} bytes; no MedCLIP does; do not use "
                    "it."
                )
            file.write(chunk)


def _add_vocabulary(path: Path, folder: Path, n_words: int | None) -> None:
    try:
        words = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        words = []
    missing = [token for token in _SPECIAL_TOKENS if token not in words]
    if missing or (n_words is not None and len(words) != n_words):
        raise CheckpointError(
            f"vocabulary '{path}' has {len(words)} lines and lacks {', '.join(missing) or 'no special token'}; "
            f"Bio_ClinicalBERT's vocab.txt has a word a line, {n_words} for these weights; fetch it again."
        )
    shutil.copyfile(path, folder / VOCABULARY)


def _require_golden(statistics: EmbeddingStatistics, golden: list[float]) -> None:
    if not golden:
        return
    differences = [abs(ours - theirs) for ours, theirs in zip(statistics.golden, golden, strict=False)]
    if len(golden) != len(statistics.golden) or max(differences) > _GOLDEN_TOLERANCE:
        raise CheckpointError(
            f"embeddings of the fixed phantom and sentences are {list(statistics.golden)}, and golden holds "
            f"{list(golden)}; they agree to {_GOLDEN_TOLERANCE} where the weights are the same; check the weights, the "
            "vocabulary and model."
        )


def _publish(folder: Path, output: Path, model: EmbeddingModel) -> None:
    """Give the folder its name; the same weights take the place of themselves, others are not replaced."""
    if output.exists():
        try:
            here = fingerprint(read_weights(output))
        except CheckpointError:
            here = "none that can be read" if any(output.iterdir()) else ""
        if here not in ("", model.fingerprint):
            raise CheckpointError(
                f"checkpoint '{output}' holds other weights ({here[:12]}), these are {model.fingerprint[:12]}; a "
                "checkpoint is never replaced; choose another output, or remove it."
            )
        shutil.rmtree(output)
    folder.chmod(0o755)
    folder.rename(output)


def _summary(
    config: WeightsConfig,
    model: EmbeddingModel,
    weights: Mapping[str, Tensor],
    origin: Mapping[str, object],
    statistics: EmbeddingStatistics,
) -> dict[str, object]:
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    looks = "look trained" if statistics.look_trained else "LOOK UNTRAINED"
    checked = "equal to golden" if config.golden else "without golden values"
    pinned = "pinned" if config.weights_sha256 else "not pinned"
    verdict = (
        f"{config.model}: all {len(weights)} tensors ({n_parameters / 1e6:.1f} M parameters) are in, none missing, "
        f"none left over; sha256 {pinned}; its embeddings {looks}, {checked}"
    )
    return {
        "output": config.output,
        "verdict": verdict,
        "fingerprint": model.fingerprint,
        "parameters": n_parameters,
        **origin,
        "golden": list(statistics.golden),
        "embeddings": statistics.describe(),
    }
