# `make demo` and `make test` do everything on a fresh machine; a second call does not install again.
PYTHON ?= python3
# The tested release. On Linux pip's default build brings CUDA; any other build already in .venv that satisfies it is kept.
TORCH ?= torch==2.13.0

BIN := .venv/bin
# each is trained and tested on procedural furniture; imnet goes on from the checkpoint of imnet_autoencoder
SHAPES := mean_shape mean_points r2n2 psgn onet imnet_autoencoder imnet

.PHONY: setup demo demo-shapes bench test lint clean

setup: .venv/.setup

.venv/.setup: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	touch $@

.venv/.test: .venv/.setup
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[sfm,test]"
	touch $@

demo: setup
	$(BIN)/python main.py fit --config configs/neuralangelo_demo.yaml
	$(BIN)/python main.py test

demo-shapes: $(SHAPES:%=demo-%)
	$(BIN)/python -m callbacks.compare $(SHAPES:%=runs/%_shapes)

# one after the other, also under make -j: each takes all cores
.NOTPARALLEL:
demo-%: setup
	$(BIN)/python main.py fit --config configs/$*_shapes.yaml
	$(BIN)/python main.py test --run_root runs/$*_shapes

# at most 15 minutes
bench: setup
	$(BIN)/python -m benchmarks.all

test: .venv/.test
	$(BIN)/python -m pytest

lint: .venv/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf .venv .pytest_cache .ruff_cache *.egg-info
