"""Loading a checkpoint on every rank, each keeping its shard."""

from __future__ import annotations

import contextlib
import gc
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import LensError
from ..gpu import attention, onepass, steps
from ..ranks import collectives, followed
from ..ranks.memory import give_back_cached
from ..ranks.rank import Rank
from ..ranks.store import Slot
from .anatomy import Anatomy, anatomy_of, part, replace_part
from .checkpoint import Checkpoint, unbuildable
from .experts import cut_while_reading
from .head import HeadShard, shard_bounds
from .shard import release_pages, shard, stop_if_asked


@dataclass(frozen=True)
class Loaded:
    """A model on one rank.

    Attributes:
        model: the causal language model whose blocks are this rank's shard.
        backbone: the part of it that returns normalised final states; it never runs the head.
        head: this rank's rows of the head.
        bounds: where each rank's rows begin (``ranks + 1`` numbers).
        dtype: that of the blocks, so of the states.
        whole_bytes: bytes of the weights that every rank keeps in full; 0 on a single rank.
    """

    model: Any
    backbone: Any
    anatomy: Anatomy
    head: HeadShard
    bounds: list[int]
    device: torch.device
    layers: int
    width: int
    dtype: torch.dtype
    vocabulary: int
    whole_bytes: int = 0

    @property
    def norm(self) -> Any:
        """The model's final norm."""
        return part(self.model, self.anatomy.norm)


MODEL = Slot[Loaded]("model")


def load(rank: Rank, checkpoint: Checkpoint) -> dict[str, Any]:
    """Load this rank's shard; the previous model stays in place until the new one is ready. Every rank calls it.

    Emits ("loading", done, total) as blocks are sharded. An interrupt raises KeyboardInterrupt on all ranks, between blocks.

    Returns:
        The model's ``vocabulary``, ``layers``, ``width`` and ``whole_bytes``, and in words what is ``whole`` on every rank.

    Raises:
        LensError: the ranks cannot have the GPUs that the environment names now.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    followed.require_in_time(rank)
    collectives.connect(rank)
    device = collectives.device_for(rank)
    folder = str(checkpoint.folder)
    dtype = getattr(torch, checkpoint.dtype)
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    anatomy = anatomy_of(checkpoint.model_type, config)
    try:
        with cut_while_reading(rank, anatomy, config), _quietly():
            model, info = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are refused below, by name
            )
    except Exception as error:
        raise unbuildable(checkpoint.name, error) from error
    _require_all_weights(checkpoint.name, anatomy, info)
    if rank.rank == 0:
        _tell_of_weights_not_used(checkpoint, anatomy, info["unexpected_keys"])
    if anatomy.experts is not None:  # transformers has copied the config with narrower experts
        setattr(model.config, anatomy.experts, getattr(config, anatomy.experts))
    model.eval().requires_grad_(False)
    stop_if_asked(rank)
    for path in anatomy.unused:
        replace_part(model, path, torch.nn.Identity())
    head = part(model, anatomy.head)
    # Not from the configuration: transformers leaves weights untied if the checkpoint has both and they differ.
    tied = head.weight is part(model, anatomy.embedding).weight
    whole = 0
    if rank.size > 1:
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        shard(rank, model, anatomy, dtype)
        replace_part(model, anatomy.head, torch.nn.Identity())  # only this rank's rows go to the device
        whole = sum(weight.nbytes for name, weight in model.named_parameters() if shapes.get(name) == weight.shape)
    model.to(device)
    release_pages()
    loaded = describe(rank, model, anatomy, head, device, tied, whole)
    stop_if_asked(rank)
    return _use(rank, loaded)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep transformers from drawing a progress bar (the caller draws one for all ranks) and printing mismatched keys."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _require_all_weights(name: str, anatomy: Anatomy, info: Mapping[str, Any]) -> None:
    """Refuse a checkpoint with weights missing or of other shapes, which transformers would make up. The same on every rank.

    Args:
        info: the loading info from transformers.
    """
    if wrong := sorted(entry for entry in info["mismatched_keys"] if not entry[0].startswith(anatomy.unused)):
        key, stored, wanted = wrong[0]
        shapes = [" × ".join(map(str, shape)) for shape in (stored, wanted)]
        raise LensError(
            f"{name} has {key} of {shapes[0]} where its config.json makes it {shapes[1]} "
            f"({len(wrong)} of its weights have other shapes)"
        )
    lacking = sorted(key for key in info["missing_keys"] if not key.startswith(anatomy.unused))
    if lacking:
        raise LensError(f"{name} lacks {lacking[0]} ({len(lacking)} of its weights are missing)")


def _tell_of_weights_not_used(checkpoint: Checkpoint, anatomy: Anatomy, keys: Iterable[str]) -> None:
    """Warn of weights that the model has no place for: its configuration may be another model's.

    Args:
        keys: those weights, less those that transformers knows older versions to have saved.
    """
    # GPT-2's masked_bias is a constant that old versions saved, which transformers does not know of any more.
    surplus = sorted(key for key in keys if not key.startswith(anatomy.unused) and not key.endswith("attn.masked_bias"))
    if surplus:
        warnings.warn(
            f"{checkpoint.name} has {surplus[0]}, which the {checkpoint.model_type!r} model of its config.json does not use "
            f"({len(surplus)} of its weights are not used)",
            stacklevel=2,
        )


def require_attachable(model: Any) -> None:
    """Refuse a model in memory that cannot be used as it is.

    Raises:
        LensError: its family is not supported, it is not built like its family, or its weights are not on a single device.
    """
    anatomy = anatomy_of(model.config.model_type, model.config)
    for path in (anatomy.backbone, anatomy.blocks, anatomy.norm, anatomy.head, anatomy.embedding):
        part(model, path)
    devices = sorted({str(parameter.device) for parameter in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise LensError(
            f"this model's weights are on {' and '.join(devices)}; attach takes one that is on a single device, "
            "`%lens load FOLDER --ranks N` splits a saved one over several"
        )


def attach(rank: Rank, model: Any) -> dict[str, Any]:
    """Use a model that is in memory already (:func:`require_attachable`), as it is, on a single rank."""
    if rank.size > 1:
        raise LensError("a model in memory can be used on one rank only; save it and `%lens load` the folder")
    anatomy = anatomy_of(model.config.model_type, model.config)
    weight, head = part(model, anatomy.embedding).weight, part(model, anatomy.head)
    return _use(rank, describe(rank, model, anatomy, head, weight.device))


def _use(rank: Rank, loaded: Loaded) -> dict[str, Any]:
    """Replace the previous model, dropping what belonged to it, and return what :func:`load` returns."""
    before = _held(rank)
    rank.store.clear()
    rank.store[MODEL] = loaded
    _collect(before)
    facts = ("vocabulary", "layers", "width", "whole_bytes")
    return {**{name: getattr(loaded, name) for name in facts}, "whole": loaded.anatomy.whole}


def loaded_on(rank: Rank) -> Loaded:
    """Return the model loaded on this rank.

    Raises:
        LensError: there is none.
    """
    loaded = rank.store.get(MODEL)
    if loaded is None:
        raise LensError("no model is loaded")
    return loaded


def unload(rank: Rank) -> None:
    """Forget the model and everything captured from it, and free their memory."""
    before = _held(rank)
    rank.store.clear()
    _collect(before)
    give_back_cached()


def _held(rank: Rank) -> weakref.ref[Any] | None:
    loaded = rank.store.get(MODEL)
    return None if loaded is None else weakref.ref(loaded.model)


def _collect(before: weakref.ref[Any] | None) -> None:
    """Collect garbage if the previous model is still alive (some families' modules refer to each other), and after the first
    load, which leaves much. It takes a third of a second, so not otherwise."""
    if before is None or before() is not None:
        gc.collect()


def describe(
    rank: Rank,
    model: Any,
    anatomy: Anatomy,
    head: Any,
    device: torch.device,
    tied: bool = False,
    whole_bytes: int = 0,
) -> Loaded:
    """Return the :class:`Loaded` of a model whose blocks are sharded; the head's rows are views if on the device already.

    Args:
        tied: the head's weight is the embedding's, which may have moved since the head was removed.
    """
    config = model.config.get_text_config()
    # A model attached from memory may be one that learns; what is made of its head here must not.
    weight = (part(model, anatomy.embedding) if tied else head).weight.detach()
    vocabulary = int(weight.shape[0])
    bounds = shard_bounds(vocabulary, rank.size)
    first, end = bounds[rank.rank], bounds[rank.rank + 1]
    bias = getattr(head, "bias", None)
    rows = HeadShard(
        weight=weight[first:end].to(device),
        bias=None if bias is None else bias.detach()[first:end].to(device),
        offset=first,
        softcap=getattr(config, "final_logit_softcapping", None),
    )
    blocks = part(model, anatomy.blocks)
    # Of the states; in a model in memory the head may have another. (Weights that are coded in integers are none of it.)
    dtype = next(weight.dtype for weight in blocks.parameters() if weight.is_floating_point())
    # Kernels are tried now, not when somebody waits. (A step's are compiled for the model's own widths in its first one.)
    if device.type == "cuda":
        onepass.trouble(device, torch.float32)
        for kernels in (steps, attention):
            kernels.trouble(device, dtype)
    return Loaded(
        model=model,
        backbone=part(model, anatomy.backbone),
        anatomy=anatomy,
        head=rows,
        bounds=bounds,
        device=device,
        layers=len(blocks),
        width=int(weight.shape[1]),
        dtype=dtype,
        vocabulary=vocabulary,
        whole_bytes=whole_bytes,
    )
