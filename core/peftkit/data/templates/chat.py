"""The conversation format that a tokenizer brings along, with its assistant turns trained on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, NoReturn

from peftkit.data.encode import Piece, closing
from peftkit.data.example import Turn
from peftkit.data.template import TEMPLATES, Rendering, Template
from peftkit.data.time_limit import limited
from peftkit.errors import PeftkitError

SECONDS = 5.0
"""Of the processor, for one conversation: a template with loops in loops would take hours."""
ADVICE = "Write `dataset.template: plain`, or give the tokenizer another chat template."


class Chat(Template):
    """The tokenizer's chat template.

    Where the turns' texts end up in the rendered conversation is seen by rendering placeholders. Trained
    on are the assistant's texts and the special token that ends each; where the template has none, the end-of-
    sequence token. What precedes the last text is what the model is given in generation (`add_generation_prompt`),
    thinking switched off where there is a switch.
    """

    name = "chat"

    def suitability(self, tokenizer: Any) -> int:
        return 2 if getattr(tokenizer, "chat_template", None) else 0

    def render_turns(self, turns: Sequence[Turn], tokenizer: Any) -> list[Rendering]:
        open_answers = {number for number, turn in enumerate(turns) if turn.answers}
        renderings = []
        while open_answers:
            rendering, trained = _row(turns[: max(open_answers) + 1], open_answers, tokenizer)
            renderings.append(rendering)
            open_answers -= trained
        return renderings

    def render_prompt(self, turns: Sequence[Turn], tokenizer: Any) -> Rendering:
        return Rendering([], [Piece(_rendered(turns, tokenizer, prompt=True), trained=False)])

    def takes_system(self, tokenizer: Any) -> bool:
        try:
            return bool(_literals(tokenizer, tokenizer.chat_template, ("system", "user"), prompt=True))
        except PeftkitError:
            return False

    def stop_ids(self, tokenizer: Any) -> list[int]:
        """Return the end-of-sequence id and that of the token which ends an assistant turn."""
        literals = _literals(tokenizer, tokenizer.chat_template, ("user", "assistant"), prompt=False)
        end = _ending(tokenizer, literals[-1])
        ids = tokenizer(end, add_special_tokens=False)["input_ids"][-1:] if end else []
        return list(dict.fromkeys([*ids, *([] if tokenizer.eos_token_id is None and ids else [closing(tokenizer)])]))


@dataclass(frozen=True)
class _Span:
    """Where a target stands in a rendered conversation."""

    start: int
    end: int
    lacking: str = ""
    """What stands before it in generation alone."""
    ends: bool = False
    """Whether the end-of-sequence token follows, where the template has no token that ends it."""


def _row(turns: Sequence[Turn], wanted: set[int], tokenizer: Any) -> tuple[Rendering, set[int]]:
    """Render a conversation that ends in an answer, with those of the `wanted` answers that can be trained on in it.

    The last one can; one before, where the text up to it is what generation would begin from.
    """
    calls = any(turn.role in ("tools", "tool") or turn.more for turn in turns)
    text, spans = (_called if calls else _said)(turns, sorted(wanted & set(range(len(turns)))), tokenizer)
    pieces, at = [], 0
    for span in spans.values():
        pieces.append(Piece(text[at : span.start] + span.lacking, trained=False))
        pieces.append(Piece(text[span.start : span.end], trained=True, ends=span.ends))
        at = span.end
    return Rendering([], pieces), set(spans)


def _said(turns: Sequence[Turn], wanted: Sequence[int], tokenizer: Any) -> tuple[str, dict[int, _Span]]:
    """Return the rendered text and the targets in it, which are the texts of the turns and what ends them."""
    text = _rendered(turns, tokenizer, prompt=False)
    literals = _literals(tokenizer, tokenizer.chat_template, tuple(turn.role for turn in turns), prompt=False)
    texts = _texts_as_rendered(turns, literals, text)
    spans: dict[int, _Span] = {}
    at = 0
    for number, (said, literal, following) in enumerate(zip(texts, literals, literals[1:], strict=False)):
        free, at = at, at + len(literal)
        ending = _ending(tokenizer, following)
        span = _Span(at, at + len(said + ending), ends=not ending and number == len(turns) - 1)
        at += len(said)
        if number not in wanted:
            continue
        begun = _begun(span, free, text, _rendered(turns[:number], tokenizer, prompt=True))
        if number == len(turns) - 1:
            spans[number] = begun or _differently(text, span, turns, tokenizer)
        elif begun is not None and not begun.lacking:
            spans[number] = begun
    return text, spans


def _begun(span: _Span, free: int, text: str, given: str) -> _Span | None:
    """Begin a target where generation does, after `given`; None where what it is given is other text.

    What the template writes between the two is the target's, if it stands behind the turn before, which ends at `free`.
    """
    written = text[: span.start]
    if written.startswith(given) and len(given) >= free:
        return replace(span, start=len(given))
    return replace(span, lacking=given.removeprefix(written)) if given.startswith(written) else None


def _differently(text: str, span: _Span, turns: Sequence[Turn], tokenizer: Any) -> NoReturn:
    given = _rendered(turns[:-1], tokenizer, prompt=True)
    raise PeftkitError(
        "the chat template renders an answered conversation and its prompt differently: "
        f"the prompt ends in {given[-60:]!r}, and before the answer stands {text[: span.start][-60:]!r}. {ADVICE}"
    )


def _called(turns: Sequence[Turn], wanted: Sequence[int], tokenizer: Any) -> tuple[str, dict[int, _Span]]:
    """Return the rendered text and the targets in it where there are tools.

    A target is all that an answer adds to what generation is given, up to the token that ends an answer.
    """
    text = _rendered(turns, tokenizer, prompt=False)
    ending = _ending(tokenizer, _literals(tokenizer, tokenizer.chat_template, ("user", "assistant"), prompt=False)[-1])
    spans: dict[int, _Span] = {}
    for number in wanted:
        given = _rendered(turns[:number], tokenizer, prompt=True)
        whole = _rendered(turns[: number + 1], tokenizer, prompt=False)
        last = number == len(turns) - 1
        start = len(given)
        if not whole.startswith(given):
            if last:
                _differently(whole, _Span(start, start), turns, tokenizer)
            continue
        end = whole.rfind(ending, start) + len(ending) if ending and ending in whole[start:] else len(whole.rstrip())
        if text.startswith(whole[:end]):
            spans[number] = _Span(start, end, ends=last and not whole[:end].endswith(ending or "\0"))
    return text, spans


def _rendered(turns: Sequence[Turn], tokenizer: Any, *, prompt: bool) -> str:
    """Render with the chat template; what the template refuses or leaves out is a PeftkitError."""
    return _render(turns, tokenizer, prompt=prompt, in_parts=_takes_parts(tokenizer, tokenizer.chat_template))


def _render(turns: Sequence[Turn], tokenizer: Any, *, prompt: bool, in_parts: bool) -> str:
    try:
        tools = next((json.loads(turn.text) for turn in turns if turn.role == "tools"), None)
        messages = [_message(turn, in_parts) for turn in turns if turn.role != "tools"]
        render = partial(
            tokenizer.apply_chat_template,
            messages,
            tokenize=False,
            add_generation_prompt=prompt,
            enable_thinking=False,
        )
        with limited(SECONDS):
            text = render(tools=tools)
            ignored = tools is not None and text == render()
    # A template is a program of its own, which may raise anything.
    except Exception as error:
        roles = ", ".join(turn.role for turn in turns) or "none"
        raise PeftkitError(
            f"the chat template cannot render a conversation with the roles {roles}: {error}. {ADVICE}"
        ) from None
    called = [call["function"]["name"] for message in messages for call in message.get("tool_calls", [])]
    lost = next((name for name in called if name not in text), None)
    if ignored or lost is not None:
        what = f"the call of the tool {lost!r}" if lost is not None else "the tools of a conversation"
        raise PeftkitError(
            f"the chat template leaves out {what}. Give the tokenizer a chat template that writes tools, or leave "
            "them out by `dataset.ignore`."
        )
    return text


def _message(turn: Turn, in_parts: bool) -> dict[str, Any]:
    content = [{"type": "text", "text": turn.text}] if in_parts else turn.text
    return {"role": turn.role, "content": content, **(json.loads(turn.more) if turn.more else {})}


@lru_cache(maxsize=512)
def _takes_parts(tokenizer: Any, template: str) -> bool:
    """Say whether the template reads a text as a list of parts, as those of images and text do, and not by itself."""
    turns = [Turn("user", "turnstandshere")]

    def renders(in_parts: bool) -> bool:
        try:
            return turns[0].text in _render(turns, tokenizer, prompt=True, in_parts=in_parts)
        except PeftkitError:
            return False

    return not renders(in_parts=False) and renders(in_parts=True)


@lru_cache(maxsize=512)
def _literals(tokenizer: Any, template: str, roles: tuple[str, ...], *, prompt: bool) -> tuple[str, ...]:
    """Return the text that the template writes before, between and after the turns' own texts: one more than `roles`.

    `template` belongs to the key of the cache, since a tokenizer's template can be exchanged.
    """
    placeholders = [f"turn{number}standsherefor{len(roles)}" for number in range(len(roles))]
    turns = [Turn(role, text) for role, text in zip(roles, placeholders, strict=True)]  # type: ignore[arg-type]
    rest = _rendered(turns, tokenizer, prompt=prompt)
    literals = []
    for role, text in zip(roles, placeholders, strict=True):
        if rest.count(text) != 1:
            raise PeftkitError(
                f"the chat template changes, repeats or leaves out the text of the {role} turn of a conversation with "
                f"the roles {', '.join(roles)}: it stands there {rest.count(text)} times. {ADVICE}"
            )
        literal, rest = rest.split(text)
        literals.append(literal)
    return (*literals, rest)


def _texts_as_rendered(turns: Sequence[Turn], literals: Sequence[str], rendered: str) -> list[str]:
    """Return the turns' texts as they stand in `rendered`: as they are, or stripped of white space."""
    texts = []
    at = len(literals[0])
    for turn, following in zip(turns, literals[1:], strict=True):
        forms = (turn.text, turn.text.strip(), turn.text.lstrip(), turn.text.lstrip("\n"), turn.text.rstrip())
        form = next((form for form in forms if rendered.startswith(form + following, at)), None)
        if form is None:
            raise PeftkitError(
                f"the chat template changes the text of a {turn.role} turn, so that what to train on cannot be told: "
                f"{turn.text[:60]!r} became {rendered[at : at + 60]!r}. {ADVICE}"
            )
        texts.append(form)
        at += len(form + following)
    if not rendered.startswith(literals[0]) or at != len(rendered):
        raise PeftkitError(f"the chat template adds text that depends on what the turns say. {ADVICE}")
    return texts


@lru_cache(maxsize=512)
def _ending(tokenizer: Any, literal: str) -> str:
    """Return `literal` up to the end of its first special token, or nothing where it holds none."""
    special = {*tokenizer.all_special_tokens, *(str(token) for token in tokenizer.added_tokens_decoder.values())}
    places = [(literal.find(token), token) for token in special if token and token in literal]
    if not places:
        return ""
    at, token = min(places, key=lambda pair: (pair[0], -len(pair[1])))
    return literal[: at + len(token)]


TEMPLATES.add(Chat.name, Chat())
