# Two commands do all of the set-up by themselves: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
RUN ?= runs/demo
BIN := $(VENV)/bin
SETUP := setup.cfg pyproject.toml constraints.txt

.PHONY: demo test check format soak clean

demo: $(VENV)/installed  ## train RL² on bandits, evaluate it on held-out ones, draw the figure
	@if [ -e $(RUN)/config.yaml ]; then $(BIN)/rl2meta train --resume --run-dir $(RUN); \
	else $(BIN)/rl2meta train rl2_bandit --run-dir $(RUN); fi
	@$(BIN)/rl2meta evaluate $(RUN)

test: check  ## lint, types, tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/installed-for-tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

soak: $(VENV)/installed-for-tests  ## kill, damage and refuse for some 30 minutes of CPU time; write what held into docs/reliability.md
	$(BIN)/python tests/soak --out docs/reliability.md

format: $(VENV)/installed-for-tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/installed: $(SETUP)
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "rl2meta needs Python 3.11 or newer; make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[fast]'
	@touch $@

$(VENV)/installed-for-tests: $(VENV)/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
