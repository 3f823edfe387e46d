# `make demo` and `make test` do their own set-up: a virtual environment in .venv.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed

# The built-in digits need a larger epsilon than photographs.
DIGITS := --dataset digits --epochs 10 --lr-max 0.05 --epsilon 20 --pgd-alpha 5

.PHONY: demo test test-slow benchmark gpu gpu-run reproduce lint

demo: $(INSTALLED)
	$(BIN)/python train.py $(DIGITS) --lr-schedule cosine --overwrite
	$(BIN)/python eval.py $(DIGITS) --overwrite --limit-train 200 --noise-level 20 \
		--checkpoints 0,4,9 --neural-collapse --neural-collapse-gaussian --neural-collapse-targeted
	$(BIN)/python plot.py models/digits/vgg11bn/l_inf/eps20.0/std_train/seed1 --out figures --table

test: $(INSTALLED)
	$(BIN)/pytest -n 2 --dist worksteal

# What takes minutes: compiled networks, whole golden trajectories, kills at random moments.
# SELECT="-k 'not compiled'" leaves some out.
test-slow: $(INSTALLED)
	$(BIN)/pytest -m slow -n 2 --dist worksteal $(SELECT)

benchmark: $(INSTALLED)
	$(BIN)/python benchmarks/benchmark.py

# What a GPU has to settle: its tests, and the time and memory of what matters, in ten minutes.
# benchmarks/half_hour.sh has three such calls: milliseconds per step, and runs on all of CIFAR-10.
gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py

# The paper's first run and its sweep. SECONDS_LEFT=540 makes a piece of it, and the same goes on;
# DATA="--dataset folder --data-dir DIR" takes other images than CIFAR-10's archive.
gpu-run: $(INSTALLED)
	$(BIN)/python benchmarks/gpu_run.py $(if $(SECONDS_LEFT),--seconds $(SECONDS_LEFT)) $(DATA)

# The paper's claims on 2,000 images of a folder (DATA="--data-dir DIR"), or on the built-in digits.
reproduce: $(INSTALLED)
	$(BIN)/python reproduce.py --scale small $(DATA)

lint: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

$(INSTALLED): requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@
