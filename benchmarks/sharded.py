"""The model the baselines run: plain transformers, made tensor-parallel over the same ranks by DeepSpeed.

None of the package's own model code is used. DeepSpeed gets the whole model, as in the paper's system, so that the head is
split too (over the hidden dimension; every call sums logits over the whole vocabulary). The other simple way, a whole head
on every rank, computes n times as much.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

MODELS: dict[str, Plain] = {}  # on each rank, by the name "plain"


@dataclass
class Plain:
    """A causal model from transformers, with its blocks, final norm and head (Llama, Qwen, Mistral)."""

    model: Any

    @property
    def blocks(self) -> Any:
        return self.model.model.layers

    def project(self, states: torch.Tensor) -> torch.Tensor:
        """Logits over the whole vocabulary: final norm, then head: ``[..., d]`` → ``[..., vocabulary]``."""
        shape = states.shape
        logits = self.model.lm_head(self.model.model.norm(states.reshape(1, -1, shape[-1])))
        return logits.reshape(*shape[:-1], -1)


def load(rank: Any, folder: str, dtype: str) -> int:
    """Load the checkpoint on this rank, sharded if there are several. Collective. Returns the bytes of weights held."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    from lens_magic.ranks import collectives

    transformers_logging.disable_progress_bar()
    collectives.connect(rank)
    MODELS.clear()
    chosen = getattr(torch, dtype)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=chosen, local_files_only=True, use_safetensors=True).eval()
    model.requires_grad_(False)
    if rank.size > 1:
        model = _split(model, rank.size, chosen)
    model.to(collectives.device_for(rank))
    MODELS["plain"] = Plain(model)
    seen = {parameter.data_ptr(): parameter.nbytes for parameter in model.parameters()}
    return sum(seen.values())


def _split(model: Any, ranks: int, dtype: torch.dtype) -> Any:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed
        import deepspeed.ops

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # DeepSpeed's shared-memory all-reduce crashes if ranks exceed cores; sums go over MPI, as ours do.
        vars(deepspeed.ops)["__compatible_ops__"] = defaultdict(bool)
        engine = deepspeed.init_inference(
            model, tensor_parallel={"tp_size": ranks}, dtype=dtype, replace_with_kernel_inject=False
        )
    return engine.module


def drop(rank: Any) -> None:
    """Drop the model."""
    MODELS.clear()


def plain() -> Plain:
    """Return the model loaded on this rank."""
    return MODELS["plain"]
