# The README's two commands are `make demo` and `make test`; each sets up all it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench soak protos clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,torch,tracing,embedded,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m models.flight_delay.demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python protos/generate.py --check

test: $(STAMP) lint
	$(BIN)/python tests/perf_analyzer.py
	$(BIN)/python tests/grpc_js.py
	$(BIN)/python -m coverage run -m pytest -m 'not soak and not gpu'
	$(BIN)/python tests/pure_coverage.py

bench: $(STAMP)
	$(BIN)/python -m bench

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak --timeout 3600

protos: $(STAMP)
	$(BIN)/python protos/generate.py

clean:
	rm -rf $(VENV) build dist *.egg-info
