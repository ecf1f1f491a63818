"""Chat templates that never end or make too much are refused in time, by name; others are as ever."""

from __future__ import annotations

import resource
import threading
import time
from typing import Any

import pytest
from byte_tokenizer import build
from test_chat_template import ADDING, ALWAYS_THINKING, ENDLESS, STRIPPING, THINKING

from peftkit.data import bounded, bounds
from peftkit.data.example import Example, Turn
from peftkit.data.template import TEMPLATES
from peftkit.errors import PeftkitError

CHAT = TEMPLATES["chat"]
SAID = Example("1", (Turn("user", "Hi"), Turn("assistant", "Hey")))
DOUBLED = "".join("{% set x = x ~ x %}" for _ in range(40))
NESTED = "{% set x = [1, 2] %}" + "".join("{% set x = [x, x] %}" for _ in range(60))
ENDLESS_TIME = {
    "nested loops": "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "a loop in a macro": "{% macro m() %}{% for a in range(99999) %}{% endfor %}{% endmacro %}"
    "{% for a in range(99999) %}{{ m() }}{% endfor %}",
    "macros that call themselves": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}"
    "{{ m(60) }}",
    "a recursive loop": "{% for a in [1] recursive %}{{ loop([1, 1]) if loop.depth < 60 }}{% endfor %}",
    "filters": "{% for a in range(99999) %}{{ range(99999) | map('string') | list | length }}{% endfor %}",
    "conditions": "{% for a in range(99999) if range(99999) | sum == a %}{% endfor %}",
}
TOO_MUCH = {
    "a product": "{{ 'x' * 10 ** 10 }}",
    "a product of lists": "{{ ([1] * 10 ** 9) | length }}",
    "a power": "{{ 10 ** (10 ** 10) }}",
    "a sum in a loop": "{% set n = namespace(x='xx') %}{% for a in range(60) %}{% set n.x = n.x + n.x %}{% endfor %}",
    "doubled text": "{% set x = 'xx' %}" + DOUBLED,
    "many parts": "{% set x = 'x' * 60000000 %}{{ " + " ~ ".join(["x"] * 999) + " }}",
    "output": "{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}",
    "plain text": "{% for a in range(99999) %}" + "x" * 9999 + "{% endfor %}",
    "plain text again and again": "{% for a in [1] recursive %}"
    + "x" * 9999
    + "{{ loop(range(99999)) if loop.depth < 3 }}{% endfor %}",
    "a set block": "{% set x %}{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}{% endset %}",
    "nested lists": NESTED + "{{ x }}",
    "nested lists as JSON": NESTED + "{{ x | tojson }}",
    "nested lists that are compared": NESTED + "{{ x == x }}",
    "kept slices": "{% set n = namespace(d={}) %}{% set x = 'x' * 9999999 %}"
    "{% for a in range(999) %}{% set n.d = dict(n.d, **{a | string: x[1:]}) %}{% endfor %}",
    "centred": "{{ 'x' | center(10 ** 10) }}",
    "justified": "{{ 'x'.ljust(10 ** 10) }}",
    "filled": "{{ 'x'.zfill(10 ** 10) }}",
    "indented": "{{ 'x\\nx' | indent(width=10 ** 10) }}",
    "rounded": "{{ 2.5 | round(10 ** 9, 'ceil') }}",
    "bytes": "{{ (5).to_bytes(10 ** 10) }}",
    "batched": "{{ [1] | batch(10 ** 10, 1) | list }}",
    "joined": "{{ range(99999) | map('string') | join('x' * 99999) }}",
    "joined by a method": "{{ ('x' * 99999).join(range(99999) | map('string')) }}",
    "replaced": "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "replaced by a filter": "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
    "replaced by nothing": "{{ ('x' * 99999).replace('', 'y' * 99999) }}",
    "formatted": "{{ '%9999999999d' | format(1) }}",
    "formatted by an operator": "{{ '%9999999999d' % 1 }}",
    "formatted as told": "{{ '%*d' % (9999999999, 1) }}",
    "formatted by a method": "{{ '{:>9999999999}'.format(1) }}",
    "formatted as told by a method": "{{ '{:>{}}'.format(1, 9999999999) }}",
    "formatted as a text tells": "{{ '{:>{}}'.format(1, '9999999999') }}",
    "formatted many times": "{{ ('%99999d' * 9999) | format(*range(9999)) }}",
    "formatted by a mapping": "{{ '{a:>9999999999}'.format_map({'a': 1}) }}",
    "mapped": "{{ range(99999) | map('center', 99999) | list | length }}",
    "translated": "{{ ('x' * 99999).translate({120: 'y' * 99999}) }}",
}


@pytest.mark.parametrize("name", ENDLESS_TIME)
def test_what_never_ends_is_stopped_and_named(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounds, "SECONDS", 0.3)
    began = time.process_time()
    with pytest.raises(
        PeftkitError, match=r"1: the chat template of the tokenizer, line 1 is not .* takes more than"
    ) as caught:
        CHAT.encode(SAID, build(chat=ENDLESS_TIME[name]), 512)
    assert time.process_time() - began < 5
    assert "dataset.template: plain" in str(caught.value)


@pytest.mark.parametrize("name", TOO_MUCH)
def test_what_would_take_the_memory_is_refused_before_it_does(name: str):
    began, peak = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(PeftkitError, match="the chat template of the tokenizer, line 1 is not rendered to its end"):
        CHAT.encode(SAID, build(chat=TOO_MUCH[name]), 512)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 500_000, "kilobytes, where the system counts so"
    assert time.process_time() - began < 10


def test_a_template_is_stopped_in_every_thread(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounds, "SECONDS", 0.2)
    ended: list[BaseException] = []

    def render() -> None:
        try:
            CHAT.encode(SAID, build(chat=ENDLESS_TIME["nested loops"]), 512)
        except PeftkitError as error:
            ended.append(error)

    threads = [threading.Thread(target=render) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert [type(error) for error in ended] == [PeftkitError] * 3


def test_a_template_that_is_slow_every_time_is_stopped_in_the_end(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bounded, "ALL_SECONDS", 0.3)
    slow = "{% for a in range(50000) %}{% endfor %}" + ENDLESS
    tokenizer = build(chat=slow)
    with pytest.raises(PeftkitError, match="its renderings took more than"):
        [CHAT.encode(SAID, tokenizer, 512) for _ in range(99)]


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}",
        "{{ 2.0 ** 99999 }}",
        "{{ " + "(" * 999 + "1" + ")" * 999 + " }}",
        "{{ [].x.y }}",
        "{{ lipsum(10 ** 9) }}",
    ],
)
def test_a_template_that_fails_in_another_way_is_refused(source: str):
    with pytest.raises(PeftkitError, match="the chat template cannot render"):
        CHAT.encode(SAID, build(chat=source), 512)


ORDINARY: dict[str, str] = {
    "stripping": STRIPPING,
    "thinking": THINKING,
    "always thinking": ALWAYS_THINKING,
    "adding": ADDING,
    "endless": ENDLESS,
    "loop": "{% for m in messages %}{{ loop.index }}/{{ loop.length }} {{ loop.last }} "
    "{{ loop.previtem.role if not loop.first }}"
    "{% if loop.index > 1 %}{% break %}{% endif %}{% else %}none{% endfor %}",
    "sliced": "{% for m in messages[1:] | reverse %}{{ m['content'][:2] ~ '-' ~ loop.revindex }}{% endfor %}",
    "filtered": "{{ messages | selectattr('role', 'equalto', 'user') | map(attribute='content') | join(', ') }}"
    "{{ messages | map(attribute='role') | list }}{{ (messages | first).content | trim | upper | replace('H', 'J') }}",
    "JSON": "{{ messages | tojson(indent=2) }}{{ messages[0] | tojson }}{{ tools | tojson if tools else '' }}",
    "namespace": "{% set n = namespace(a=0, t='') %}{% for m in messages %}{% set n.a = n.a + 1 %}"
    "{% set n.t = n.t ~ m.content %}{% endfor %}{{ n.a * 2 }} {{ n.t }} {{ '%05d|%s' | format(7, n.t) }}",
    "methods": "{{ messages[0].content.split('i')[0].ljust(9) + '{:>6}|{x}'.format(5, x=3) }}{{ 'a,b'.split(',') }}",
    "numbers": "{{ (2 ** 10, 7 // 2, 7 % 4, 1.5 | round(1), [1, 2] + [3], (1, 2)) }} {{ 1733000000 | string }}",
    "macros": "{% macro say(m, mark='#') %}{{ mark }}{{ m.content }}{{ caller() if caller }}{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% call say(m, mark='!') %}?{% endcall %}{% endfor %}",
    "conditions": "{% for m in messages if m.role == 'user' and m.content is string %}{{ m.content }}{% endfor %}"
    "{{ 'user' in [messages[0].role, 'x'] }}{{ {'a': 1}.items() | list }}"
    "{% for k, v in {'a': 1}.items() %}{{ k, v }}{% endfor %}",
    "blocks": "{% set x %}a{{ messages[0].content }}{% endset %}{{ x }}{% filter upper %}b{{ x }}{% endfilter %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "tree": "{% for m in [[1, [2, 3]], 4] recursive %}{{ loop(m) if m is iterable else m }}{% endfor %}",
    "special": "{{ bos_token }}{{ eos_token }}{{ add_generation_prompt }}{{ enable_thinking }}{{ documents }}",
    "undefined": "{{ nothing }}{{ nothing is defined }}{% for a in nothing %}{% endfor %}{{ nothing | default('x') }}",
    "trimmed": "  {% if messages %}\n  a\n  {%- endif %}\n{# said #}\nb\n",
}


@pytest.mark.parametrize("name", ORDINARY)
def test_other_templates_give_what_transformers_gives(name: str):
    tokenizer = build(bos=True, chat=ORDINARY[name])
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": " Hi there\n"},
        {"role": "assistant", "content": "Hey", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "user", "content": "{{ Bye }}"},
    ]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    for given, prompt in ((None, True), (tools, False)):
        variables = {"tools": given, "documents": None, "add_generation_prompt": prompt, "enable_thinking": False}
        expected = tokenizer.apply_chat_template(messages, tokenize=False, **variables)
        variables |= {**tokenizer.special_tokens_map, "messages": messages}
        assert bounded.render(tokenizer.chat_template, "x", **variables) == expected


def test_a_large_conversation_is_far_from_the_bounds():
    turns = tuple(Turn(("user", "assistant")[number % 2], f"{number} " + "word " * 200) for number in range(400))
    tokenizer = build(chat=STRIPPING)
    assert CHAT.render_prompt(turns[:-1], tokenizer).pieces[0].text.count("word ") > 399 * 190
    text = "word " * 2_000_000
    assert len(CHAT.render_prompt((Turn("user", text),), tokenizer).pieces[0].text) > len(text)
