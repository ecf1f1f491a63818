"""The bundled triples, in the format of the WebNLG challenge 2017 (Gardent et al. 2017, DOI 10.18653/v1/W17-3518)."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from pathlib import Path
from random import Random

from peftkit import files
from synthetic import names
from synthetic.entities import COUNTRY, LEADER, PLACES, SEEN, TEXT, Category, Relation
from synthetic.facts import Facts, Property, Topic, describe
from synthetic.grammar import capital
from synthetic.sets import SETS
from synthetic.unseen_entities import UNSEEN

SIZES = (1, 1, 1, 2, 2, 2, 3, 3, 3, 4)
CITY = Category("city", names.place, (COUNTRY, LEADER))


@dataclass(frozen=True)
class Entity:
    """One invented subject: its category's name, its own name and pronoun, and the value of each relation."""

    category: str
    name: str
    pronoun: str
    values: tuple[tuple[Relation, str], ...]


@dataclass(frozen=True)
class Entry:
    """One input: its category, its triples (subject, relation, value) and the texts that express them."""

    category: str
    triples: tuple[tuple[str, Relation, str], ...]
    texts: tuple[str, ...]


def invent(name: str, category: Category, rng: Random) -> Entity:
    """Invent an entity with a value for every relation."""
    named = category.name(rng)
    own, pronoun = named if isinstance(named, tuple) else (named, "it")
    return Entity(name, own, pronoun, tuple((relation, str(relation.value(rng))) for relation in category.relations))


def as_facts(noun: str, name: str, pronoun: str, values: list[tuple[Relation, str]]) -> Facts:
    """Return the values of one subject as facts that prose can restate."""
    of = tuple((Property((relation.name,), relation.value, relation.phrases), value) for relation, value in values)
    return Facts(Topic((noun,), lambda rng: name, ()), name, noun, pronoun, of)


def write_entry(entity: Entity, categories: dict[str, Category], rng: Random, size: int, texts: int) -> Entry:
    """Choose `size` facts of `entity`, one of them at times about a place that it names, and express them."""
    chosen = rng.sample(entity.values, min(size, len(entity.values)))
    chosen.sort(key=entity.values.index)
    subjects = [as_facts(categories[entity.category].noun, entity.name, entity.pronoun, chosen)]
    places = [value for relation, value in chosen if relation.name in PLACES]
    triples = [(entity.name, relation, value) for relation, value in chosen]
    if places and size < 4 and rng.random() < 0.35:
        relation = COUNTRY if rng.random() < 0.6 else LEADER
        value = str(relation.value(rng))
        subjects.append(as_facts(CITY.noun, places[0], "it", [(relation, value)]))
        triples.append((places[0], relation, value))
    written = dict.fromkeys(" ".join(describe(facts, rng) for facts in subjects) for _ in range(texts * 4))
    return Entry(entity.category, tuple(triples), tuple(written)[:texts])


def write_object(relation: Relation, value: str) -> str:
    """Return the object as a triple has it: a capital and underscores in an entity, quotes around a text."""
    if relation.form == TEXT:
        return f'"{value}"'
    return capital(value).replace(" ", "_")


def write_xml(entries: list[Entry], *, texts: bool = True) -> str:
    """Return the entries as a benchmark file."""
    benchmark = ElementTree.Element("benchmark")
    holder = ElementTree.SubElement(benchmark, "entries")
    for number, entry in enumerate(entries, 1):
        size = str(len(entry.triples))
        node = ElementTree.SubElement(holder, "entry", category=entry.category, eid=f"Id{number}", size=size)
        for outer, inner in (("originaltripleset", "otriple"), ("modifiedtripleset", "mtriple")):
            triples = ElementTree.SubElement(node, outer)
            for subject, relation, value in entry.triples:
                line = f"{subject.replace(' ', '_')} | {relation.name} | {write_object(relation, value)}"
                ElementTree.SubElement(triples, inner).text = line
        for at, text in enumerate(entry.texts if texts else (), 1):
            ElementTree.SubElement(node, "lex", comment="good", lid=f"Id{at}").text = text
    ElementTree.indent(benchmark, space="")
    return f"{ElementTree.tostring(benchmark, encoding='unicode')}\n"


def write_folder(folder: Path, entries: list[Entry], split: str) -> None:
    """Write one file for each number of triples and category."""
    for size in sorted({len(entry.triples) for entry in entries}):
        for category in SEEN:
            chosen = [entry for entry in entries if entry.category == category and len(entry.triples) == size]
            name = f"{size}triple{'s' if size > 1 else ''}_{category}_{split}_challenge.xml"
            if chosen:
                files.write_text(folder / f"{size}triples" / name, write_xml(chosen))


@SETS.register("webnlg")
def write_webnlg(folder: Path, seed: int) -> None:
    """Write train/ and dev/ by number of triples and category, and three files of test/."""
    rng = Random(f"{seed}/webnlg")
    known = {name: [invent(name, category, rng) for _ in range(12)] for name, category in SEEN.items()}
    drawn: dict[str, list[Entry]] = {"train": [], "dev": [], "test": [], "unseen": []}
    used: set[frozenset] = set()

    def add(split: str, entity: Entity, texts: int) -> None:
        for _ in range(50):
            entry = write_entry(entity, SEEN | UNSEEN, rng, rng.choice(SIZES), texts)
            key = frozenset((subject, relation.name, value) for subject, relation, value in entry.triples)
            if key not in used:
                used.add(key)
                drawn[split].append(entry)
                return
        raise ValueError(f"no further entry can be drawn for {entity.name}")

    for name, category in SEEN.items():
        for _ in range(3):
            add("test", rng.choice(known[name]), 3)
        for _ in range(2):
            add("test", invent(name, category, rng), 3)
        for split, count, texts in (("dev", 6, 2), ("train", 40, 2)):
            for _ in range(count):
                add(split, rng.choice(known[name]), texts)
    for name, category in UNSEEN.items():
        for _ in range(6):
            add("unseen", invent(name, category, rng), 3)
    for split in ("train", "dev"):
        write_folder(folder / split, drawn[split], split)
    test = drawn["test"] + drawn["unseen"]
    files.write_text(folder / "test/testdata_with_lex.xml", write_xml(test))
    files.write_text(folder / "test/testdata_no_lex.xml", write_xml(test, texts=False))
    files.write_text(folder / "test/testdata_unseen_with_lex.xml", write_xml(drawn["unseen"]))
