"""A method of a person's own, held to what every method promises before it is trusted with a real model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from peftkit import files, plugins
from peftkit.errors import PeftkitError
from peftkit.inspection.promises import PROMISES, Apart, Broken, Promise, Subject
from peftkit.method import METHODS, Method

ARCHITECTURES = ("llama", "gpt2")


@dataclass(frozen=True)
class Finding:
    """How one promise was kept on one model."""

    promise: str
    architecture: str
    kept: bool | None
    """None where it does not apply."""
    told: str


def own_methods(source: str, options: Mapping[str, Any]) -> list[Method]:
    """Build the methods that a Python file registers, or the one of that name, with these options.

    Raises PeftkitError for a file that cannot be run or registers no method, an unknown name, and a wrong option.
    """
    if not source.endswith(".py"):
        return [METHODS[source].from_options(options)]
    names = [name for registry, name in plugins.run(files.expanded(source)).entries if registry is METHODS]
    if not names:
        raise PeftkitError(f"{source} registers no method: define a subclass of peftkit.method.Method with a name.")
    return [METHODS[name].from_options(options) for name in names]


def check_method(method: Method) -> Iterator[Finding]:
    """Hold a method with its options to every promise, on tiny models of two architectures.

    A model that it refuses is told as such; raises PeftkitError where it refuses all of them.
    """
    refused = []
    for architecture in ARCHITECTURES:
        subject = Subject(method, architecture)
        try:
            _, adaptation = subject.attached(moved=False)
        except PeftkitError as error:
            refused.append(str(error))
            yield Finding("attaches", architecture, None, f"refused: {error}")
            continue
        count = sum(parameter.numel() for _, parameter in adaptation.parameters())
        yield Finding("attaches", architecture, count > 0, f"{count:,} trainable" if count else "nothing is trained")
        for words, hold in PROMISES.items() if count else ():
            yield _held(words, hold, subject)
    if len(refused) == len(ARCHITECTURES):
        raise PeftkitError(f"{method.name} takes neither {' nor '.join(ARCHITECTURES)}: {refused[0]}")


def _held(words: str, hold: Promise, subject: Subject) -> Finding:
    try:
        told = hold(subject)
    except Apart as error:
        return Finding(words, subject.architecture, None, str(error))
    except Broken as error:
        return Finding(words, subject.architecture, False, str(error))
    except Exception as error:
        # Code of a person's own may end in any way, and the other promises are still to be held.
        return Finding(words, subject.architecture, False, f"{type(error).__name__}: {error}")
    return Finding(words, subject.architecture, None if told is None else True, told or "does not apply")
