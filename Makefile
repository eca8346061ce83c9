# A fresh machine needs Python 3.11 and make. Everything else is installed here, into .venv, with exact pins.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
OUT    ?= runs/demo

.PHONY: setup test faults lint demo bench clean

setup: $(VENV)/.installed

# One resolution for everything; the pins are in constraints.txt. setuptools comes first so that the project itself is
# installed without a second, isolated environment.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt setuptools
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable ".[dev,formats]"
	touch $@

demo: setup          ## synthetic Earth -> seven arms -> ranked table, report, MLflow
	$(BIN)/python -m cromss.demo --out $(OUT)

test: setup          ## the whole suite; PYTEST='-n 2 --no-loadscope-reorder': what needs Ray beside what does not
	$(BIN)/python -m pytest $(PYTEST)

faults: setup        ## every experiment of tests/faults, the slow ones too, and the table of what was measured
	CROMSS_FAULTS=1 $(BIN)/python -m pytest tests/faults tests/cluster -s $(PYTEST)

lint: setup          ## style, who may import whom, and what cluster/ may not say
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/python -m cromss.cluster_check --template $(filter-out %.md %.py %.in %.lock,$(wildcard cluster/*.* cluster/*/*.* cluster/image/Dockerfile))

bench: setup         ## the stream and the step, measured
	$(BIN)/python -m cromss.bench stream
	$(BIN)/python -m cromss.bench step

clean:
	rm -rf $(VENV) build *.egg-info
