# The README's two commands are `make demo` and `make test`; each sets up all it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
NATIVE := server/dataplane/native
CXX_FILES = $(shell find $(NATIVE) bench -name '*.cc' -o -name '*.h')
CLANG_FORMAT = $(BIN)/clang-format --style=file:$(NATIVE)/.clang-format
FUZZ_S ?= 60

.PHONY: demo test lint format native stub image sanitize fuzz rules bench soak protos clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cpu,torch,tracing,embedded,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m server.dataplane.native.install
	$(BIN)/python -m models.flight_delay.demo

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(CLANG_FORMAT) --dry-run --Werror $(CXX_FILES)
	$(BIN)/mypy
	$(BIN)/python protos/generate.py --check
	$(BIN)/hadolint Dockerfile.gpu

format: $(STAMP)
	$(BIN)/ruff format .
	$(CLANG_FORMAT) -i $(CXX_FILES)

test: $(STAMP) lint
	$(BIN)/python -m server.dataplane.native.install --strict --tests
	$(BIN)/python tests/perf_analyzer.py
	$(BIN)/python tests/grpc_js.py
	$(BIN)/python -m coverage run -m pytest -m 'not soak and not gpu'
	$(BIN)/python tests/pure_coverage.py

# the native data plane, built and installed; demo and test do so where they can
native: $(STAMP)
	$(BIN)/python -m server.dataplane.native.install --required

# what type checkers know of the module, from the module
stub: native
	cp $$($(BIN)/python -c 'import podium_native; from pathlib import Path; print(Path(podium_native.__file__).parent)')/podium_native.pyi $(NATIVE)/typings/

# the lines of Dockerfile.gpu, run below a scratch folder: where there is no Docker, and before there is an image
image: native
	$(BIN)/hadolint Dockerfile.gpu
	$(BIN)/python -m pytest -m image tests/test_native_image.py

sanitize: $(STAMP)
	PYTHON=$(abspath $(BIN)/python) $(NATIVE)/sanitize.sh

fuzz: $(STAMP)
	FUZZ_S=$(FUZZ_S) $(NATIVE)/fuzz.sh

# the alert rules, and when they fire, by Prometheus' own tool (Debian's package prometheus has it)
rules:
	promtool check rules deploy/prometheus/podium-monitoring.rules.yml
	promtool test rules deploy/prometheus/podium-monitoring.test.yml

bench: $(STAMP)
	$(BIN)/python -m bench

soak: $(STAMP)
	$(BIN)/python -m pytest -m soak --timeout 3600

protos: $(STAMP)
	$(BIN)/python protos/generate.py

clean:
	rm -rf $(VENV) build dist *.egg-info
