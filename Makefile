BIN := .venv/bin

.PHONY: help setup demo test check docs bench

help:  ## list what can be made
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/'

setup:  ## make .venv with wsi and all developer tools, at the versions of constraints.txt
	python3 -m venv .venv
	$(BIN)/pip install -q uv
	$(BIN)/uv pip install -q --compile-bytecode --python $(BIN)/python -c constraints.txt -e . --group dev

demo:  ## run the whole of wsi on synthetic slides; look at wsi-demo/report.html
	$(BIN)/wsi demo

test:  ## run the tests, on two processes
	$(BIN)/pytest -n 2

check:  ## everything but the tests: format, lint, types, layers, spelling, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/codespell
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

docs:  ## build the documentation and serve it while it is edited
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

bench:  ## print what objectives cost beside a cross-entropy head, in time and memory
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/objectives.py
