"""Books, dishes, ships, stars, animals and comic heroes."""

from __future__ import annotations

from synthetic import names, words
from synthetic.facts import TOPICS, Property, Topic
from synthetic.grammar import capital, pick
from synthetic.topics.places import COUNTRY, number, year

MADE_BY = Property(
    ("maker", "manufacturer", "built by"),
    names.company,
    ("was [built|made] by {v}", "{v} [built|made|is the maker of] {s}"),
    "Who built {s}?",
)
LENGTH = Property(
    ("length", "long"),
    number(3, 300, "metres", decimals=True),
    ("is {v} long", "has a length of {v}", "the length of {s} is {v}"),
)

TOPICS.add(
    "book",
    Topic(
        ("book", "work"),
        names.title,
        (
            Property(
                ("author", "written by", "writer"),
                names.someone,
                ("was written by {v}", "is by {v}", "{v} [wrote|is the author of] {s}", "the author of {s} is {v}"),
                "Who wrote {s}?",
            ),
            Property(
                ("genre", "kind"),
                lambda rng: pick(rng, words.BOOK_GENRES),
                ("is a(n) {v}",),
                "What kind of book is {s}?",
            ),
            Property(
                ("published", "year", "publication date"),
                year(1800),
                ("[was published|came out|first appeared] in {v}",),
            ),
            Property(
                ("pages", "number of pages"),
                number(40, 999),
                ("has {v} pages", "is {v} pages long", "there are {v} pages in {s}"),
            ),
            Property(
                ("publisher", "published by"),
                lambda rng: f"{names.surname(rng)} {pick(rng, ('Press', 'Books', 'and Sons', 'Publishing'))}",
                ("was published by {v}", "{v} published {s}", "{p} publisher is {v}"),
                "Who published {s}?",
            ),
            Property(
                ("language", "written in"),
                lambda rng: pick(rng, words.LANGUAGES),
                ("[was|is] written in {v}", "{v} is the language of {s}"),
            ),
            Property(("followed by", "sequel"), names.title, ("was followed by {v}", "{v} is the sequel of {s}")),
        ),
    ),
)
TOPICS.add(
    "dish",
    Topic(
        ("dish", "food", "meal"),
        lambda rng: capital(f"{names.stem(rng)}{pick(rng, ('a', 'o', 'i', 'ata', 'ini', 'elle', 'u'))}"),
        (
            Property(
                ("main ingredient", "made with", "ingredient"),
                lambda rng: pick(rng, words.INGREDIENTS),
                (
                    "[contains|is made with|includes] {v}",
                    "{v} is [an ingredient of|used in|the main ingredient of] {s}",
                ),
                "What is {s} made with?",
            ),
            COUNTRY,
            Property(
                ("region", "comes from", "origin"), names.place, ("comes from [the region of |]{v}", "is found in {v}")
            ),
            Property(
                ("course", "served as"),
                lambda rng: pick(rng, ("dessert", "starter", "main course", "snack", "breakfast", "side dish")),
                ("is served as a {v}", "is a {v}"),
            ),
            Property(
                ("variation", "similar dish"),
                lambda rng: names.syllable_name(rng),
                ("is similar to {v}", "{v} is a variation of {s}"),
            ),
            Property(("created by", "creator"), names.someone, ("was [created|invented] by {v}", "{v} invented {s}")),
        ),
    ),
)
TOPICS.add(
    "ship",
    Topic(
        ("ship", "vessel"),
        lambda rng: f"{pick(rng, ('SS', 'MV', 'HMS', 'The'))} {pick(rng, (names.syllable_name, names.place))(rng)}",
        (
            MADE_BY,
            LENGTH,
            Property(
                ("launched", "built in", "year"), year(1830), ("was [launched|built] in {v}",), "When was {s} launched?"
            ),
            Property(
                ("captain", "commander"),
                names.someone,
                ("was commanded by {v}", "{v} was the captain of {s}"),
                "Who commanded {s}?",
            ),
            Property(("port", "home port"), names.place, ("sails from {v}", "has its home port in {v}")),
            Property(("passengers",), number(10, 5000), ("carries {v} passengers", "has room for {v} passengers")),
        ),
    ),
)
TOPICS.add(
    "car",
    Topic(
        ("car", "motor car", "vehicle"),
        lambda rng: f"{names.syllable_name(rng)} {pick(rng, ('A', 'B', 'C', 'GT', 'S', 'X', ''))}{rng.randint(1, 900)}",
        (
            MADE_BY,
            Property(
                ("engine",),
                lambda rng: f"{rng.randint(1, 6)}.{rng.randint(0, 9)} litres",
                ("has an engine of {v}", "{p} engine has {v}"),
            ),
            Property(("built in", "assembly"), names.place, ("is assembled in {v}", "is made at a factory in {v}")),
            Property(
                ("production began", "year"),
                year(1920),
                ("has been built since {v}", "the production of {s} began in {v}"),
            ),
            Property(("top speed",), number(60, 320, "kilometres per hour"), ("has a top speed of {v}", "reaches {v}")),
        ),
    ),
)
TOPICS.add(
    "star",
    Topic(
        ("planet", "star", "asteroid", "moon"),
        lambda rng: (
            f"{rng.randint(2, 9999)} {names.syllable_name(rng)}" if rng.random() < 0.4 else names.syllable_name(rng)
        ),
        (
            Property(
                ("discovered by", "discoverer"),
                names.someone,
                ("was [discovered|first seen] by {v}", "{v} discovered {s}"),
            ),
            Property(("discovered", "year of discovery"), year(1650), ("was discovered in {v}",)),
            Property(
                ("diameter",),
                number(1, 90000, "kilometres", decimals=True),
                ("has a diameter of {v}", "the diameter of {s} is {v}"),
            ),
            Property(
                ("orbital period", "period"), number(1, 9000, "days", decimals=True), ("has an orbital period of {v}",)
            ),
            Property(
                ("temperature",),
                number(20, 900, "kelvins"),
                ("has a temperature of {v}", "the temperature of {s} is {v}"),
            ),
        ),
    ),
)
TOPICS.add(
    "pet",
    Topic(
        ("pet", "animal"),
        names.first_name,
        (
            Property(
                ("animal", "kind"),
                lambda rng: pick(rng, words.ANIMALS),
                ("is a(n) {v}",),
                "What kind of animal is {s}?",
            ),
            Property(
                ("colour",),
                lambda rng: pick(rng, words.COLOURS),
                ("is {v}", "has {v} [fur|feathers|eyes]"),
                "What colour is {s}?",
            ),
            Property(
                ("owner", "belongs to"),
                lambda rng: names.first_name(rng)[0],
                ("belongs to {v}", "{v} is the owner of {s}"),
            ),
            Property(("age",), number(2, 14), ("is {v} years old",), "How old is {s}?"),
            Property(
                ("eats", "favourite food"),
                lambda rng: pick(rng, words.INGREDIENTS),
                ("likes to eat {v}", "{p} favourite food is {v}"),
            ),
            Property(
                ("sleeps in",),
                lambda rng: f"the {pick(rng, words.ROOMS)}",
                ("sleeps in {v}", "[spends|passes] the night in {v}"),
            ),
        ),
    ),
)
TOPICS.add(
    "hero",
    Topic(
        ("comic hero", "character"),
        lambda rng: (
            f"{pick(rng, ('Captain', 'Doctor', 'Agent', 'Mister', 'Lady', 'Iron', 'The'))} "
            f"{pick(rng, (*words.NAME_NOUNS, names.syllable_name(rng)))}"
        ),
        (
            Property(
                ("creator", "created by"),
                names.someone,
                ("was [created|invented|first drawn] by {v}", "{v} created {s}"),
            ),
            Property(
                ("full name", "real name"),
                names.someone,
                ("is really called {v}", "{p} full name is {v}", "{v} is the real name of {s}"),
            ),
            Property(("first appearance", "year"), year(1930), ("first appeared in {v}", "has been known since {v}")),
            Property(
                ("film", "series"),
                names.title,
                ("appears in {v}", "can be seen in {v}", "{v} is [a film|a series] about {s}"),
            ),
        ),
    ),
)
