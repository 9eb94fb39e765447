"""A published model's own weights and tokenizer, against plain transformers: what random weights may not show.

Trained weights have states a thousand times longer in some dimensions, a real vocabulary, and answers that are certain.
`tools/published.py` gets them; where they are not, these tests are skipped.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import once
import pytest
import reference as ref
import torch
from steered import Change, steered

import lens_magic as lens

FOLDER = Path(__file__).parent.parent / ".published"
NAMES = ("smollm2-135m", "gemma3-270m")  # the second, of 262,144 tokens, where somebody has asked for it
PROMPT = "The Eiffel Tower is in the city of Paris, and the Colosseum is in the city of"
QUESTION = "Where is the oldest technical university located in America?"
TOKENS = 8
# Among tens of thousands of tokens some are so near that float32 orders them otherwise; where it is wrong, a layer is so by
# hundreds of nats.
TOLERANCE = ref.Tolerance(tie=1e-3, kl=0.02)


@pytest.fixture(params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    if not (FOLDER / request.param).is_dir():
        pytest.skip(f"{request.param} is not here; `python tools/published.py {request.param}` gets it")
    return str(request.param)


@functools.cache
def greedy(name: str) -> tuple[list[int], list[int]]:
    """The prompt's tokens and those that follow."""
    model, tokenizer = once.plain(FOLDER / name)
    ids = tokenizer(PROMPT)["input_ids"]
    return ids, ref.generate_ids(model, ids, TOKENS)


@functools.cache
def some_layers(name: str) -> list[int]:
    last = ref.all_layers(once.plain(FOLDER / name)[0])[-1]
    return [0, 1, last // 2, last - 1, last]


@functools.cache
def reference(name: str) -> tuple[dict[str, np.ndarray], dict[str, torch.Tensor]]:
    (model, _), (prompt, output) = once.plain(FOLDER / name), greedy(name)
    ids, layers = [*prompt, *output], some_layers(name)
    return ref.lens(model, ids, len(prompt), layers=layers), ref.states(model, ids, len(prompt), layers=layers)


def test_equals_plain_transformers(name: str, ranks: int) -> None:
    once.load(FOLDER / name, ranks)
    run = lens.run(PROMPT, TOKENS, capture=ref.SITES, ignore_eos=True)

    assert (run.prompt_ids, run.output_ids) == greedy(name)
    table, states = reference(name)
    ref.compare(run.to_xarray(), table, TOLERANCE)
    for site, expected in states.items():
        got = run.activations(site, some_layers(name)).float()
        assert float((got - expected).norm() / expected.norm()) < 1e-5, site


def test_steering_equals_plain_transformers(name: str, ranks: int) -> None:
    """With α of the states' own length, from the first generated token on."""
    model, _ = once.plain(FOLDER / name)
    once.load(FOLDER / name, ranks)
    (prompt, unsteered), (*_, layer, _, last) = greedy(name), some_layers(name)
    v = torch.nn.functional.normalize(torch.randn(model.config.hidden_size, generator=torch.Generator().manual_seed(0)), dim=0)
    states = ref.states(model, [*prompt, *unsteered], len(prompt), ["resid_post"], [layer])["resid_post"]
    alpha = float(states.norm(dim=-1).median())
    term = lens.SteeringVector({layer: v}, {layer: 1.0}, "resid_post").steer(alpha, positions="generated")

    run = lens.run(PROMPT, TOKENS, layers=-1, capture=ref.SITES, ignore_eos=True, steer=term)

    assert run.output_ids != unsteered
    ids = [*prompt, *run.output_ids]
    with steered(model, [Change("resid_post", layer, v, lambda p: alpha if p >= 0 else None)], len(prompt)):
        assert run.output_ids == ref.output_logits(model, ids)[len(prompt) - 1 : -1].argmax(-1).tolist()
        table = ref.lens(model, ids, len(prompt), layers=[last])
    ref.compare(run.to_xarray(), table, TOLERANCE)


@pytest.mark.ranks(1)
def test_a_fact_comes_up_in_the_last_layers(name: str) -> None:
    """What the lens is for: before that, the answer is thousands of tokens away."""
    once.load(FOLDER / name, 1)
    run = lens.run("The Colosseum is in the city of", 1, capture="resid_post")

    assert run.text == " Rome"
    ranks = run.to_xarray().target_rank.squeeze().values
    assert ranks[-1] == 0
    assert ranks[: len(ranks) // 2].min() > 100


@pytest.mark.ranks(1)
def test_a_mean_over_texts_does_not_tell_of_their_length(name: str) -> None:
    """From some layer on the first token's state is a hundred times as long as the others, and has one direction."""
    once.load(FOLDER / name, 1)
    moods = [
        ("What a lovely day, the birds are singing!", "What a nasty day, it is raining again and everything is wet."),
        ("The party was a joy and everyone danced.", "The funeral was grim and nobody spoke."),
        ("She smiled and gave him a warm hug.", "He sobbed."),
        ("Our team won!", "Our team lost the match, the cup and the fans."),
        ("Good news: the cure works wonderfully.", "Bad news: it failed."),
        ("They laughed together under the stars all night.", "They wept alone in the cold."),
    ]
    pairs = [{"positive": glad, "negative": sad} for glad, sad in moods]
    middle = some_layers(name)[2]

    vector = lens.train_vector(pairs, layers=[middle], site="resid_post", position="mean")

    assert vector.quality[middle].pairs > 0.8  # of pairs that were held out
    assert vector.quality[middle].halves > 0.2
