"""Chat templates within bounds: one comes with a model, is a program, and may never end or take all memory.

Its compiled form is transformers' own. What it repeats and what it makes is counted, and a size that follows from a
number or from another text is worked out before anything is made.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Environment, Template, nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from peftkit.data.bounds import ALL_SECONDS, FREE, SIZES, Budget, Unbounded, formatted, multiplied, whole

EACH, MADE, JOINED = "peftkit.each", "peftkit.made", "peftkit.joined"
MAKING = (nodes.List, nodes.Tuple, nodes.Dict, nodes.Compare)
_active = threading.local()


def render(source: str, name: str, **variables: Any) -> str:
    """Render a chat template; jinja's errors pass. `name` says whose it is.

    Raises Unbounded, with the line, beyond the bounds.
    """
    template = compiled(source)
    spent: dict[str, float] = template.environment.peftkit_spent  # pyright: ignore[reportAttributeAccessIssue]
    budget = Budget(whole(variables))
    earlier, _active.budget = getattr(_active, "budget", None), budget
    try:
        if spent["seconds"] > ALL_SECONDS:
            raise Unbounded(f"its renderings took more than {ALL_SECONDS:g} s beyond what any conversation needs")
        return template.render(**variables)
    except Unbounded as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "<template>"]
        place = f", line {lines[-1]}" if lines else ""
        raise Unbounded(f"the chat template of {name}{place} is not rendered to its end: {error}.") from None
    finally:
        _active.budget = earlier
        spent["seconds"] += max(0.0, budget.seconds - FREE)


@lru_cache(maxsize=64)
def compiled(source: str) -> Template:
    """Compile a chat template under the names and filters that transformers gives it, with all counted that it does."""
    from transformers.utils.chat_template_utils import _compile_jinja_template

    # Its environment works out the constants of what it compiles, without bounds: this one is given nothing to compile.
    environment: Any = _compile_jinja_template("").environment.overlay()
    environment.__class__ = Counting
    environment.peftkit_spent = {"seconds": 0.0}
    environment.finalize = shown
    # What makes up paragraphs is a loop that nothing counts.
    environment.globals = {name: value for name, value in environment.globals.items() if name != "lipsum"}
    environment.filters = {name: counted(name, act) for name, act in environment.filters.items()}
    environment.filters |= {EACH: each, MADE: made, JOINED: joined}
    return environment.from_string(source)


class Counting(ImmutableSandboxedEnvironment):
    """An environment whose templates count their steps and what they make."""

    intercepted_binops = frozenset(("*", "**", "%", "+"))
    literal = 0
    """Characters of plain text in the template."""

    def _generate(self, source: nodes.Template, *rest: Any, **more: Any) -> str:
        self.literal = _literal(source)
        return super()._generate(Counted(self).visit(source), *rest, **more)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        budget = _budget()
        if operator == "%" and isinstance(left, str):
            budget.check(formatted(left, right))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            budget.check(left.bit_length() * right)
        elif operator == "*":
            budget.check(multiplied(left, right))
        return made(super().call_binop(context, operator, left, right))

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        name = getattr(__obj, "__name__", "")
        if isinstance(__obj, LoopContext):
            args = (each(args[0], __self.literal), *args[1:]) if args else args
        elif name in SIZES:
            bound = getattr(__obj, "__wrapped__", __obj)
            subject = getattr(bound, "__self__", "")
            args = tuple(map(_whole_list, args)) if name == "join" else args
            values = (*args, *kwargs.values())
            _budget().check(SIZES[name](*((*values, subject) if name == "join" else (subject, *values))))
        return made(super().call(__context, __obj, *args, **kwargs))


class Counted(NodeTransformer):
    """Has every loop of a template, and every value that it makes without a call, go through a filter that counts."""

    def __init__(self, environment: Environment):
        self.environment = environment

    def visit(self, node: Any, *_: Any, **__: Any) -> Any:
        self.generic_visit(node)
        if isinstance(node, nodes.For):
            node.iter = self._through(EACH, node.iter, nodes.Const(_literal(node)))
        elif isinstance(node, nodes.Concat):
            return self._through(JOINED, nodes.List(node.nodes))
        sliced = isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice)
        if sliced or (isinstance(node, MAKING) and getattr(node, "ctx", "load") == "load"):
            return self._through(MADE, node)
        return node

    def _through(self, name: str, node: Any, *args: nodes.Expr) -> nodes.Filter:
        through = nodes.Filter(node, name, list(args), [], None, None)
        return through.set_lineno(node.lineno or 1).set_environment(self.environment)  # pyright: ignore


def _literal(node: nodes.Node) -> int:
    return sum(len(data.data) for data in node.find_all(nodes.TemplateData))


def _budget() -> Budget:
    budget = getattr(_active, "budget", None)
    if budget is None:
        # jinja works out constants while it compiles; what fails there waits for the rendering.
        raise Unbounded("nothing is counted while a template is compiled")
    return budget


def each(items: Iterable[Any], literal: int) -> Iterator[Any]:
    """Yield items of a loop whose body writes so many characters by itself."""
    budget = _budget()
    for item in items:
        budget.spend(1 + literal)
        yield item


def made(value: Any) -> Any:
    """Count a value that a template made."""
    budget = _budget()
    if isinstance(value, (str, bytes)):
        budget.spend(len(value))
    elif isinstance(value, int):
        budget.spend(value.bit_length() >> 3)
    elif isinstance(value, (list, tuple, dict, set, frozenset)):
        # Values that are small by themselves may hold one another, and be endless where they are written.
        budget.check(whole(value, budget.most))
        budget.spend(len(value))
    else:
        budget.step()
    return value


def joined(parts: list[Any]) -> str:
    """Join values as `~` does."""
    _budget().check(sum(map(whole, parts)))
    return made("".join(map(str, parts)))


def shown(value: Any) -> str:
    """Return a value as it is written."""
    return made(value if isinstance(value, str) else str(made(value)))


def counted(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
    """Return a filter that counts, and looks at the size of what it would make beforehand."""
    first = 1 if hasattr(act, "jinja_pass_arg") else 0

    @wraps(act)
    def counting(*args: Any, **kwargs: Any) -> Any:
        _budget().step()
        if name in SIZES:
            args = (*args[:first], *map(_whole_list, args[first:])) if name == "join" else args
            _budget().check(SIZES[name](*args[first:], *kwargs.values()))
        return made(act(*args, **kwargs))

    return counting


def _whole_list(value: Any) -> Any:
    return list(value) if isinstance(value, Iterator) else value
