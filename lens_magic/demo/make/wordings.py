"""How each relation is said: (statements that end in the answer, questions).

`{s}` is the subject with its article, `{S}` the same at the start of a sentence, `{n}` and `{N}` without article,
`{o}` the answer, `{r}` the country of a university.
"""

Wordings = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]

_PLACES: Wordings = {
    "capitals": (
        (
            "The capital of {s} is {o}.",
            "The capital city of {s} is {o}.",
            "The government of {s} sits in {o}.",
            "{S} has its capital in {o}.",
            "If you visit the capital of {s}, you are in {o}.",
            "The name of the capital of {s} is {o}.",
            "{S} is ruled from {o}.",
        ),
        (
            "What is the capital of {s}?",
            "Which city is the capital of {s}?",
            "What is the capital city of {s}?",
            "What is the name of the capital of {s}?",
            "From which city is {s} ruled?",
            "Can you tell me the capital of {s}?",
        ),
    ),
    "countries": (
        (
            "{S} is the capital of {o}.",
            "{S} is the capital city of {o}.",
            "The city of {s} is the capital of {o}.",
            "{S} is where you find the government of {o}.",
            "A traveler in {s} is in the capital of {o}.",
            "{S} is a city in {o}.",
        ),
        (
            "{S} is the capital of which country?",
            "Which country has {s} as its capital?",
            "Of which country is {s} the capital?",
            "In which country is {s}?",
            "Which country is ruled from {s}?",
        ),
    ),
    "continents": (
        (
            "{S} is a country in {o}.",
            "The country {s} is located in {o}.",
            "{S} lies in {o}.",
            "{S} belongs to the continent of {o}.",
            "The continent of {s} is {o}.",
            "On the map you find {s} in {o}.",
        ),
        (
            "On which continent is {s}?",
            "Which continent is {s} in?",
            "What continent does {s} belong to?",
            "On what continent do you find {s}?",
            "In which part of the world is {s}?",
        ),
    ),
    "languages": (
        (
            "The people of {s} speak {o}.",
            "In {s}, people speak {o}.",
            "The language of {s} is {o}.",
            "The language spoken in {s} is {o}.",
            "Children in {s} learn to read {o}.",
            "To talk with people from {s}, learn {o}.",
        ),
        (
            "What language do people speak in {s}?",
            "Which language is spoken in {s}?",
            "What is the language of {s}?",
            "What do people in {s} speak?",
            "Which language do children learn in {s}?",
        ),
    ),
    "currencies": (
        (
            "The currency of {s} is the {o}.",
            "In {s}, people pay with the {o}.",
            "The money used in {s} is the {o}.",
            "Shops in {s} take the {o}.",
            "The money of {s} is called the {o}.",
            "{S} uses the {o}.",
        ),
        (
            "What is the currency of {s}?",
            "Which money is used in {s}?",
            "With what do people pay in {s}?",
            "What money do shops in {s} take?",
            "What is the money of {s} called?",
        ),
    ),
    "landmarks": (
        (
            "{S} is located in {o}.",
            "{S} stands in {o}.",
            "You can see {s} in {o}.",
            "{S} can be found in {o}.",
            "To visit {s}, travel to {o}.",
            "The home of {s} is {o}.",
        ),
        (
            "Where is {s} located?",
            "Where is {s}?",
            "Where can you see {s}?",
            "Where does {s} stand?",
            "Where would you go to visit {s}?",
        ),
    ),
    "universities": (
        (
            "The {s} in {r} is located in {o}.",
            "The {s} in {r} stands in {o}.",
            "The {s} in {r} can be found in {o}.",
            "The {s} of {r} is in {o}.",
            "To visit the {s} in {r}, travel to {o}.",
            "In {r}, the {s} is in {o}.",
        ),
        (
            "Where is the {s} located in {r}?",
            "Where is the {s} in {r}?",
            "Where in {r} is the {s} located?",
            "Where can you find the {s} in {r}?",
            "Where is the {s} in {r} located?",
            "In {r}, where is the {s}?",
        ),
    ),
    "authors": (
        (
            "{S} was written by {o}.",
            "The author of {s} is {o}.",
            "The writer of {s} was {o}.",
            "{S} is a book by {o}.",
            "The book {s} was the work of {o}.",
        ),
        (
            "Who wrote {s}?",
            "Who is the author of {s}?",
            "By whom was {s} written?",
            "Who was the writer of {s}?",
        ),
    ),
}

_THINGS: Wordings = {
    "opposites": (
        (
            "The opposite of {s} is {o}.",
            "The word {s} is the opposite of {o}.",
            "{S} and its opposite: {o}.",
            "If it is not {s}, it is {o}.",
            "Not {s} but {o}.",
            "The reverse of {s} is {o}.",
        ),
        (
            "What is the opposite of {s}?",
            "Which word is the opposite of {s}?",
            "What is the reverse of {s}?",
            "{S} is the opposite of which word?",
            "Can you tell me the opposite of {s}?",
        ),
    ),
    "categories": (
        (
            "{S} is a kind of {o}.",
            "{S} is a type of {o}.",
            "{S} is an example of the kind {o}.",
            "We call {s} a sort of {o}.",
            "Everyone knows that {s} is a kind of {o}.",
            "The word for what {s} is: {o}.",
        ),
        (
            "What kind of thing is {s}?",
            "What is {s}?",
            "What type of thing is {s}?",
            "What sort of thing is {s}?",
            "To which kind does {s} belong?",
        ),
    ),
    "sounds": (
        (
            "The sound of {s} is a {o}.",
            "The sound that {s} makes is a {o}.",
            "When you hear {s}, you hear a {o}.",
            "{S} makes itself heard with a {o}.",
            "The noise made by {s} is a {o}.",
        ),
        (
            "What sound does {s} make?",
            "What noise does {s} make?",
            "Which sound do you hear from {s}?",
            "How does {s} sound?",
        ),
    ),
    "young animals": (
        (
            "The young of {s} is called a {o}.",
            "A young {n} is a {o}.",
            "A baby {n} is called a {o}.",
            "The child of {s} is a {o}.",
            "Before it grows up, {s} is a {o}.",
        ),
        (
            "What is a young {n} called?",
            "What is a baby {n} called?",
            "What do we call the young of {s}?",
            "What is the child of {s}?",
        ),
    ),
    "colors": (
        (
            "The color of {s} is {o}.",
            "{S} has the color {o}.",
            "To paint {s}, take {o}.",
            "If you look at {s}, you see {o}.",
            "In a picture, {s} is {o}.",
        ),
        (
            "What color is {s}?",
            "What is the color of {s}?",
            "Which color does {s} have?",
            "In which color do you paint {s}?",
        ),
    ),
    "sides": (
        (
            "The number of sides of {s} is {o}.",
            "If you count the sides of {s}, you get {o}.",
            "The sides of {s} number {o}.",
            "The number of corners of {s} is {o}.",
            "Count the corners of {s} and you get {o}.",
        ),
        (
            "How many sides does {s} have?",
            "How many sides are there in {s}?",
            "What is the number of sides of {s}?",
            "How many corners does {s} have?",
        ),
    ),
    "legs": (
        (
            "The number of legs of {s} is {o}.",
            "If you count the legs of {s}, you get {o}.",
            "The legs of {s} number {o}.",
            "Count the legs of {s} and you get {o}.",
            "The number of legs that {s} has is {o}.",
        ),
        (
            "How many legs does {s} have?",
            "What is the number of legs of {s}?",
            "On how many legs does {s} stand?",
            "How many legs do you count on {s}?",
        ),
    ),
    "workplaces": (
        (
            "The place of work of {s} is the {o}.",
            "You will find {s} at the {o}.",
            "{S} works in the {o}.",
            "{S} spends the day at the {o}.",
            "Every morning {s} goes to the {o}.",
        ),
        (
            "Where does {s} work?",
            "What is the place of work of {s}?",
            "Where do you find {s}?",
            "Where does {s} spend the day?",
        ),
    ),
    "materials": (
        (
            "{S} is made of {o}.",
            "{S} is made from {o}.",
            "To make {s}, you need {o}.",
            "What you need for {s} is {o}.",
            "The material of {s} is {o}.",
        ),
        (
            "What is {s} made of?",
            "From what is {s} made?",
            "What do you need to make {s}?",
            "Which material makes {s}?",
        ),
    ),
    "homes": (
        (
            "The home of {s} is the {o}.",
            "{S} lives in the {o}.",
            "{S} sleeps in the {o}.",
            "At night, {s} goes back to the {o}.",
            "The place where {s} lives is the {o}.",
        ),
        (
            "Where does {s} live?",
            "What is the home of {s}?",
            "Where does {s} sleep?",
            "Where does {s} go at night?",
        ),
    ),
}


def _next(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    statements = (
        f"The {kind} after {{s}} is {{o}}.",
        f"After {{s}} comes the {kind} {{o}}.",
        f"The {kind} that follows {{s}} is {{o}}.",
        f"The next {kind} after {{s}} is {{o}}.",
        "{S} is followed by {o}.",
    )
    questions = (
        f"Which {kind} comes after {{s}}?",
        f"What {kind} follows {{s}}?",
        f"What is the {kind} after {{s}}?",
        f"What is the next {kind} after {{s}}?",
    )
    return statements, questions


def _previous(kind: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    statements = (
        f"The {kind} before {{s}} is {{o}}.",
        f"Before {{s}} comes the {kind} {{o}}.",
        f"The {kind} that precedes {{s}} is {{o}}.",
        f"The {kind} just before {{s}} is {{o}}.",
        "{S} is preceded by {o}.",
    )
    questions = (
        f"Which {kind} comes before {{s}}?",
        f"What {kind} precedes {{s}}?",
        f"What is the {kind} before {{s}}?",
        f"What is the {kind} just before {{s}}?",
    )
    return statements, questions


_SEQUENCES: Wordings = {
    f"{name} {side}": wordings(kind)
    for name, kind in (("months", "month"), ("days", "day"), ("numbers", "number"), ("letters", "letter"))
    for side, wordings in (("after", _next), ("before", _previous))
}

WORDINGS: Wordings = _PLACES | _THINGS | _SEQUENCES
