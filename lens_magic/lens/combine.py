"""From what each rank knows of a cell to exact figures over the whole vocabulary.

With m_r the largest logit on rank r and M the largest of all, a sum over the vocabulary is Σ_r exp(m_r − M) · s_r: the
ranks' log-sum-exps combine without any rank having seen another's logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from .variables import VARIABLES


@dataclass(frozen=True)
class Block:
    """What one rank knows of a block of cells, from its own rows of the vocabulary; all float64, on the host.

    Attributes:
        values, ids: the k largest logits and their vocabulary indices, ``[cells, k]``.
        sums: ``[cells, 7]``: largest logit m; Σ exp(z − m); Σ exp(z − m)(z − m); the output's largest logit f; Σ exp(F − f);
            Σ exp(F − f)(F − z); how many logits exceed the target's.
        target: the target's logit, ``[cells]``.
    """

    values: torch.Tensor
    ids: torch.Tensor
    sums: torch.Tensor
    target: torch.Tensor


def log_sum_exp_of(blocks: Sequence[Block]) -> np.ndarray:
    """Each cell's log-sum-exp over the whole vocabulary, ``[cells]``."""
    sums = torch.stack([block.sums for block in blocks]).cpu().numpy()
    top = sums[..., 0].max(0)
    found: np.ndarray = top + np.log((np.exp(sums[..., 0] - top) * sums[..., 1]).sum(0))
    return found


def combine(blocks: Sequence[Block], k: int) -> dict[str, np.ndarray]:
    """The lens's variables for a block of cells, ``[cells(, k)]``, from every rank's :class:`Block` of them."""
    values = torch.cat([block.values for block in blocks], -1).cpu().numpy()  # [cells, ranks · k]
    ids = torch.cat([block.ids for block in blocks], -1).cpu().numpy()
    sums = torch.stack([block.sums for block in blocks]).cpu().numpy()  # [ranks, cells, 7]
    target = blocks[0].target.cpu().numpy()  # the same on every rank

    order = np.lexsort((ids, -values), axis=-1)[:, :k]
    logit = np.take_along_axis(values, order, -1)
    token_id = np.take_along_axis(ids, order, -1)

    largest, total, weighted = sums[..., 0], sums[..., 1], sums[..., 2]
    top = largest.max(0)
    scale = np.exp(largest - top)
    normaliser = (scale * total).sum(0)
    log_sum_exp = top + np.log(normaliser)  # [cells]
    # Σ p (z − M), from the ranks' Σ exp(z − m)(z − m): z − M = (z − m) + (m − M)
    mean_below_top = (scale * (weighted + (largest - top) * total)).sum(0) / normaliser

    output_largest, output_total, crossed = sums[..., 3], sums[..., 4], sums[..., 5]
    output_top = output_largest.max(0)
    output_scale = np.exp(output_largest - output_top)
    output_normaliser = (output_scale * output_total).sum(0)
    output_log_sum_exp = output_top + np.log(output_normaliser)
    mean_difference = (output_scale * crossed).sum(0) / output_normaliser  # Σ p_out (F − z)
    divergence = mean_difference - output_log_sum_exp + log_sum_exp

    among_k = np.exp(logit - logit[:, :1])
    figures = {
        "token_id": token_id,
        "logit": logit,
        "prob": np.exp(logit - log_sum_exp[:, None]),
        "prob_topk": among_k / among_k.sum(-1, keepdims=True),
        "entropy": np.maximum(np.log(normaliser) - mean_below_top, 0),
        # Nothing exceeds what is no number: not first, but nowhere.
        "target_rank": np.where(np.isfinite(log_sum_exp), sums[..., 6].sum(0), -1),
        "target_prob": np.exp(target - log_sum_exp),
        "kl_final": np.maximum(divergence, 0),
    }
    return {name: figures[name].astype(dtype) for name, (_, dtype) in VARIABLES.items()}
