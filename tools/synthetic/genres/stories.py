"""Short stories with dialogue, and questions on them."""

from __future__ import annotations

from random import Random

from synthetic import names, words
from synthetic.genres import genre
from synthetic.grammar import capital, expand, pick, say, sentence

OPENINGS = (
    "[Once upon a time|Long ago|Many years ago|One {W} {day}], "
    "[there lived a(n) {adj} {animal} named {n} [in|near] the {out}|"
    "a(n) {adj} {animal} named {n} lived [in|near] a {out}]",
    "{n} was a(n) {adj} {animal} who lived [in the {room}|by the {out}|near the {out}] of {o}'s [house|family]",
    "[On {day}|One {day}|Last {day}] {n} went to the {out} with {p} {rel} {o}",
    "{n} and {o} [lived|had a house] in {town}, a [small|quiet|busy] [town|village] near the {out}",
)
EVENTS = (
    "[One day|In the morning|After breakfast|Then] {h} found a(n) {colour} {thing} in the {room}",
    "[It was a(n) {W} day|The weather was {W}], and {n} was {feel}",
    "{h} wanted to give the {thing} to {o}, but {o} was not [there|at home]",
    "{n} lost {p} {colour} {thing} [near|at] the {out}",
    "{o} came by {vehicle} and brought {num} {thing}s",
    "{h} looked for it [everywhere|all day], in the {room} and in the {out}",
    "{n} made {dish} for {o}",
    "[Suddenly|At noon|In the evening] {h} heard a(n) {animal}",
    "{n} was {feel} because the {thing} was {colour}",
    "{o} showed {n} [how to|the way to] [the {out}|make {dish}|paint the {room}]",
    "they walked to the {out} and sat [under a tree|by the water|on a bench]",
    "{h} paid {num} [pounds|coins|dollars] for the {thing}",
    "the {animal} slept in the {room}",
)
SPEECHES = (
    '"[Where|Why] is my {thing}?" [asked|cried] {n}.',
    '"I am {feel}," said {n}. "[Let us|We can] go to the {out}."',
    '"Do not worry," {o} [said|answered]. "The {thing} is in the {room}."',
    '{n} [asked|said], "Can you help me?" "[Yes|Of course|Gladly]," said {o}.',
    '"What a [lovely|fine|strange] {thing}!" {o} [laughed|shouted].',
    '"Thank you, {o}!" {n} [said|smiled].',
    '"I don\'t like {dish}," said {o}, "but I\'m hungry."',
)
ENDINGS = (
    "[In the end|At last|After that] {n} and {o} [went home|had {dish}|were friends]",
    "[That night|In the evening] {n} was [{feel}|no longer {feel}] and went to bed",
    "{o} gave {n} a(n) {colour} {thing}, and {n} was happy",
    "from that day on {n} never [lost|forgot] a(n) {thing}",
)


def cast(rng: Random) -> dict[str, object]:
    """Return who and what one story is about."""
    name, he = names.first_name(rng)
    return {
        "n": name,
        "h": he,
        "p": {"he": "his", "she": "her"}[he],
        "o": names.first_name(rng)[0],
        "animal": pick(rng, words.ANIMALS),
        "adj": pick(rng, (*words.FEELINGS, "small", "big", "young", "old", "clever", "little", "white", "brown")),
        "out": pick(rng, words.OUTDOORS),
        "room": pick(rng, words.ROOMS),
        "day": pick(rng, words.DAYS),
        "W": pick(rng, words.WEATHER),
        "rel": pick(rng, words.RELATIVES),
        "town": names.place(rng),
        "colour": pick(rng, words.COLOURS),
        "thing": pick(rng, words.OBJECTS),
        "feel": pick(rng, words.FEELINGS),
        "vehicle": pick(rng, words.VEHICLES),
        "num": str(rng.randint(2, 20)),
        "dish": pick(rng, words.DISHES),
    }


def tell(rng: Random, who: dict[str, object], least: int = 3, most: int = 7) -> str:
    """Tell a story of `least` to `most` events between its beginning and its end."""
    parts = [sentence(say(rng, OPENINGS, **who))]
    for _ in range(rng.randint(least, most)):
        if rng.random() < 0.3:
            parts.append(say(rng, SPEECHES, **who))
        else:
            parts.append(sentence(say(rng, EVENTS, **who)))
        if rng.random() < 0.12:
            who = {
                **who,
                "thing": pick(rng, words.OBJECTS),
                "room": pick(rng, words.ROOMS),
                "out": pick(rng, words.OUTDOORS),
            }
    parts.append(sentence(say(rng, ENDINGS, **who)))
    breaks = "\n\n" if rng.random() < 0.15 else " "
    return breaks.join(parts)


@genre("story", 7)
def story(rng: Random) -> str:
    """Write a story, some with a title."""
    who = cast(rng)
    head = (
        expand("[The {colour} {thing}|{n} and {o}|{n} and the {animal}|At the {out}]\n\n", rng, **who)
        if rng.random() < 0.3
        else ""
    )
    return head + tell(rng, who)


SCENES = (
    (
        "{n} keeps a(n) {colour} {thing} in the {room}",
        (("What colour is the {thing}?", "{colour}"), ("Where is the {thing}?", "in the {room}")),
    ),
    ("{h} lives in {town} with {p} {rel} {o}", (("Where does {n} live?", "in {town}"), ("Who is {o}?", "{p} {rel}"))),
    (
        "on {day} {n} goes to the {out} by {vehicle}",
        (("When does {n} go to the {out}?", "on {day}"), ("How?", "by {vehicle}")),
    ),
    (
        "{o} has {num} {thing}s and a(n) {animal}",
        (("How many {thing}s does {o} have?", "{num}"), ("Does {o} have a pet?", "yes, a(n) {animal}")),
    ),
    ("{h} eats {dish} because {h} is {feel}", (("What does {n} eat?", "{dish}"), ("Is {n} {feel}?", "yes"))),
    ("the weather is {W} and {o} stays at home", (("How is the weather?", "{W}"), ("Does {o} go out?", "no"))),
    ("the {animal} sleeps near the {out}", (("Which animal sleeps?", "the {animal}"), ("Where?", "near the {out}"))),
)


@genre("story questions", 7)
def story_questions(rng: Random) -> str:
    """Write a short scene, then questions and short answers on it."""
    who = cast(rng)
    chosen = rng.sample(SCENES, rng.randint(3, 6))
    text = " ".join(sentence(expand(scene, rng, **who)) for scene, _ in chosen)
    asked = [each for _, each_pair in chosen for each in each_pair]
    if rng.random() < 0.5:
        rng.shuffle(asked)
    ask, answer = pick(rng, (("Question: ", "Answer: "), ("- ", "- "), ("Teacher: ", "Pupil: "), ("(?) ", "(!) ")))
    style = pick(rng, (str, capital))
    rows = [
        f"{ask}{expand(q, rng, **who)}\n{answer}{style(expand(a, rng, **who))}" for q, a in asked[: rng.randint(3, 8)]
    ]
    return f"{text}\n\n" + "\n".join(rows)
