"""The one decode loop: a prefill, then one cached forward a token, the same on every rank."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from ..errors import LensError
from ..ranks.rank import Rank
from .sites import Visit, attached

if TYPE_CHECKING:
    from .load import Loaded


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; ties go to the lower index."""

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


@dataclass
class Generation:
    """What a generation gave.

    Attributes:
        output_ids: the tokens, an end token included.
        prefill_s, decode_s: seconds to the first token, and from the first to the last.
        interrupted: the user stopped it.
        forwards: how often the model ran.
    """

    output_ids: list[int] = field(default_factory=list)
    prefill_s: float = 0.0
    decode_s: float = 0.0
    interrupted: bool = False
    forwards: int = 0


def generate(
    rank: Rank,
    loaded: Loaded,
    prompt_ids: Sequence[int],
    max_new_tokens: int,
    sampling: Sampling = Sampling(),
    stop_ids: Sequence[int] = (),
    visits: Mapping[tuple[str, int], Visit] | None = None,
    forced_ids: Sequence[int] | None = None,
) -> Generation:
    """Generate up to ``max_new_tokens`` after the prompt, with ``visits`` attached to the model's sites.

    For T tokens the model runs T times: once over the prompt, then T − 1 times over one token with cached keys and values.
    An interrupt on rank 0 stops all ranks after the same token. Every rank calls this with the same arguments.

    Args:
        forced_ids: walk along these tokens instead of choosing; known beforehand, they take a single forward.

    Raises:
        LensError: the model's logits are not finite.
    """
    from transformers import DynamicCache

    made = Generation()
    cache = DynamicCache(config=loaded.model.config)
    choose = _Chooser(rank, loaded, sampling)
    started = time.perf_counter()
    with torch.inference_mode(), attached(loaded.model, loaded.anatomy, visits or {}) as window:

        def forward(ids: Sequence[int]) -> torch.Tensor:
            """Run over the next tokens of the sequence; returns the last one's normalised state ``[1, d]``."""
            window.start, window.length = window.start + window.length, len(ids)
            tokens = torch.tensor([ids], device=loaded.device)  # [1, length]
            made.forwards += 1
            output = loaded.backbone(input_ids=tokens, past_key_values=cache, use_cache=True)
            states: torch.Tensor = output.last_hidden_state  # [1, length, d]
            return states[0, -1:]

        if forced_ids is not None or max_new_tokens == 0:
            forward([*prompt_ids, *(forced_ids or [])[:-1]])
            made.output_ids = list(forced_ids or [])
            made.prefill_s = time.perf_counter() - started
            return made

        token, made.interrupted = choose(forward(prompt_ids))
        first_at = time.perf_counter()
        made.prefill_s = first_at - started
        while True:
            made.output_ids.append(token)
            rank.emit(("token", token))
            if made.interrupted or len(made.output_ids) == max_new_tokens or token in stop_ids:
                break
            token, made.interrupted = choose(forward([token]))
        made.decode_s = time.perf_counter() - first_at
    return made


class _Chooser:
    """Chooses the next token from the ranks' logits; every rank comes to the same token and the same stop flag."""

    def __init__(self, rank: Rank, loaded: Loaded, sampling: Sampling) -> None:
        self.rank = rank
        self.head = loaded.head
        self.sampling = sampling
        self.bounds = loaded.bounds
        self.random = torch.Generator().manual_seed(sampling.seed)

    def __call__(self, normalised: torch.Tensor) -> tuple[int, bool]:
        """The token after the state ``[1, d]``, and whether the user wants to stop."""
        logits = self.head.logits(normalised)[0]  # [rows]
        return self._greedy(logits) if self.sampling.temperature == 0 else self._sampled(logits)

    def _greedy(self, logits: torch.Tensor) -> tuple[int, bool]:
        best = logits.max()
        # The first of equals, which argmax does not promise. No entry equals NaN: the index is then out of range.
        places = torch.arange(logits.shape[0], device=logits.device)
        first = torch.where(logits == best, places, logits.shape[0]).min() + self.head.offset
        mine = torch.stack([best.double(), first.double(), self._stop_flag(logits)])
        candidates = self.rank.all_gather(mine).tolist()  # [ranks, 3], the step's only exchange
        _require_finite([value for value, _, _ in candidates])
        _, token = min((-value, int(index)) for value, index, _ in candidates)
        return token, candidates[0][2] > 0

    def _sampled(self, logits: torch.Tensor) -> tuple[int, bool]:
        widest = max(end - begin for begin, end in zip(self.bounds, self.bounds[1:], strict=False))
        mine = logits.new_zeros(widest + 1, dtype=torch.float32)
        mine[: logits.shape[0]] = logits
        mine[-1] = self._stop_flag(logits)
        parts = self.rank.all_gather(mine).cpu()  # [ranks, widest + 1]
        sizes = [end - begin for begin, end in zip(self.bounds, self.bounds[1:], strict=False)]
        whole = torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])  # [vocabulary]
        _require_finite([float(whole.max())])
        return self._draw(whole), bool(parts[0, -1] > 0)

    def _draw(self, logits: torch.Tensor) -> int:
        """Draw by the inverse of the cumulative distribution, so that only rounding at its steps could depend on the ranks."""
        probabilities = nucleus(torch.softmax(logits.double() / self.sampling.temperature, -1), self.sampling.top_p)
        cumulative = probabilities.cumsum(-1)
        at = torch.rand((), dtype=torch.float64, generator=self.random) * cumulative[-1]
        drawn = int(torch.searchsorted(cumulative, at, right=True))
        return min(drawn, int(probabilities.nonzero().max()))

    def _stop_flag(self, like: torch.Tensor) -> torch.Tensor:
        return torch.tensor(float(self.rank.stop_requested), dtype=torch.float64, device=like.device)


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """Zero all but the smallest set of most probable tokens whose mass reaches ``top_p`` (at least one; ties by index).

    Args:
        probabilities: ``[vocabulary]``.
    """
    if top_p >= 1:
        return probabilities
    ordered, order = probabilities.sort(descending=True, stable=True)
    mass_before = ordered.cumsum(-1) - ordered
    kept = mass_before < top_p
    kept[0] = True
    return torch.where(torch.zeros_like(kept).scatter(-1, order, kept), probabilities, 0.0)


def _require_finite(values: Sequence[Any]) -> None:
    if not all(value < float("inf") and value == value for value in values):
        raise LensError("the model's logits are not finite; another dtype (--dtype float32) may help")
