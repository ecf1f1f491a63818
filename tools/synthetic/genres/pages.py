"""Recipes, instructions, lists, definitions, and text that covers signs, accents and foreign words."""

from __future__ import annotations

from random import Random

from synthetic import names, words
from synthetic.genres import genre
from synthetic.grammar import agree, capital, counted, enumerate_words, pick, plural, say, sentence
from synthetic.words import listed

STEPS = (
    "[mix|stir|beat] the {x} [with|into|and] the {y}",
    "[chop|slice|wash|peel] the {x}",
    "[heat|melt|warm] the {x} in a [pan|pot|bowl]",
    "add the {x}[ and the {y}|, then the {y}|]",
    "[cook|bake|fry|boil] for {n} minutes",
    "let it [rest|cool] for {n} minutes",
    "[serve|eat] [hot|cold|at once] with {x}",
    "[season|sprinkle] with {y}",
)


@genre("recipe", 3)
def recipe(rng: Random) -> str:
    """Write how to cook a dish."""
    things = rng.sample(words.INGREDIENTS, rng.randint(3, 6))
    amounts = [
        f"{rng.randint(1, 9) * 50} g {thing}" if rng.random() < 0.6 else f"{rng.randint(2, 5)} cups of {thing}"
        for thing in things
    ]
    steps = [
        sentence(say(rng, STEPS, x=pick(rng, things), y=pick(rng, things), n=rng.randint(2, 60)))
        for _ in range(rng.randint(3, 7))
    ]
    numbered = rng.random() < 0.5
    body = "\n".join(f"{at}. {step}" for at, step in enumerate(steps, 1)) if numbered else " ".join(steps)
    dish = pick(rng, words.DISHES)
    head = pick(
        rng,
        (f"How to make {dish}", f"{capital(dish)} for {rng.randint(2, 8)}", f"Recipe: {dish} as in {names.place(rng)}"),
    )
    return f"{head}\n\n" + "\n".join(f"- {amount}" for amount in amounts) + f"\n\n{body}"


@genre("lists", 4)
def lists(rng: Random) -> str:
    """Write a list, then how many things it holds and one sentence on it."""
    kind, source = pick(
        rng,
        (
            ("things to buy", words.INGREDIENTS),
            ("dishes", words.DISHES),
            ("animals", words.ANIMALS),
            ("colours", words.COLOURS),
            ("languages", words.LANGUAGES),
            ("sports", words.SPORTS),
            ("jobs", words.PROFESSIONS),
            ("subjects", words.SUBJECTS),
            ("things in the bag", words.OBJECTS),
            ("materials", words.MATERIALS),
            ("kinds of food", words.CUISINES),
        ),
    )
    items = rng.sample(source, rng.randint(3, 9))
    sign = pick(rng, ("- ", "* ", "", "+ "))
    text = f"{capital(kind)}:\n" + "\n".join(f"{sign}{item}" for item in items)
    if rng.random() < 0.5:
        text += f"\n\nThe list has {len(items)} {kind}: {enumerate_words(items)}."
    if rng.random() < 0.3:
        text += f"\nSorted: {', '.join(sorted(items))}."
    return text


DEFINITIONS = (
    ("bird", ("owl", "swan", "robin", "crow", "duck", "goose", "sparrow", "falcon")),
    ("fish", ("salmon", "trout", "cod", "herring")),
    ("fruit", ("apple", "pear", "plum", "peach", "lemon", "cherry", "orange")),
    ("vegetable", ("carrot", "leek", "cabbage", "onion", "potato")),
    ("instrument", ("harp", "fiddle", "drum", "piano", "flute", "guitar")),
    ("vehicle", words.VEHICLES),
    ("colour", words.COLOURS[:14]),
    ("sport", words.SPORTS),
    ("language", words.LANGUAGES),
    ("country", ()),
    ("town", ()),
    ("pub", ()),
    ("person", ()),
)
INVENTED = {"country": names.country, "town": names.place, "pub": names.venue, "person": names.someone}


@genre("definitions", 3)
def definitions(rng: Random) -> str:
    """Write what kind of thing each of several things is, with questions."""
    rows = []
    for _ in range(rng.randint(4, 9)):
        kind, members = pick(rng, DEFINITIONS)
        member = pick(rng, members) if members else INVENTED[kind](rng)
        other = pick(rng, DEFINITIONS)[0]
        subject = member if not members or kind in ("colour", "sport", "language") else f"a(n) {member}"
        rows.append(
            pick(
                rng,
                (
                    f"{subject} is a(n) {kind}.",
                    f"What is {subject}? It is a(n) {kind}.",
                    f"is {subject} a(n) {other}? {'Yes' if kind == other else 'No'}, {subject} is a(n) {kind}.",
                    f"{subject} is a(n) {kind}, not a(n) {other}."
                    if kind != other
                    else f"{subject} is one of the {plural(kind)}.",
                ),
            )
        )
    return pick(rng, (" ", "\n")).join(capital(agree(row)) for row in rows)


WORDS_ABROAD = listed(
    "café, crème, brûlée, déjà, façade, naïve, über, Straße, Köln, Zürich, señor, mañana, jalapeño, São, Tomé, "
    "Ångström, smörgåsbord, fjørd, Łódź, Kraków, Škoda, čaj, œuvre, garçon, piñata, Málaga, München, Århus, "
    "Reykjavík, Curaçao, Besançon, Gdańsk, İzmir, Đorđe, Ελλάδα, Αθήνα, Москва, город, Київ, "
    "東京, 寿司, 北京, 日本, 서울, مرحبا, שלום, नमस्ते, ไทย"
)
SIGNS = tuple("!?.,;:'\"()[]{}<>|/\\@#$%^&*_-+=~`£€¥°§©®™–—…•‘’“”«»½¼×÷±²³µ→←")


@genre("signs", 3)
def signs(rng: Random) -> str:
    """Write text with accents, currencies, quotes, brackets, addresses and other scripts."""
    noun, place = pick(rng, words.NAME_NOUNS), names.place(rng)
    number = rng.randint(0, 9999)
    shown = f"{number}.{rng.randint(0, 99):02d}"
    rows = [
        f"The word “{pick(rng, WORDS_ABROAD)}” stands beside ‘{pick(rng, WORDS_ABROAD)}’ "
        f"and {pick(rng, WORDS_ABROAD)}.",
        f"{pick(rng, '£€$¥')}{shown} + {pick(rng, '£€$')}{number} (no. {rng.randint(0, 9999)})",
        f"{noun.upper()} AND {place.upper()}!",
        f"Write to {noun.lower()}.{names.surname(rng).lower().replace(' ', '')}"
        f"@{place.lower().replace(' ', '')}.example "
        f"or see www.{noun.lower()}.example/{number}.",
        f"{place}, {names.country(rng)}; {rng.randint(0, 89)}°{rng.randint(0, 59)}′ N – "
        f"{rng.randint(0, 179)}°{rng.randint(0, 59)}′ E",
        f"cell[{rng.randint(0, 99)}] = {number}; list[{rng.randint(0, 9)}] = {rng.randint(0, 99)}; "
        f"{noun.lower()}_{rng.randint(0, 99)} = 'x'",
        "Signs: " + " ".join(pick(rng, SIGNS) for _ in range(rng.randint(5, 12))),
        f"{pick(rng, words.MONTHS)[:3]} {rng.randint(1, 28)}, {rng.randint(1500, 2030)}: "
        f"don't, can't, isn't, we're, it's, they'll, I've, {noun}'s",
        "".join(pick(rng, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(2, 6)))
        + f"-{number}/{pick(rng, 'abcdefgxyz')}",
        f"({rng.randint(1, 99)}) {capital(pick(rng, words.ABSTRACT))} "
        f"(from {pick(rng, words.LANGUAGES)} {pick(rng, WORDS_ABROAD)}), #{number}, {rng.randint(1, 100)}%",
    ]
    rng.shuffle(rows)
    return "\n".join(rows[: rng.randint(3, 7)])


PROVERBS = (
    "{x} is [better|worse|older|stronger] than {y}",
    "without {x} there is no {y}",
    "[where there is|he who has] {x} [there is|needs no|finds] {y}",
    "a(n) {a} never [asks|waits for|forgets] a(n) {b}",
    "[every|no] {job} [needs|has|loves] {x}",
    "[two|three|seven] {as_} are [better than|as good as|worth more than] one {b}",
    "[buy|sell|keep] the {o}, [but|and] [keep|lose|share] the {p}",
)


@genre("sayings", 2)
def sayings(rng: Random) -> str:
    """Write several sayings."""
    rows = []
    for _ in range(rng.randint(4, 9)):
        x, y = rng.sample(words.ABSTRACT, 2)
        a, b = rng.sample(words.ANIMALS, 2)
        o, p = rng.sample(words.OBJECTS, 2)
        rows.append(
            sentence(say(rng, PROVERBS, x=x, y=y, a=a, b=b, as_=plural(a), o=o, p=p, job=pick(rng, words.PROFESSIONS)))
        )
    return pick(rng, (" ", "\n")).join(rows)


@genre("inventory", 2)
def inventory(rng: Random) -> str:
    """Write who owns how many of what, then totals."""
    owners = [names.first_name(rng)[0] for _ in range(rng.randint(2, 4))]
    thing = pick(rng, words.OBJECTS)
    counts = [rng.randint(1, 60) for _ in owners]
    rows = [f"{owner} has {counted(count, thing)}." for owner, count in zip(owners, counts, strict=True)]
    most = owners[counts.index(max(counts))]
    return (
        " ".join(rows)
        + f"\nTogether they have {' + '.join(map(str, counts))} = {sum(counts)} {plural(thing)}. {most} has the most."
    )
