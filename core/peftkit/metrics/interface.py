"""A metric as a module of the library `evaluate`, made from our registry: no hub, no cache, no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evaluate import EvaluationModule

    from peftkit.metrics import Metric


def build(metric: Metric) -> EvaluationModule:
    """Return an `evaluate.EvaluationModule` that computes `metric`."""
    import evaluate
    from datasets import Features, Value
    from datasets import Sequence as Several

    text = Value("string")

    class Module(evaluate.Metric):
        """The metric's figures; predictions and references are held in memory."""

        def _info(self) -> evaluate.MetricInfo:
            return evaluate.MetricInfo(
                description=(metric.compute.__doc__ or "").strip(),
                citation="",
                inputs_description=f"Texts, and for each a list of reference texts. Returns {', '.join(metric.keys)}.",
                features=[
                    Features({"predictions": text, "references": Several(text)}),
                    Features({"predictions": text, "references": text}),
                ],
            )

        def _build_data_dir(self) -> str:
            # Nothing is written, so the library's folder under the home directory is not made.
            return self._data_dir_root

        def _compute(
            self, *, predictions: Sequence[str], references: Sequence[str | Sequence[str]]
        ) -> dict[str, float]:
            groups = [[group] if isinstance(group, str) else list(group) for group in references]
            return metric.score(list(predictions), groups)

    module: Any = type(metric.name.title().replace("_", ""), (Module,), {})(keep_in_memory=True)
    return module
