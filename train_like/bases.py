"""What the stacks of a job are made along."""

import numpy as np
import torch

from mapstack.basis import Basis
from mapstack.config import Config
from mapstack.errors import ConfigError, InputError
from mapstack.explainer import Explainer
from mapstack.readouts import TextReadout


def choose_basis(config: Config, explainer: Explainer, readout: TextReadout | None) -> Basis | None:
    """Return what stacks are made along, as configured; None for the axes.

    Raises:
        ConfigError: What the basis is made of is not configured, or the method has no other stack than the axes'.
        InputError: The file of the basis is damaged, or of another model.
    """
    name = config.stack.basis
    if name == "axes":
        return None
    if not explainer.method.is_linear:
        raise ConfigError(
            f"stack.basis is '{name}' and method '{explainer.method.name}' is not linear; only the axes make its "
            "stack; set stack.basis=axes."
        )
    if name == "pictures":
        return _read_fitted(config.stack.basis_file, explainer.model.embed_dim)
    if readout is None:
        raise ConfigError("stack.basis is 'prompts' and no prompts are configured; set prompts.file or prompts.texts.")
    return Basis.of(readout.span, config.stack.basis_tolerance)


def _read_fitted(path: str | None, embed_dim: int) -> Basis:
    """Read what the command has written.

    Raises:
        ConfigError: No file is configured.
        InputError: It is missing, damaged, or of a model of another size.
    """
    if path is None:
        raise ConfigError(
            "stack.basis is 'pictures' and stack.basis_file is not set; name what the command basis has written."
        )
    try:
        rows = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(
            f"basis file '{path}' cannot be read ({type(error).__name__}); it is what the command basis writes; make "
            "it again."
        ) from None
    if not isinstance(rows, np.ndarray) or rows.dtype != np.float32 or rows.ndim != 2 or rows.shape[1] != embed_dim:
        raise InputError(
            f"basis file '{path}' does not hold float32 rows of {embed_dim} numbers; it belongs to another model or is "
            "none; make it with the command basis."
        )
    return Basis.of_pictures(torch.from_numpy(rows))
