"""The invented entities of the bundled triples: the categories that only the test split has."""

from __future__ import annotations

from synthetic import names
from synthetic.entities import (
    ALMA_MATER,
    AWARD,
    BIRTH_DATE,
    BIRTH_PLACE,
    CLUB,
    ENTITY,
    NATIONALITY,
    NUMBER,
    Category,
    Relation,
    decimal,
    one_of,
    whole,
)
from synthetic.grammar import pick

UNSEEN = {
    "Artist": Category(
        "artist",
        names.person,
        (
            BIRTH_PLACE,
            BIRTH_DATE,
            NATIONALITY,
            Relation(
                "genre",
                ENTITY,
                one_of(("jazz", "folk music", "rock music", "opera", "soul music")),
                ("performs {v}", "plays {v}"),
            ),
            Relation(
                "recordLabel",
                ENTITY,
                lambda rng: f"{names.surname(rng)} Records",
                ("is signed to {v}", "{v} is the record label of {s}"),
            ),
        ),
    ),
    "Athlete": Category("athlete", names.person, (BIRTH_PLACE, BIRTH_DATE, CLUB, NATIONALITY, AWARD)),
    "CelestialBody": Category(
        "asteroid",
        lambda rng: f"{rng.randint(12, 9999)} {names.syllable_name(rng)}",
        (
            Relation("discoverer", ENTITY, names.someone, ("was discovered by {v}", "{v} discovered {s}")),
            Relation("orbitalPeriod_(days)", NUMBER, decimal(200, 3000), ("has an orbital period of {v} days",)),
            Relation("temperature_(kelvins)", NUMBER, decimal(90, 300), ("has a temperature of {v} kelvins",)),
        ),
    ),
    "MeanOfTransportation": Category(
        "car",
        lambda rng: f"{names.syllable_name(rng)} {pick(rng, ('A', 'B', 'GT', 'X'))}{rng.randint(1, 90)}",
        (
            Relation("manufacturer", ENTITY, names.company, ("is made by {v}", "{v} is the manufacturer of {s}")),
            Relation("engine_(litres)", NUMBER, decimal(1, 6), ("has an engine of {v} litres",)),
            Relation("assembly", ENTITY, names.place, ("is assembled in {v}", "is built in {v}")),
            Relation("productionStartYear", NUMBER, whole(1930, 2015), ("has been produced since {v}",)),
        ),
    ),
    "Politician": Category(
        "politician",
        names.person,
        (
            BIRTH_PLACE,
            NATIONALITY,
            ALMA_MATER,
            Relation(
                "party",
                ENTITY,
                lambda rng: f"{names.country(rng)} {pick(rng, ('Labour', 'Liberal', 'Green'))} Party",
                ("is a member of the {v}", "belongs to the {v}"),
            ),
            Relation("spouse", ENTITY, names.someone, ("is married to {v}", "{v} is the spouse of {s}")),
        ),
    ),
}
