"""The Python interface: plain functions over this process's session. (Those about steering: :mod:`.steer_api`.)"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from . import options, runs
from .model.anatomy import DEFAULT_SITES
from .ranks.status import Status
from .results import GeneratedText
from .session import OnEvent, current
from .view.progress import watched

if TYPE_CHECKING:
    from .lens.basis import Basis
    from .lens.chosen import Track
    from .lens.run import LensRun
    from .lens.translators import TunedLens
    from .prompts import Prompt


class GenerationOptions(TypedDict, total=False):
    """Options of :func:`generate` other than the prompt and the length."""

    ignore_eos: bool
    steer: Any
    temperature: float
    top_p: float
    seed: int
    chat: bool


class RunOptions(GenerationOptions, total=False):
    """Options of :func:`run` other than the prompt, the length and the number of candidates."""

    layers: str | int | Iterable[int] | None
    capture: str | Sequence[str]
    prompt_tokens: bool
    force: Any
    track: Track
    capture_dtype: str | None
    offload: bool
    stream_lens: bool
    lens: TunedLens | Basis | str | Path | None
    norm: str


def load(
    model: str | Path,
    dtype: str | None = None,
    ranks: int | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> None:
    """Load a model on the ranks, tensor-parallel.

    The previous model stays loaded until the new one is ready, and after any error. It is dropped first only if both do not
    fit (with a warning), or if the number of ranks changes, because it goes with the old ranks. If loading then fails,
    ``%lens restart`` brings it back.

    Args:
        model: a local folder (str or path), a hub id, or "demo" for the embedded model.
        dtype: "float32", "bfloat16" or "float16"; by default the checkpoint's own.
        ranks: number of ranks to split it over, this process included. By default the current number; before any are
            started, ``LENS_RANKS`` if set, otherwise ``LENS_DEFAULT_RANKS`` or 4 in a Lens kernel, and 1 in other processes.
        revision: of a hub model, as in transformers.
        trust_remote_code: run code that comes with the tokenizer. Models always run transformers' own code.

    Raises:
        LensError: no such model, pickled weights only, no tokenizer, an unsupported family, a number of ranks it cannot be
            split into, or too little memory.
    """
    with watched(loading=f"loading {model}") as told:
        current().load(options.model_name(model), dtype, revision, ranks, trust_remote_code, told)


def attach(model: Any, tokenizer: Any) -> None:
    """Use a transformers model that is in memory already, as it is, on one rank. Its training mode is restored after each run.

    Raises:
        LensError: an unsupported family, or not a model and a tokenizer of transformers.
    """
    options.check_in_memory(model, tokenizer)
    current().attach(model, tokenizer)


def status() -> Status:
    """Return the ranks (process, device, memory in bytes), the model and the steering vectors of this session."""
    return current().status()


# A str is a Sequence[str] too, hence the overlapping overloads; here it is one prompt.
@overload
def run(  # type: ignore[overload-overlap]
    prompt: Prompt, max_new_tokens: int = ..., top_k: int = ..., **options: Unpack[RunOptions]
) -> LensRun: ...
@overload
def run(
    prompt: Sequence[Prompt], max_new_tokens: int = ..., top_k: int = ..., **options: Unpack[RunOptions]
) -> list[LensRun]: ...
def run(
    prompt: Prompt | Sequence[Prompt],
    max_new_tokens: int = 32,
    top_k: int = 5,
    layers: str | int | Iterable[int] | None = None,
    capture: str | Sequence[str] = DEFAULT_SITES,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    ignore_eos: bool = False,
    prompt_tokens: bool = False,
    steer: Any = (),
    force: Any = None,
    track: Track = (),
    chat: bool = False,
    capture_dtype: str | None = None,
    offload: bool = False,
    stream_lens: bool = False,
    lens: TunedLens | Basis | str | Path | None = None,
    norm: str = "own",
) -> Any:
    """Generate from a prompt in one cached pass and look at every layer's hidden states through a lens.

    Args:
        prompt: a text, used verbatim: what looks like a special token stays text. Or token ids, read as they are. Or a chat's
            messages (``{"role": "system", "content": …}``), which are put into the model's chat template; if the last is the
            assistant's, the model goes on with it. Several prompts run as one batch, each with the result it would have
            alone, and give a list of runs.
        max_new_tokens: upper limit; 0 with ``prompt_tokens`` gives the lens of the prompt alone.
        top_k: candidates kept per cell (site, layer, position).
        layers: numbers, or text such as "0-4", "5-", "-1", "0,8,-1", "::4"; all by default.
        capture: sites: "resid_pre", "attn_out", "post_ln", "mlp_out", "resid_post".
        temperature, top_p, seed: sampling, greedy at temperature 0. A seed gives the same tokens on any number of ranks
            (float32).
        ignore_eos: continue past end tokens.
        prompt_tokens: capture the prompt's positions too, as p < 0.
        steer: any number of steering terms (``vector * 1.5``), applied in order; states are captured after steering.
        force: read this text, or these token ids, instead of generating (teacher forcing); for several prompts, one for each.
        chat: put a text into the model's chat template, as the user's message.
        capture_dtype: keep the states as "float32", "bfloat16" or "float16" instead of the model's own type.
        offload: keep a GPU's captured states in the host's memory; ranks do not wait for the copies.
        stream_lens: project rows while generating, in at most a sixteenth of the time; the remaining rows follow afterwards.
            For a single prompt, and not with a basis.
        lens: a :class:`TunedLens` or :class:`Basis`, or the path of a saved one; by default the logit lens. A tuned lens
            has translators for the residual stream only (``resid_pre``, ``resid_post``); other sites are shown as without it.
        norm: "own": apply the final norm to every state. "frozen": divide by the scale that the norm computes from the
            *last* layer's output at that position, so that ``resid_pre``, ``attn_out``, ``mlp_out`` add up to the output's
            logits (direct logit attribution; components without the constants of norm and head). "none": no norm, for a basis.
        track: tokens to follow through every cell: single-token texts or ids, or one text with commas (" Paris, Rome");
            True follows, at each position, those ranked first in any layer (at most 8).

    Returns:
        A :class:`LensRun`, or a list of them for several prompts.

    Raises:
        LensError: no model is loaded, or an argument is out of range; nothing was run.
        Interrupted: a KeyboardInterrupt whose ``result`` is the partial run.
    """
    with watched(max_new_tokens) as told:
        return runs.run(
            current(),
            prompt,
            max_new_tokens=max_new_tokens,
            top_k=top_k,
            layers=layers,
            capture=capture,
            temperature=temperature,
            top_p=top_p,
            seed=seed,
            ignore_eos=ignore_eos,
            prompt_tokens=prompt_tokens,
            steer=steer,
            force=force,
            chat=chat,
            capture_dtype=capture_dtype,
            offload=offload,
            stream_lens=stream_lens,
            lens=lens,
            norm=norm,
            track=track,
            on_event=told,
        )


@overload
def generate(  # type: ignore[overload-overlap]
    prompt: Prompt, max_new_tokens: int = ..., **options: Unpack[GenerationOptions]
) -> GeneratedText: ...
@overload
def generate(
    prompt: Sequence[Prompt], max_new_tokens: int = ..., **options: Unpack[GenerationOptions]
) -> list[GeneratedText]: ...
def generate(
    prompt: Prompt | Sequence[Prompt],
    max_new_tokens: int = 32,
    ignore_eos: bool = False,
    steer: Any = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool = False,
) -> Any:
    """Generate without capturing anything.

    Args:
        prompt: one or several, as for :func:`run`.
        max_new_tokens: upper limit, 1 or more.
        ignore_eos: continue past end tokens.
        steer: any number of steering terms (``vector * 1.5``), applied in order.
        temperature: 0 is greedy.
        top_p: above 0, at most 1: sample from the most probable tokens that make up this probability.
        seed: of the sampling, an integer of 64 bits; it gives the same tokens on any number of ranks (float32).
        chat: as for :func:`run`.

    Returns:
        A :class:`GeneratedText`: ``text``, ``output_ids``, ``timings`` (seconds, tokens per second), ``interrupted``; a list
        of them for several prompts.

    Raises:
        LensError: no model is loaded, or an argument is out of range.
        Interrupted: a KeyboardInterrupt whose ``result`` is the partial generation.
    """
    with watched(max_new_tokens) as told:
        return runs.generate(current(), prompt, max_new_tokens, temperature, top_p, seed, ignore_eos, steer, chat, told)


def train_tuned_lens(
    texts: Iterable[str],
    steps: int = 250,
    tokens_per_step: int = 1024,
    learning_rate: float = 1e-3,
    held_out: float = 0.1,
    seed: int = 0,
    on_event: OnEvent | None = None,
) -> TunedLens:
    """Train a tuned lens of the loaded model (Belrose et al. 2023, arXiv 2303.08112) by minimising KL(output ‖ lens).

    Translators start as the identity, which is the logit lens. The optimiser is Adam, with a learning rate that falls
    linearly to zero. Every token of every text has the same weight. The ranks share the work; apart from rounding, their
    number does not change the result.

    Args:
        texts: texts of the kind the lens will be used on; they are repeated as often as the steps need.
        steps: number of updates.
        tokens_per_step: about how many tokens each update learns from.
        learning_rate: at the first step.
        held_out: share of the texts that the lens is not trained but measured on (:attr:`TunedLens.divergences`).
        seed: of the texts' order, and so of which are held out.
        on_event: receives progress, ("training", step, steps) and ("measuring", batch, batches); by default a bar.

    Raises:
        LensError: no model is loaded, there are no texts, a number is out of range, or the ranks lack the memory; nothing
            was run.
        Interrupted: a KeyboardInterrupt whose ``result`` is the lens as trained by then, without measuring it.
    """
    from .tuning import train_tuned_lens

    with watched() if on_event is None else nullcontext(on_event) as told:
        return train_tuned_lens(current(), texts, steps, tokens_per_step, learning_rate, held_out, seed, told)
