# make demo: train and evaluate on this machine, without data or downloads of weights
# make test: all tests          make test-gpu: ViT-B/16 on a CUDA device
# make env:  what both need; a .venv here, from requirements.txt
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: env demo test test-gpu lint clean

env: $(VENV)/ready

$(VENV)/ready: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -c 'import torch, torchvision'
	touch $@

demo: env
	$(BIN)/python -m tools.demo

test: env lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test-gpu: env
	$(BIN)/python -m tools.verify_gpu

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
