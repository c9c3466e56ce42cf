# make demo: a quantized network becomes a spiking one, in 3 minutes. make test: the tests, in 10.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python

.PHONY: setup imagenet demo test test-all lint bench

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

imagenet: setup
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-imagenet.txt

demo: setup
	$(RUN) benchmarks/demo.py

test: setup
	$(RUN) -m pytest

test-all: setup
	$(RUN) -m pytest -m ""

lint: setup
	$(RUN) -m ruff check .

bench: setup
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	$(RUN) benchmarks/bench.py
