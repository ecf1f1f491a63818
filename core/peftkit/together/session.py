"""A sitting of several runs over one base: each is a run as any other, but for the passes that they share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peftkit import files, lock
from peftkit.adaptation import activate
from peftkit.assembly import Assembled, assemble, training_dtype
from peftkit.device import choose_precision
from peftkit.errors import PeftkitError
from peftkit.models.quantize import forget_originals
from peftkit.recipe import BASE, Recipe, on_own_base
from peftkit.together import base
from peftkit.together.rounds import Done, Member, backward_together
from peftkit.training import folder, summary
from peftkit.training.observer import Observer, Silent
from peftkit.training.reports import check_loggers
from peftkit.training.session import Session
from peftkit.training.signals import Cause, Deferred, told
from peftkit.training.summary import Summary


class Stopped(PeftkitError):  # noqa: N818
    """Runs stopped by a signal, or as their output was lost, after each wrote its checkpoint."""

    def __init__(self, cause: Cause, checkpoints: Sequence[Path]):
        stopped, self.exit_code = told(cause)
        super().__init__(
            f"{stopped.rstrip(',')}; the checkpoints are {', '.join(map(str, checkpoints))}. "
            "Continue with the same command and --resume, or any run by itself."
        )
        self.checkpoints = list(checkpoints)


@dataclass(frozen=True)
class Job:
    """One of the runs: what it is called in messages, its recipe, its folder, and who watches it."""

    name: str
    recipe: Recipe
    run: Path
    observer: Observer = field(default_factory=Silent)


@dataclass(frozen=True)
class Failed:
    """Why a run ended before its last step; its last checkpoint stays, and it may be resumed by itself."""

    reason: str


def train_together(jobs: Sequence[Job], *, resume: bool = False) -> dict[str, Summary | Failed]:
    """Train all jobs in one pass over their base; returns how each ended, by its name.

    Losses are those of each run by itself; draws of dropout differ. A run whose loss is not finite, or whose own work
    fails, ends, and the others go on. With `resume` runs that are there continue and others begin. Raises
    PeftkitError for jobs that cannot share a base or a folder, and Stopped, after their checkpoints, on a signal.
    """
    _check_apart(jobs)
    with ExitStack() as stack:
        results, waiting, holding = _begin(jobs, resume, stack)
        if waiting:
            outline = base.check([(job.name, job.recipe) for job, _ in waiting])
            together = _Together(waiting, outline)
            for held in holding:
                held.check()
            results |= together.go()
    return {job.name: results[job.name] for job in jobs}


def _begin(
    jobs: Sequence[Job], resume: bool, stack: ExitStack
) -> tuple[dict[str, Summary | Failed], list[tuple[Job, bool]], list[lock.Lock]]:
    """Look at the folders of all jobs and lock those of the ones that have steps left.

    Returns what is finished by the name of its job, the others, each with whether it is resumed, and their locks.
    """
    results: dict[str, Summary | Failed] = {}
    waiting: list[tuple[Job, bool]] = []
    locks: list[lock.Lock] = []
    there = [job for job in jobs if (job.run / "recipe.yaml").is_file()]
    for job in jobs:
        resumed = resume and (job in there or not there)
        recipe, finished = folder.check(job.run, job.recipe, resumed)
        if not finished:
            locks.append(stack.enter_context(lock.held(job.run, job.observer.notice)))
            # Another process may have had the folder until now.
            recipe, finished = folder.check(job.run, job.recipe, resumed)
        if finished:
            job.observer.notice(f"the run in {job.run} is finished: there is nothing to resume.")
            results[job.name] = summary.read(job.run / "summary.json")
            continue
        check_loggers(recipe)
        waiting.append((Job(job.name, recipe, job.run, job.observer), resumed))
    return results, waiting, locks


def _check_apart(jobs: Sequence[Job]) -> None:
    """Refuse two jobs of one name or in one folder."""
    seen: dict[Any, Job] = {}
    for job in jobs:
        for key in (job.name, files.followed(job.run)):
            if key in seen:
                raise PeftkitError(
                    f"{seen[key].name} and {job.name} would both be written to {job.run}: runs that are trained "
                    "together need folders of their own. Give each recipe its own name, or its own `output`."
                )
            seen[key] = job


@dataclass
class _Running:
    job: Job
    session: Session
    name: str
    """The name of its adaptation."""


class _Together:
    """The runs that have steps left, on one model."""

    def __init__(self, waiting: Sequence[tuple[Job, bool]], outline: Assembled):
        resumed = next((job for job, resumed in waiting if resumed), None)
        lead = waiting[0][0].recipe
        if resumed is not None:
            lead = on_own_base(folder.as_begun(lead, resumed.run / "checkpoints"), resumed.run)
        precision = choose_precision(lead.train.precision, outline.device, outline.module).name
        dtype = training_dtype(lead, precision, outline.module, own=False)
        new = [job.run / BASE for job, resumed in waiting if not resumed]
        ready = assemble(lead, bare=True, dtype=dtype, keep=new)
        self.model = ready.model
        self.running: list[_Running] = []
        self.results: dict[str, Summary | Failed] = {}
        for number, (job, resumed) in enumerate(waiting):
            name = f"job-{number}"
            session = Session(job.recipe, job.run, job.observer, resumed, ready, name)
            arrangement = session.loop.passes.plain.engine.arrangement
            if not (arrangement.flat and arrangement.apart) or arrangement.bounded:
                # The engine's notice comes last.
                why = (session.prepared.notices or ["its head cannot be run apart from its body"])[-1]
                raise PeftkitError(
                    f"{job.name} cannot be trained together with others, which takes tokens without padding: {why}."
                )
            self.running.append(_Running(job, session, name))
        forget_originals(ready.module)

    def go(self) -> dict[str, Summary | Failed]:
        """Train until no run has a step left."""
        opened = []
        try:
            for run in self.running:
                run.session.open()
                opened.append(run)
            with Deferred() as deferred:
                for run in [run for run in self.running if run.session.done]:
                    with self._guarded(run):
                        self._end(run)
                while self.running:
                    lost = next((run.session.observer.lost for run in self.running if run.session.observer.lost), None)
                    cause = deferred.received or lost
                    if cause is not None and all(run.session.loop.step for run in self.running):
                        raise Stopped(cause, self._save())
                    self._round()
        finally:
            for run in opened:
                run.session.close()
        return self.results

    def _save(self) -> list[Path]:
        """Write the checkpoints of all runs that can; returns their folders."""
        saved = []
        for run in list(self.running):
            with self._guarded(run):
                saved.append(run.session.save())
        return saved

    def _round(self) -> None:
        """Take one optimizer step of every run."""
        running = list(self.running)
        pending = {run.name: run.session.loop.next() for run in running}
        members = {
            run.name: Member(run.session.loop.passes.plain, pending[run.name].batches, pending[run.name].normaliser)
            for run in running
        }
        backward_together(members)
        records: dict[str, dict[str, Any]] = {}
        for run in running:
            with self._guarded(run):
                loop = run.session.loop
                records[run.name] = loop.take(pending[run.name], Done(loop.passes, members[run.name].result))
        for run in running:
            if run.name in records:
                with self._guarded(run):
                    self._activate(run)
                    run.session.take(records[run.name])
                    if run.session.done:
                        self._end(run)

    def _end(self, run: _Running) -> None:
        """Write what a finished run leaves, and take its adapters off the model."""
        self._activate(run)
        self.results[run.job.name] = run.session.finish()
        self._leave(run)

    def _activate(self, run: _Running) -> None:
        activate(self.model, run.name)

    @contextmanager
    def _guarded(self, run: _Running) -> Iterator[None]:
        """End one run where its own work fails inside, say why, and leave the others running."""
        try:
            yield
        except PeftkitError as error:
            run.job.observer.notice(f"{error} The other runs go on.")
            self.results[run.job.name] = Failed(str(error))
            self._leave(run)

    def _leave(self, run: _Running) -> None:
        self.running.remove(run)
        run.session.loop.optimizer.zero_grad(set_to_none=True)
        run.session.prepared.adaptation.remove()
