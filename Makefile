# make demo: a quantized network becomes a spiking one, in one to two minutes. make test: the tests, in 4.5 to 5.5.
PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
# A process a core, each with one thread: the tests' networks are too small for more. Files stay whole, they share networks; the longest ones go first.
PYTEST := OMP_NUM_THREADS=1 $(RUN) -m pytest -n auto --dist loadfile --no-loadscope-reorder

.PHONY: setup imagenet export demo test test-all test-gpu lint bench gpu

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

imagenet: setup
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-imagenet.txt

export: setup
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-export.txt

demo: setup
	$(RUN) benchmarks/demo.py

test: setup
	$(PYTEST)

test-all: setup
	$(PYTEST) -m ""

test-gpu: setup
	$(RUN) -m pytest tests/device_checks.py

lint: setup
	$(RUN) -m ruff check .

bench: setup
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements-bench.txt
	$(RUN) benchmarks/bench.py

gpu: setup
	$(RUN) benchmarks/gpu.py
