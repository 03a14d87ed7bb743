"""A stack as a record of the store, and back."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mapstack.basis import Basis
from mapstack.codecs import Encoding, decode_factors
from mapstack.errors import InputError, StoreError
from mapstack.explainer import Explainer
from mapstack.methods import Occlusion, Sweep, Windows
from mapstack.prompts import digest_groups
from mapstack.readouts import TextReadout
from mapstack.stack import OcclusionStack, Stack
from mapstack.store import Record

Arrays = dict[str, NDArray[Any]]


def describe_store(
    explainer: Explainer,
    basis: Basis | None,
    *,
    encoding: Encoding,
    shards_digest: str,
    readout: TextReadout | None = None,
) -> dict[str, Any]:
    """Return the manifest of the stacks that an explainer makes: `identity` decides every byte of the records.

    Args:
        explainer: Model, method and form of the maps.
        basis: None for the axes. The rows themselves are stored beside the manifest.
        encoding: How stacks are kept.
        shards_digest: Names the input shards.
        readout: The texts whose logits go into each record; None for none.
    """
    groups = () if readout is None else readout.groups
    is_factored = isinstance(explainer.method, Occlusion)
    if is_factored:
        encoding = replace(encoding, codec="float32")  # the factors are small, and exact for every text
    serves_both = explainer.method.one_stack_serves_both and (is_factored or basis is None)
    return {
        "identity": {
            "weights": explainer.model.fingerprint,
            "method": explainer.method.describe(),
            "form": "occlusion" if is_factored else "dense",
            "basis": "axes" if basis is None else basis.name,
            "normalize": "both" if serves_both else explainer.normalize,
            "map_size": None if is_factored else explainer.frame_size,
            **encoding.describe(),
            "seed": explainer.seed,
            "precision": explainer.model.precision,
            "shards": shards_digest,
            # A digest: a text can identify a patient.
            "prompts": digest_groups(groups) if groups else None,
            "prompts_padding": explainer.model.text.prompt_padding if groups else None,
        },
        "prompt_names": [None if group.is_free else group.name for group in groups],
        "image_size": explainer.model.preprocessing.image_size,
        "embed_dim": explainer.model.embed_dim,
        "logit_scale": explainer.model.logit_scale,
        "completeness": explainer.method.completeness,
        "is_linear": explainer.method.is_linear,
        "note": explainer.model.note,
        # The centre lies in the span, so its coordinates say it all.
        "basis_centre": None if basis is None else basis.coordinates(basis.centre).tolist(),
        "basis_own_share": 0.0 if basis is None else basis.own_share,
    }


def stack_arrays(stack: Stack | OcclusionStack, encoding: Encoding) -> Arrays:
    """Return what the store keeps of the stack of one picture, encoded where the stack lies.

    Raises:
        InputError: It holds NaN or infinity.
    """
    exact = {"embedding": stack.embedding[0]}
    if isinstance(stack, OcclusionStack):
        exact |= {"scores": stack.sweep.occluded[0], "baseline_embedding": stack.sweep.at_baseline[0]}
    elif stack.baseline_embedding is not None:
        exact["baseline_embedding"] = stack.baseline_embedding[0]
    arrays = {name: _to_numpy(tensor) for name, tensor in exact.items()}
    for name, array in arrays.items():
        if not np.isfinite(array).all():
            raise InputError(
                f"its {name} holds NaN or infinity, which is never stored; check the model and the sample."
            )
    if isinstance(stack, Stack):
        arrays |= encoding.encode(stack.values[0].detach().float())
    return arrays


def stack_info(stack: Stack | OcclusionStack) -> dict[str, Any]:
    """Return what the record's JSON says of how well the stack of one picture was made."""
    if isinstance(stack, OcclusionStack):
        return {}
    info: dict[str, Any] = {}
    if stack.n_steps:
        info["n_steps"] = stack.n_steps[0]
    if stack.is_converged:
        info["is_converged"] = stack.is_converged[0]
    if stack.map_error:
        info["map_error"] = stack.map_error[0]
    if stack.baseline_embedding is not None:
        rows = torch.eye(stack.embedding.shape[1]).to(stack.embedding) if stack.basis is None else stack.basis.rows
        delta = stack.values.sum(dim=(-2, -1))[0] - rows @ (stack.read_picture() - stack.baseline_embedding)[0]
        info["convergence_delta"] = delta.tolist()
    return info


def read_basis(manifest: Mapping[str, Any], rows: NDArray[Any] | None) -> Basis | None:
    """Return the basis of a store; None for the axes."""
    if rows is None:
        return None
    directions = torch.from_numpy(np.array(rows))
    if manifest["identity"]["basis"] == "pictures":
        return Basis.of_pictures(directions)
    centre = torch.tensor(manifest["basis_centre"]) @ directions
    return Basis(directions, centre, own_share=manifest.get("basis_own_share", 0.0))


def read_stack(
    record: Record, manifest: Mapping[str, Any], basis: Basis | None, *, normalize: bool, map_size: int | None = None
) -> Stack | OcclusionStack:
    """Return the stack of one picture from its record.

    Args:
        record: From the store.
        manifest: Of the same store.
        basis: `read_basis` of the same store.
        normalize: What the maps shall explain; most stacks serve only the one that they were made for.
        map_size: Side of the maps of a factored stack [px]; None for the model's frame. A dense one keeps its own.

    Raises:
        InputError: The stack does not serve `normalize`.
        StoreError: The record is of no known form.
    """
    identity = manifest["identity"]
    arrays = {name: record.arrays[name] for name in record.arrays}
    embedding = torch.from_numpy(arrays["embedding"])[None]
    baseline = torch.from_numpy(arrays["baseline_embedding"])[None] if "baseline_embedding" in arrays else None
    if identity["form"] == "dense":
        u, rounded, scale = decode_factors(arrays)
        is_raw = identity["normalize"] == "both"
        made_for = normalize if is_raw else identity["normalize"]
        stack = Stack(
            embedding,
            made_for,
            rounded[None],
            basis=basis,
            baseline_embedding=baseline,
            is_raw=is_raw,
            mixing=None if u is None else u[None],
            scale=None if scale is None else scale[None],
        )
        return stack.explaining(normalize=normalize)
    if identity["form"] != "occlusion" or baseline is None:
        raise StoreError(
            f"record form '{identity['form']}' is unknown; it is dense or occlusion; use a newer mapstack."
        )
    method = identity["method"]
    windows = Windows(manifest["image_size"], method["sliding_window_shapes"], method["strides"])
    sweep = Sweep(embedding, torch.from_numpy(arrays["scores"])[None], baseline, windows)
    return OcclusionStack(embedding, normalize, sweep, map_size or windows.image_size)


def describe_maps(
    record: Record, manifest: Mapping[str, Any], stack: Stack | OcclusionStack, readout: TextReadout
) -> dict[str, Any]:
    """Return what is told beside the maps of a stored stack: how they were made, and what they lose.

    Args:
        record: From the store.
        manifest: Of the same store.
        stack: `read_stack` of the record.
        readout: The texts.

    Returns:
        `method` by its name, `route`, `completeness`, `linear`; `n_steps`, `is_converged` and `map_error` where the
        record has them; and where the stack lies along a basis, for each text `share_outside_span` (see
        `Basis.share_outside`) and `missing_share` (see `Stack.missing_share`).
    """
    told: dict[str, Any] = {
        "completeness": manifest["completeness"],
        "linear": bool(manifest["is_linear"] and readout.is_linear),
        "route": record.info["route"],
        "method": manifest["identity"]["method"]["name"],
        **{name: record.info[name] for name in ("n_steps", "is_converged", "map_error") if name in record.info},
    }
    if isinstance(stack, Stack) and stack.basis is not None:
        directions = readout.directions_at(stack.embedding)
        told["share_outside_span"] = stack.basis.share_outside(directions[0]).tolist()
        told["missing_share"] = stack.missing_share(directions)[0].tolist()
    return told


def _to_numpy(tensor: Tensor) -> NDArray[np.float32]:
    array: NDArray[np.float32] = tensor.detach().float().cpu().numpy()
    return array
