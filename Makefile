# Thin: each target is a command that can be typed. `make demo` and `make test` are the two to know.
BIN := .venv/bin

.PHONY: setup demo test lint lab bench tutorials pictures clean

setup:
	@tools/setup.sh

demo: setup
	$(BIN)/lens-magic demo --out out

test: setup lint
	@tools/chromium.sh
	@tools/node.sh
	@tools/triton.sh
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

lab: setup
	$(BIN)/jupyter lab $(if $(filter 0,$(shell id -u)),--allow-root) --notebook-dir=. notebooks/01-logit-lens.ipynb

bench: setup
	$(BIN)/lens-magic bench

tutorials: setup
	$(BIN)/python tools/tutorials.py

pictures: setup
	@tools/chromium.sh
	$(BIN)/python tools/pictures.py

clean:
	rm -rf out .pytest_cache .mypy_cache .ruff_cache .triton
