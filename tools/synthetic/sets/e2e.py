"""The bundled restaurant set, in the format of the E2E NLG challenge (Novikova et al. 2017, arXiv:1706.09254)."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from random import Random

from peftkit import files
from synthetic.grammar import capital, expand, pick
from synthetic.sets import SETS
from synthetic.words import listed

ATTRIBUTES = ("name", "eatType", "food", "priceRange", "customer rating", "area", "familyFriendly", "near")
PRESENCE = (1.0, 0.9, 0.7, 0.55, 0.6, 0.7, 0.6, 0.5)
VALUES = {
    "eatType": ("restaurant", "pub", "coffee shop"),
    "food": ("Chinese", "English", "Fast food", "French", "Indian", "Italian", "Japanese"),
    "priceRange": ("cheap", "moderate", "high", "less than £20", "£20-25", "more than £30"),
    "customer rating": ("low", "average", "high", "1 out of 5", "3 out of 5", "5 out of 5"),
    "area": ("city centre", "riverside"),
    "familyFriendly": ("yes", "no"),
}
NAMES = listed(
    "The Copper Kettle, Amber Lantern, The Silent Heron, Café Marlow, Old Badger, The Gilded Spoon, Thistle "
    "House, The Merry Otter, Saffron Table, The Crooked Bell, Walnut Grove, The Wandering Fox, Cherry Court, The "
    "Smoky Oven, Harper's, Café Solano, The Blue Anchor, Little Fig, The Painted Barrel, Pepper & Thyme, The "
    "Quiet Corner, Lemon Garden, The Iron Ladle, Jolly Trout, Ginger Kitchen, The Twin Pears, Willow Rooms, The "
    "Rusty Wheel, Clover Bistro, The Salty Dog, Basil Yard, The Lucky Hare, Café Verano, The Stone Bridge, Maple "
    "Diner, The Sunny Robin, Tellman's, The Brass Owl, Plum & Clove, The Hidden Gate"
)
NEW_NAMES = listed(
    "The Frosty Stag, Almond Parlour, The Singing Swan, Café Orlen, The Velvet Crown, Poppy Terrace, The Humble "
    "Goose, Birch Tavern, Radley's, The Misty Harbour"
)
LANDMARKS = listed(
    "Café Lindo, The Old Granary, Tulip Inn, The Market Cross, Acorn Bakery, The Lion and Drum, Station Grill, "
    "The Marble Arch, Coral Bar, The Tin Whistle, Elmwood Hotel, The Ivory Tower"
)
NEW_LANDMARKS = listed("The Chestnut Mill, Pearl Hotel, The Iron Gate")

PRICE = {
    "cheap": "cheap",
    "moderate": "moderately priced",
    "high": "[high-priced|high-priced|expensive]",
}
KIND = {"restaurant": "restaurant", "pub": "pub", "coffee shop": "coffee shop", "": "place"}


def draw(rng: Random, named: tuple[str, ...], landmarks: tuple[str, ...]) -> dict[str, str]:
    """Return a meaning representation of three to eight attributes, in the official order."""
    while True:
        chosen = {attribute for attribute, share in zip(ATTRIBUTES, PRESENCE, strict=True) if rng.random() < share}
        if len(chosen) >= 3:
            break
    values = {"name": pick(rng, named), "near": pick(rng, landmarks)}
    values.update({attribute: pick(rng, options) for attribute, options in VALUES.items()})
    return {attribute: values[attribute] for attribute in ATTRIBUTES if attribute in chosen}


def write_meaning(meaning: dict[str, str]) -> str:
    """Return the meaning representation as the challenge writes it."""
    return ", ".join(f"{attribute}[{value}]" for attribute, value in meaning.items())


def first_sentence(meaning: dict[str, str], rng: Random) -> str:
    """Say what the place is, what it serves and where it is."""
    kind = KIND[meaning.get("eatType", "")]
    price = expand(PRICE.get(meaning.get("priceRange", ""), ""), rng)
    food = meaning.get("food", "")
    adjective = food.lower() if food == "Fast food" else food
    area = f"in the {meaning['area']}" if meaning.get("area") == "city centre" else "by the riverside"
    where = " ".join(
        part
        for part in (area if "area" in meaning else "", f"near {meaning['near']}" if "near" in meaning else "")
        if part
    )
    served = (
        f" {pick(rng, ('serving', 'serving', 'that serves'))} {adjective}{'' if food == 'Fast food' else ' food'}"
        if food
        else ""
    )
    if food and rng.random() < 0.35:
        what = f"a(n) {price + ' ' if price else ''}{adjective} {kind}"
    else:
        what = f"a(n) {price + ' ' if price else ''}{kind}{served}"
    style = rng.random()
    if where and style < 0.15:
        template = "{where} there is {what} called {name}."
    elif where and style < 0.25:
        template = "{name} is located {where}. It is {what}."
    elif where and style < 0.35:
        template = "[You can|You will] find {name}, {what}, {where}."
    elif where and style < 0.42:
        template = "{name} is {what} that [you can find|can be found|lies] {where}."
    else:
        template = "{name} is {what}" + (" {where}." if where else ".")
    return capital(expand(expand(template, rng, where=where, what=what, name=meaning["name"]), rng))


def second_sentence(meaning: dict[str, str], rng: Random) -> str:
    """Say the price in pounds, the rating and whether families are welcome."""
    clauses = []
    price = meaning.get("priceRange", "")
    if "£" in price:
        template = "[its prices are {v}|its prices are {v}|the price range is {v}|it has a price range of {v}]"
        clauses.append(expand(template, rng, v=price))
    if rating := meaning.get("customer rating"):
        of = "it has a customer rating of {v}"
        template = f"[{of}|{of}|its customer rating is {{v}}|customers rate it {{v}}]"
        if " " not in rating:
            template = "[it has a(n) {v} customer rating|it has a(n) {v} customer rating|its customer rating is {v}]"
        clauses.append(expand(template, rng, v=rating))
    if friendly := meaning.get("familyFriendly"):
        template = (
            "[it is{no} family friendly|it is{no} family friendly|children are{no} welcome|families are{no} welcome]"
        )
        clauses.append(expand(template, rng, no="" if friendly == "yes" else " not"))
    if len(clauses) == 3:
        return f"{capital(clauses[0])} and {clauses[1]}. {capital(clauses[2])}."
    return f"{capital(' and '.join(clauses))}." if clauses else ""


def write_reference(meaning: dict[str, str], rng: Random) -> str:
    """Express every attribute once in one to three sentences."""
    return f"{first_sentence(meaning, rng)} {second_sentence(meaning, rng)}".strip()


def write_references(meaning: dict[str, str], rng: Random, count: int) -> list[str]:
    """Return up to `count` different references; a meaning with few attributes has fewer."""
    texts: dict[str, None] = {}
    for _ in range(count * 6):
        texts.setdefault(write_reference(meaning, rng))
        if len(texts) == count:
            break
    return list(texts)


def write_rows(rows: list[tuple[str, ...]], header: tuple[str, ...], ending: str, *, quoted: bool = False) -> str:
    """Return the table as CSV."""
    out = io.StringIO(newline="")
    table = csv.writer(out, lineterminator=ending, quoting=csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL)
    table.writerow(header)
    table.writerows(rows)
    return out.getvalue()


def write_split(
    rng: Random,
    count: int,
    seen: set[str],
    named: tuple[str, ...],
    landmarks: tuple[str, ...],
    references: tuple[int, int],
) -> list[tuple[str, str]]:
    """Return the rows of `count` meanings that no split before has."""
    rows = []
    while count:
        meaning = draw(rng, named, landmarks)
        written = write_meaning(meaning)
        if written in seen:
            continue
        texts = write_references(meaning, rng, rng.randint(*references))
        if len(texts) < references[0]:
            continue
        seen.add(written)
        count -= 1
        rows += [(written, text) for text in texts]
    return rows


@SETS.register("e2e")
def write_e2e(folder: Path, seed: int) -> None:
    """Write trainset.csv and devset.csv (CR LF), testset_w_refs.csv and testset.csv (LF)."""
    rng, seen = Random(f"{seed}/e2e"), set[str]()
    test = write_split(rng, 100, seen, NAMES[:20] + NEW_NAMES * 2, LANDMARKS + NEW_LANDMARKS, (3, 8))
    dev = write_split(rng, 80, seen, NAMES, LANDMARKS, (2, 4))
    train = write_split(rng, 600, seen, NAMES, LANDMARKS, (2, 4))
    rng.shuffle(train)
    for name, rows in (("trainset.csv", train), ("devset.csv", dev)):
        files.write_text(folder / name, write_rows(list(rows), ("mr", "ref"), "\r\n"))
    files.write_text(folder / "testset_w_refs.csv", write_rows(list(test), ("mr", "ref"), "\n", quoted=True))
    meanings = [(written,) for written in dict.fromkeys(written for written, _ in test)]
    files.write_text(folder / "testset.csv", write_rows(list(meanings), ("MR",), "\n"))
