# Everything from nothing but Python >= 3.11 and make.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3,$(shell command -v $(name) 2>/dev/null)))
BIN := .venv/bin
RUN := $(BIN)/python -m train_like
CONSTRAINTS := requirements/constraints.txt
DEMO := out/demo
EVALUATION := out/evaluate
# Test pictures of the evaluation: make evaluate n=1000
n ?= 200

.DEFAULT_GOAL := help
.PHONY: help install demo evaluate serve test test-long check format clean

help:
	@echo "make demo       phantoms, stacks, maps and pictures in $(DEMO)"
	@echo "make evaluate   how well maps locate findings: report and figures in $(EVALUATION)"
	@echo "make serve      the endpoint on this machine, until Ctrl-C"
	@echo "make test       the test suite"
	@echo "make check      linters, types, import contracts, doctests"
	@echo "make test-long  the long campaigns"

install: .venv/installed

.venv/installed: setup.cfg pyproject.toml $(CONSTRAINTS)
	@test -n "$(PYTHON)" || { echo "no python3 was found; Python 3.11 or newer is needed; install it." >&2; exit 1; }
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[dev]'
	@touch $@

demo: install
	$(RUN) shards configs/phantom_shards.yaml
	$(RUN) extract configs/demo.yaml method.name=occlusion output=$(DEMO)/occlusion
	$(RUN) extract configs/demo.yaml method.name=gradient output=$(DEMO)/gradient
	$(RUN) extract configs/demo.yaml stack.basis=prompts output=$(DEMO)/integrated_gradients
	for method in occlusion gradient integrated_gradients; do \
		$(RUN) verify $(DEMO)/$$method && \
		$(RUN) project configs/demo.yaml output=$(DEMO)/$$method project.output=$(DEMO)/maps/$$method || exit 1; \
	done
	$(RUN) figures configs/figures.yaml
	@echo "pictures: $(DEMO)/figures and $(DEMO)/maps"

evaluate: install
	$(RUN) shards configs/phantom_shards.yaml output=$(EVALUATION)/shards name=validation seed=2 n_samples=60 n_per_shard=60
	$(RUN) shards configs/phantom_shards.yaml output=$(EVALUATION)/shards name=test seed=3 n_samples=$(n) n_per_shard=$(n)
	$(RUN) evaluate configs/evaluate.yaml n=$(n)
	@echo "report: $(EVALUATION)/report.md"

serve: install
	$(BIN)/python -m serve pack configs/serve.yaml
	$(BIN)/python -m serve start configs/serve.yaml

test: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --jaxtyping-packages=mapstack,beartype.beartype -m 'not long'

test-long: install
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --long --jaxtyping-packages=mapstack,beartype.beartype --timeout=3600

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pytest -q -p no:cacheprovider --doctest-modules mapstack train_like serve

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv out shards build *.egg-info
