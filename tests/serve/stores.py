"""Stack stores as the offline job writes them."""

from collections.abc import Mapping
from pathlib import Path

from mapstack.basis import Basis
from mapstack.codecs import Encoding
from mapstack.explainer import Explainer
from mapstack.images import collate, decode, prepare
from mapstack.store import StoreWriter, open_store_for_writing
from mapstack.stored_stack import describe_store, stack_arrays, stack_info


def write_store(folder: Path, explainer: Explainer, basis: Basis, pictures: Mapping[str, bytes]) -> None:
    """Write the stacks of picture files along a basis, by their keys."""
    encoding = Encoding("float16")
    manifest = describe_store(explainer, basis, encoding=encoding, shards_digest="none")
    with (
        open_store_for_writing(folder, manifest, basis=basis.rows.numpy()) as session,
        StoreWriter(folder, session.run, 0) as writer,
    ):
        for key, data in pictures.items():
            prepared = prepare(decode(data), explainer.model.preprocessing)
            stack = explainer.stack(collate([prepared]), basis)
            info = {"geometry": prepared.geometry.to_dict(), "sha256": prepared.sha256, "route": basis.name}
            writer.write(key, stack_arrays(stack, encoding), {**info, **stack_info(stack)})
