# `make` reproduces every figure, `make test` passes every test; both first make .venv.
PYTHON ?= python3
EXPERIMENTS := $(wildcard */main.py)

.PHONY: all test $(EXPERIMENTS)

all: $(EXPERIMENTS)

$(EXPERIMENTS): .venv/installed
	.venv/bin/python $@

test: .venv/installed
	.venv/bin/python -m pytest

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
