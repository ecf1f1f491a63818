"""Lists of messages, as chat data sets have them, to turns: tools and their calls, parts of content, weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from peftkit import strict_json
from peftkit.data.example import Role, Turn
from peftkit.data.records import keys, kind, member, shown, text
from peftkit.errors import PeftkitError, hint

ROLES: Mapping[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
CALL = "function_call"
"""The role of a message whose text is a call of a tool, as JSON with `name` and `arguments`."""
NAMES = (("role", "content"), ("from", "value"))
CARRIED = ("tool_calls", "tool_call_id", "name", "reasoning_content")
"""Keys of a message that the chat template reads beside role and text."""
WEIGHT = "weight"


def conversation(messages: Any, place: str, key: str, *, answered: bool = True) -> tuple[Turn, ...]:
    """Return the turns of a list of messages `{role, content}` or `{from, value}`.

    Content is text or a list of parts of type `text`. `weight: 0` leaves an answer out of the loss. An `answered`
    conversation ends with the assistant. Raises PeftkitError that names the message for all else.
    """
    if not isinstance(messages, list) or not messages:
        raise PeftkitError(
            f"{place}: '{key}' is {kind(messages)}{' of no message' if messages == [] else ''}; messages are wanted."
        )
    turns = tuple(_turn(message, f"{place}, {key}[{number}]") for number, message in enumerate(messages))
    if answered and turns[-1].role != "assistant":
        raise PeftkitError(
            f"{place}: the last message is the {turns[-1].role}'s, and it must be the assistant's, to learn from."
        )
    return turns


def opening(record: Mapping[str, Any], turns: Sequence[Turn], place: str) -> tuple[Turn, ...]:
    """Return the turns of a record with its `tools` and its `system` text in front."""
    front: list[Turn] = []
    if record.get("tools") not in (None, ""):
        front.append(Turn("tools", _tools(record["tools"], place)))
    said = record.get("system")
    if said is not None and text(said, place, "system", empty=True).strip():
        if turns and turns[0].role == "system":
            raise PeftkitError(f"{place}: 'system' stands beside a first message of the role system: keep one of them.")
        front.append(Turn("system", said))
    return (*front, *turns)


def _turn(message: Any, at: str) -> Turn:
    named = NAMES[isinstance(message, Mapping) and "from" in message]
    role = member(message, at, named[0], str, "message")
    if role not in ROLES:
        raise PeftkitError(
            f"{at}: the role '{shown(role)}' is unknown.{hint(role, ROLES)} Allowed: {', '.join(ROLES)}."
        )
    _check(message, (*named, *CARRIED, WEIGHT), at, "message")
    more = {key: message[key] for key in CARRIED if message.get(key) is not None}
    if "tool_calls" in more:
        more["tool_calls"] = _calls(more["tool_calls"], f"{at}.tool_calls")
    said = message.get(named[1])
    if role == CALL:
        more["tool_calls"] = _calls([_parsed(said, f"{at}, '{named[1]}'")], at)
        said = ""
    if said is None and "tool_calls" in more:
        said = ""
    if named[1] not in message and said is None:
        raise PeftkitError(f"{at}: the message has no '{named[1]}'; its keys are {keys(message)}.")
    carried = _written(more, at, ordered=True) if more else ""
    return Turn(ROLES[role], _said(said, at, named[1]), _trained(message.get(WEIGHT), at), carried)


def _check(values: Mapping[str, Any], allowed: Sequence[str], at: str, what: str) -> None:
    """Refuse a key that nothing reads, unless it is null."""
    strange = next((key for key, value in values.items() if key not in allowed and value is not None), None)
    if strange is not None:
        raise PeftkitError(
            f"{at}: the {what} has '{shown(strange)}', which is not read.{hint(strange, allowed)} "
            f"Allowed: {', '.join(allowed)}; `dataset.ignore: [{shown(strange)}]` leaves it out."
        )


def _written(value: Any, at: str, *, ordered: bool = False) -> str:
    """Write as JSON what the chat template is given; PeftkitError for what JSON or UTF-8 does not hold."""
    try:
        written = json.dumps(value, ensure_ascii=False, sort_keys=ordered)
        written.encode()
    except UnicodeEncodeError:
        raise PeftkitError(f"{at}: a text holds half of a surrogate pair, which is not a character.") from None
    except (TypeError, ValueError, RecursionError) as error:
        raise PeftkitError(f"{at}: the tools or calls are no JSON values ({error}).") from None
    return written


def _said(said: Any, at: str, key: str) -> str:
    """Return the text of a message; parts of text are joined, other parts refused."""
    if not isinstance(said, list):
        return text(said, at, key, empty=True)
    parts = []
    for number, part in enumerate(said):
        place = f"{at}.{key}[{number}]"
        sort = member(part, place, "type", str, "part")
        if sort != "text":
            raise PeftkitError(f"{place}: a part of the type '{shown(sort)}'; only text is learnt from.")
        _check(part, ("type", "text"), place, "part")
        parts.append(text(member(part, place, "text", str, "part"), at, key, empty=True))
    return "".join(parts)


def _trained(weight: Any, at: str) -> bool:
    if weight is not None and (isinstance(weight, bool) or weight not in (0, 1)):
        raise PeftkitError(f"{at}: 'weight' is {shown(weight)}; allowed is 0, which leaves an answer out, or 1.")
    return weight is None or bool(weight)


def _calls(calls: Any, at: str) -> list[dict[str, Any]]:
    """Return calls in the form that chat templates read: `{type, function: {name, arguments}}`."""
    if not isinstance(calls, list) or not calls:
        raise PeftkitError(f"{at}: it is {kind(calls)}, and a list of calls is wanted.")
    plain = []
    for number, call in enumerate(calls):
        place = f"{at}[{number}]"
        function, name = _function(call, place, "call")
        arguments = function.get("arguments", {})
        arguments = _parsed(arguments, f"{place}.arguments") if isinstance(arguments, str) else arguments
        identity = {"id": call["id"]} if call.get("id") is not None else {}
        plain.append({**identity, "type": "function", "function": {"name": name, "arguments": arguments}})
    return plain


def _tools(tools: Any, place: str) -> str:
    """Return the declared tools as JSON, in the form that chat templates read."""
    tools = _parsed(tools, f"{place}, 'tools'") if isinstance(tools, str) else tools
    if not isinstance(tools, list) or not tools:
        raise PeftkitError(f"{place}: 'tools' is {kind(tools)}, and a list of tools is wanted.")
    plain = []
    for number, tool in enumerate(tools):
        function, _ = _function(tool, f"{place}, tools[{number}]", "tool")
        plain.append({"type": "function", "function": function})
    return _written(plain, f"{place}, tools")


def _function(entry: Any, place: str, what: str) -> tuple[Mapping[str, Any], str]:
    """Return the function that a tool or a call names, by itself or under `function`, and its name."""
    nested = isinstance(entry, Mapping) and "function" in entry
    function = member(entry, place, "function", dict, what) if nested else entry
    return function, text(member(function, place, "name", str, what), place, "name")


def _parsed(value: Any, place: str) -> Any:
    """Return what a text that holds JSON says."""
    try:
        return strict_json.loads(value if isinstance(value, str) else "")
    except strict_json.TwiceError as error:
        raise PeftkitError(f"{place}: {error}.") from None
    except (TypeError, ValueError, RecursionError):
        raise PeftkitError(f"{place}: '{shown(value)}' is not JSON.") from None
