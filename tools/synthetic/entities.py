"""The invented entities of the bundled triples: the categories of training and what can be said of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from synthetic import names, words
from synthetic.facts import Sampler
from synthetic.grammar import capital, pick
from synthetic.topics.people import team

ENTITY, NUMBER, TEXT = "entity", "number", "text"


@dataclass(frozen=True)
class Relation:
    """A property as a triple names it, the form its object takes, its values and the phrases that express it."""

    name: str
    form: str
    value: Sampler
    phrases: tuple[str, ...]


@dataclass(frozen=True)
class Category:
    """A category of entities: the noun for one of them, how it is named and its relations."""

    noun: str
    name: Callable[[Random], str | tuple[str, str]]
    relations: tuple[Relation, ...]


def whole(low: int, high: int) -> Sampler:
    """Return a sampler of whole numbers."""
    return lambda rng: rng.randint(low, high)


def decimal(low: int, high: int) -> Sampler:
    """Return a sampler of numbers with one decimal."""
    return lambda rng: f"{rng.randint(low, high)}.{rng.randint(0, 9)}"


def one_of(options: tuple[str, ...]) -> Sampler:
    """Return a sampler that chooses one of `options`."""
    return lambda rng: pick(rng, options)


def date(rng: Random) -> str:
    """Return a date as year, month and day."""
    return f"{rng.randint(1880, 1995)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def ending(*endings: str) -> Callable[[Random], str]:
    """Return a namer of things called after a place, as in `Tarmoor Hall`."""
    return lambda rng: f"{names.place(rng)} {pick(rng, endings)}"


COUNTRY = Relation("country", ENTITY, names.country, ("is in {v}", "is located in {v}"))
LEADER = Relation("leader", ENTITY, names.someone, ("is led by {v}", "{v} is the leader of {s}"))
LOCATION = Relation("location", ENTITY, names.place, ("is in {v}", "is located in {v}"))
BIRTH_PLACE = Relation("birthPlace", ENTITY, names.place, ("was born in {v}", "{p} birthplace is {v}"))
BIRTH_DATE = Relation("birthDate", TEXT, date, ("was born on {v}", "{p} date of birth is {v}"))
NATIONALITY = Relation("nationality", ENTITY, names.country, ("is from {v}", "is a citizen of {v}"))
ALMA_MATER = Relation("almaMater", ENTITY, ending("University", "College"), ("studied at {v}", "graduated from {v}"))
AWARD = Relation(
    "award", TEXT, lambda rng: f"{names.surname(rng)} Medal", ("was given the {v}", "won the {v}", "received the {v}")
)
ARCHITECT = Relation("architect", ENTITY, names.someone, ("was designed by {v}", "{v} was the architect of {s}"))
COMPLETED = Relation("completionDate", NUMBER, whole(1200, 2020), ("was completed in {v}", "was finished in {v}"))
MANAGER = Relation("manager", ENTITY, names.someone, ("is managed by {v}", "{v} is the manager of {s}"))
CREATOR = Relation("creator", ENTITY, names.someone, ("was created by {v}", "{v} is the creator of {s}"))
CLUB = Relation("club", ENTITY, team, ("plays for {v}", "is a player of {v}"))
FOUNDED = Relation("established", NUMBER, whole(1200, 2010), ("was established in {v}", "was founded in {v}"))

SEEN = {
    "Airport": Category(
        "airport",
        ending("Airport", "International Airport"),
        (
            Relation(
                "cityServed", ENTITY, names.place, ("serves the city of {v}", "{v} is served by {s}", "serves {v}")
            ),
            Relation(
                "runwayLength",
                NUMBER,
                decimal(700, 4200),
                ("has a runway of {v} metres", "{p} runway length is {v} metres"),
            ),
            Relation(
                "elevationAboveSea_(in_metres)",
                NUMBER,
                whole(1, 900),
                ("is {v} metres above sea level", "lies {v} metres above sea level"),
            ),
            Relation("operatingOrganisation", ENTITY, names.company, ("is operated by {v}", "{v} operates {s}")),
            LOCATION,
        ),
    ),
    "Astronaut": Category(
        "astronaut",
        names.person,
        (
            BIRTH_PLACE,
            BIRTH_DATE,
            NATIONALITY,
            ALMA_MATER,
            AWARD,
            Relation(
                "mission",
                ENTITY,
                lambda rng: f"{names.syllable_name(rng)} {rng.randint(2, 19)}",
                ("was a member of the {v} crew", "flew on {v}"),
            ),
            Relation("timeInSpace_(minutes)", NUMBER, whole(900, 90000), ("spent {v} minutes in space",)),
        ),
    ),
    "Building": Category(
        "building",
        ending("Hall", "Tower", "House", "Theatre"),
        (
            LOCATION,
            ARCHITECT,
            COMPLETED,
            Relation("floorCount", NUMBER, whole(2, 70), ("has {v} floors", "there are {v} floors in {s}")),
            Relation(
                "architecturalStyle",
                ENTITY,
                one_of(words.STYLES),
                ("was built in the {v} style", "has the {v} style of architecture"),
            ),
            Relation("owner", ENTITY, names.company, ("is owned by {v}", "{v} owns {s}")),
        ),
    ),
    "City": Category(
        "city",
        names.place,
        (
            COUNTRY,
            LEADER,
            Relation("populationTotal", NUMBER, whole(900, 900000), ("has a population of {v}", "has {v} inhabitants")),
            Relation(
                "areaTotal_(square_kilometres)",
                NUMBER,
                decimal(8, 900),
                ("has an area of {v} square kilometres", "covers {v} square kilometres"),
            ),
            Relation(
                "isPartOf", ENTITY, lambda rng: f"{names.place(rng)} County", ("is part of {v}", "is a part of {v}")
            ),
            Relation("language", ENTITY, one_of(words.LANGUAGES), ("has {v} as its language", "{v} is spoken in {s}")),
        ),
    ),
    "ComicsCharacter": Category(
        "comic character",
        lambda rng: f"{pick(rng, ('Captain', 'Doctor', 'Agent', 'Lady'))} {pick(rng, words.NAME_NOUNS)}",
        (
            CREATOR,
            Relation("fullName", TEXT, names.someone, ("has the full name {v}", "{p} full name is {v}")),
            Relation("firstAppearance", NUMBER, whole(1935, 2005), ("first appeared in {v}",)),
            Relation("series", ENTITY, names.title, ("appears in {v}", "is a character in {v}")),
            Relation(
                "alternativeName", TEXT, names.syllable_name, ("is also known as {v}", "has the alternative name {v}")
            ),
        ),
    ),
    "Food": Category(
        "dish",
        lambda rng: capital(names.stem(rng) + pick(rng, ("ata", "ini", "elle", "aki", "ura", "osa"))),
        (
            Relation(
                "ingredient",
                ENTITY,
                one_of(words.INGREDIENTS),
                ("contains {v}", "{v} is an ingredient of {s}", "is made with {v}"),
            ),
            Relation("region", ENTITY, names.place, ("comes from the region of {v}", "is from {v}")),
            Relation(
                "course",
                ENTITY,
                one_of(("dessert", "starter", "snack", "side dish")),
                ("is served as a {v}", "is a {v}"),
            ),
            Relation("country", ENTITY, names.country, ("comes from {v}", "is found in {v}")),
            CREATOR,
        ),
    ),
    "Monument": Category(
        "monument",
        ending("Monument", "Memorial", "Column"),
        (
            LOCATION,
            ARCHITECT,
            COMPLETED,
            Relation("material", TEXT, one_of(words.MATERIALS), ("is made of {v}", "was built of {v}")),
            Relation(
                "dedicatedTo",
                TEXT,
                lambda rng: f"the {pick(rng, ('sailors', 'soldiers', 'workers'))} of {names.place(rng)}",
                ("is dedicated to {v}",),
            ),
        ),
    ),
    "SportsTeam": Category(
        "team",
        team,
        (
            MANAGER,
            Relation(
                "ground",
                ENTITY,
                lambda rng: f"{names.surname(rng)} {pick(rng, ('Park', 'Stadium'))}",
                ("plays at {v}", "{p} ground is {v}"),
            ),
            Relation(
                "league",
                ENTITY,
                lambda rng: f"{names.country(rng)} League",
                ("plays in the {v}", "competes in the {v}"),
            ),
            Relation("numberOfMembers", NUMBER, whole(300, 60000), ("has {v} members",)),
            Relation("season", NUMBER, whole(1960, 2020), ("was champion in {v}", "won the title in {v}")),
        ),
    ),
    "University": Category(
        "university",
        ending("University", "Institute of Technology"),
        (
            FOUNDED,
            Relation("city", ENTITY, names.place, ("is in the city of {v}", "is located in {v}")),
            Relation("numberOfStudents", NUMBER, whole(300, 40000), ("has {v} students",)),
            Relation("president", ENTITY, names.someone, ("has {v} as its president", "{v} is the president of {s}")),
            Relation(
                "academicStaffSize",
                NUMBER,
                whole(40, 3000),
                ("has an academic staff of {v}", "employs {v} academic staff"),
            ),
        ),
    ),
    "WrittenWork": Category(
        "book",
        names.title,
        (
            Relation(
                "author", ENTITY, names.someone, ("was written by {v}", "{v} is the author of {s}", "{v} wrote {s}")
            ),
            Relation("numberOfPages", NUMBER, whole(60, 900), ("has {v} pages", "is {v} pages long")),
            Relation(
                "publisher",
                ENTITY,
                lambda rng: f"{names.surname(rng)} Press",
                ("was published by {v}", "{v} is the publisher of {s}"),
            ),
            Relation("language", ENTITY, one_of(words.LANGUAGES), ("is written in {v}", "was written in {v}")),
            Relation("precededBy", ENTITY, names.title, ("was preceded by {v}", "came after {v}")),
        ),
    ),
}
PLACES = {"location", "cityServed", "birthPlace", "city", "assembly", "region"}
