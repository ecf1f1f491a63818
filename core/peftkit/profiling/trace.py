"""A profile as a trace that chrome://tracing, Perfetto and other viewers of Chrome's trace events open."""

from __future__ import annotations

from typing import Any

from peftkit.profiling.measure import Profile


def trace(profile: Profile) -> dict[str, Any]:
    """Return the trace: a complete event for each span, in microseconds from the first one on."""
    start = min((span.start for span in profile.spans), default=0.0)
    names = [
        {"ph": "M", "pid": 1, "tid": 1, "name": "process_name", "args": {"name": f"training {profile.about['model']}"}}
    ]
    events = [
        {
            "ph": "X",
            "pid": 1,
            "tid": 1,
            "name": span.name,
            "cat": span.phase,
            "ts": round((span.start - start) * 1e6, 3),
            "dur": round(span.seconds * 1e6, 3),
            "args": {"module": span.path} if span.path else {},
        }
        for span in sorted(profile.spans, key=lambda span: (span.start, span.depth))
    ]
    return {"displayTimeUnit": "ms", "traceEvents": [*names, *events]}
