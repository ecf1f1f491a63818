"""Runs beside the tables and figures of a paper: which run belongs to which cell follows from its own recipe."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from peftkit import resources
from peftkit.errors import PeftkitError, unknown
from peftkit.recipe.tree import read_keys
from peftkit.report import volumes
from peftkit.report.compared import costs
from peftkit.report.document import Document, Heading, Paragraph, Table
from peftkit.report.evidence import Answers, Evidence, leaves
from peftkit.report.results import Spread
from peftkit.report.tables import NONE, spread
from peftkit.report.volumes import Figure

NOT_RUN = "not run"
RATE = "learning_rate"
SEEDS = ("train.seed", "dataset.seed", f"train.{RATE}")
"""What may differ within a trial, and the rate, which is compared for itself."""
ARMS = ("literal", "tuned")
"""The paper's own learning rate; and the trial with the lowest validation loss, where others were tried."""


class Printed(BaseModel):
    """One row: our name of the score, what it is multiplied by to be the paper's, and the printed values by column."""

    model_config = ConfigDict(extra="forbid")
    key: str
    scale: float = 1.0
    printed: list[float]


class PaperTable(BaseModel):
    """The rows of one data set."""

    model_config = ConfigDict(extra="forbid")
    where: dict[str, Any]
    expects: dict[str, Any] = {}
    rows: dict[str, Printed]


class Paper(BaseModel):
    """A file of `configs/papers/`: `where` are facts that a run of a cell has, `expects` what is told if it has not."""

    model_config = ConfigDict(extra="forbid")
    title: str
    expects: dict[str, Any]
    literal: dict[str, Any]
    where: dict[str, Any]
    columns: dict[str, dict[str, Any]]
    notes: list[str]
    tables: dict[str, PaperTable]
    figure: Figure | None = None


@dataclass(frozen=True)
class Trial:
    """Runs that differ in their seeds alone."""

    runs: list[Evidence]

    def values(self, row: Printed) -> list[float]:
        """Return the score of each run as the paper writes it; runs without that score are left out."""
        scores = [run.answers.scores.get(row.key) for run in self.runs if run.answers]
        return [value * row.scale for value in scores if value is not None]

    @property
    def validation(self) -> float:
        """The mean validation loss, by which trials are chosen."""
        losses = [run.summary["losses"]["validation"] for run in self.runs if run.summary]
        known = [loss for loss in losses if loss is not None]
        return statistics.fmean(known) if known else float("inf")


def read(name: str) -> Paper:
    """Read a paper's file; an unknown name is a PeftkitError."""
    folder = resources.folder("configs") / "papers"
    names = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in names:
        raise PeftkitError(f"--paper: {unknown('table or figure', name, names)}")
    return Paper.model_validate(read_keys(folder / f"{name}.yaml"))


def facts(run: Evidence) -> dict[str, Any]:
    """Return what decides about a run's cell: its method and its options, model, data and learning rate."""
    recipe = run.recipe
    options = recipe.method[0].options
    rate = options.get(RATE) or recipe.train.learning_rate
    known = {
        "method": "+".join(choice.name for choice in recipe.method),
        "model": recipe.model.name,
        "dataset": run.answers.facts["dataset"] if run.answers else recipe.dataset.name,
        "fraction": recipe.dataset.fraction,
        RATE: rate,
        **{key: options[key] for key in ("rank", "alpha") if key in options},
    }
    if known.get("rank") and known.get("alpha"):
        known["alpha_per_rank"] = known["alpha"] / known["rank"]
    return known


def fits(run: Evidence, wanted: Mapping[str, Any]) -> bool:
    """Say whether a run has all these facts."""
    known = facts(run)
    return all(key in known and known[key] == value for key, value in wanted.items())


def trials(runs: Sequence[Evidence]) -> list[Trial]:
    """Put runs that differ in their seeds alone together."""
    by_setting: dict[str, list[Evidence]] = {}
    for run in runs:
        keys = dict(leaves(run.recipe.model_dump(exclude={"output", "compare", "method"})))
        keys = {key: value for key, value in keys.items() if key not in SEEDS}
        options = [(choice.name, {**choice.options, RATE: None}) for choice in run.recipe.method]
        # The rate may stand in the recipe or in the method's options: it is the same trial.
        setting = (sorted(keys.items()), options, facts(run)[RATE])
        by_setting.setdefault(repr(setting), []).append(run)
    return [Trial(same) for same in by_setting.values()]


def arms(paper: Paper, runs: Sequence[Evidence]) -> dict[str, tuple[Trial | None, int]]:
    """Return the trial of each arm, and among how many it was chosen.

    Literal is the paper's learning rate. Tuned is the trial of the lowest validation loss, once others were tried.
    """
    tried = trials([run for run in runs if run.answers])
    literal = [trial for trial in tried if fits(trial.runs[0], paper.literal)]
    tuned = tried if len(tried) > len(literal) else []
    return {
        arm: (min(group, key=lambda trial: trial.validation) if group else None, len(group))
        for arm, group in zip(ARMS, (literal, tuned), strict=True)
    }


def report(paper: Paper, runs: Sequence[Evidence], bases: Sequence[Answers]) -> Document:
    """Write the page: a table for each data set, or the figure, then which run stands where and what it cost."""
    document = Document(paper.title)
    used: dict[int, str] = {}
    for name, part in paper.tables.items():
        mine = [run for run in runs if fits(run, {**paper.where, **part.where})]
        document.add(Heading(name), *_tables(paper, part, mine, bases, used))
    if paper.figure is not None:
        mine = [run for run in runs if fits(run, paper.where) and run.answers]
        used |= {id(run): "figure" for run in mine}
        groups = {name: [run for run in mine if fits(run, wanted)] for name, wanted in paper.figure.series.items()}
        document.add(*volumes.blocks(paper.figure, _by_arm(paper, groups), facts))
    document.add(*map(Paragraph, paper.notes))
    document.add(Heading("Runs"), _runs(paper, runs, used), Heading("Costs"), costs(runs))
    return document


def _by_arm(paper: Paper, groups: Mapping[str, list[Evidence]]) -> dict[str, list[Evidence]]:
    groups_by_arm = {}
    for name, runs in groups.items():
        for arm in ARMS:
            chosen = [run for run in runs if fits(run, paper.literal) == (arm == ARMS[0])]
            if chosen:
                groups_by_arm[f"{arm}, {name}"] = chosen
    return groups_by_arm


def _tables(
    paper: Paper, part: PaperTable, runs: Sequence[Evidence], bases: Sequence[Answers], used: dict[int, str]
) -> list[Any]:
    """Return the table of printed and obtained values, and that of the orders of the columns."""
    cells = {column: arms(paper, [r for r in runs if fits(r, wanted)]) for column, wanted in paper.columns.items()}
    for column, tried in cells.items():
        for arm, (trial, count) in tried.items():
            for run in trial.runs if trial else ():
                place = f"{column}, {arm}" + (f" (best of {count} trials)" if count > 1 else "")
                used[id(run)] = f"{used[id(run)]}; {place}" if id(run) in used else place
    rows, orders = [], []
    for name, row in part.rows.items():
        obtained: dict[str, dict[str, float]] = {arm: {} for arm in ARMS}
        for base in bases:
            if base.facts["dataset"] == part.where.get("dataset") and row.key in base.scores:
                value = base.scores[row.key] * row.scale
                rows.append([name, f"untrained {base.facts['model']}", NONE, f"{value:.4f}", *[NONE] * 3])
        for (column, tried), printed in zip(cells.items(), row.printed, strict=True):
            line = [name, column, f"{printed:g}"]
            for arm in ARMS:
                trial, _ = tried[arm]
                line += _cell(trial, row, printed)
                if trial and trial.values(row):
                    obtained[arm][column] = statistics.fmean(trial.values(row))
            rows.append(line)
        printed_order = _order(dict(zip(paper.columns, row.printed, strict=True)))
        orders.append([name, printed_order, *(_order(obtained[arm]) for arm in ARMS)])
    heads = ["score", "column", "printed", "literal", "difference", "tuned", "difference"]
    text = "Columns from the highest score down, as printed and as obtained:"
    return [Table(heads, rows), Paragraph(text), Table(["score", "printed", *ARMS], orders)]


def _cell(trial: Trial | None, row: Printed, printed: float) -> list[str]:
    if trial is None:
        return [NOT_RUN, NONE]
    values = trial.values(row)
    if not values:
        return ["not available", NONE]
    obtained = Spread.of(values)
    return [spread(obtained, 4), f"{obtained.mean - printed:+.4f}"]


def _order(values: Mapping[str, float]) -> str:
    return " > ".join(sorted(values, key=lambda column: -values[column])) if values else NOT_RUN


def _runs(paper: Paper, runs: Sequence[Evidence], used: Mapping[int, str]) -> Table:
    """Say where each run stands, and in what its recipe is not the paper's."""
    rows = []
    for number, run in enumerate(runs, 1):
        place = used.get(id(run)) or run.state or "in no cell"
        rows.append([str(number), run.label, str(run.folder), place, "; ".join(_deviations(paper, run)) or "none"])
    return Table(["run", "what", "folder", "cell", "settings unlike the paper's"], rows, prose=True)


def _deviations(paper: Paper, run: Evidence) -> list[str]:
    expected = dict(paper.expects)
    for part in paper.tables.values():
        if fits(run, part.where):
            expected |= part.expects
    known = {**dict(leaves(run.recipe.model_dump())), **facts(run)}
    if run.answers:
        known["eval.limit"] = run.answers.facts["limit"]
    return [f"{key} {known.get(key)}" for key, value in expected.items() if known.get(key) != value]
