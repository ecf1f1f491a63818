"""Persons, sports teams, universities and companies."""

from __future__ import annotations

from random import Random

from synthetic import names, words
from synthetic.facts import TOPICS, Property, Topic
from synthetic.grammar import pick
from synthetic.topics.places import CITY, COUNTRY, number, year


def date(rng: Random) -> str:
    """Return a date in one of three forms."""
    day, month, when = rng.randint(1, 28), rng.randint(1, 12), rng.randint(1850, 2010)
    name = words.MONTHS[month - 1]
    return pick(rng, (f"{day} {name} {when}", f"{name} {day}, {when}", f"{when}-{month:02d}-{day:02d}"))


LIFE = (
    Property(
        ("born", "date of birth", "birth date"),
        date,
        ("was born on {v}", "{p} date of birth is {v}"),
        "When was {s} born?",
    ),
    Property(
        ("birthplace", "place of birth", "born in"),
        names.place,
        ("was born in {v}", "comes from {v}", "{v} is the birthplace of {s}", "{p} birthplace is {v}"),
        "Where was {s} born?",
    ),
    Property(
        ("nationality", "country", "citizen of"),
        names.country,
        ("is a citizen of {v}", "is from {v}"),
        "Which country is {s} from?",
    ),
    Property(
        ("lives in", "home"),
        names.place,
        ("lives in {v}", "has [a house|a home] in {v}", "{p} home is in {v}"),
        "Where does {s} live?",
    ),
    Property(
        ("studied at", "university", "alma mater"),
        lambda rng: f"the University of {names.place(rng)}",
        ("studied at {v}", "graduated from {v}", "attended {v}"),
        "Where did {s} study?",
    ),
)
WORK = (
    Property(
        ("occupation", "profession", "job", "works as"),
        lambda rng: pick(rng, words.PROFESSIONS),
        ("[is|was] a(n) {v}", "works as a(n) {v}", "worked as a(n) {v}", "{p} occupation is {v}"),
        "What does {s} do?",
    ),
    Property(
        ("spouse", "married to", "partner"),
        names.someone,
        ("is married to {v}", "{v} is married to {s}"),
        "Who is {s} married to?",
    ),
    Property(
        ("award", "prize"),
        lambda rng: f"the {names.surname(rng)} {pick(rng, ('Prize', 'Medal', 'Award', 'Cup'))}",
        ("[won|received|was awarded] {v}", "{v} was given to {s}"),
        "Which prize did {s} win?",
    ),
    Property(
        ("wrote", "known for", "work"),
        names.title,
        ("[wrote|is the author of|created] {v}", "is best known for {v}", "{v} [was written by|is a work by] {s}"),
        "What did {s} write?",
    ),
    Property(
        ("children", "number of children"),
        number(2, 7),
        ("has {v} children", "is a parent of {v} children"),
        "How many children does {s} have?",
    ),
)
PLAY = (
    Property(
        ("club", "team", "plays for"),
        lambda rng: team(rng),
        ("plays for {v}", "[joined|is a member of] {v}", "{s} is in the squad of {v}"),
        "Which team does {s} play for?",
    ),
    Property(
        ("height",),
        lambda rng: f"1.{rng.randint(55, 99)} metres",
        ("is {v} tall", "{p} height is {v}"),
        "How tall is {s}?",
    ),
    Property(
        ("position",),
        lambda rng: pick(rng, ("goalkeeper", "defender", "forward", "captain", "midfielder", "striker")),
        ("plays as a(n) {v}", "is a(n) {v}"),
        "In which position does {s} play?",
    ),
)


def team(rng: Random) -> str:
    """Name a sports team."""
    ending = pick(
        rng,
        (
            "United",
            "City",
            "Rovers",
            "F.C.",
            "Wanderers",
            "Athletic",
            "Town",
            "Hawks",
            "Lions",
            "Wolves",
            "Stars",
            "Bears",
        ),
    )
    return f"{names.place(rng)} {ending}"


TOPICS.add("person", Topic(("person",), names.person, LIFE + WORK))
TOPICS.add("player", Topic(("player", "athlete"), names.person, LIFE[:3] + PLAY))
TOPICS.add(
    "team",
    Topic(
        ("team", "club", "side"),
        team,
        (
            Property(
                ("sport",),
                lambda rng: pick(rng, words.SPORTS),
                ("plays {v}", "is a {v} [team|club]"),
                "Which sport does {s} play?",
            ),
            Property(
                ("manager", "coach", "trainer"),
                names.someone,
                ("is [managed|coached|trained] by {v}", "{v} is the [manager|coach] of {s}", "{p} manager is {v}"),
                "Who manages {s}?",
            ),
            Property(
                ("ground", "stadium", "home ground"),
                lambda rng: f"{names.surname(rng)} {pick(rng, ('Park', 'Stadium', 'Road', 'Ground', 'Arena'))}",
                ("plays at {v}", "has its home ground at {v}", "{v} is the ground of {s}", "{p} home ground is {v}"),
                "Where does {s} play?",
            ),
            Property(
                ("league", "competition"),
                lambda rng: (
                    f"the {names.country(rng)} {pick(rng, ('League', 'Cup', 'First Division', 'Championship'))}"
                ),
                ("plays in {v}", "competes in {v}", "is in {v}"),
                "In which league does {s} play?",
            ),
            Property(
                ("members", "seats", "supporters"),
                number(200, 60000),
                ("has {v} [members|supporters]",),
                "How many members has {s}?",
            ),
            Property(
                ("season", "champions in"),
                year(1950, 2023),
                ("[were|was] champion in {v}", "won the title in {v}"),
                "When did {s} win?",
            ),
        ),
    ),
)
TOPICS.add(
    "university",
    Topic(
        ("university", "school", "college"),
        lambda rng: (
            f"{names.place(rng)} {pick(rng, ('University', 'College', 'School of Arts', 'Institute of Technology'))}"
        ),
        (
            CITY,
            COUNTRY,
            Property(
                ("founded", "established"),
                year(1200, 2010),
                ("was [founded|established] in {v}",),
                "When was {s} founded?",
            ),
            Property(
                ("students", "number of students"),
                number(90, 50000),
                ("has {v} students", "teaches {v} students", "there are {v} students at {s}"),
                "How many students does {s} have?",
            ),
            Property(
                ("staff", "academic staff"),
                number(20, 3000),
                ("has a staff of {v}", "employs {v} people"),
                "How large is the staff of {s}?",
            ),
            Property(
                ("president", "dean", "director", "head"),
                names.someone,
                ("is [led|headed] by {v}", "{v} is the [president|head|director] of {s}", "{p} director is {v}"),
                "Who is the head of {s}?",
            ),
            Property(
                ("subject", "known for"),
                lambda rng: pick(rng, words.SUBJECTS),
                ("is known for {v}", "has a good department of {v}"),
                "What is {s} known for?",
            ),
        ),
    ),
)
TOPICS.add(
    "company",
    Topic(
        ("company", "firm"),
        names.company,
        (
            Property(
                ("founder", "founded by"), names.someone, ("was founded by {v}", "{v} founded {s}"), "Who founded {s}?"
            ),
            Property(("founded", "year"), year(), ("was founded in {v}", "started in {v}"), "When was {s} founded?"),
            Property(
                ("headquarters", "based in"),
                names.place,
                ("is based in {v}", "has its headquarters in {v}", "{p} headquarters are in {v}"),
                "Where is {s} based?",
            ),
            Property(
                ("makes", "product"),
                lambda rng: f"{pick(rng, words.OBJECTS + words.VEHICLES[2:6])}s",
                ("[makes|produces|sells] {v}", "is known for its {v}"),
                "What does {s} make?",
            ),
            Property(
                ("employees", "workers"),
                number(3, 90000),
                ("employs {v} people", "has {v} employees", "{v} people work at {s}"),
            ),
        ),
    ),
)
