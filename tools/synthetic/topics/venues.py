"""Restaurants, pubs, hotels and shops."""

from __future__ import annotations

from random import Random

from synthetic import names, words
from synthetic.facts import TOPICS, Property, Topic
from synthetic.grammar import pick


def money(rng: Random) -> str:
    """Return a range of prices in one of several currencies."""
    sign = pick(rng, ("£", "£", "£", "€", "$"))
    low = rng.randint(1, 12) * 5
    return pick(
        rng,
        (
            f"less than {sign}{low}",
            f"more than {sign}{low}",
            f"{sign}{low}-{low + rng.randint(1, 6) * 5}",
            f"around {sign}{low}",
        ),
    )


def rating(rng: Random) -> str:
    """Return a rating in words, out of five or in stars."""
    score = rng.randint(1, 5)
    return pick(
        rng,
        (f"{score} out of 5", f"{score} out of 5", pick(rng, words.RATING_WORDS), f"{rng.randint(1, 10)} out of 10"),
    )


LOCATION = (
    Property(
        ("area", "part of town", "quarter"),
        lambda rng: pick(rng, words.AREAS),
        (
            "is [in|located in|situated in|found in] the {v}",
            "[lies|stands] in the {v}",
            "in the {v} you [will|can] find {s}",
        ),
        "In which part of town is {s}?",
    ),
    Property(
        ("near", "close to", "next to", "neighbour"),
        names.venue,
        (
            "is [near|close to|next to|not far from] {v}",
            "[lies|stands] [near|close to|next to] {v}",
            "near {v} there is {s}",
        ),
        "What is {s} near?",
    ),
    Property(
        ("town", "city"),
        names.place,
        ("is [in|located in] {v}", "can be found in {v}", "the [town|city] of {v} is home to {s}"),
        "In which town is {s}?",
    ),
)
MANAGEMENT = (
    Property(
        ("owner", "run by", "landlord"),
        names.someone,
        ("is [owned|run|managed] by {v}", "belongs to {v}", "{v} [owns|runs|manages] {s}", "{p} owner is {v}"),
        "Who owns {s}?",
    ),
    Property(
        ("opened", "year of opening", "since"),
        lambda rng: rng.randint(1750, 2023),
        ("[opened|was opened|was founded] in {v}", "has been open since {v}"),
        "When did {s} open?",
    ),
    Property(
        ("closed on", "day off"),
        lambda rng: f"{pick(rng, words.DAYS)}s",
        ("is closed on {v}", "does not open on {v}"),
        "When is {s} closed?",
    ),
)
TASTE = (
    Property(
        ("cuisine", "kitchen", "style of food", "food"),
        lambda rng: pick(rng, words.CUISINES),
        (
            "[serves|offers|has|provides|sells] {v} food",
            "serves [good|tasty|fresh] {v} [food|dishes|meals]",
            "cooks {v} dishes",
        ),
        "What kind of food does {s} serve?",
    ),
    Property(
        ("best dish", "speciality", "known for"),
        lambda rng: pick(rng, words.DISHES),
        ("is [known|famous] for its {v}", "[serves|has] a [good|famous] {v}", "{p} speciality is {v}"),
        "What is {s} known for?",
    ),
)
COST = (
    Property(
        ("prices", "price", "cost"),
        lambda rng: pick(rng, words.PRICE_WORDS),
        ("has {v} prices", "offers {v} prices", "{p} prices are {v}", "the prices at {s} are {v}"),
        "What are the prices at {s}?",
    ),
    Property(
        ("price range", "a meal costs", "price of a meal"),
        money,
        (
            "has prices of {v}",
            "charges {v}",
            "{p} price range is {v}",
            "a meal at {s} costs {v}",
            "has a price range of {v}",
        ),
        "What does a meal at {s} cost?",
    ),
    Property(
        ("rating", "guests say", "score", "customer score"),
        rating,
        (
            "has a(n) {v} [rating|customer rating|score]",
            "is rated {v}",
            "[customers|guests] rate {s} {v}",
            "{p} rating is {v}",
        ),
        "How is {s} rated?",
    ),
    Property(
        ("children", "families"),
        lambda rng: pick(rng, ("welcome", "not welcome", "allowed", "not allowed")),
        ("is a place where children are {v}", "children are {v} at {s}", "families with children are {v} at {s}"),
        "Are children welcome at {s}?",
    ),
)

TOPICS.add("venue", Topic(words.VENUE_TYPES, names.venue, TASTE + COST + LOCATION))
TOPICS.add("pub", Topic(("pub", "place", "tavern", "restaurant"), names.venue, TASTE + COST + LOCATION + MANAGEMENT))
TOPICS.add(
    "hotel",
    Topic(
        ("hotel", "guest house", "hostel", "inn"),
        names.venue,
        COST
        + LOCATION
        + MANAGEMENT
        + (
            Property(
                ("rooms", "number of rooms"),
                lambda rng: rng.randint(4, 400),
                ("has {v} rooms", "offers {v} rooms", "there are {v} rooms at {s}"),
                "How many rooms does {s} have?",
            ),
        ),
    ),
)
TOPICS.add(
    "shop",
    Topic(
        ("shop", "store", "market stall"),
        lambda rng: names.company(rng) if rng.random() < 0.4 else names.venue(rng),
        (
            Property(
                ("sells", "goods"),
                lambda rng: f"{pick(rng, words.OBJECTS)}s and {pick(rng, words.OBJECTS)}s",
                ("sells {v}", "[offers|has|stocks] {v}"),
                "What does {s} sell?",
            ),
        )
        + COST
        + LOCATION
        + MANAGEMENT,
    ),
)
