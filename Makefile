# `make` reproduces every figure, `make test` passes every test but the slowest, `make soak` those, `make bench` measures
# cuts and speed (GRAPHS=folder for your own graphs, SECONDS="5 60"), `make tables` runs every row of the READMEs' tables
# (GRAPHS=folder of the Gset's graphs) and writes them; each first makes .venv. (Python compiles what it imports, the
# first time; compiling all that is installed, as pip would, takes four times as long.)
PYTHON ?= python3
EXPERIMENTS := $(wildcard */main.py)
GRAPHS ?=
SECONDS ?= 2

.PHONY: all test soak bench tables $(EXPERIMENTS)

all: $(EXPERIMENTS)
	.venv/bin/python collapse.py

$(EXPERIMENTS): .venv/installed
	.venv/bin/python $@

test: .venv/installed
	.venv/bin/python -m pytest

soak: .venv/installed
	.venv/bin/python -m pytest -m soak

bench: .venv/installed
	.venv/bin/python studies/benchmark.py cuts $(GRAPHS) --seconds $(SECONDS) --out bench
	.venv/bin/python studies/benchmark.py steps --out bench

tables: .venv/installed
	.venv/bin/python studies/tables.py run $(if $(GRAPHS),--graphs $(GRAPHS))
	.venv/bin/python studies/tables.py write

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --no-compile -r requirements.txt
	touch $@
