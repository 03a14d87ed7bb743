"""`basis`: the few directions in which the stacks of a model's pictures have nearly all of their energy."""

import io
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from mapstack.basis import fit_rows
from mapstack.config import Config
from mapstack.errors import ConfigError
from mapstack.images import collate, prepare
from mapstack.methods import Occlusion
from mapstack.store.disk import write_atomic
from train_like.errors import DONE
from train_like.extract import make_explainer, on_accelerator
from train_like.pictures import ShardPictures
from train_like.result import Result

_N_PICTURES = 8
_RANKS_TOLD = (8, 16, 32, 64, 128, 256)


def fit_basis(config: Config) -> Result:
    """Make the whole stacks of some pictures, spread over the shards, and keep the directions that matter.

    Each picture's error is that of rows fitted to the others: what is to be expected of pictures that come.

    Raises:
        ConfigError: There is nowhere to write, no error is allowed, or the method's stack cannot be shortened.
        ShardError: There are no shards, or a sample is damaged.
        InputError: There are fewer than two pictures.
    """
    file = _require_sense(config)
    explainer = on_accelerator(make_explainer(config), config.trainer)
    model = explainer.model
    pictures = ShardPictures(config.data)
    entries = pictures.entries()
    n_pictures = min(config.data.limit or _N_PICTURES, len(entries))
    keys = [entries[number * len(entries) // n_pictures].key for number in range(n_pictures)]
    grams = []
    for key in tqdm(keys, desc="basis", unit="image", file=sys.stderr):
        inputs = explainer.cast(collate([prepare(pictures.read_picture(key), model.preprocessing)]))
        rows = explainer.stack(inputs).axis_maps()[0].flatten(1).double()
        grams.append((rows @ rows.T).cpu())
    fitted, errors = fit_rows(grams, config.stack.basis_tolerance)
    content = io.BytesIO()
    np.lib.format.write_array(content, fitted.numpy(), version=(1, 0), allow_pickle=False)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, content.getvalue())
    told = {str(rank): errors[rank] for rank in _RANKS_TOLD if rank < len(errors)}
    summary = {
        "output": str(file),
        "pictures": len(keys),
        "rows": len(fitted),
        "of": model.embed_dim,
        "error": errors[len(fitted)],
        "error_by_rows": told,
    }
    return Result(DONE, summary)


def _require_sense(config: Config) -> Path:
    if config.stack.basis_file is None:
        raise ConfigError("stack.basis_file is not set; the rows are written there; name a file.")
    if not config.stack.basis_tolerance:
        raise ConfigError("stack.basis_tolerance is 0; fewer rows cost an error; allow one, such as 0.02.")
    if not config.method.is_linear or isinstance(config.method, Occlusion):
        raise ConfigError(
            f"method '{config.method.name}' has no stack that fewer rows could stand for; an occlusion stack is "
            "factored already, and one that is not linear needs all axes; leave stack.basis=axes."
        )
    return Path(config.stack.basis_file)
