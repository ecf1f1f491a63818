"""WebNLG challenge 2017: sentences from RDF triples (Gardent et al. 2017, doi 10.18653/v1/P17-1017)."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

from peftkit.data.example import Example, question
from peftkit.data.hub import HubDataset
from peftkit.data.records import find_file, keys, member, missing, require_folder, shown, text
from peftkit.errors import PeftkitError
from peftkit.files import read_text
from peftkit.tasks.task import TASKS, Task

SEEN = frozenset(
    ("Airport", "Astronaut", "Building", "City", "ComicsCharacter")
    + ("Food", "Monument", "SportsTeam", "University", "WrittenWork")
)
"""The categories of the training split; a test input of another category is an unseen one."""
BETWEEN = " ; "
"""Between the triples of a prompt."""


class WebNLG(Task):
    """Put RDF triples `subject | property | object` into words.

    `meta` of an example: category, seen (whether the category is one of the training split's), size (number of
    triples).
    """

    name = "webnlg"
    hub = HubDataset("webnlg-challenge/web_nlg", "webnlg_challenge_2017", {"validation": "dev"})
    metrics = ("bleu", "nist", "meteor", "rouge_l", "cider", "coco_bleu", "ter", "chrf")
    headline = "BLEU-4"
    max_new_tokens = 192
    stop = ("\n",)
    suffix = ".xml"
    files = {"train": ("train",), "validation": ("dev",), "test": ("testdata_with_lex.xml",)}

    def paths(self, folder: Path, split: str) -> list[Path]:
        """Return `train/<n>triples/*.xml`, `dev/<n>triples/*.xml` or `test/testdata_with_lex.xml`."""
        (wanted,) = self.files[split]
        require_folder(folder, f"train/, dev/ and test/{self.files['test'][0]}")
        if split == "test":
            inside = folder / "test"
            return [find_file(inside if inside.is_dir() else folder, (wanted,))]
        paths = sorted((folder / wanted).rglob("*.xml"))
        if not paths:
            raise missing(folder, f"{wanted}/<n>triples/*.xml")
        return paths

    def read_file(self, path: Path) -> list[Example]:
        """Read one XML file, one example per text; entries without text give none."""
        root, lines = parse(path)
        if root.tag != "benchmark":
            raise PeftkitError(f"{path}: the root element is <{shown(root.tag)}>, and <benchmark> is wanted.")
        return [
            example
            for entry in root.iter("entry")
            for example in _of_entry(entry, path, f"{path}, line {lines[entry]}", lines[entry])
        ]

    def from_records(self, records: Iterable[Mapping[str, Any]], split: str) -> list[Example]:
        """Read the hub's records; of its test split, which holds three files, those of `testdata_with_lex`."""
        examples: list[Example] = []
        for row, record in enumerate(records):
            place = f"{self.hub}, {split} row {row}"
            if split == "test" and record.get("test_category") not in (None, "", "testdata_with_lex"):
                continue
            triples = _column(record.get("modified_triple_sets"), "mtriple_set")
            texts = _column(record.get("lex"), "text")
            if not triples or not isinstance(triples[0], list):
                raise PeftkitError(f"{place}: no list of triples in 'modified_triple_sets'.")
            category = member(record, place, "category", str, "row")
            examples += _examples(f"{split}:{row}", place, category, triples[0], texts)
        return examples

    def key(self, example: Example) -> Hashable:
        return example.meta["entry"]

    def parts(self, example: Example) -> Iterable[str]:
        """Name the challenge's two parts of the test split, by whether training had the category."""
        return ("seen" if example.meta["seen"] else "unseen",)


def _column(value: Any, name: str) -> list[Any]:
    """Return one column of a nested table, which is either an object of lists or a list of objects."""
    if isinstance(value, Mapping):
        value = value.get(name)
        return value if isinstance(value, list) else []
    return [item.get(name) for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _of_entry(entry: ElementTree.Element, path: Path, place: str, line: int) -> Iterator[Example]:
    """Yield one example per text of an `<entry>`."""
    absent = [name for name in ("category", "eid", "size") if name not in entry.attrib]
    if absent:
        raise PeftkitError(f"{place}: the entry has no {' and no '.join(absent)}; it has {keys(entry.attrib)}.")
    triples = [triple.text for triple in entry.iterfind("modifiedtripleset/mtriple")]
    size = entry.attrib["size"]
    if size != str(len(triples)):
        raise PeftkitError(
            f"{place}: the size of the entry is '{shown(size)}', and it has {len(triples)} triples (<mtriple>)."
        )
    texts = [lexicalization.text for lexicalization in entry.iterfind("lex")]
    identity = f"{path.parent.name}/{path.name}:{line}:{entry.attrib['eid']}"
    yield from _examples(identity, place, entry.attrib["category"], triples, texts)


def _examples(
    identity: str, place: str, category: str, triples: Sequence[Any], texts: Sequence[Any]
) -> Iterator[Example]:
    """Yield one example per text of one set of triples."""
    cleaned = [" ".join(text(triple, place, "mtriple").split()) for triple in triples]
    for triple in cleaned:
        if triple.count(" | ") < 2:
            raise PeftkitError(f"{place}: the triple '{shown(triple, 80)}' is not 'subject | property | object'.")
    meta = {"entry": identity, "category": category, "seen": category in SEEN, "size": len(cleaned)}
    prompt = BETWEEN.join(cleaned)
    for number, sentence in enumerate(texts, start=1):
        yield question(f"{identity}/{number}", prompt, " ".join(text(sentence, place, "lex").split()), **meta)


def parse(path: Path) -> tuple[ElementTree.Element, dict[ElementTree.Element, int]]:
    """Parse an XML file; returns its root and the line of each element.

    A document type declaration is refused, and with it every entity that could expand without bound or name another
    file.
    """
    builder = ElementTree.TreeBuilder()
    lines: dict[ElementTree.Element, int] = {}
    parser = expat.ParserCreate()

    def start(tag: str, attributes: dict[str, str]) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    def refuse(*_: Any) -> None:
        raise PeftkitError(
            f"{path}, line {parser.CurrentLineNumber}: the file declares a document type (<!DOCTYPE …>), "
            "which WebNLG files do not have; it is refused, since entities could be declared in it."
        )

    parser.StartElementHandler = start
    parser.EndElementHandler = lambda tag: builder.end(tag)
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    content = read_text(path)
    try:
        parser.Parse(content, True)
        return builder.close(), lines
    except expat.ExpatError as error:
        raise PeftkitError(
            f"{path}, line {error.lineno}: not well-formed XML ({expat.ErrorString(error.code)})."
        ) from None


TASKS.add(WebNLG.name, WebNLG())
