"""Do the maps depend on what the model has learned: cascading randomisation of its weights."""

import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from mapstack.errors import InputError
from mapstack.models import EmbeddingModel
from mapstack.randomness import generator

MAX_STAGES = 8
"""Most steps of a cascade."""

_STD = 0.02


def cascade(model: EmbeddingModel, seed: int = 0) -> Iterator[tuple[str, EmbeddingModel]]:
    """Randomise the image half stage by stage, from the embedding back to the picture.

    A map that stays as it was, while the weights that it claims to explain are gone, does not explain them: compare
    each step's maps with those of the trained model (`mapstack.metrics.similarity`; lower is better) and score them
    anew. The text half stays trained, so that the directions explained are the same. A module gets the values that
    its own `reset_parameters` draws; parameters of a module without one, such as Swin's table of position biases,
    are drawn from a normal distribution of deviation 0.02. The draws of a module depend on `seed` and its name only.

    Args:
        model: Trained; it is not changed.
        seed: Of the new weights.

    Yields:
        The name of the stage that was randomised last, and a copy of the model in which it and all before it are
        random. The copies share the text half, and with it the fingerprint of the trained weights: their maps belong
        in no store.

    Raises:
        InputError: The image half has no module that could be randomised.

    Source:
        Adebayo, Gilmer, Muelly, Goodfellow, Hardt, Kim, "Sanity checks for saliency maps", NeurIPS 2018, section 3.
        Deviation: stages, not single layers; see `stage_names`.
    """
    current = model
    for name in stage_names(model):
        current = _copy(current)
        stage = current.get_submodule(name)
        for inner_name, module in stage.named_modules(prefix=name):
            _randomise(module, seed, inner_name)
        yield name, current


def stage_names(model: EmbeddingModel) -> list[str]:
    """Name the stages of the image half in the order of a cascade: the last that runs comes first.

    They are the finest level of the module tree that has at most 8 parts with parameters, no `ModuleList`'s entry
    split: for MedCLIP's Swin the projection head, the last norm, each stage of blocks, and the patch embedding; for
    its ResNet-50 the projection, four stages and the stem; for CLIP the projection, the whole encoder and what stands
    around it. What runs is found out by embedding a picture of zeros.

    Raises:
        InputError: No module with parameters ran.
    """
    order = _first_calls(model)
    parts = [""]
    while True:
        finer = [child for part in parts for child in _children(model, part, order)]
        if finer == parts or len(finer) > MAX_STAGES:
            break
        parts = finer
    if parts == [""]:
        raise InputError(
            f"image half of {type(model).__name__} has no module with parameters that `embed_images` calls, or more "
            f"than {MAX_STAGES} at its top; a cascade needs stages; give the model submodules."
        )
    return sorted(parts, key=lambda part: _first_call(part, order), reverse=True)


def _first_calls(model: EmbeddingModel) -> dict[str, int]:
    """Embed a picture of zeros and note in which order the modules are first called."""
    order: dict[str, int] = {}

    def note(name: str, *_: object) -> None:
        order.setdefault(name, len(order))

    handles = [module.register_forward_pre_hook(partial(note, name)) for name, module in model.named_modules()]
    size, n_channels = model.preprocessing.image_size, len(model.preprocessing.mean)
    try:
        with torch.no_grad():
            model.embed_images(torch.zeros(1, n_channels, size, size, device=model.device, dtype=model.dtype))
    finally:
        for handle in handles:
            handle.remove()
    return order


def _first_call(part: str, order: dict[str, int]) -> int:
    """Return when a part, or anything inside it, was first called; -1 for never."""
    calls = [index for name, index in order.items() if name == part or name.startswith(f"{part}.")]
    return min(calls, default=-1)


def _children(model: EmbeddingModel, part: str, order: dict[str, int]) -> list[str]:
    """Split a part into its children that ran and have parameters.

    An entry of a list of modules stays whole, and so does a module that ran with parameters of its own.
    """
    module, parent = model.get_submodule(part), model.get_submodule(part.rpartition(".")[0])
    holds_own = part in order and any(True for _ in module.parameters(recurse=False))
    if holds_own or isinstance(parent, nn.ModuleList):
        return [part]
    names = [f"{part}.{child}".lstrip(".") for child, _ in module.named_children()]
    kept = [name for name in names if _first_call(name, order) >= 0 and _has_parameters(model.get_submodule(name))]
    return kept or [part]


def _has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _copy(model: EmbeddingModel) -> EmbeddingModel:
    """Copy the image half and share the text half."""
    return copy.deepcopy(model, {id(model.text): model.text})


def _randomise(module: nn.Module, seed: int, name: str) -> None:
    """Redraw the parameters that a module itself holds, on the CPU, so that every device gets the same."""
    own = dict(module.named_parameters(recurse=False))
    if not own:
        return
    draws = generator(seed, name, "cascade")
    if hasattr(module, "reset_parameters"):
        fresh: Any = copy.deepcopy(module).cpu()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draws.initial_seed())
            fresh.reset_parameters()
        module.load_state_dict(fresh.state_dict())
        return
    with torch.no_grad():
        for parameter in own.values():
            parameter.copy_(_STD * torch.randn(parameter.shape, generator=draws))
