"""Cities, airports, buildings, monuments and natural places."""

from __future__ import annotations

from random import Random

from synthetic import names, words
from synthetic.facts import TOPICS, Property, Topic
from synthetic.grammar import pick


def number(low: int, high: int, unit: str = "", decimals: bool = False):
    """Return a sampler of numbers, some with thousands separators or decimals."""

    def draw(rng: Random) -> str:
        value = rng.randint(low, high)
        text = f"{value:,}" if value > 9999 and rng.random() < 0.5 else str(value)
        if decimals and rng.random() < 0.4:
            text = f"{value}.{rng.randint(0, 9)}"
        return f"{text} {unit}".strip()

    return draw


def year(low: int = 1750, high: int = 2023):
    """Return a sampler of years."""
    return lambda rng: rng.randint(low, high)


COUNTRY = Property(
    ("country", "state", "nation"),
    names.country,
    ("is [in|located in|situated in] {v}", "[lies|is] in {v}", "{v} is the country of {s}"),
    "In which country is {s}?",
)
CITY = Property(
    ("city", "location", "place"),
    names.place,
    ("is [in|located in|situated in] {v}", "[stands|can be found] in {v}", "the city of {v} is the location of {s}"),
    "Where is {s}?",
)
BUILT = (
    Property(
        ("built", "completed", "completion date"),
        year(1100, 2023),
        ("was [built|completed|finished] in {v}", "dates from {v}", "was opened to the public in {v}"),
        "When was {s} built?",
    ),
    Property(
        ("architect", "designer", "designed by"),
        names.someone,
        ("was designed by {v}", "was designed by the architect {v}", "{v} [designed|was the architect of] {s}"),
        "Who designed {s}?",
    ),
    Property(
        ("style", "architectural style"),
        lambda rng: pick(rng, words.STYLES),
        ("was built in the {v} style", "is an example of {v} architecture", "has a(n) {v} facade"),
        "In which style was {s} built?",
    ),
    Property(
        ("floors", "number of floors", "floor count"),
        number(1, 90),
        ("has {v} floors", "rises over {v} floors", "there are {v} floors in {s}"),
        "How many floors does {s} have?",
    ),
    Property(
        ("material", "made of"),
        lambda rng: pick(rng, words.MATERIALS),
        ("is made of {v}", "was built of {v}", "{v} was used to build {s}"),
        "What is {s} made of?",
    ),
)
CITY_FACTS = (
    Property(
        ("population", "inhabitants", "number of people"),
        number(300, 4000000),
        ("has [a population of {v}|{v} inhabitants|{v} people]", "is home to {v} people", "{v} people live in {s}"),
        "How many people live in {s}?",
    ),
    Property(
        ("mayor", "leader", "governor"),
        names.someone,
        (
            "[is led|is governed] by {v}",
            "{v} is the [mayor|leader|governor] of {s}",
            "the mayor of {s} is {v}",
            "{p} leader is {v}",
        ),
        "Who is the leader of {s}?",
    ),
    Property(
        ("river", "water"),
        lambda rng: f"River {names.syllable_name(rng)}",
        ("lies on the {v}", "stands on the banks of the {v}", "the {v} flows through {s}"),
        "Which river flows through {s}?",
    ),
    Property(
        ("language", "spoken"),
        lambda rng: pick(rng, words.LANGUAGES),
        ("has {v} as its main language", "the language spoken in {s} is {v}", "people in {s} speak {v}"),
        "Which language is spoken in {s}?",
    ),
    Property(
        ("area", "size"),
        number(3, 3000, "square kilometres", decimals=True),
        ("covers {v}", "has an area of {v}", "the area of {s} is {v}"),
        "How large is {s}?",
    ),
    Property(
        ("founded", "first settled"),
        year(800, 1950),
        ("was [founded|first settled] in {v}", "received its charter in {v}"),
        "When was {s} founded?",
    ),
)
HEIGHT = Property(
    ("elevation", "height above sea level", "altitude"),
    number(1, 4000, "metres", decimals=True),
    ("is {v} above sea level", "lies {v} above [the sea level|sea level]", "the elevation of {s} is {v}"),
    "How high above the sea is {s}?",
)

BUILDINGS = ("Hall", "Tower", "House", "Building", "Theatre", "Castle", "Library", "Palace", "Mill", "Station")

TOPICS.add("city", Topic(("city", "town", "village"), names.place, (*CITY_FACTS, COUNTRY, HEIGHT)))
TOPICS.add(
    "airport",
    Topic(
        ("airport", "airfield"),
        lambda rng: (
            f"{names.place(rng)} "
            f"{pick(rng, ('Airport', 'Airport', 'International Airport', 'Regional Airport', 'Airfield'))}"
        ),
        (
            Property(
                ("city served", "serves"),
                names.place,
                ("serves [the city of |]{v}", "{v} is served by {s}", "is the airport of {v}"),
                "Which city does {s} serve?",
            ),
            Property(
                ("runway length", "length of the runway"),
                number(600, 4500, "metres", decimals=True),
                ("has a runway of {v}", "the runway of {s} is {v} long", "{p} runway length is {v}"),
                "How long is the runway of {s}?",
            ),
            Property(
                ("runway name", "runway"),
                lambda rng: f"{rng.randint(1, 36):02d}{pick(rng, ('L', 'R', ''))}/{rng.randint(1, 36):02d}",
                ("has a runway [named|called] {v}", "the [name of the runway|runway name] of {s} is {v}"),
                "What is the runway of {s} called?",
            ),
            Property(
                ("operator", "operated by", "run by"),
                names.company,
                ("is [operated|run] by {v}", "{v} [operates|runs|is the operator of] {s}"),
                "Who operates {s}?",
            ),
            COUNTRY,
            HEIGHT,
        ),
    ),
)
TOPICS.add(
    "building",
    Topic(
        ("building", "house", "office building"),
        lambda rng: f"{pick(rng, (names.surname, names.place, names.syllable_name))(rng)} {pick(rng, BUILDINGS)}",
        (*BUILT, CITY, COUNTRY),
    ),
)
TOPICS.add(
    "monument",
    Topic(
        ("monument", "memorial"),
        lambda rng: f"{names.place(rng)} {pick(rng, ('Monument', 'Memorial', 'Column', 'Arch', 'Fountain', 'Gate'))}",
        (
            *BUILT[:2],
            BUILT[4],
            CITY,
            Property(
                ("dedicated to", "in memory of"),
                lambda rng: (
                    pick(rng, ("the sailors", "the soldiers", "the workers", "the founders"))
                    + f" of {names.place(rng)}"
                ),
                ("is dedicated to {v}", "was put up in memory of {v}"),
                "To whom is {s} dedicated?",
            ),
        ),
    ),
)
TOPICS.add(
    "mountain",
    Topic(
        ("mountain", "hill", "peak"),
        lambda rng: f"{pick(rng, ('Mount', 'Mount', 'Pike', 'Ben'))} {names.syllable_name(rng)}",
        (
            COUNTRY,
            HEIGHT,
            Property(
                ("first climbed", "first ascent"),
                year(1780, 1990),
                ("was first climbed in {v}",),
                "When was {s} first climbed?",
            ),
            Property(
                ("first climber",),
                names.someone,
                ("was first climbed by {v}", "{v} first climbed {s}"),
                "Who first climbed {s}?",
            ),
        ),
    ),
)
