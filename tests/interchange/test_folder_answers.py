"""What commands answer on a folder that Hugging Face peft wrote is what transformers answers with that adapter."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from model_folders import byte_tokenizer
from test_imported import CONFIGURATIONS, write_hub_peft

from peftkit.models.quiet import quiet
from peftkit.models.tiny import tiny

TOKENS = 8
FEW = ("dataset=bundled/e2e", f"generation.max_new_tokens={TOKENS}", "generation.num_beams=1")


def answer(model: Any, prompt: str) -> str:
    """Return transformers' own greedy answer to a prompt and a line break."""
    tokenizer = byte_tokenizer()
    ids = torch.tensor([tokenizer(prompt + "\n")["input_ids"]])
    with quiet(), torch.no_grad():
        settings = {"max_new_tokens": TOKENS, "do_sample": False, "num_beams": 1, "pad_token_id": 0}
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)
    new = made[0, ids.shape[1] :].tolist()
    return tokenizer.decode(new[: new.index(2)] if 2 in new else new)


@pytest.mark.parametrize("kind", ["lora", *(pytest.param(k, marks=pytest.mark.thorough) for k in ("ia3", "prefix"))])
def test_commands_answer_as_transformers_does(kind: str, peft: Any, tmp_path: Path) -> None:
    with quiet():
        tiny("llama", max_position_embeddings=512).save_pretrained(tmp_path / "base")
        byte_tokenizer().save_pretrained(tmp_path / "base")
    folder = tmp_path / "adapter"
    theirs = write_hub_peft(folder, CONFIGURATIONS[kind](), base=tmp_path / "base")
    done = peft("eval", folder, *FEW, "--limit", 4, "--json")
    assert done.code == 0, done.err
    lines = (folder / "peftkit" / "eval" / "bundled-e2e-test.predictions.jsonl").read_text(encoding="utf-8").split("\n")
    rows = [json.loads(line) for line in lines if line]
    expected = [answer(theirs, row["prompt"]) for row in rows]
    assert len(rows) == 4
    assert [row["prediction"] for row in rows] == expected
    with theirs.disable_adapter():
        assert [answer(theirs, row["prompt"]) for row in rows] != expected
    # Their answers, scored by themselves, have the scores of the evaluation.
    for name, held in (("predictions", expected), ("references", [row["references"] for row in rows])):
        (tmp_path / f"{name}.json").write_text(json.dumps(held), encoding="utf-8")
    files = ("--predictions", tmp_path / "predictions.json", "--references", tmp_path / "references.json")
    scored = peft("score", "e2e", *files, "--json")
    assert scored.code == 0, scored.err
    scores, told = json.loads(done.out)["scores"], json.loads(scored.out)
    assert scores
    assert scores == {name: told[name] for name in scores}
    done = peft("generate", folder, rows[0]["prompt"], f"generation.max_new_tokens={TOKENS}")
    assert done.code == 0, done.err
    assert done.out == expected[0] + "\n"
