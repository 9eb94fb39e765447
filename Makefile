# Thin: each target is a command that can be typed. `make demo` and `make test` are the two to know.
BIN := .venv/bin

.PHONY: setup demo test lint lab bench tutorials pictures clean chromium node triton published

setup:
	@tools/setup.sh

demo: setup
	$(BIN)/lens-magic demo --out out

test: setup
	@$(MAKE) --no-print-directory --jobs=4 lint chromium node triton published
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

chromium node triton: setup
	@tools/$@.sh

published: setup
	@$(BIN)/python tools/published.py

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

pictures: chromium
	$(BIN)/python tools/pictures.py

clean:
	rm -rf out .pytest_cache .mypy_cache .ruff_cache .triton .published
