# Two commands do everything, set-up included: `make demo` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Apart from the rest, as torchvision is of another torch and others would import it (tests/support/torchvision.py).
TIMM := timm==1.0.31 torchvision==0.29.1
# Apart from the rest too, as it asks for an older pillow than the one of the lock.
TRACKIO := trackio==0.43.0 brotli==1.2.1 gradio_client==2.7.2 orjson==3.13.0 python-multipart==0.0.34

.PHONY: demo test test-slow test-matrix test-all lint format docs install

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/timm $(TIMM)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/trackio $(TRACKIO)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

demo: install
	$(BIN)/attnwatch demo

test: install
	$(BIN)/python -m pytest --numprocesses 2

# On several processes, compiled, killed; the examples; trl, timm, diffusers and sentence-transformers; the longest of
# the other tests, and all that draw their inputs, with more of them.
test-slow: install
	$(BIN)/python -m pytest --numprocesses 2 -m "slow or hypothesis" --hypothesis-profile thorough tests

# With the oldest and the newest transformers and Lightning that pyproject.toml allows.
test-matrix: install
	$(BIN)/python -m tests.support.version_matrix

test-all: test test-slow test-matrix

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m tools.check_docstrings
	$(BIN)/python -m tools.update_tables --check

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# The documentation, into site/. A broken link, anchor or reference is an error.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
