# `make demo` and `make test` work on a fresh machine with Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
BIN := $(VENV)/bin

.PHONY: install demo test test-all lint format docs gpu evidence clean

# Bytecode is kept even where the environment says otherwise: importing torch and transformers without it takes twenty
# seconds. It is made of what is imported, not of everything that is installed, which takes as long as installing itself;
# `fcit doctor` imports most of it, and says whether all of it works.
export PYTHONDONTWRITEBYTECODE =

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check -c constraints.txt $(PIP_ARGS) -e ".[dev]"
	$(BIN)/fcit doctor
	touch $@

install: $(VENV)/.installed  ## virtual environment with everything

demo: install  ## DISCO beside plain fine-tuning, four stages each
	$(BIN)/fcit run configs/demo-finetune.yaml output=runs/demo
	$(BIN)/fcit run configs/demo-disco.yaml output=runs/demo
	$(BIN)/fcit report $$(ls -d runs/demo/demo-finetune-* | sort -V | tail -1) \
	    $$(ls -d runs/demo/demo-disco-* | sort -V | tail -1) --figure runs/demo/comparison.png \
	    --output runs/demo/report
	@echo "next:    source $(BIN)/activate, then fcit --help"

PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

test: install  ## unit and end-to-end tests, in processes of one thread, on two cores
	$(PYTEST) -n 3 -m "not thorough"

test-all: install  ## these, and those that start other programs or go through every method; more processes, as some wait
	$(PYTEST) -n 4

lint: install  ## style, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: install  ## the documentation, in site/; a broken link or an unlisted page is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

gpu: install  ## everything checked and measured on a GPU in under six minutes; needs a CUDA build of torch
	$(BIN)/python -m tests.perf.whole --size 7b --device cuda

evidence: install  ## the long runs behind docs/figures.md (about seven hours on two cores; can be stopped and restarted)
	$(BIN)/python -m tests.evidence.runs
	$(BIN)/python -m tests.evidence.speed
	$(BIN)/python -m tests.evidence.scaling
	$(BIN)/python -m tests.evidence.peers
	$(BIN)/python -m tests.evidence.discovery
	$(BIN)/python -m tests.evidence.kills
	$(BIN)/python -m tests.evidence.attacks
	$(BIN)/python -m tests.evidence.membership
	$(BIN)/python -m tests.evidence.inversion
	$(BIN)/python -m tests.evidence.leaks.page
	$(BIN)/python -m tests.evidence.soak
	$(BIN)/python -m tests.evidence.site_worker
	$(BIN)/python -m tests.evidence.messages
	$(BIN)/python -m tests.evidence.attackers
	$(BIN)/python -m tests.evidence.link
	$(BIN)/python -m tests.evidence.sites_soak
	$(BIN)/python -m tests.evidence.async_soak
	$(BIN)/python -m tests.evidence.compat
	$(BIN)/python -m tests.evidence.tokenizer
	$(BIN)/python -m tests.evidence.serve
	$(BIN)/python -m tests.evidence.card

clean:
	rm -rf $(VENV) build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache
