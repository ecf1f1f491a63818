"""What may be asked of a run otherwise than its recipe says: how text is generated and measured, a system turn."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from peftkit.errors import PeftkitError
from peftkit.evaluation import answer, evaluate
from peftkit.recipe import load
from peftkit.training import train
from peftkit_cli.main import main

CHATML = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
IGNORES_SYSTEM = CHATML.replace("%}<|{{ m.role", "%}{% if m.role != 'system' %}<|{{ m.role").replace(
    "}}\n{% endfor", "}}\n{% endif %}{% endfor"
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"say {n}", "completion": f"it is {n}"}) + "\n" for n in range(4)))
    recipe = load(
        {
            "model": "bundled/tiny",
            "method": {"lora": {"rank": 2}},
            "dataset": {"name": "jsonl", "path": str(data)},
            "train": {"max_steps": 2, "max_length": 64, "batch_examples": 2, "device": "cpu"},
            "eval": {"split": "train"},
            "generation": {"max_new_tokens": 8},
        }
    )
    train(recipe, folder / "run")
    return folder / "run"


def test_a_run_is_scored_and_asked_with_other_keys_of_generation(finished):
    result = evaluate(finished, ["generation.max_new_tokens=3", "eval.batch_size=2", "eval.limit=2"])
    assert (result["generation"]["max_new_tokens"], result["batch_size"], result["examples"]) == (3, 2, 2)
    assert result["generated_tokens"] <= 6
    short, long = (answer(finished, "say 1", [f"generation.max_new_tokens={count}"]) for count in (1, 8))
    assert long.startswith(short)
    assert long == answer(finished, "say 1")
    assert len(short) < len(long)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("rank=4", "'rank' says how the run was trained"),
        ("method.lora.rank=4", r"'method.lora.rank' says how the run was trained, .* allowed: keys of eval and"),
        ("dataset.system=fold", "'dataset.system' says how the run was trained"),
        ("train.seed=1", "'train.seed' says how the run was trained"),
        ("generaton.max_new_tokens=3", "unknown key; .* Did you mean 'generation'"),
        ("generation.max_new_token=3", "did you mean 'max_new_tokens'"),
        ("generation.max_new_tokens=no", "generation.max_new_tokens"),
        ("hello", "key=value"),
    ],
)
def test_a_key_that_says_what_was_trained_is_refused_by_name(finished, override, words):
    before = sorted(finished.rglob("*"))
    for ask in (lambda: evaluate(finished, [override]), lambda: answer(finished, "say 1", [override])):
        with pytest.raises(PeftkitError, match=words) as told:
            ask()
        assert override in str(told.value)
    assert sorted(finished.rglob("*")) == before


def test_the_commands_take_them(finished, capsys):
    assert main(["generate", str(finished), "say 1", "generation.max_new_tokens=2"]) == 0
    assert main(["eval", str(finished), "generation.max_new_tokens=2", "eval.limit=1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.partition("\n")[2])["generation"]["max_new_tokens"] == 2
    assert main(["generate", str(finished), "say 1", "rank=2"]) == 2
    assert "override 'rank=2'" in capsys.readouterr().err


def with_template(run: Path, tmp_path: Path, chat: str | None, **dataset: str) -> Path:
    """Copy a run whose tokenizer has another chat template, and whose recipe other keys of `dataset`."""
    import shutil

    from peftkit.assembly import assemble, read_run

    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    words = assemble(read_run(run), weights=False, bare=True).tokenizer
    words.chat_template = chat
    words.save_pretrained(tmp_path / "words")
    keys = yaml.safe_load((run / "recipe.yaml").read_text())
    keys["model"]["tokenizer"] = str(tmp_path / "words")
    keys["dataset"].update(dataset)
    (copied / "recipe.yaml").write_text(yaml.safe_dump(keys))
    return copied


def prompts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keep what the model is given."""
    from peftkit.evaluation import runs

    seen: list[str] = []
    real = runs.generate

    def generate(model, tokenizer, given, settings):
        seen.extend(tokenizer.decode(ids) for ids in given)
        return real(model, tokenizer, given, settings)

    monkeypatch.setattr(runs, "generate", generate)
    return seen


def test_a_system_text_is_a_turn_of_the_template(finished, tmp_path, monkeypatch, capsys):
    run, seen = with_template(finished, tmp_path, CHATML), prompts(monkeypatch)
    assert main(["generate", str(run), "say 1", "--system", "Be brief.", "generation.max_new_tokens=1"]) == 0
    assert seen == ["<|system|>Be brief.\n<|user|>say 1\n<|assistant|>"]


@pytest.mark.parametrize("chat", [NO_SYSTEM, IGNORES_SYSTEM, None], ids=["refuses", "leaves out", "no template"])
def test_a_system_text_is_refused_or_folded_where_the_template_has_no_turn_for_it(
    finished, tmp_path, monkeypatch, chat
):
    (tmp_path / "kept").mkdir()
    (tmp_path / "folded").mkdir()
    run = with_template(finished, tmp_path / "kept", chat)
    with pytest.raises(PeftkitError, match=r"knows no system turn: .*dataset.system: fold"):
        answer(run, "say 1", system="Be brief.")
    seen = prompts(monkeypatch)
    run = with_template(finished, tmp_path / "folded", chat, system="fold")
    answer(run, "say 1", ["generation.max_new_tokens=1"], system="Be brief.")
    assert "Be brief.\n\nsay 1" in seen[0]


def test_special_tokens_of_a_prompt_are_kept_and_told_escaped_or_refused(finished, tmp_path, monkeypatch, caplog):
    from peftkit.assembly import assemble, read_run

    words = assemble(read_run(finished), weights=False, bare=True).tokenizer
    token, text = words.eos_token, f"say {words.eos_token} 1"
    seen: dict[str, list[str]] = {}
    for policy in ("keep", "escape"):
        (tmp_path / policy).mkdir()
        run = with_template(finished, tmp_path / policy, None, special=policy)
        with monkeypatch.context() as patch:
            seen[policy] = prompts(patch)
            caplog.clear()
            answer(run, text, ["generation.max_new_tokens=1"])
        assert any("special token" in record.message for record in caplog.records) == (policy == "keep")
    assert seen["keep"] == seen["escape"]
    assert token in seen["escape"][0]
    (tmp_path / "refuse").mkdir()
    run = with_template(finished, tmp_path / "refuse", None, special="refuse")
    with pytest.raises(PeftkitError, match="the prompt: a text holds the special token"):
        answer(run, text)
