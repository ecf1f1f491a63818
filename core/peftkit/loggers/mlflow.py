"""Runs of MLflow."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from peftkit.loggers import LoggedRun, Logger, Writer

LONGEST = 500
"""Characters of a parameter's value, the shortest limit of MLflow's stores."""
TOGETHER = 100
"""Parameters that one request may hold."""


@dataclass(frozen=True, kw_only=True)
class MLflow(Logger, name="mlflow"):
    """A run with the recipe's keys as parameters; where it is kept `MLFLOW_TRACKING_URI` decides, or the option."""

    package: ClassVar[str] = "mlflow"
    extra: ClassVar[str] = "mlflow"
    summary: ClassVar[str] = "A run of MLflow with the recipe's keys as parameters."

    experiment: str = "peftkit"
    """The experiment that the run belongs to; made where it is not there."""
    tracking_uri: str | None = None
    """Where runs are kept: a server, or a database such as sqlite:///runs/mlflow.db; null is MLflow's own choice."""

    def open(self, run: LoggedRun) -> Writer:
        mlflow = self.module()
        client = mlflow.MlflowClient(tracking_uri=self.tracking_uri)
        if run.identity is not None:
            client.update_run(run.identity, status="RUNNING")
            return Tracked(mlflow, client, run.identity)
        found = client.get_experiment_by_name(self.experiment)
        experiment = client.create_experiment(self.experiment) if found is None else found.experiment_id
        begun = client.create_run(experiment, run_name=run.folder.name).info.run_id
        given = [mlflow.entities.Param(key, str(value)[:LONGEST]) for key, value in leaves(run.recipe)]
        for first in range(0, len(given), TOGETHER):
            client.log_batch(begun, params=given[first : first + TOGETHER])
        return Tracked(mlflow, client, begun)


class Tracked(Writer):
    """Sends figures to a run, those of a step in one request."""

    def __init__(self, mlflow: Any, client: Any, identity: str):
        self.mlflow, self.client, self.identity = mlflow, client, identity
        self.finished = False

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        metrics = [self.mlflow.entities.Metric(name, float(value), now, step) for name, value in figures.items()]
        self.client.log_batch(self.identity, metrics=metrics)

    def end(self, figures: Mapping[str, float]) -> None:
        self.log(0, {f"run/{name}": value for name, value in figures.items()})
        self.finished = True

    def close(self) -> None:
        self.client.set_terminated(self.identity, status="FINISHED" if self.finished else "KILLED")


def leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Iterate over the keys of a nested mapping, dotted, with their values."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{above}{key}.")
        elif value is not None:
            yield f"{above}{key}", value
