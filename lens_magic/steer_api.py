"""The Python interface to steering: plain functions over this process's session."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from . import comparing, options, vectors
from .session import current
from .view.progress import watched

if TYPE_CHECKING:
    from .lens.difference import LensDiff
    from .lens.run import LensRun
    from .prompts import Prompt
    from .steer.ablation import SiteAblation
    from .steer.compare import SteeredText
    from .steer.report import SteerabilityReport
    from .steer.vector import SteeringVector


def compare(
    prompt: Prompt,
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
        prompt: one, as for :func:`run`.
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
    chat: bool = False,
    name: str = "vector",
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
        chat: put questions and texts into the model's chat template, as the user's message, and answers as the assistant's.
        name: what messages, records and ``%steer`` call it.

    Raises:
        LensError: no model is loaded, an argument is invalid, no pair can be used, a label is more than one token, or the
            two sides do not differ at a layer.
        KeyboardInterrupt: stopped by the user; nothing was kept.
    """
    with watched() as told:
        called = vectors.check_name(str(name))
        return vectors.train(current(), pairs, layers, site, position, method, called, told, chat=chat)


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
    chat: bool | None = None,
    unit: str = options.UNITS[0],
) -> SteerabilityReport:
    """Measure how far a direction moves the answers to two-way questions: propensity against α, one layer at a time.

    Propensity is logit(answer matching the behaviour) − logit(the other answer) at the label position. Every question is asked
    in both orders of A and B. Random directions of the same norm are always evaluated for comparison.

    Args:
        data: two-way questions, from where :func:`train_vector` takes pairs. Questions the vector was trained on are left out;
            the report says how many.
        alphas: in ``unit``; or text such as "-1.5:1.5:0.5" or "-1,0,1".
        layers: layers of the vector to measure, one at a time; by default all of them.
        site: where to add the direction; by default the site the vector was read at.
        reuse_layer: apply the direction of this one layer at each of ``layers`` (by default all of the model's).
        positions: as in :meth:`SteeringVector.steer`.
        random_directions, seed: number of random directions, and the seed they are drawn with. With more of them, less steep
            a slope is told from theirs (``p_against_random``).
        chat: ask the questions in the model's chat template; by default as the vector was learnt.
        unit: of α: "absolute", that of the hidden states; "norm", the length of what was learnt at each layer, which makes
            layers comparable whose states are of very different length.

    Raises:
        LensError: no model is loaded, the vector does not fit it, an argument is invalid, or no question is left.
        Interrupted: a KeyboardInterrupt whose ``result`` is the report on the questions measured by then; a plain
            KeyboardInterrupt if there were none.
    """
    from .steerability import evaluate

    with watched() as told:
        return evaluate(
            current(), vector, data, alphas, layers, site, reuse_layer, positions, random_directions, seed, told, chat, unit
        )


def ablate_sites(
    pairs: Any,
    data: Any,
    layers: str | int | Iterable[int] | None = None,
    sites: Sequence[str] = options.ABLATED_SITES,
    positions: str | Sequence[str] = ("label", "last"),
    method: str = "mean_diff",
    alphas: str | Sequence[float] = options.ALPHAS,
    seed: int = 0,
    chat: bool = False,
    unit: str = options.UNITS[0],
) -> SiteAblation:
    """Learn and evaluate a direction at several sites and reading positions, to find where steering works best.

    Args:
        pairs, layers, method, chat: as for :func:`train_vector`. data, alphas, seed, unit: as for
            :func:`evaluate`.
        sites: where the direction is read and added.
        positions: where states are read, as ``position`` of :func:`train_vector`.

    Raises:
        LensError: as for these two functions.
        Interrupted: a KeyboardInterrupt whose ``result`` has the sites evaluated by then.
    """
    from .steerability import ablate_sites

    with watched() as told:
        return ablate_sites(current(), pairs, data, layers, sites, positions, method, alphas, seed, told, chat, unit)
