# make demo: train and evaluate on this machine, without data or downloads of weights
# make demo-vi: the same without identities, of visible and infrared images (CCLNet)
# make test: lint and the fast tests            make test-all: all tests that need no GPU
# make faults FAULTS=120: trainings that are killed and damaged, so many times
# make test-gpu: ViT-B/16 on a CUDA device
# make test-web: the page in a headless Chromium
# make env:  what all need; a .venv here, from requirements.txt, by uv where that is installed
# make test-lowest: all tests with the lowest versions that requirements.txt allows, in a .venv-lowest
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
WEB := .venv-web
FAULTS ?= 120
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile
# Without an NVIDIA driver, torch's CUDA libraries are gigabytes for nothing: its CPU build, where that index answers.
CPU_INDEX := https://download.pytorch.org/whl/cpu
INDEX = if [ "$$(uname)" = Linux ] && ! [ -e /dev/nvidia0 ] && ! command -v nvidia-smi > /dev/null \
	&& $(PYTHON) -c 'import urllib.request as r; r.urlopen("$(CPU_INDEX)/torch/", timeout=5)' 2> /dev/null; \
	then echo "--extra-index-url $(CPU_INDEX)"; fi
# make a virtual environment $(1) from the requirements $(2)
INSTALL = set -e; index=$$($(INDEX)); \
	size="3 GB are fetched once (torch with CUDA is most of it), 6 GB on disk"; \
	if [ "$$index" ]; then size="without CUDA, 1.5 GB on disk"; fi; \
	echo "installing into $(1): $$size"; \
	if command -v uv > /dev/null; then \
		uv venv --allow-existing --python $(PYTHON) $(1); \
		uv pip install --python $(1)/bin/python --index-strategy unsafe-best-match $$index -r $(2); \
	else \
		$(PYTHON) -m venv $(1); \
		$(1)/bin/python -m pip install --disable-pip-version-check $$index -r $(2); \
	fi; \
	$(1)/bin/python -c 'import torch, torchvision'

.PHONY: env demo demo-vi test test-all test-lowest faults test-gpu test-web chromium lint clean

env: $(VENV)/ready

$(VENV)/ready: requirements.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ...")'
	@$(call INSTALL,$(VENV),requirements-dev.txt)
	touch $@

$(LOWEST)/ready: requirements.txt requirements-dev.txt
	@mkdir -p $(LOWEST)
	sed -n 's/>=/==/p' requirements.txt requirements-dev.txt > $(LOWEST)/requirements.txt
	@$(call INSTALL,$(LOWEST),$(LOWEST)/requirements.txt)
	touch $@

demo: env
	$(BIN)/python -m tools.demo

demo-vi: env
	$(BIN)/python -m tools.demo --config_file configs/demo/vi_cclnet.yml

test: env lint
	$(PYTEST) -m "not slow"

test-all: env lint
	$(PYTEST)

test-lowest: BIN := $(LOWEST)/bin
test-lowest: $(LOWEST)/ready
	$(PYTEST)

faults: env
	$(PYTEST) --dist load tests/faults --faults $(FAULTS)

test-gpu: env
	$(BIN)/python -m pytest -s tests/gpu

# Its own environment sees the packages of .venv, but may have others in front of them.
$(WEB)/ready: $(VENV)/ready requirements-web.txt
	$(BIN)/python -m venv $(WEB)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(WEB)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	$(WEB)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-web.txt
	touch $@

test-web: chromium $(WEB)/ready
	OMP_NUM_THREADS=1 $(WEB)/bin/python -m pytest tests/web

chromium:
	@command -v chromium > /dev/null || { echo "chromium is missing: apt-get install chromium"; exit 1; }

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(LOWEST) $(WEB) .pytest_cache .ruff_cache .mypy_cache
