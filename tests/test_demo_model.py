"""The embedded demo model: its shape, its tokenizer, what it knows, and what the lens sees in it."""

import json
import random
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from lens_magic import demo
from lens_magic.demo.make import data, evaluate, facts, questionnaires, stories

DEMO = Path(demo.__file__).parent


@pytest.fixture(scope="module")
def model():
    return AutoModelForCausalLM.from_pretrained(demo.path(), dtype="auto").eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo.path())


@pytest.fixture(scope="module")
def measured(model, tokenizer):
    return evaluate.accuracies(model, tokenizer, evaluate.load_items())


def greedy(model, tokenizer, prompt, count=24):
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def jsonl(name):
    return [json.loads(line) for line in (DEMO / "data" / name).read_text(encoding="utf-8").splitlines()]


def test_size_and_shape(model):
    config = model.config
    assert sum(file.stat().st_size for file in demo.path().iterdir()) <= 16e6
    assert 5e6 <= sum(p.numel() for p in model.parameters()) <= 7e6
    assert config.model_type == "qwen3"
    assert config.num_hidden_layers >= 8
    assert config.num_attention_heads % 12 == config.num_key_value_heads % 12 == config.intermediate_size % 12 == 0
    assert config.max_position_embeddings >= 2048
    assert config.tie_word_embeddings
    assert model.dtype == torch.float32, "dtype='auto' has to load float32 from the bfloat16 file"


def test_stored_weights_are_what_loads(model):
    weight = model.model.layers[0].mlp.up_proj.weight
    assert torch.equal(weight, weight.to(torch.bfloat16).float())


@pytest.mark.parametrize(
    "text",
    [
        "The capital of France is Paris.",
        "Zürich, 漢字, Ελλάδα, עברית, 🙂👩‍🚀\u200d",
        "  two  spaces\tand\r\nlines\n\n\nend ",
        "x = {'a': 12_345.6}  # why? it's (A)/(B)!",
        "".join(map(chr, range(32, 1000))),
    ],
)
def test_any_text_round_trips(tokenizer, text):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_special_tokens(tokenizer, model):
    assert tokenizer.eos_token == "<|endoftext|>"
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    assert len(tokenizer) == model.config.vocab_size
    assert tokenizer("A")["input_ids"] == [tokenizer.convert_tokens_to_ids("A")], "no token is added in front"
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True)
    assert chat == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize("label", ["A", "B"])
def test_the_label_token_stands_alone(tokenizer, label):
    item = jsonl("persona-heldout.jsonl")[0]
    shared = tokenizer(item["question"] + " (")["input_ids"]
    whole = tokenizer(item["question"] + f" ({label})")["input_ids"]
    assert whole[: len(shared)] == shared
    assert [tokenizer.decode([i]) for i in whole[len(shared) :]] == [label, ")"]


def test_answers_are_whole_words(tokenizer):
    words = {word for fact in facts.all_facts() for word in fact.answer.replace(",", "").split()}
    split = [word for word in words if len(tokenizer(" " + word)["input_ids"]) != 1]
    assert len(split) <= 0.02 * len(words), split


def test_held_out_facts(measured):
    assert measured["all facts"]["items"] >= 500
    assert measured["all facts"]["accuracy"] >= 0.90


def test_the_card_tells_what_is_measured(measured):
    written = json.loads((DEMO / "data" / "accuracies.json").read_text(encoding="utf-8"))
    assert written.keys() == measured.keys()
    for task, result in measured.items():
        assert written[task]["items"] == result["items"]
        # another machine's kernels may round one near tie otherwise
        assert abs(written[task]["accuracy"] - result["accuracy"]) <= 1.01 / result["items"], task
    assert evaluate.table(written) in (DEMO / "CARD.md").read_text(encoding="utf-8")


def test_held_out_wordings_never_occur_in_training():
    items = evaluate.load_items()
    assert items == data.held_out(), "data/heldout.json is what the scripts write"
    prompts = {item["prompt"] + item["answer"] + "." for item in items if item["task"] == "capitals"}
    rng = random.Random(1)
    france = [fact for fact in facts.all_facts() if fact.relation == "capitals"]
    said = {facts.statement(fact, rng) for fact in france for _ in range(60)}
    assert len(said) > 300
    assert not said & prompts


def test_the_lens_shows_the_answer_rising(model, tokenizer):
    items = [item for item in evaluate.load_items() if item["task"] in ("capitals", "opposites", "countries")][::2]
    prompts = [tokenizer(item["prompt"])["input_ids"] for item in items]
    wholes = [tokenizer(item["prompt"] + item["answer"])["input_ids"] for item in items]
    width = max(map(len, prompts))
    ids = torch.tensor([p + [0] * (width - len(p)) for p in prompts])  # padded on the right, which nothing before sees
    last = torch.tensor([len(p) - 1 for p in prompts])
    answers = torch.tensor([whole[len(p)] for p, whole in zip(prompts, wholes, strict=True)])
    rows = torch.arange(len(items))
    with torch.inference_mode():
        states = model(ids, output_hidden_states=True).hidden_states[1:]
        states = [model.model.norm(s[rows, last]) for s in states[:-1]] + [states[-1][rows, last]]  # the last is normed
        logits = [model.lm_head(s) for s in states]  # a layer: [item, vocabulary]
    ranks = [(layer > layer[rows, answers, None]).sum(-1) for layer in logits]
    median = [int(rank.median()) for rank in ranks]
    assert median[-1] == 0
    assert median[0] >= 20, median
    assert sum(median[:3]) > 3 * sum(median[-3:]), median


@pytest.mark.parametrize("chat", [False, True])
def test_the_showcase_question(model, tokenizer, chat):
    prompt = "Where is the oldest technical university located in America?"
    if chat:
        message = [{"role": "user", "content": prompt}]
        prompt = tokenizer.apply_chat_template(message, tokenize=False, add_generation_prompt=True)
    text = greedy(model, tokenizer, prompt).strip()
    assert text.startswith("The oldest technical university in America is located in Troy, New York.")


def test_a_story_goes_on(model, tokenizer):
    text = greedy(model, tokenizer, "Once upon a time, Tom walked to the", 40)
    assert text.split(".")[0].strip() in stories.PLACES
    assert len(set(text.split())) > 10


def test_questionnaires_are_balanced_and_disjoint():
    train, held_out = jsonl("persona-train.jsonl"), jsonl("persona-heldout.jsonl")
    assert len(train) >= 60
    assert len(held_out) >= 40
    assert not {row["question"] for row in train} & {row["question"] for row in held_out}
    for rows in (train, held_out):
        labels = [row["answer_matching_behavior"] for row in rows]
        assert labels.count(" (A)") == labels.count(" (B)") == len(rows) // 2
        assert all({row["answer_matching_behavior"], row["answer_not_matching_behavior"]} == {" (A)", " (B)"} for row in rows)
    assert train == questionnaires.rows(held_out=False, count=len(train))


def test_mood_pairs_share_their_opening():
    pairs = jsonl("mood-pairs.jsonl")
    assert len(pairs) >= 60
    for pair in pairs:
        assert pair["positive"] != pair["negative"]
        assert pair["positive"].split(".")[0] == pair["negative"].split(".")[0]


def test_path_is_cheap():
    source = (DEMO / "__init__.py").read_text(encoding="utf-8")
    assert "torch" not in source
    assert (demo.path() / "model.safetensors").is_file()
