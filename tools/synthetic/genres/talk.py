"""Dialogues, letters, reviews, advertisements and reports."""

from __future__ import annotations

from random import Random

from synthetic import names, words
from synthetic.facts import TOPICS, describe, sample
from synthetic.genres import genre
from synthetic.grammar import capital, expand, pick, say, sentence
from synthetic.topics.people import team
from synthetic.topics.venues import money, rating


def setting(rng: Random) -> dict[str, object]:
    """Return the venue, persons and words that one text is about."""
    return {
        "venue": names.venue(rng),
        "other": names.venue(rng),
        "type": pick(rng, words.VENUE_TYPES),
        "food": pick(rng, words.CUISINES),
        "area": pick(rng, words.AREAS),
        "price": pick(rng, words.PRICE_WORDS),
        "money": money(rng),
        "rating": rating(rng),
        "dish": pick(rng, words.DISHES),
        "dish2": pick(rng, words.DISHES),
        "good": pick(rng, words.POSITIVE),
        "bad": pick(rng, words.NEGATIVE),
        "town": names.place(rng),
        "town2": names.place(rng),
        "a": names.first_name(rng)[0],
        "b": names.first_name(rng)[0],
        "who": names.someone(rng),
        "day": pick(rng, words.DAYS),
        "month": pick(rng, words.MONTHS),
        "weather": pick(rng, words.WEATHER),
        "weather2": pick(rng, words.WEATHER),
        "hour": str(rng.randint(1, 12)),
        "num": str(rng.randint(2, 12)),
        "big": str(rng.randint(13, 3000)),
        "thing": pick(rng, words.OBJECTS),
        "job": pick(rng, words.PROFESSIONS),
        "vehicle": pick(rng, words.VEHICLES),
        "feel": pick(rng, words.FEELINGS),
        "quality": pick(rng, words.ABSTRACT),
        "team": team(rng),
        "team2": team(rng),
    }


REVIEW = (
    "we [went to|ate at|visited] {venue} [last {day}|on {day}|in {month}]",
    "the {dish} was {good}[, but the {dish2} was {bad}| and the {dish2} was {good} too|]",
    "{venue} is a(n) {price}[ly priced|] {food} {type}",
    "the [service|music|waiter] was [{good}|{bad}]",
    "it is in the {area}[|, near {other}|, not far from {other}]",
    "we paid {money} for {num} people",
    "[I|We] [would|would not] go there again",
    "children [were|were not] [welcome|allowed]",
    "[my|our] rating is {rating}",
    "if you like {food} food, {venue} [is the place to go|is for you|will not disappoint you]",
    "there is no [better|worse] {type} in {town}",
)
ADVERTISEMENT = (
    "[Come to|Visit|Try] {venue}, [the|your] {good} {food} {type} in [the {area}|{town}]!",
    "[Looking for|Hungry for] {food} food[ at {price} prices|]? [Come to|Try] {venue}[ in the {area}|, near {other}|]!",
    "[We serve|Now serving] {dish} and {dish2} [from {hour} o'clock|every {day}].",
    "[Prices are|A meal is] {money}. [Children are welcome.|Families welcome!|Adults only.|No children, please.]",
    "[Our guests rate us {rating}.|Rated {rating} by our guests.]",
    "[Open every day|Closed on {day}s]. Ask for {a}.",
    "[A(n)|One] {price} {type} [by|near] {other} in the {area}.",
)


@genre("review", 5)
def review(rng: Random) -> str:
    """Write a guest's opinion of a restaurant."""
    about = setting(rng)
    rows = [sentence(expand(each, rng, **about)) for each in rng.sample(REVIEW, rng.randint(4, 8))]
    head = expand("[{venue}: {good}!|{venue}, {town}|Review of {venue}]\n", rng, **about) if rng.random() < 0.4 else ""
    return head + " ".join(rows)


@genre("advertisement", 3)
def advertisement(rng: Random) -> str:
    """Write one to three advertisements of places to eat."""
    parts = []
    for _ in range(rng.randint(1, 3)):
        about = setting(rng)
        parts.append(
            " ".join(capital(expand(each, rng, **about)) for each in rng.sample(ADVERTISEMENT, rng.randint(2, 4)))
        )
    return "\n\n".join(parts)


@genre("guide", 6)
def guide(rng: Random) -> str:
    """Write a page of a guide: several places to eat in one town."""
    topic = TOPICS[pick(rng, ("venue", "pub", "hotel"))]
    town = names.place(rng)
    head = pick(
        rng, (f"Where to eat in {town}", f"{town}: food and drink", f"Places in {town}", f"A walk through {town}")
    )
    return f"{head}\n\n" + "\n".join(describe(sample(topic, rng, 2, 6), rng) for _ in range(rng.randint(2, 4)))


EXCHANGES = (
    (
        "Where is {venue}?",
        "It is in the {area}, near {other}.",
        "Is it {price}?",
        "[Yes, it is|No, it is not]. A meal is {money}.",
    ),
    (
        "Do you know a {good} {type}?",
        "Try {venue}. They serve {food} food.",
        "Can I bring my children?",
        "[Yes|No], children are [welcome|not welcome].",
    ),
    ("I would like a table for {num}.", "For which day?", "For {day}, at {hour} o'clock.", "And your name?", "{who}."),
    ("How was {venue}?", "The {dish} was {good}, the {dish2} was {bad}.", "Who cooked?", "{who}, I think."),
    (
        "How do I get to {town}?",
        "Take the {vehicle} to {town2} and ask there.",
        "How long does it take?",
        "{num} hours.",
    ),
    ("What do you do?", "I am a(n) {job} in {town}.", "Do you know {who}?", "[Yes, we are friends.|No, I don't.]"),
    (
        "What would you like?",
        "The {dish}, please, and {num} cups of tea.",
        "Anything else?",
        "[No, thank you.|Yes, {dish2}.]",
    ),
    (
        "Are you {feel}?",
        "[Yes, I'm {feel}|No, I'm not]. It's the {weather} weather.",
        "Let's go to {venue}!",
        "[Great|Not today].",
    ),
    ("Have you seen my {thing}?", "[It's|I saw it] at {venue}.", "Are you sure?", "[Yes|No|I'm not sure]."),
)


@genre("dialogue", 5)
def dialogue(rng: Random) -> str:
    """Write a talk between two persons, with names before the lines or in quotes."""
    about = setting(rng)
    first, second = str(about["a"]), str(about["b"])
    turns = [turn for exchange in rng.sample(EXCHANGES, rng.randint(1, 3)) for turn in exchange]
    quoted = rng.random() < 0.35
    rows = []
    for at, turn in enumerate(turns):
        speaker, text = (first, second)[at % 2], expand(turn, rng, **about)
        if quoted:
            verb = "asked" if text.endswith("?") else pick(rng, ("said", "answered"))
            rows.append(f'"{text.rstrip(".") + ("" if text.endswith(("?", "!")) else ",")}" {verb} {speaker}.')
        else:
            rows.append(f"{speaker}: {text}")
    return (" " if quoted and rng.random() < 0.5 else "\n").join(rows)


LETTER = (
    "[thank you for|I got|I liked] your [letter|postcard|parcel]",
    "the weather in {town} is {weather}[, and {weather2} at night|]",
    "yesterday [we|I] ate {dish} at {venue}, a {food} {type}",
    "[I am|We are] [staying|living] near {other} in the {area}",
    "[tomorrow|on {day}] [I|we] will go to {town2} by {vehicle}",
    "I bought a {thing} for {money}",
    "I met {who}, a(n) {job} from {town2}",
    "please send me {num} {thing}s",
    "I am {feel}, but do not worry",
    "it has been {num} weeks since {month}",
)


@genre("letter", 4)
def letter(rng: Random) -> str:
    """Write a letter, postcard or message."""
    about = setting(rng)
    rows = " ".join(sentence(expand(each, rng, **about)) for each in rng.sample(LETTER, rng.randint(3, 7)))
    return (
        expand("[Dear {b}|Hello {b}|Hi {b}],\n\n", rng, **about)
        + rows
        + expand("\n\n[Yours|Love|Best wishes|See you],\n{a}", rng, **about)
    )


WEATHER = (
    "[on {day}|today|tomorrow|in the morning] it will be {weather} in {town}[ and {weather2} in {town2}|]",
    "temperatures [reach|fall to] {num} degrees",
    "[in {month}|this week] {town2} had {big} millimetres of rain",
    "the night will be {weather2}",
)
SPORT = (
    "{team} [beat|drew with|lost to] {team2} [{num}-1|{num} to 0|2-2] [on {day}|in {town}]",
    "{who} [scored|shot] the [first|last|winning] goal",
    "[{big} people|A crowd of {big}] [watched|saw] the game",
    "{team} will play [{team2}|in {town2}] [next {day}|in {month}]",
)
LOCAL = (
    "a {thing} was [found|stolen|sold] [at|near] {venue} in {town}",
    '{who}, a(n) {job}, said: "[I am {feel}|It was {good}|Nobody knows why]."',
    "a new {food} {type} called {venue} [opens|opened] in the {area} of {town}",
    "a {vehicle} [stopped|broke down] near {other} for {num} hours",
    "the {type} {other} has [new owners|closed|been sold for £{big}]",
    "{big} people came to {town} to see the new {thing}",
)


@genre("news", 5)
def news(rng: Random) -> str:
    """Write short reports on the weather, on sport and on a town."""
    parts = []
    for kind in rng.sample((WEATHER, SPORT, LOCAL, LOCAL), rng.randint(1, 3)):
        about = setting(rng)
        parts.append(" ".join(sentence(expand(each, rng, **about)) for each in rng.sample(kind, rng.randint(2, 4))))
    head = say(rng, ("News from {town}\n\n", "{day}, {num} {month}\n", "", ""), **setting(rng))
    return head + "\n\n".join(parts)
