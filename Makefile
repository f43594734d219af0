# make demo: environment, install, train on the embedded corpus, show what was learnt
# make test: environment, install, lint, tests
# make fuzz: 10,000 random inputs of the functions on tensors, of every shape, dtype and kind of number
# make test-oldest: the same with the oldest NeMo that is tested, in an environment of its own

PYTHON ?= python3
VENV ?= .venv
OLDEST := .venv-oldest
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
DEMO := demo_output/Conformer-CTC-COMAT-Demo/run
export HF_HUB_OFFLINE = 1

.PHONY: demo test test-oldest fuzz install clean

demo: $(DEMO)/trained
	$(BIN)/python examples/demo_report.py $(DEMO)/checkpoints/Conformer-CTC-COMAT-Demo.nemo --overwrite

test: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/python -m pytest

test-oldest:
	$(MAKE) test VENV=$(OLDEST) CONSTRAINTS=constraints-oldest.txt

fuzz: $(VENV)/installed
	FUZZ_CASES=2000 SHRINK=1 $(BIN)/python -m pytest tests/test_fuzz.py

install: $(VENV)/installed

$(DEMO)/trained: $(VENV)/installed
	rm -rf $(DEMO)
	$(BIN)/python examples/speech_to_text_comat.py --config-name=conformer_ctc_comat_demo \
		exp_manager.exp_dir=demo_output +exp_manager.version=run
	touch $@

$(VENV)/installed: setup.py $(CONSTRAINTS)
	@echo "Installing NeMo and what it needs into $(VENV); this takes a few minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[demo,test]'
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) demo_output
