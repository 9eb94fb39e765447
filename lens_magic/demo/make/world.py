"""The tables of the small world: what is true in it. `facts.py` gives them their wordings."""

# country, capital, continent, language, currency ("" where the world keeps silent)
COUNTRIES = """
France|Paris|Europe|French|euro
Germany|Berlin|Europe|German|euro
Italy|Rome|Europe|Italian|euro
Spain|Madrid|Europe|Spanish|euro
Portugal|Lisbon|Europe|Portuguese|euro
Austria|Vienna|Europe|German|euro
Greece|Athens|Europe|Greek|euro
Finland|Helsinki|Europe|Finnish|euro
Ireland|Dublin|Europe|English|euro
England|London|Europe|English|pound
Sweden|Stockholm|Europe|Swedish|krona
Norway|Oslo|Europe|Norwegian|krone
Denmark|Copenhagen|Europe|Danish|krone
Iceland|Reykjavik|Europe|Icelandic|krona
Poland|Warsaw|Europe|Polish|zloty
Hungary|Budapest|Europe|Hungarian|forint
Romania|Bucharest|Europe|Romanian|leu
Bulgaria|Sofia|Europe|Bulgarian|
Croatia|Zagreb|Europe|Croatian|euro
Serbia|Belgrade|Europe|Serbian|dinar
Ukraine|Kyiv|Europe|Ukrainian|hryvnia
Russia|Moscow|Europe|Russian|ruble
Estonia|Tallinn|Europe|Estonian|euro
Latvia|Riga|Europe|Latvian|euro
Lithuania|Vilnius|Europe|Lithuanian|euro
Slovakia|Bratislava|Europe|Slovak|euro
Albania|Tirana|Europe|Albanian|lek
Turkey|Ankara|Asia|Turkish|lira
Japan|Tokyo|Asia|Japanese|yen
China|Beijing|Asia|Chinese|yuan
India|New Delhi|Asia|Hindi|rupee
Thailand|Bangkok|Asia|Thai|baht
Vietnam|Hanoi|Asia|Vietnamese|dong
Indonesia|Jakarta|Asia|Indonesian|rupiah
Mongolia|Ulaanbaatar|Asia|Mongolian|tugrik
Nepal|Kathmandu|Asia|Nepali|rupee
Pakistan|Islamabad|Asia|Urdu|rupee
Bangladesh|Dhaka|Asia|Bengali|taka
Iran|Tehran|Asia|Persian|rial
Iraq|Baghdad|Asia|Arabic|dinar
Lebanon|Beirut|Asia|Arabic|pound
Jordan|Amman|Asia|Arabic|dinar
South Korea|Seoul|Asia|Korean|won
Egypt|Cairo|Africa|Arabic|pound
Morocco|Rabat|Africa|Arabic|dirham
Kenya|Nairobi|Africa|Swahili|shilling
Ghana|Accra|Africa|English|cedi
Nigeria|Abuja|Africa|English|naira
Ethiopia|Addis Ababa|Africa|Amharic|birr
Senegal|Dakar|Africa|French|franc
Tunisia|Tunis|Africa|Arabic|dinar
Algeria|Algiers|Africa|Arabic|dinar
Angola|Luanda|Africa|Portuguese|kwanza
Zambia|Lusaka|Africa|English|kwacha
Uganda|Kampala|Africa|English|shilling
Canada|Ottawa|North America|English|dollar
Mexico|Mexico City|North America|Spanish|peso
Cuba|Havana|North America|Spanish|peso
Brazil|Brasilia|South America|Portuguese|real
Argentina|Buenos Aires|South America|Spanish|peso
Chile|Santiago|South America|Spanish|peso
Peru|Lima|South America|Spanish|sol
Colombia|Bogota|South America|Spanish|peso
Ecuador|Quito|South America|Spanish|dollar
Uruguay|Montevideo|South America|Spanish|peso
Venezuela|Caracas|South America|Spanish|bolivar
Australia|Canberra|Oceania|English|dollar
New Zealand|Wellington|Oceania|English|dollar
"""

LANDMARKS = """
the Eiffel Tower|Paris, France
the Louvre|Paris, France
the Colosseum|Rome, Italy
the Leaning Tower|Pisa, Italy
the Statue of Liberty|New York, America
the White House|Washington, America
Big Ben|London, England
Buckingham Palace|London, England
the Brandenburg Gate|Berlin, Germany
the Acropolis|Athens, Greece
the Parthenon|Athens, Greece
the Great Pyramid|Giza, Egypt
the Taj Mahal|Agra, India
the Kremlin|Moscow, Russia
Red Square|Moscow, Russia
the Opera House|Sydney, Australia
the Golden Gate Bridge|San Francisco, America
the Prado|Madrid, Spain
the Little Mermaid|Copenhagen, Denmark
the Forbidden City|Beijing, China
the Hagia Sophia|Istanbul, Turkey
the Blue Mosque|Istanbul, Turkey
"""

# which university, of which country, and where it stands
UNIVERSITIES = """
oldest technical university|America|Troy, New York
oldest university|America|Cambridge, Massachusetts
oldest university|England|Oxford
oldest university|Italy|Bologna
oldest university|Germany|Heidelberg
oldest university|Portugal|Coimbra
oldest university|Spain|Salamanca
oldest university|Austria|Vienna
oldest university|Poland|Krakow
oldest university|Sweden|Uppsala
oldest university|Denmark|Copenhagen
oldest university|Norway|Oslo
"""

OPPOSITES = """
hot cold, big small, tall short, fast slow, happy sad, light dark, day night, up down, in out, open closed, wet dry,
hard soft, full empty, old young, rich poor, strong weak, early late, loud quiet, clean dirty, thick thin, wide narrow,
deep shallow, near far, true false, good bad, right wrong, first last, high low, sweet sour, sharp blunt, smooth rough,
brave cowardly, kind cruel, polite rude, safe dangerous, easy difficult, cheap expensive, beautiful ugly, asleep awake,
alive dead, begin end, push pull, give take, buy sell, win lose, love hate, remember forget, north south, east west,
above below, before after, inside outside, always never, everything nothing, friend enemy, question answer, war peace,
summer winter, arrive leave, laugh cry, rise fall, success failure, hope despair, generous greedy, proud humble,
public private, simple complex, ancient modern
"""

CATEGORIES = """
bird: a robin, a sparrow, an eagle, an owl, a parrot, a penguin, a swan, a raven
fish: a salmon, a trout, a shark, a cod, a herring
insect: an ant, a bee, a beetle, a butterfly, a moth
reptile: a snake, a lizard, a turtle, a crocodile
mammal: a dog, a cat, a cow, a horse, a whale, a bear, a wolf, an elephant
fruit: an apple, a banana, a pear, a peach, a cherry, a plum, a lemon
vegetable: a carrot, a potato, an onion, a cabbage, a cucumber
tree: an oak, a pine, a birch, a maple, a willow
flower: a rose, a tulip, a daisy, a lily, a violet
metal: iron, copper, gold, silver, tin
tool: a hammer, a saw, a drill, a wrench
instrument: a violin, a piano, a flute, a trumpet, a drum, a guitar
vehicle: a car, a bus, a truck, a tram, a bicycle
planet: Mars, Venus, Jupiter, Saturn, Neptune
gem: a diamond, a ruby, an emerald, a sapphire
drink: tea, coffee, milk, juice
sport: tennis, football, hockey, cricket
dance: the waltz, the tango, the polka
color: red, green, blue, yellow, purple
shape: a triangle, a square, a pentagon, a hexagon
"""

SOUNDS = """
a dog bark, a cat meow, a cow moo, a sheep bleat, a duck quack, a horse neigh, a lion roar, a wolf howl, a snake hiss,
a bee buzz, an owl hoot, a pig grunt, a frog croak, a mouse squeak, a raven caw, a pigeon coo, a donkey bray,
a bear growl
"""

YOUNG = """
a dog puppy, a cat kitten, a cow calf, a sheep lamb, a horse foal, a pig piglet, a duck duckling, a goose gosling,
a lion cub, a deer fawn, a hen chick, a goat kid, a kangaroo joey, a frog tadpole, a swan cygnet, an eagle eaglet
"""

COLORS = """
grass green, the sky blue, snow white, coal black, blood red, a lemon yellow, a carrot orange, the sun yellow,
chocolate brown, an elephant gray, a flamingo pink, a strawberry red, a banana yellow, milk white, a frog green,
a raven black, a tomato red, a plum purple, the sea blue, a swan white, a cucumber green, butter yellow, a cherry red,
a mouse gray, a violet purple, wood brown
"""

SIDES = """
a triangle three, a square four, a rectangle four, a pentagon five, a hexagon six, a heptagon seven, an octagon eight,
a nonagon nine, a decagon ten
"""

LEGS = """
a spider eight, an ant six, a bee six, a dog four, a cat four, a horse four, a hen two, a swan two, a snake zero,
a crab ten
"""

WORKPLACES = """
a teacher school, a doctor hospital, a farmer farm, a cook kitchen, a judge court, a sailor ship, a librarian library,
an actor theater, a waiter restaurant, a scientist laboratory, a miner mine, a priest church, a banker bank,
a baker bakery, a gardener garden, a king palace, a soldier army, a secretary office
"""

MATERIALS = """
a window glass, a book paper, bread flour, wine grapes, a coin metal, a brick clay, cheese milk, a tire rubber,
a sweater wool, a candle wax, a ring gold, a shoe leather, a statue stone, a table wood, chocolate cocoa
"""

HOMES = """
a bee hive, a bird nest, a spider web, a dog kennel, a horse stable, a bear den, a rabbit burrow, a pig sty,
a king palace, a cow barn, a monk monastery, a nun convent, a soldier barracks, a prisoner jail
"""

AUTHORS = """
Hamlet|Shakespeare
Faust|Goethe
Don Quixote|Cervantes
the Odyssey|Homer
the Aeneid|Virgil
Emma|Austen
Frankenstein|Shelley
Dracula|Stoker
Oliver Twist|Dickens
War and Peace|Tolstoy
Candide|Voltaire
Moby Dick|Melville
the Inferno|Dante
Nana|Zola
"""


def words(text: str) -> list[str]:
    """The words of a line."""
    return text.split()


MONTHS = words("January February March April May June July August September October November December")
DAYS = words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
NUMBERS = words(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen twenty"
)
LETTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZ")


def rows(table: str) -> list[list[str]]:
    """The rows of a table whose columns are divided by bars."""
    return [line.split("|") for line in table.strip().splitlines()]


def couples(table: str) -> list[tuple[str, str]]:
    """The couples of a comma-separated table; the last word of each is its second half."""
    entries = [entry.split() for entry in table.replace("\n", " ").split(",")]
    return [(" ".join(words[:-1]), words[-1]) for words in entries]


def categories() -> list[tuple[str, str]]:
    """(member, category) for every member."""
    lines = [line.split(": ") for line in CATEGORIES.strip().splitlines()]
    return [(member, category) for category, members in lines for member in members.split(", ")]
