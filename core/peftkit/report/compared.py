"""The report on runs of one data set: scores with intervals, significance, curves, examples and costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from peftkit import suites
from peftkit.errors import PeftkitError
from peftkit.report import bootstrap, drawings
from peftkit.report.document import Document, Heading, Paragraph, Picture, Table
from peftkit.report.evidence import Answers, Evidence
from peftkit.report.tables import NONE
from peftkit.tasks import TASKS, Task

OnProgress = Callable[[int, int], None]
EXAMPLES, SHOWN_REFERENCES = 8, 2
PAIRS = 10
"""Up to so many runs each is compared with each; of more, each with the best."""
HOW = (
    "In brackets the interval that holds 95 % of {resamples:,} resamples of the inputs with replacement (bootstrap, "
    "Efron 1979): of a mean over inputs the means on them, of a corpus score its formula on the sums over them. Where "
    "a metric weighs n-grams by the references, the weights are those of all inputs. A score without brackets could "
    "not be computed again from the answers. Intervals tell of the choice of inputs, not of the seed of training."
)


@dataclass(frozen=True)
class Scored:
    """The runs with answers, their numbers in the report, and what resampling found."""

    task: Task
    headline: str
    runs: list[tuple[int, Evidence]]
    resampled: dict[str, list[list[float]]]
    """For each score, its value on every resample, a list a run."""

    @property
    def answers(self) -> list[Answers]:
        """The answers of each run."""
        return [run.answers for _, run in self.runs if run.answers is not None]

    def span(self, key: str, place: int) -> tuple[float, float] | None:
        """Return the interval of a score of the run at `place`, where it was resampled."""
        return bootstrap.interval(self.resampled[key][place]) if key in self.resampled else None


def report(runs: Sequence[Evidence], bases: Sequence[Answers], on_progress: OnProgress | None = None) -> Document:
    """Write the report; raises PeftkitError where the runs were not evaluated on the same split of one data set."""
    evaluated = [(number, run) for number, run in enumerate(runs, 1) if run.answers is not None]
    _check([run for _, run in evaluated])
    document = Document(f"{len(runs)} run{'s' if len(runs) > 1 else ''} on {_data(runs)}")
    named = [_named(number, run) for number, run in enumerate(runs, 1)]
    document.add(Table(["run", "what", "folder", "state"], named, prose=True))
    scored = score(evaluated, on_progress) if evaluated else None
    if scored:
        own = {run.facts["model"] for run in scored.answers}
        like = scored.answers[0].facts
        fit = [b for b in bases if b.facts["split"] == like["split"] and b.facts["dataset"] == like["dataset"]]
        bases = [b for b in fit if b.facts["model"] in own]
        document.add(Heading("Scores"), _scores(scored, bases), Paragraph(_how(scored)))
        document.add(*_pairs(scored))
        document.add(Heading(f"{scored.headline} against trainable parameters"), _against(scored, bases))
    document.add(*_suites(runs))
    document.add(Heading("Loss"), Picture("losses", "Loss of each run by step", drawings.curves(runs)))
    document.add(Heading("Costs"), costs(runs))
    if scored and len(scored.runs) > 1:
        document.add(*_examples(scored))
    return document


def score(runs: Sequence[tuple[int, Evidence]], on_progress: OnProgress | None = None) -> Scored:
    """Resample the scores of the runs' answers; PeftkitError where one of them lacks the score that is shown first."""
    answers = [run.answers for _, run in runs if run.answers is not None]
    task = TASKS[answers[0].facts["dataset"].rpartition("/")[2]]
    headline = task.headline or next(iter(answers[0].scores))
    lacking = next((run for _, run in runs if run.answers and headline not in run.answers.scores), None)
    if lacking is not None:
        raise PeftkitError(
            f"{lacking.folder}: its evaluation lacks the score '{headline}', by which runs are set side by side: run "
            "peft eval again."
        )
    resampled: dict[str, list[list[float]]] = {}
    for done, name in enumerate(task.metrics, 1):
        metric = bootstrap.METRICS[name]
        resampled |= bootstrap.resample(answers, metric)
        if on_progress:
            on_progress(done, len(task.metrics))
    return Scored(task, headline, list(runs), resampled)


def _check(runs: Sequence[Evidence]) -> None:
    """Refuse runs whose scores cannot stand in one table."""
    for run in runs[1:]:
        for key, what in (("dataset", "data sets"), ("split", "splits")):
            first, other = (each.answers.facts[key] for each in (runs[0], run) if each.answers)
            if first != other:
                raise PeftkitError(
                    f"the runs were evaluated on different {what}: {runs[0].folder} on {first}, {run.folder} on "
                    f"{other}. Report them apart; --paper sets runs of several data sets beside a paper's table."
                )


def _data(runs: Sequence[Evidence]) -> str:
    evaluated = [run.answers.facts for run in runs if run.answers]
    return f"{evaluated[0]['dataset']}, {evaluated[0]['split']} split" if evaluated else runs[0].recipe.dataset.name


def _named(number: int, run: Evidence) -> list[str]:
    return [str(number), run.label, str(run.folder), run.state or "finished"]


def _scores(scored: Scored, bases: Sequence[Answers]) -> Table:
    names = list(dict.fromkeys(name for answers in scored.answers for name in answers.scores))
    order = sorted(range(len(scored.runs)), key=lambda place: -scored.answers[place].scores[scored.headline])
    rows = [[f"untrained {b.facts['model']}", *(_figure(b, name) for name in names), _inputs(b)] for b in bases]
    for place in order:
        (number, run), answers = scored.runs[place], scored.answers[place]
        cells = [_figure(answers, name) + _brackets(scored.span(name, place)) for name in names]
        rows.append([f"{number}  {run.label}", *cells, _inputs(answers)])
    return Table(["run", *names, "inputs"], rows)


def _suites(runs: Sequence[Evidence]) -> list[Any]:
    """Set side by side what `peft eval --suite` found, a row a task and metric."""
    columns: dict[str, dict[str, str]] = {}
    for number, run in enumerate(runs, 1):
        for reports, base in ((run.base_suites, True), (run.suites, False)):
            for one in reports:
                column = columns.setdefault(f"untrained {one['model']}" if base else str(number), {})
                cut = "" if one["limit"] is None else f" (of {one['limit']:,})"
                for row in one["scores"]:
                    column[f"{row['task']}, {suites.label(row)}"] = _with_error(row) + cut
    if not columns:
        return []
    heads = sorted(columns, key=lambda head: not head.startswith("untrained"))
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [[name, *(columns[head].get(name, NONE) for head in heads)] for name in names]
    explanation = "Scores of the suites' own code, with their standard errors; in brackets, of how many inputs at most."
    return [Heading("Suites"), Table(["task", *heads], rows), Paragraph(explanation)]


def _with_error(row: dict[str, Any]) -> str:
    if row["value"] is None:
        return NONE
    return f"{row['value']:.4f}" + ("" if row["stderr"] is None else f" ± {row['stderr']:.4f}")


def _inputs(answers: Answers) -> str:
    cut = answers.facts.get("unfinished", 0)
    return f"{answers.facts['examples']:,}" + (f" ({cut:,} cut off)" if cut else "")


def _figure(answers: Answers, name: str) -> str:
    return f"{answers.scores[name]:.4f}" if name in answers.scores else NONE


def _brackets(span: tuple[float, float] | None) -> str:
    return "" if span is None else f" [{span[0]:.4f}, {span[1]:.4f}]"


def _how(scored: Scored) -> str:
    explanation = HOW.format(resamples=bootstrap.RESAMPLES)
    reasons = {name: why for answers in scored.answers for name, why in answers.facts.get("unavailable", {}).items()}
    return " ".join([explanation, *(f"{name} is not available: {reason}" for name, reason in reasons.items())])


def _pairs(scored: Scored) -> list[Any]:
    """Set the headline scores of runs on the same inputs against each other, on the same resamples."""
    key, values = scored.headline, scored.resampled.get(scored.headline)
    if values is None or len(scored.runs) < 2:
        return []
    scores = [answers.scores[key] for answers in scored.answers]
    places = sorted(range(len(scores)), key=lambda place: -scores[place])
    pairs = list(combinations(places, 2)) if len(places) <= PAIRS else [(places[0], other) for other in places[1:]]
    rows, apart = [], 0
    for one, other in pairs:
        if scored.answers[one].inputs != scored.answers[other].inputs:
            apart += 1
            continue
        differences = [a - b for a, b in zip(values[one], values[other], strict=True)]
        difference = f"{scores[one] - scores[other]:+.4f}{_brackets(bootstrap.interval(differences))}"
        p = bootstrap.significance(values[one], values[other])
        rows.append(
            [f"{scored.runs[one][0]} − {scored.runs[other][0]}", difference, f"{p:.3f}", "yes" if p < 0.05 else "no"]
        )
    text = (
        f"Paired bootstrap (Koehn 2004): both runs of a pair on the same {len(values[0]):,} resamples of the same "
        "inputs. p is two-sided and counts how often the difference does not have its sign; of many pairs some fall "
        "below 0.05 by chance alone."
    )
    text += f" {apart} pairs were not evaluated on the same inputs and are left out." if apart else ""
    heads = ["runs", f"difference in {key}", "p", "below 0.05"]
    return [Heading(f"Significance of {key}"), *([Table(heads, rows)] if rows else []), Paragraph(text)]


def _against(scored: Scored, bases: Sequence[Answers]) -> Picture:
    spans = [scored.span(scored.headline, place) for place in range(len(scored.runs))]
    base = bases[0].scores.get(scored.headline) if len(bases) == 1 else None
    shows = f"{scored.headline} of each run, with its interval, against trainable parameters"
    return Picture("parameters", shows, drawings.against_parameters(scored.runs, scored.headline, spans, base))


def costs(runs: Sequence[Evidence]) -> Table:
    """Set side by side what training and answering took."""
    heads = ["run", "trainable", "share", "steps", "tokens", "training time (s)", "tokens/s", "peak memory (MB)"]
    rows = []
    for number, run in enumerate(runs, 1):
        summary, facts = run.summary, run.answers.facts if run.answers else {}
        row = [str(number), *[NONE] * 7]
        if summary:
            share = summary["trainable_parameters"] / summary["total_parameters"]
            row[1:] = [f"{summary['trainable_parameters']:,}", f"{share:.3%}", f"{summary['steps']:,}"]
            row += [f"{summary['tokens']:,}", f"{summary['wall_s']:,.1f}", f"{summary['tokens_per_second']:,.0f}"]
            row.append(f"{summary['peak_memory_bytes'] / 1e6:,.0f}")
        answering = [facts.get("wall_s"), facts.get("tokens_per_second")]
        rows.append([*row, *(NONE if value is None else f"{value:,.1f}" for value in answering)])
    return Table([*heads, "answering time (s)", "generated tokens/s"], rows)


def _examples(scored: Scored) -> list[Any]:
    """Show the inputs on which the runs' answers differ most by the headline score of each input alone."""
    metric = bootstrap.metric_of(scored.headline, scored.task.metrics)
    same = [
        (run, a) for run, a in zip(scored.runs, scored.answers, strict=True) if a.inputs == scored.answers[0].inputs
    ]
    if metric is None or len(same) < 2:
        return []
    alone = [bootstrap.single(metric, answers)[scored.headline] for _, answers in same]
    apart = [max(column) - min(column) for column in zip(*alone, strict=True)]
    rows = []
    for index in sorted(range(len(apart)), key=lambda index: (-apart[index], index))[:EXAMPLES]:
        first = same[0][1].predictions[index]
        shown = " / ".join(first["references"][:SHOWN_REFERENCES])
        rows.append(["input", "", _short(first["prompt"])])
        rows.append(["reference", "", _short(shown)])
        for ((number, _), answers), values in zip(same, alone, strict=True):
            rows.append([f"run {number}", f"{values[index]:.3f}", _short(answers.predictions[index]["prediction"])])
    title = f"Where the runs differ most, by {scored.headline} of the input alone"
    return [Heading(title), Table(["", scored.headline, "text"], rows, prose=True)]


def _short(text: str, length: int = 600) -> str:
    """Return the end of a long text: of a prompt with a story, that is the question."""
    flat = " ".join(text.split())
    return flat if len(flat) <= length else "… " + flat[-length:]
