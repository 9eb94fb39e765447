"""Run the same prompt on several numbers of ranks and compare the results.

In float32 the tokens are the same. In bfloat16 the ranks' partial sums round differently, so texts can diverge where two
tokens are nearly tied; the result says where they first do, and how close the two tokens were. States and probabilities are
compared on the same tokens: those of the first number of ranks, which the others are forced to read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from . import runs
from .model.tokens import first_difference
from .prompts import check_new
from .session import Session

if TYPE_CHECKING:
    from .lens.run import LensRun


@dataclass(frozen=True)
class Comparison:
    """One number of ranks compared with the first.

    Attributes:
        ranks: number of ranks.
        tokens: number of tokens generated on the first number of ranks.
        first_divergence: position of the first token that differs, or None.
        margin: probability of the first's token there minus that of the runner-up, or None.
        states: largest ‖difference‖ / ‖state‖ over sites and layers, on the same tokens.
        agreement: share of cells with the same most probable token, on the same tokens.
        probability: largest difference of the top token's probability in those cells.
    """

    ranks: int
    tokens: int
    first_divergence: int | None
    margin: float | None
    states: float
    agreement: float
    probability: float

    def __str__(self) -> str:
        parted = (
            f"the same {self.tokens} tokens"
            if self.first_divergence is None
            else f"first differs at token {self.first_divergence} of {self.tokens} (the two were {self.margin:.1e} apart)"
        )
        return (
            f"{self.ranks} ranks: {parted}; states within {self.states:.1e}, "
            f"top token agrees in {100 * self.agreement:.2f} % of cells, probabilities within {self.probability:.1e}"
        )


def compare(
    session: Session, model: str, prompt: str, rank_counts: Sequence[int], tokens: int = 32, dtype: str | None = None
) -> list[Comparison]:
    """Run a prompt on each number of ranks in turn and compare all with the first.

    Args:
        session: its ranks are replaced as needed.
        tokens: how many to generate, continuing past end tokens.

    Raises:
        LensError: there is nothing to generate, or the model cannot be loaded on one of the numbers of ranks.
    """
    check_new(tokens)
    first, *others = rank_counts
    session.load(model, dtype, ranks=first)
    free = runs.run(session, prompt, tokens, ignore_eos=True)
    base, base_states = _forced(session, prompt, free.output_ids)
    found = []
    for count in others:
        session.load(model, dtype, ranks=count)
        made = runs.run(session, prompt, tokens, ignore_eos=True)
        run, states = _forced(session, prompt, free.output_ids)
        parted = first_difference(free.output_ids, made.output_ids)
        same = run.variables["token_id"][..., 0] == base.variables["token_id"][..., 0]
        difference = np.abs(run.variables["prob"][..., 0] - base.variables["prob"][..., 0])
        found.append(
            Comparison(
                ranks=count,
                tokens=len(free.output_ids),
                first_divergence=parted,
                margin=None if parted is None else _margin(free, parted),
                states=max(_apart(a, b) for a, b in zip(base_states, states, strict=True)),
                agreement=float(same.mean()),
                probability=float(difference[same].max(initial=0)),
            )
        )
    return found


def _forced(session: Session, prompt: str, ids: Sequence[int]) -> tuple[LensRun, list[Any]]:
    """Run the lens on given tokens; return the run and its states by site, ``[layer, position, d]`` in float32."""
    run = runs.run(session, prompt, force=ids)
    return run, [run.activations(site).float().numpy() for site in run.sites]


def _apart(a: Any, b: Any) -> float:
    """Return the largest relative difference of states over the layers."""
    return float((np.linalg.norm(a - b, axis=(1, 2)) / np.linalg.norm(a, axis=(1, 2))).max())


def _margin(run: LensRun, position: int) -> float:
    top = run.variables["prob"][-1, -1, position]  # the last site and layer captured: the model's output
    return float(top[0] - top[1])
