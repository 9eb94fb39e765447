"""Combine each rank's figures for a cell into exact figures over the whole vocabulary.

With m_r the largest logit on rank r, s_r its sum relative to m_r, and M the largest logit of all, a sum over the vocabulary
is Σ_r exp(m_r − M) · s_r: the ranks' log-sum-exps combine without any rank seeing another's logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Block:
    """One rank's figures for a block of cells, from its own rows of the vocabulary; all float64, on the model's device.

    Attributes:
        values, ids: the k largest logits and their vocabulary indices, ``[cells, k]``, ties by lower index; fewer than k if
            the rank has fewer rows.
        sums: ``[cells, 7]``: largest logit m; Σ exp(z − m); Σ exp(z − m)(z − m); the output's largest logit f; Σ exp(F − f);
            Σ exp(F − f)(F − z); how many logits exceed the target's.
        target: the target's logit, ``[cells]``.
    """

    values: torch.Tensor
    ids: torch.Tensor
    sums: torch.Tensor
    target: torch.Tensor


def combine(blocks: Sequence[Block], k: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Combine the ranks' figures for a block of cells, given in the order of the ranks.

    Returns:
        The lens's variables, float64 ``[cells(, k)]``; each cell's log-sum-exp over the whole vocabulary, ``[cells]``.
    """
    sums = torch.stack([block.sums for block in blocks])  # [ranks, cells, 7]
    values, ids = blocks[0].values, blocks[0].ids
    if len(blocks) > 1:  # candidates are ordered and ids rise from rank to rank, so a stable sort puts the lower of ties first
        values, order = torch.cat([block.values for block in blocks], -1).sort(dim=-1, descending=True, stable=True)
        values, ids = values[:, :k], torch.cat([block.ids for block in blocks], -1).gather(-1, order[:, :k])
    largest, total, weighted, output_largest, output_total, crossed, above = sums.unbind(-1)  # each [ranks, cells]

    shares, log_sum_exp, top, normaliser = _log_sum(largest, total)
    # Σ p (z − M), from the ranks' Σ exp(z − m)(z − m): z − M = (z − m) + (m − M)
    mean_below_top = (shares * (weighted + (largest - top) * total)).sum(0) / normaliser
    output_shares, output_log_sum_exp, _, output_normaliser = _log_sum(output_largest, output_total)
    mean_difference = (output_shares * crossed).sum(0) / output_normaliser  # Σ p_out (F − z)

    among_k = (values - values[:, :1]).exp()
    target = blocks[0].target  # the same on every rank
    figures = {
        "token_id": ids,
        "logit": values,
        "prob": (values - log_sum_exp[:, None]).exp(),
        "prob_topk": among_k / among_k.sum(-1, keepdim=True),
        "entropy": (normaliser.log() - mean_below_top).clamp(min=0),
        # Nothing exceeds NaN; the count of 0 would mean rank 0, but the cell has no rank.
        "target_rank": torch.where(log_sum_exp.isfinite(), above.sum(0), -1.0),
        "target_prob": (target - log_sum_exp).exp(),
        "kl_final": (mean_difference - output_log_sum_exp + log_sum_exp).clamp(min=0),
    }
    return figures, log_sum_exp


def _log_sum(largest: torch.Tensor, total: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Combine sums over the ranks from each rank's largest logit m and Σ exp(z − m), ``[ranks, cells]``.

    Returns:
        exp(m − M) of each rank, M + log Σ exp(z − M), M, and Σ exp(z − M).
    """
    top = largest.amax(0)
    shares = (largest - top).exp()
    normaliser = (shares * total).sum(0)
    return shares, top + normaliser.log(), top, normaliser
