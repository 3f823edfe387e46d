# `make demo` and `make test` do their own set-up: a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

# The built-in digits need a larger epsilon than photographs.
DIGITS := --dataset digits --epochs 12 --lr-max 0.05 --epsilon 16 --pgd-alpha 4

.PHONY: demo test lint

demo: $(INSTALLED)
	$(BIN)/python train.py $(DIGITS) --overwrite
	$(BIN)/python eval.py $(DIGITS) --overwrite --limit-train 300 --checkpoints 0,5,11 \
		--neural-collapse --neural-collapse-gaussian --neural-collapse-targeted

test: $(INSTALLED)
	$(BIN)/pytest

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

$(INSTALLED): requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@
