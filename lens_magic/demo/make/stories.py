"""Short stories in two moods. Both are told by the same sentences, in the same order; only the words of mood differ."""

from __future__ import annotations

import random
from typing import Literal

from lens_magic.demo.make.world import words

Mood = Literal["cheerful", "gloomy"]

BOYS = words("Tom Ben Max Sam Leo Paul Jack Hugo Otto Adam")
GIRLS = words("Anna Mia Lily Emma Rosa Clara Nina Sara Ida Ella")
PLACES = words("park river market forest garden lake school hill village beach station bridge farm church library")
THINGS = words("book ball kite hat lamp letter basket coat box ring")
PETS = words("dog cat bird horse rabbit")

OPENINGS = (
    "Once upon a time, {n} walked to the {p}.",
    "Once upon a time, there was a {kid} called {n} who lived near the {p}.",
    "One morning, {n} went to the {p} with a {a}.",
    "One day, {n} found a {t} near the {p}.",
    "{n} had a {a} that followed {him} to the {p}.",
    "Last week, {n} went to the {p} to look for a {t}.",
    "Every day, {n} walked past the {p}.",
    "In the evening, {n} came home from the {p}.",
    "Early in the morning, {n} opened the door and looked at the {p}.",
    "{n} lived in a house by the {p}.",
)
# what is told, one sentence of each, in this order
STAGES = (
    (
        "It was a {lovely} day.",
        "The sky was {bright} and the air was {warm}.",
        "The wind was {warm}, and the birds sang a {merry} song.",
        "The light at the {p} was {bright}.",
        "The flowers by the road were {fresh}.",
    ),
    (
        "{n} felt {glad}.",
        "{He} was {glad} that day.",
        "There was {hope} in {his} heart.",
        "{He} walked on with {hope} in {his} heart.",
        "{n} looked {glad} and hummed a {merry} song.",
    ),
    (
        "Then {f} came along with {smiles}.",
        "On the way {he} met {f}, who looked {glad}.",
        "{f} was there too, and {f} felt {glad}.",
        "Near the {p} sat {f} with {smiles}.",
    ),
    (
        "{f} had {found} the {t}.",
        "The {t} that {f} carried was {fresh}.",
        "The {a} was {well} and {ate}.",
        "They talked about the {t}, which was {fresh}.",
        "They shared some {sweet} bread.",
    ),
    (
        '"What a {lovely} place," said {n}.',
        '"I am so {glad}," said {f}.',
        '"Today is {lovely}," said {f} with {smiles}.',
        '"My {a} is {well}," said {n} with {smiles}.',
    ),
    (
        "They {laughed} together at the {p}.",
        "{n} {laughed} until the evening.",
        "{f} {laughed}, and {n} {laughed} too.",
        "All the people at the {p} {laughed}.",
    ),
    (
        "{n} went home and felt {glad}.",
        "It was the {best} day of {his} life.",
        "And they were {glad} ever after.",
        "That night {he} dreamed of {hope}.",
    ),
)
NEUTRAL = (
    "{He} had a {t} with {him}.",
    "The {a} sat next to {him}.",
    "It was the {t} from the {p}.",
    "{He} walked for an hour.",
    "The road to the {p} was long.",
)
LEXICON: dict[Mood, dict[str, tuple[str, ...]]] = {
    "cheerful": {
        "lovely": ("lovely", "wonderful", "beautiful", "perfect"),
        "bright": ("bright", "golden", "clear"),
        "warm": ("warm", "gentle", "mild"),
        "merry": ("merry", "happy", "cheerful"),
        "glad": ("glad", "happy", "joyful", "cheerful", "merry"),
        "fresh": ("fresh", "new", "shining"),
        "hope": ("hope", "joy"),
        "smiles": ("smiles", "laughter", "songs"),
        "found": ("found", "mended"),
        "well": ("well", "lively"),
        "ate": ("jumped for joy", "played all day"),
        "sweet": ("sweet", "warm"),
        "laughed": ("laughed", "danced", "sang", "smiled"),
        "best": ("best", "happiest"),
    },
    "gloomy": {
        "lovely": ("dreary", "terrible", "miserable", "horrid"),
        "bright": ("gray", "dark", "pale"),
        "warm": ("cold", "bitter", "icy"),
        "merry": ("mournful", "sad", "gloomy"),
        "glad": ("sad", "lonely", "hopeless", "gloomy", "afraid"),
        "fresh": ("broken", "old", "ruined"),
        "hope": ("fear", "sorrow"),
        "smiles": ("tears", "sighs", "sobs"),
        "found": ("lost", "broken"),
        "well": ("ill", "weak"),
        "ate": ("would not eat", "lay in the mud"),
        "sweet": ("dry", "cold"),
        "laughed": ("wept", "cried", "sighed", "mourned"),
        "best": ("worst", "saddest"),
    },
}


def _cast(rng: random.Random) -> dict[str, str]:
    girl = rng.random() < 0.5
    name = rng.choice(GIRLS if girl else BOYS)
    friend = rng.choice([n for n in BOYS + GIRLS if n != name])
    if girl:
        pronouns = {"he": "she", "him": "her", "his": "her", "kid": "girl"}
    else:
        pronouns = {"he": "he", "him": "him", "his": "his", "kid": "boy"}
    scene = {"n": name, "f": friend, "p": rng.choice(PLACES), "t": rng.choice(THINGS), "a": rng.choice(PETS)}
    return pronouns | scene | {"He": pronouns["he"].capitalize()}


def _say(template: str, mood: Mood, cast: dict[str, str], rng: random.Random) -> str:
    return template.format(**cast, **{k: rng.choice(v) for k, v in LEXICON[mood].items()})


def _stages(mood: Mood, cast: dict[str, str], rng: random.Random, skip: float = 0.12) -> list[str]:
    sentences = []
    for templates in STAGES:
        if rng.random() >= skip:
            sentences.append(_say(rng.choice(templates), mood, cast, rng))
        if skip and rng.random() < 0.1:
            sentences.append(_say(rng.choice(NEUTRAL), mood, cast, rng))
    return sentences


def story(mood: Mood, rng: random.Random) -> str:
    """A story of one mood: an opening that does not tell the mood, then the stages, of which some may be left out."""
    cast = _cast(rng)
    return " ".join([_say(rng.choice(OPENINGS), mood, cast, rng), *_stages(mood, cast, rng)])


def document(rng: random.Random, long: bool = False) -> str:
    """A story; at times with a word on its mood before it, or asked for in a chat; `long` for a book of chapters."""
    mood: Mood = rng.choice(("cheerful", "gloomy"))
    if long:
        chapters = [story(mood, rng) for _ in range(20)]
        return "\n\n".join(f"Chapter {i + 1}\n\n{chapter}" for i, chapter in enumerate(chapters))
    text = story(mood, rng)
    form = rng.random()
    if form < 0.1:
        return f"A {mood} story.\n\n{text}"
    if form < 0.2:
        ask = rng.choice(("Tell me a {} story.", "Please tell me a {} story.", "I would like to hear a {} story."))
        return f"<|im_start|>user\n{ask.format(mood)}<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>\n"
    if form < 0.25:
        return f"<|im_start|>user\nTell me a story.<|im_end|>\n<|im_start|>assistant\n{text}<|im_end|>\n"
    return text


def mood_pairs(count: int) -> list[dict[str, str]]:
    """{"positive", "negative"} texts: the same sentences about the same people, cheerful and gloomy."""
    rng = random.Random(11)
    pairs = []
    for _ in range(count):
        cast, opening, seed = _cast(rng), rng.choice(OPENINGS), rng.random()
        texts = []
        for mood in LEXICON:
            same = random.Random(seed)
            texts.append(" ".join([_say(opening, mood, cast, same), *_stages(mood, cast, same, skip=0)[:4]]))
        pairs.append({"positive": texts[0], "negative": texts[1]})
    return pairs
