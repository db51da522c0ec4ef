# Every target first sees to a virtual environment that has what it needs (tools/venv.sh).
#   PYTHON=/path/to/python3   the Python to make it from; a torch that it has is kept
#   VENV=.venv                where it stands
#   ARGS='...'                further arguments for the command that the target runs
PYTHON ?=
VENV ?= .venv
ARGS ?=

RUN = PYTHONUNBUFFERED=1 $(VENV)/bin
SET_UP = @PYTHON='$(PYTHON)' VENV='$(VENV)' sh tools/venv.sh
# One thread for each test process: the processes share the cores already.
PYTEST = OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(VENV)/bin/python -m pytest \
	-n auto --maxprocesses 8 --dist worksteal --benchmark-disable

.PHONY: help demo test check coverage gpu clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.* ## /  make \1\t/p' Makefile | expand -t 16

demo: ## train on handwritten digits and draw new ones (a few minutes on a CPU)
	$(SET_UP) demo,test
	$(RUN)/ddgan-fast demo --run.steps 2600 $(ARGS)

test: ## run the tests, but for the slow ones and those that need a GPU
	$(SET_UP) demo,test
	$(PYTEST) -m "not slow and not gpu" $(ARGS)

check: ## lint, check types, run all tests
	$(SET_UP) demo,test,dev
	$(VENV)/bin/python -m ruff check .
	VENV='$(VENV)' sh tools/types.sh
	$(PYTEST) $(ARGS)

coverage: ## run all tests and list the lines that none of them runs
	$(SET_UP) demo,test,dev
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-report=html:build/coverage/html $(ARGS)

gpu: ## time and check everything on this machine's GPU; results in build/gpu
	$(SET_UP) demo,test
	$(RUN)/python -m benchmarks.gpu_suite --out build/gpu $(ARGS)

clean: ## remove what was built; the environment and the runs stay
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache .benchmarks
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
