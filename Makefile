# Everything a newcomer needs. `make run` does the main job, `make test` proves it; both set up first.
comma  := ,
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
UV     := uv==0.13.9
READY  := $(VENV)/.ready
# PyTorch is for array features only, and the registry's build for Linux brings gigabytes of CUDA: it is installed where
# PIP_FIND_LINKS names a folder that has a CPU wheel of it for this Python.
TAG    := $(shell $(PYTHON) -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
WHEELS := $(foreach folder,$(PIP_FIND_LINKS),$(wildcard $(folder)/torch-*cpu-$(TAG)-*.whl))
EXTRAS := dev$(if $(WHEELS),$(comma)sequences)
TORCH  := $(if $(WHEELS),$(addprefix --find-links ,$(PIP_FIND_LINKS)))

.DEFAULT_GOAL := help
.PHONY: help setup run test lint serve notebooks bench clean

help: ## Show this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## Create .venv with the pinned dependencies

# Compiled here once: Ray's processes and every command would otherwise compile what they import where Python is told to
# write no bytecode, which takes longer than all else they do to start.
# .installing marks a set-up that did not finish: the next one starts the environment anew rather than trust it.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python found. Install Python 3.11 or 3.12, or name one: make setup PYTHON=/path/to/python3.11"; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { \
	  echo "$(PYTHON) is $$($(PYTHON) --version); Skewless runs on Python 3.11 and 3.12. Name one: make setup PYTHON=/path/to/python3.11"; exit 2; }
	@if [ -e $(VENV)/.installing ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	  echo "==> creating $(VENV) with $(PYTHON)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); fi
	@touch $(VENV)/.installing
	@echo "==> installing pinned dependencies (about 3 GB, most of a minute on a fast line)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $(UV)
	@$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt $(TORCH) --editable '.[$(EXTRAS)]'
	@rm -f $(VENV)/.installing && touch $(READY)
	@echo "==> $(VENV) is ready"

run: setup ## The main job: raw data to a served, watched, retrained model
	@$(BIN)/skewless run

test: setup lint ## Lint, types, import contracts and the whole suite
	@echo "==> tests"
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --cov --cov-report=term --cov-fail-under=85

lint: setup ## Style, types and the rules between packages
	@echo "==> ruff" && $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "==> mypy" && $(BIN)/mypy
	@echo "==> import contracts" && $(BIN)/lint-imports

serve: setup ## Serve what the last run left behind, on http://127.0.0.1:8000
	@$(BIN)/skewless serve --clock request

notebooks: setup ## Execute the notebooks on what the last run left behind; copies with results in data/notebooks
	@test -e data/run.json || { echo "There is nothing to read yet: make run"; exit 2; }
	@mkdir -p data/notebooks
	@$(BIN)/jupyter-execute --kernel_name=python3 --output='../data/notebooks/{notebook_name}' notebooks/*.ipynb
	@ls data/notebooks/*.ipynb

bench: setup ## Measure: ratios, both sides in one run
	@for bench in benchmarks/bench_*.py; do echo "==> $$bench"; $(BIN)/python $$bench || exit 1; done

clean: ## Remove the environment and everything a run made
	rm -rf $(VENV) data .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
