"""The Python interface: plain functions over this process's session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, overload

from . import comparing, options, runs, vectors
from .model.anatomy import DEFAULT_SITES
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
    prompt: str, max_new_tokens: int = ..., top_k: int = ..., **options: Unpack[RunOptions]
) -> LensRun: ...
@overload
def run(prompt: Sequence[str], max_new_tokens: int = ..., top_k: int = ..., **options: Unpack[RunOptions]) -> list[LensRun]: ...
def run(
    prompt: str | Sequence[str],
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
        prompt: used verbatim; text that looks like a special token stays text. Several prompts run as one batch, each with
            the result it would have alone, and give a list of runs.
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
        chat: put the prompt into the model's chat template.
        capture_dtype: keep the states as "float32", "bfloat16" or "float16" instead of the model's own type.
        offload: keep a GPU's captured states in the host's memory; ranks do not wait for the copies.
        stream_lens: project rows while generating, in at most a sixteenth of the time; the remaining rows follow afterwards.
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

    Args:
        prompt: used verbatim, or several, as for :func:`run`.
        max_new_tokens: upper limit, 1 or more.
        ignore_eos: continue past end tokens.
        steer: any number of steering terms (``vector * 1.5``), applied in order.
        temperature: 0 is greedy.
        top_p: above 0, at most 1: sample from the most probable tokens that make up this probability.
        seed: of the sampling, an integer of 64 bits; it gives the same tokens on any number of ranks (float32).
        chat: put the prompt into the model's chat template.

    Returns:
        A :class:`GeneratedText`: ``text``, ``output_ids``, ``timings`` (seconds, tokens per second), ``interrupted``; a list
        of them for several prompts.

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
    """Continue a prompt unsteered and steered, as one batch of two. ``%%steer`` does the same.

    Args:
        prompt: one text, used verbatim.
        steer: any number of steering terms (``vector * 1.5``), applied in order.
        max_new_tokens: upper limit for each of the two texts, 1 or more.
        temperature, top_p, seed, ignore_eos, chat: as for :func:`generate`; both texts are sampled with the same seed.

    Returns:
        Both texts, where they first differ, and for every token how steering changes its log-probability.

    Raises:
        LensError: no model is loaded, there is nothing to steer with, or an argument is out of range.
        Interrupted: a KeyboardInterrupt whose ``result`` is the comparison as far as it got.
    """
    with watched(max_new_tokens) as told:
        return comparing.compare(
            current(), prompt, steer, max_new_tokens, temperature, top_p, seed, ignore_eos, chat, on_event=told
        )


def diff(run: LensRun, steer: Any) -> LensDiff:
    """Compare a run with itself under steering, cell by cell, on the run's own tokens.

    The model reads the tokens unsteered and steered in one forward pass, so that nothing but the steering differs. KL is over
    the whole vocabulary and computed on the ranks, which hold the logits.

    Args:
        run: a run of the loaded model, without steering and through the logit lens.
        steer: any number of steering terms (``vector * 1.5``).

    Raises:
        LensError: another model is loaded, the run was steered or made through another lens, or there is nothing to steer
            with.
        KeyboardInterrupt: stopped by the user; if the comparison was already complete, an :class:`Interrupted` with it as
            ``result``.
    """
    with watched() as told:
        return comparing.diff(current(), run, steer, told)


def panel(vectors: Mapping[str, SteeringVector] | Iterable[SteeringVector] | SteeringVector | None = None) -> Any:
    """Return a panel of sliders beside a generation that follows them, as ``%steer panel`` does.

    Args:
        vectors: the vectors to choose from, by name; or one, or several, by their own names. By default those that ``%steer``
            keeps.

    Raises:
        LensError: no model is loaded, there is no vector, something else is among them, or this is not a Jupyter kernel.
    """
    from .steer_panel import Panel

    session = current()
    return Panel(session, session.vectors if vectors is None else vectors)


def train_vector(
    pairs: Any,
    layers: str | int | Iterable[int] | None = (5,),
    site: str = "post_ln",
    position: str = "label",
    method: str = "mean_diff",
) -> SteeringVector:
    """Learn a direction per layer that separates the positive from the negative side of pairs, in one pass over the pairs.

    Args:
        pairs: two-way questions as Perez et al. publish them, used in both orders of their options, or positive and negative
            texts: an iterable of dicts, a JSON Lines file, or the name of a set, theirs ("power-seeking") or the demo model's
            ("demo/mood-pairs"). Unusable items are left out and counted in the vector's ``training.rejected``.
        layers: numbers, or text such as "0-4", "-1" or "::4"; None for all.
        site: "resid_pre", "attn_out", "post_ln", "mlp_out" or "resid_post".
        position: where states are read: "label", at the answer's label token; "last", at the final token of prompt and
            answer; "mean", the mean over the answer's tokens (of a plain text, over all tokens).
        method: "mean_diff", the mean of the differences; "pca", the first principal component of the items' without centring;
            "logistic", the weights of scikit-learn's logistic regression.

    Raises:
        LensError: no model is loaded, an argument is invalid, no pair can be used, a label is more than one token, or the
            two sides do not differ at a layer.
        KeyboardInterrupt: stopped by the user; nothing was kept.
    """
    with watched() as told:
        return vectors.train(current(), pairs, layers, site, position, method, on_event=told)


def load_vector(path: Any) -> SteeringVector:
    """Load a steering vector from a file: ``.safetensors``, ``.gguf`` (repeng, llama.cpp) or ``.npz``.

    An object of steering-vectors or repeng that is in memory can be given instead of a path.

    Raises:
        LensError: the file does not exist, is a pickle, or holds no steering vector.
    """
    from .steer.files import load

    return load(path)


def evaluate(
    vector: SteeringVector,
    data: Any,
    alphas: str | Sequence[float] = options.ALPHAS,
    layers: str | int | Iterable[int] | None = None,
    site: str | None = None,
    reuse_layer: int | None = None,
    positions: Any = "all",
    random_directions: int = 1,
    seed: int = 0,
) -> SteerabilityReport:
    """Measure how far a direction moves the answers to two-way questions: propensity against α, one layer at a time.

    Propensity is logit(answer matching the behaviour) − logit(the other answer) at the label position. Every question is asked
    in both orders of A and B. Random directions of the same norm are always evaluated for comparison.

    Args:
        data: two-way questions, from where :func:`train_vector` takes pairs. Questions the vector was trained on are left out;
            the report says how many.
        alphas: absolute, in the units of the hidden states; or text such as "-1.5:1.5:0.5" or "-1,0,1".
        layers: layers of the vector to measure, one at a time; by default all of them.
        site: where to add the direction; by default the site the vector was read at.
        reuse_layer: apply the direction of this one layer at each of ``layers`` (by default all of the model's).
        positions: as in :meth:`SteeringVector.steer`.
        random_directions, seed: number of random directions, and the seed they are drawn with. With more of them, less steep
            a slope is told from theirs (``p_against_random``).

    Raises:
        LensError: no model is loaded, the vector does not fit it, an argument is invalid, or no question is left.
        Interrupted: a KeyboardInterrupt whose ``result`` is the report on the questions measured by then; a plain
            KeyboardInterrupt if there were none.
    """
    from .steerability import evaluate

    with watched() as told:
        return evaluate(current(), vector, data, alphas, layers, site, reuse_layer, positions, random_directions, seed, told)


def ablate_sites(
    pairs: Any,
    data: Any,
    layers: str | int | Iterable[int] | None = None,
    sites: Sequence[str] = options.ABLATED_SITES,
    positions: str | Sequence[str] = ("label", "last"),
    method: str = "mean_diff",
    alphas: str | Sequence[float] = options.ALPHAS,
    seed: int = 0,
) -> SiteAblation:
    """Learn and evaluate a direction at several sites and reading positions, to find where steering works best.

    Args:
        pairs, layers, method: as for :func:`train_vector`. data, alphas, seed: as for :func:`evaluate`.
        sites: where the direction is read and added.
        positions: where states are read, as ``position`` of :func:`train_vector`.

    Raises:
        LensError: as for these two functions.
        Interrupted: a KeyboardInterrupt whose ``result`` has the sites evaluated by then.
    """
    from .steerability import ablate_sites

    with watched() as told:
        return ablate_sites(current(), pairs, data, layers, sites, positions, method, alphas, seed, told)
