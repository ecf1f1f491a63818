"""`peft modules`: a model's tree, targets and methods on the terminal, and what is refused."""

from __future__ import annotations

import pytest


def test_tree_targets_and_methods_are_printed(peft):
    done = peft("modules", "bundled/tiny", "--targets", "attention,*.0.mlp.*")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "bundled/tiny (llama), 1,967,808 parameters, 4 layers"
    assert "    1-3 (3 equal)" in done.out
    (q, *_) = [line for line in lines if line.startswith("        q_proj")]
    assert q.split() == ["q_proj", "Linear", "192×192", "q", "36.9k", "attention"]
    assert "weight tied: it is model.embed_tokens.weight" in done.out
    assert any(line.split()[:3] == ["attention", "16", "393k"] for line in lines)
    assert any(line.split()[:2] == ["*.0.mlp.*", "3"] for line in lines)
    assert ", lora, " in done.out
    assert any(line.startswith("bitfit") and "has no bias at all" in line for line in lines)


def test_a_recipe_shows_where_its_methods_sit(peft, recipe):
    done = peft("modules", recipe)
    assert done.code == 0, done.err
    marked = [line.split()[0] for line in done.out.splitlines() if line.rstrip().endswith(" lora")]
    assert marked == ["q_proj", "v_proj"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["bundled/tiny", "--targets", "atention"], "Did you mean 'attention'?"),
        (
            ["bundled/tiny", "rank=4"],
            "found 'rank', and bundled/tiny is a model; allowed: keys of model and quantization",
        ),
        (["quickstrat"], "Did you mean the recipe 'quickstart'?"),
        (["nowhere/there.yaml"], "there is no recipe 'nowhere/there.yaml'"),
        (["bundled/tiny", "quantization=nf5"], "nf4"),
    ],
)
def test_what_is_wrong_is_refused_with_the_way_out(peft, arguments, said):
    done = peft("modules", *arguments)
    assert done.code == 2
    assert said in done.err
