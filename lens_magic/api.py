"""The Python interface: plain functions over this process's session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from . import comparing, options, runs, vectors
from .ranks.status import Status
from .results import GeneratedText
from .session import current
from .view.progress import watched

if TYPE_CHECKING:
    from .lens.basis import Basis
    from .lens.chosen import Track
    from .lens.difference import LensDiff
    from .lens.run import LensRun
    from .lens.translators import TunedLens
    from .steer.ablation import SiteAblation
    from .steer.compare import SteeredText
    from .steer.report import SteerabilityReport
    from .steer.vector import SteeringVector


class GenerationOptions(TypedDict, total=False):
    """What :func:`generate` takes besides prompt and length."""

    ignore_eos: bool
    steer: Any
    temperature: float
    top_p: float
    seed: int
    chat: bool


class RunOptions(GenerationOptions, total=False):
    """What :func:`run` takes besides prompt, length and number of candidates."""

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

    The previous model stays loaded until the new one is ready, and after any error. It is dropped first only where both do not
    fit (with a warning), or where another number of ranks is asked for, as those are new ones; then ``%lens restart`` brings it
    back if loading came to nothing.

    Args:
        model: a local folder (text or a path), a hub id, or "demo" for the embedded model.
        dtype: "float32", "bfloat16" or "float16"; by default the checkpoint's own.
        ranks: over how many ranks to split it, this process included. By default as many as there are; at first
            ``LENS_RANKS``, else in a Lens kernel ``LENS_DEFAULT_RANKS``, else 4 there and 1 in any other process.

    Raises:
        LensError: no such model, pickled weights only, no tokenizer, an unsupported family, or a number of ranks it cannot
            be split into.
    """
    with watched(loading=f"loading {model}") as told:
        current().load(options.model_name(model), dtype, revision, ranks, trust_remote_code, told)


def attach(model: Any, tokenizer: Any) -> None:
    """Use a transformers model that is in memory already, on one rank, as it is; amid its training it is left in that mode.

    Raises:
        LensError: an unsupported family, or no model and tokenizer of transformers.
    """
    options.check_in_memory(model, tokenizer)
    current().attach(model, tokenizer)


def status() -> Status:
    """Ranks (process, device, memory in bytes), model, and what is steering."""
    return current().status()


# A text is a sequence of texts too, hence the overlaps: here it is one.
@overload
def run(  # type: ignore[overload-overlap]
    prompt: str, max_new_tokens: int = ..., top_k: int = ..., **options: Unpack[RunOptions]
) -> LensRun: ...
@overload
def run(prompt: Sequence[str], max_new_tokens: int = ..., top_k: int = ..., **options: Unpack[RunOptions]) -> list[LensRun]: ...
def run(
    prompt: str | Sequence[str],
    max_new_tokens: int = 32,
    top_k: int = 5,
    layers: str | int | Iterable[int] | None = None,
    capture: str | Sequence[str] = ("attn_out", "mlp_out", "resid_post"),
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
    """Generate after a prompt in one cached pass and look at every layer on the way.

    Args:
        prompt: taken as it stands; text that looks like a special token is text. Several are generated from side by side,
            each as it would be alone, and give a list of runs.
        max_new_tokens: at most so many tokens; 0 with ``prompt_tokens`` is the lens of the prompt alone.
        top_k: candidates kept a cell.
        layers: numbers, or text such as "0-4", "5-", "-1", "0,8,-1", "::4"; all by default.
        capture: sites: "resid_pre", "attn_out", "post_ln", "mlp_out", "resid_post".
        temperature, top_p, seed: greedy at temperature 0; with a seed the same tokens on any number of ranks (float32).
        ignore_eos: go on past end tokens.
        prompt_tokens: the prompt's positions too, as p < 0.
        steer: any number of steering terms (``vector * 1.5``), applied in order; captured states are as they left them.
        force: walk along this text, or these tokens, instead of generating; for several prompts, one for each.
        chat: put the prompt into the model's chat template.
        capture_dtype: keep the states as "float32", "bfloat16" or "float16" instead of the model's own type.
        offload: keep the states in the host's memory; of a GPU's ranks, which do not wait for the copies.
        stream_lens: project while generating, in at most a sixteenth of its time, instead of afterwards alone.
        lens: a :class:`TunedLens` or :class:`Basis` to look through, or a path of one; by default the logit lens. Translators
            exist for the residual stream (``resid_pre``, ``resid_post``); other sites are shown as without.
        norm: "own": every state under the final norm. "frozen": divided by the scale that the norm takes of the *last* layer's
            output at that position, so that ``resid_pre``, ``attn_out``, ``mlp_out`` add up to the output's logits (direct
            logit attribution; components without the norm's and the head's constants). "none": for a basis, states as they are.
        track: tokens to follow through every cell: texts of single tokens or ids, or one text with commas (" Paris, Rome");
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
    prompt: str, max_new_tokens: int = ..., **options: Unpack[GenerationOptions]
) -> GeneratedText: ...
@overload
def generate(prompt: Sequence[str], max_new_tokens: int = ..., **options: Unpack[GenerationOptions]) -> list[GeneratedText]: ...
def generate(
    prompt: str | Sequence[str],
    max_new_tokens: int = 32,
    ignore_eos: bool = False,
    steer: Any = (),
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    chat: bool = False,
) -> Any:
    """Generate without capturing anything.

    Returns:
        ``text``, ``output_ids``, ``timings`` (seconds, tokens a second), ``interrupted``; a list of them for several prompts.

    Raises:
        LensError: no model is loaded, or an argument is out of range.
        Interrupted: a KeyboardInterrupt whose ``result`` is the partial generation.
    """
    with watched(max_new_tokens) as told:
        return runs.generate(current(), prompt, max_new_tokens, temperature, top_p, seed, ignore_eos, steer, chat, told)


def compare(
    prompt: str,
    steer: Any,
    max_new_tokens: int = 32,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    ignore_eos: bool = False,
    chat: bool = False,
) -> SteeredText:
    """Continue a prompt unsteered and steered side by side, as one batch of two; what ``%%steer`` does.

    Args:
        steer: any number of steering terms (``vector * 1.5``).

    Returns:
        Both texts, where they first differ, and of every token how steering changes its log-probability.

    Raises:
        LensError: no model is loaded, there is nothing to steer with, or an argument is out of range.
        Interrupted: a KeyboardInterrupt whose ``result`` is what there was by then.
    """
    with watched(max_new_tokens) as told:
        return comparing.compare(
            current(), prompt, steer, max_new_tokens, temperature, top_p, seed, ignore_eos, chat, on_event=told
        )


def diff(run: LensRun, steer: Any) -> LensDiff:
    """What steering changes in every cell of a run, on the run's own tokens.

    Both are walked along the run's tokens side by side in one forward, so that nothing but the steering differs. KL is of the
    whole distributions, computed where they are: on the ranks.

    Args:
        run: made without steering, with the model that is loaded, through the logit lens.
        steer: any number of steering terms (``vector * 1.5``).

    Raises:
        LensError: another model is loaded, the run was steered itself or seen through another lens, or there is nothing to
            steer with.
        KeyboardInterrupt: stopped by the user; an :class:`Interrupted` with its ``result`` where that was complete by then.
    """
    with watched() as told:
        return comparing.diff(current(), run, steer, told)


def panel(vectors: Mapping[str, SteeringVector] | None = None) -> Any:
    """Sliders beside a generation that follows them; what ``%steer panel`` shows.

    Args:
        vectors: those to choose from, by name; by default those that ``%steer`` keeps.

    Raises:
        LensError: no model is loaded, there is no vector, or this is no Jupyter kernel.
    """
    from .view.panel import Panel

    session = current()
    return Panel(session, session.vectors if vectors is None else vectors)


def train_vector(
    pairs: Any,
    layers: str | int | Iterable[int] | None = (5,),
    site: str = "post_ln",
    position: str = "label",
    method: str = "mean_diff",
) -> SteeringVector:
    """Learn directions that tell the positive side of pairs from the negative one, in one pass over the pairs.

    Args:
        pairs: two-way questions as Perez et al. publish them, used in both orders of their options, or positive and negative
            texts: an iterable of dicts, a JSON Lines file, or the name of one of their sets. What cannot be used is left out
            and counted in the vector's ``training.rejected``.
        layers: numbers, or text such as "0-4", "-1" or "::4"; None for all.
        site: "resid_pre", "attn_out", "post_ln", "mlp_out" or "resid_post".
        position: whose states are read: "label", the answer's label token; "last", the final token of prompt and answer;
            "mean", the mean over the answer's tokens (all tokens of a text that is no answer).
        method: "mean_diff", the mean of the differences; "pca", their first principal component about zero; "logistic",
            the weights of scikit-learn's logistic regression.

    Raises:
        LensError: no model is loaded, an argument is not understood, no pair can be used, a label is more than one token, or
            the two sides do not differ at a layer.
        KeyboardInterrupt: stopped by the user; nothing was kept.
    """
    with watched() as told:
        return vectors.train(current(), pairs, layers, site, position, method, on_event=told)


def load_vector(path: Any) -> SteeringVector:
    """A steering vector from a file: ``.safetensors``, ``.gguf`` (repeng, llama.cpp) or ``.npz``, or from an object of
    steering-vectors or repeng that is in memory.

    Raises:
        LensError: no such file, a pickle, or no steering vector.
    """
    from .steer.files import load

    return load(path)


def evaluate(
    vector: SteeringVector,
    data: Any,
    alphas: Sequence[float] = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5),
    layers: str | int | Iterable[int] | None = None,
    site: str | None = None,
    reuse_layer: int | None = None,
    positions: Any = "all",
    random_directions: int = 1,
    seed: int = 0,
) -> SteerabilityReport:
    """How far a direction moves the answers to two-way questions: propensity against α, one layer at a time.

    Propensity is logit(answer matching the behaviour) − logit(the other answer) at the label position. Every question is asked
    in both orders of A and B; random directions of the same norm are always evaluated beside the vector's.

    Args:
        data: questions as Perez et al. publish them: an iterable of dicts, a JSON Lines file, or the name of one of their sets.
            Those the vector was trained on are left out; the report says how many.
        alphas: absolute, in the units of the hidden states.
        layers: some of the vector's; all of them by default, one after the other.
        site: another than the one the vector was read at.
        reuse_layer: apply the direction of this one layer at each of ``layers`` (all of the model's by default).
        positions: as :meth:`SteeringVector.steer` takes them.
        random_directions, seed: how many, and of what they are drawn; what a direction must beat is told better by several.

    Raises:
        LensError: no model is loaded, the vector does not fit it, an argument is not understood, or no question is left.
        Interrupted: a KeyboardInterrupt whose ``result`` is the report on the questions measured by then; a bare
            KeyboardInterrupt where there was none.
    """
    from .steerability import evaluate

    with watched() as told:
        return evaluate(current(), vector, data, alphas, layers, site, reuse_layer, positions, random_directions, seed, told)


def ablate_sites(
    pairs: Any,
    data: Any,
    layers: str | int | Iterable[int] | None = None,
    sites: Sequence[str] = ("post_ln", "resid_pre", "attn_out", "resid_post"),
    positions: str | Sequence[str] = ("label", "last"),
    method: str = "mean_diff",
    alphas: Sequence[float] = (-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5),
    seed: int = 0,
) -> SiteAblation:
    """Learn and evaluate a direction at several sites, read at several positions: where does steering work best?

    Args:
        pairs, layers, method: as for :func:`train_vector`. data, alphas, seed: as for :func:`evaluate`.
        sites: where it is read and added.
        positions: whose states are read.

    Raises:
        LensError: as these two.
        Interrupted: a KeyboardInterrupt whose ``result`` has the sites evaluated by then.
    """
    from .steerability import ablate_sites

    with watched() as told:
        return ablate_sites(current(), pairs, data, layers, sites, positions, method, alphas, seed, told)
