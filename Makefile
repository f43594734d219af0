# make demo: environment, install, train on the embedded corpus, show what was learnt
# make test: environment, install, lint, contracts, types, tests by WORKERS processes
# make check: for the inner loop: lint, contracts, types, tests that import no NeMo and wait for no emulated kernels
# make lock: constraints-lock.txt anew, after a change of setup.py or constraints.txt
# make docs: the documentation, into site/
# make tutorial: runs examples/tutorial.ipynb from end to end
# make fuzz: 10,000 random inputs of the functions on tensors, of every shape, dtype and kind of number
# make test-oldest: make test with the oldest NeMo that is tested, in an environment of its own

PYTHON ?= python3
VENV ?= .venv
OLDEST := .venv-oldest
CONSTRAINTS ?= constraints-lock.txt
INSTALLER ?= auto
WORKERS ?= 2
BIN := $(VENV)/bin
TYPES ?= $(BIN)/mypy
DEMO := demo_output/Conformer-CTC-COMAT-Demo/run
# a process for each core: several threads in each would only wait for one another
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
# types are checked while the tests load what they need
BESIDE := $(MAKE) --no-print-directory --jobs=2
export HF_HUB_OFFLINE = 1

.PHONY: demo test check types tests quick-tests test-oldest docs tutorial fuzz install lock clean

demo: $(DEMO)/trained
	@echo "==> Transcribing the held-out sentences and writing the report: about a minute."
	$(BIN)/python examples/demo_report.py $(DEMO)/checkpoints/Conformer-CTC-COMAT-Demo.nemo --overwrite \
		--html demo_output/report.html

test: $(VENV)/installed
	@echo "==> Lint, contracts, types and all tests: 6 minutes on two quiet cores, more on a busy machine."
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BESIDE) types tests

check: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BESIDE) types quick-tests

types:
	$(TYPES)

tests:
	$(PYTEST)

quick-tests:
	$(PYTEST) --without-nemo -m 'not emulated'

test-oldest:
	$(MAKE) test VENV=$(OLDEST) CONSTRAINTS=constraints-oldest.txt TYPES=: # other versions have other types

docs: $(VENV)/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

tutorial: $(VENV)/installed
	mkdir -p demo_output
	$(BIN)/jupyter-execute --timeout=1800 --output="$(CURDIR)/demo_output/tutorial.ipynb" examples/tutorial.ipynb

fuzz: $(VENV)/installed
	FUZZ_CASES=2000 SHRINK=1 $(BIN)/python -m pytest tests/test_fuzz.py

install: $(VENV)/installed

$(DEMO)/trained: $(VENV)/installed
	@echo "==> Training a small recogniser on 22 minutes of speech: 8 minutes on two quiet cores, more on a busy machine."
	@echo "    After some steps it says how long it will take. Ctrl-C stops it, and 'make demo' goes on from there."
	$(BIN)/python examples/speech_to_text_comat.py --config-name=conformer_ctc_comat_demo \
		exp_manager.exp_dir=demo_output +exp_manager.version=run \
		exp_manager.resume_if_exists=true exp_manager.resume_ignore_no_checkpoint=true
	touch $@

$(VENV)/installed: setup.py $(CONSTRAINTS) tools/install.py
	$(PYTHON) tools/install.py $(VENV) --constraint $(CONSTRAINTS) --installer $(INSTALLER)
	touch $@

# from the default index alone, whatever is set here: the lock is the same on every machine
lock: $(VENV)/installed
	env -u UV_FIND_LINKS -u UV_INDEX -u UV_EXTRA_INDEX_URL -u UV_INDEX_STRATEGY -u UV_TORCH_BACKEND -u UV_PRERELEASE \
		-u UV_RESOLUTION UV_PYTHON_DOWNLOADS=never $(BIN)/python -m uv pip compile --quiet --universal \
		--python-version 3.10 --strip-extras --no-annotate --custom-compile-command 'make lock' \
		--constraint constraints.txt --all-extras setup.py --output-file constraints-lock.txt

clean:
	rm -rf $(VENV) $(OLDEST) demo_output site
