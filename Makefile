# make demo          the main job on real imagery, about three minutes after installation
# make test          every check that needs no hardware
# make test-arm64    the runtime's own tests as emulated 64-bit Arm code; half an hour,
#                    so not in CI; Debian, with qemu-user-static. ARM_ARGS=--write keeps the record
# make check-wheels  does every dependency resolve for 64-bit Arm? Not in CI: it asks a package index
#
# All make .venv when it is not there. PYTHON chooses the interpreter (3.10 to 3.13), PIP_ARGS goes
# to pip, e.g. to take torch from a folder of CPU wheels: make demo PIP_ARGS="--find-links wheels/".
# JOBS is the number of processes of make test; "logical" is one per logical core.
PYTHON ?= python3
PIP_ARGS ?=
ARM_ARGS ?=
JOBS ?= logical
TORCH ?= 2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.edgekd-installed

.PHONY: demo test test-arm64 check-wheels lint install clean

demo: $(STAMP)
	$(BIN)/python benchmarks/demo.py --out out/demo

test: lint
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile

test-arm64: $(VENV)/.edgekd-uv
	$(BIN)/python benchmarks/arm_tests.py $(ARM_ARGS)

check-wheels: $(VENV)/.edgekd-uv
	$(BIN)/python benchmarks/arm_wheels.py $(ARM_ARGS)

# Resolves for other machines than this one, which pip does not.
$(VENV)/.edgekd-uv: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) uv
	@touch $@

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(STAMP)

# Without byte-compiling at installation: what is used is compiled at its first import.
$(STAMP): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v < (3, 14) else f"error: Python 3.10 to 3.13 is needed, $(PYTHON) is {v.major}.{v.minor}; type: make $(MAKECMDGOALS) PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "error: $(PYTHON) cannot make virtual environments; on Debian or Ubuntu type: sudo apt install python3-venv" >&2; exit 3; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --disable-pip-version-check $(PIP_ARGS) \
	    "torch==$(TORCH)" -e ".[train,deploy,geo,dev]"
	@touch $(STAMP)

clean:
	rm -rf out runs bundles .pytest_cache .mypy_cache .ruff_cache .hypothesis
