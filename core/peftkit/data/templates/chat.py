"""The conversation format that a tokenizer brings along, with its assistant turns trained on."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from peftkit.data.encode import Piece, closing, join
from peftkit.data.example import Turn
from peftkit.data.template import TEMPLATES, Rendering, Template
from peftkit.errors import PeftkitError

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

    def render_turns(self, turns: Sequence[Turn], tokenizer: Any) -> Rendering:
        literals = _literals(tokenizer, tokenizer.chat_template, tuple(turn.role for turn in turns), prompt=False)
        texts = _texts_as_rendered(turns, literals, _rendered(turns, tokenizer, prompt=False))
        pieces = [Piece(literals[0], trained=False)]
        for turn, text, literal in zip(turns, texts, literals[1:], strict=True):
            answers = turn.role == "assistant"
            end = _ending(tokenizer, literal) if answers else ""
            pieces += [Piece(text + end, trained=answers), Piece(literal[len(end) :], trained=False)]
        if not _ending(tokenizer, literals[-1]):
            pieces[-2:] = [Piece(texts[-1], trained=True, ends=True)]
        last = next(at for at in reversed(range(len(pieces))) if pieces[at].trained)
        return Rendering([], self._begun(turns, tokenizer, pieces[:last], pieces[last]))

    def _begun(self, turns: Sequence[Turn], tokenizer: Any, before: list[Piece], target: Piece) -> list[Piece]:
        """Bring what precedes the target to what generation gives; what the template adds to that is the target's."""
        given = _rendered(turns[:-1], tokenizer, prompt=True)
        written = "".join(piece.text for piece in before)
        added = written.removeprefix(given) if written.startswith(given) else ""
        lacking = given.removeprefix(written) if given.startswith(written) else ""
        tail = before[-1].text
        if (not added and not lacking and given != written) or not tail.endswith(added):
            raise PeftkitError(
                "the chat template renders an answered conversation and its prompt differently: "
                f"the prompt ends in {given[-60:]!r}, and before the answer stands {written[-60:]!r}. {ADVICE}"
            )
        start = [*before[:-1], Piece(tail.removesuffix(added) + lacking, trained=False)]
        return [*join(start), Piece(added + target.text, trained=True, ends=target.ends)]

    def render_prompt(self, turns: Sequence[Turn], tokenizer: Any) -> Rendering:
        return Rendering([], [Piece(_rendered(turns, tokenizer, prompt=True), trained=False)])

    def stop_ids(self, tokenizer: Any) -> list[int]:
        """Return the end-of-sequence id and that of the token which ends an assistant turn."""
        literals = _literals(tokenizer, tokenizer.chat_template, ("user", "assistant"), prompt=False)
        end = _ending(tokenizer, literals[-1])
        ids = tokenizer(end, add_special_tokens=False)["input_ids"][-1:] if end else []
        return list(dict.fromkeys([*ids, *([] if tokenizer.eos_token_id is None and ids else [closing(tokenizer)])]))


def _rendered(turns: Sequence[Turn], tokenizer: Any, *, prompt: bool) -> str:
    """Render with the chat template; what the template refuses is a PeftkitError."""
    return _render(turns, tokenizer, prompt=prompt, in_parts=_takes_parts(tokenizer, tokenizer.chat_template))


def _render(turns: Sequence[Turn], tokenizer: Any, *, prompt: bool, in_parts: bool) -> str:
    import jinja2

    contents: list[Any] = [[{"type": "text", "text": turn.text}] if in_parts else turn.text for turn in turns]
    messages = [{"role": turn.role, "content": content} for turn, content in zip(turns, contents, strict=True)]
    try:
        return tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=prompt, enable_thinking=False
        )
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, IndexError) as error:
        roles = ", ".join(turn.role for turn in turns) or "none"
        raise PeftkitError(
            f"the chat template cannot render a conversation with the roles {roles}: {error}. {ADVICE}"
        ) from None


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
