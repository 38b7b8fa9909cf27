# `make` reproduces every figure, `make test` passes every test, `make bench` measures cuts and speed (GRAPHS=folder for
# your own graphs, SECONDS="5 60"); each first makes .venv.
PYTHON ?= python3
EXPERIMENTS := $(wildcard */main.py)
GRAPHS ?=
SECONDS ?= 2

.PHONY: all test bench $(EXPERIMENTS)

all: $(EXPERIMENTS)
	.venv/bin/python collapse.py

$(EXPERIMENTS): .venv/installed
	.venv/bin/python $@

test: .venv/installed
	.venv/bin/python -m pytest

bench: .venv/installed
	.venv/bin/python MAXCUT/benchmark.py cuts $(GRAPHS) --seconds $(SECONDS)
	.venv/bin/python MAXCUT/benchmark.py steps

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@
