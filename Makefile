# Each target makes and fills its own virtual environment in .venv on a fresh machine; nothing has to be done by hand before.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --quiet
INPUTS := setup.cfg pyproject.toml constraints.txt
# Two cores are the smallest machine that the tests are meant for.
TEST_PROCESSES ?= 2
PYTEST_ARGS ?=

.PHONY: demo rendered-teacher distillation test test-quick test-slurm lint format typecheck clean help

help:
	@echo "make demo        render, build shards, train prior, teacher and student, evaluate: runs/demo/report/index.html"
	@echo "make demo DATA=folder   the same on your own frames (docs/sources.md says how to lay them out)"
	@echo "make rendered-teacher DATA=folder   a prompted teacher from rendered scenes alone, measured on your frames: runs/rendered_teacher/report"
	@echo "make distillation   a student of a teacher's labels against one of the raw, noisy depth: runs/distillation/report (DATA=folder: on your frames too)"
	@echo "make test        every test but those of SLURM;  make test-quick  those that take seconds"
	@echo "make test-slurm  on a real SLURM cluster that it starts on this machine (root; else they skip)"
	@echo "make lint | format | typecheck | clean"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mdpretrain needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "python3 -m venv failed; on Debian and Ubuntu: apt-get install python3-venv"; exit 1; }

# torch first and pinned: unconstrained, pip would replace it by the newest CUDA build.
$(VENV)/.ready: $(INPUTS) | $(BIN)/python
	@echo "installing mdpretrain into $(VENV) (about two minutes)"
	@$(PIP) -c constraints.txt torch
	@$(PIP) -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	@echo "installing the development tools into $(VENV)"
	@$(PIP) -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.ready
	@PATH="$(abspath $(BIN)):$$PATH" DATA="$(DATA)" bash launch/demo.sh

rendered-teacher: $(VENV)/.ready
	@PATH="$(abspath $(BIN)):$$PATH" bash launch/rendered_teacher.sh "$(DATA)"

distillation: $(VENV)/.ready
	@PATH="$(abspath $(BIN)):$$PATH" DATA="$(DATA)" bash launch/distillation.sh

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal --ignore=tests/slurm $(PYTEST_ARGS)

test-quick: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal --ignore=tests/slurm -m "not slow" $(PYTEST_ARGS)

# One after the other: the jobs of each scenario need both cores.
test-slurm: $(VENV)/.ready-dev
	$(BIN)/python -m pytest tests/slurm --durations=0 $(PYTEST_ARGS)

lint: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: $(VENV)/.ready-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

typecheck: $(VENV)/.ready-dev
	$(BIN)/mypy data_shards mdpretrain launch

clean:
	rm -rf $(VENV) build *.egg-info
