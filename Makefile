# make demo: train and evaluate on this machine, without data or downloads of weights
# make test: all tests          make test-gpu: ViT-B/16 on a CUDA device
# make env:  what both need; a .venv here, from requirements.txt
# make test-lowest: all tests with the lowest versions that requirements.txt allows, in a .venv-lowest
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

.PHONY: env demo test test-lowest test-gpu lint clean

env: $(VENV)/ready

$(VENV)/ready: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	@echo "installing into $(VENV): 3 GB are fetched once (torch with CUDA is most of it), 6 GB on disk"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -c 'import torch, torchvision'
	touch $@

$(LOWEST)/ready: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(LOWEST)
	sed -n 's/>=/==/p' requirements.txt requirements-dev.txt > $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -m pip install --disable-pip-version-check -r $(LOWEST)/requirements.txt
	$(LOWEST)/bin/python -c 'import torch, torchvision'
	touch $@

demo: env
	$(BIN)/python -m tools.demo

test: env lint
	$(PYTEST)

test-lowest: BIN := $(LOWEST)/bin
test-lowest: $(LOWEST)/ready
	$(PYTEST)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test-gpu: env
	$(BIN)/python -m tools.verify_gpu

clean:
	rm -rf $(VENV) $(LOWEST) .pytest_cache .ruff_cache .mypy_cache
