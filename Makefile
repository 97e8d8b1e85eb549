# The door to everything. `make help` lists it.
MAKEFLAGS += --no-print-directory
JOBS ?= $(shell nproc)
PYTHON = $$(tools/setup --path python)

EXPERIMENTS = base lora slora churn loads scale kernels peft
EXPERIMENTS_PYTHON ?= python3

.PHONY: help setup build demo bench test test-gpu sanitize-gpu bench-ops cuda cuda-all sim fuzz lint fmt docs clean \
	$(EXPERIMENTS:%=bench-%) bench-plots

help:
	@echo "make setup   install what is missing: packages, Kafka, Python environment, model"
	@echo "make build   lorryd and lorry, optimised, in build/release"
	@echo "make demo    a Kafka, a Redis, a worker, 200 jobs over a base and four adapters"
	@echo "make bench   the engine's throughput on made-up jobs; BENCH=\"--case A1,A2\" says which"
	@echo "make test    every test: unit (also under sanitizers), corpus, simulation, integration"
	@echo "make test-gpu   the tests that need an NVIDIA GPU"
	@echo "make sanitize-gpu   the same, in part, under compute-sanitizer"
	@echo "make bench-ops   times each block of a step on the device; BENCH=options, see BENCH=--help"
	@echo "make bench-SET   an experiment of docs/PERFORMANCE.md: $(EXPERIMENTS); BENCH=--dry"
	@echo "make bench-plots   tables and plots of what those gave, into docs/PERFORMANCE.md"
	@echo "make cuda-all   compiles the CUDA kernels for every GPU they know; needs none"
	@echo "make sim SEED=n   replay one simulation"
	@echo "make lint    format, layers, clang-tidy, scripts;  make fmt formats"
	@echo "make docs    generated pages;  make fuzz  the fuzzers, for FUZZ_SECONDS each"

setup:
	@tools/setup all

build/%/build.ninja: CMakePresets.json
	@cmake --preset $* >/dev/null

# Configured each time, for a CUDA toolkit may have come.
build: setup
	@cmake --preset release >/dev/null
	@cmake --build build/release -j $(JOBS) --target lorryd lorry

demo: build
	@exec $(PYTHON) tools/demo/demo.py

# No setup, and neither Kafka nor Redis: see test-gpu.
bench:
	@cmake --preset release >/dev/null
	@cmake --build build/release -j $(JOBS) --target lorry
	@build/release/tools/lorry bench $(BENCH)

test: setup cuda
	@tools/test

# No setup: these must run on a machine that has a GPU and a CUDA toolkit, and no network.
test-gpu:
	@tools/test gpu

sanitize-gpu:
	@cmake --preset gpu >/dev/null
	@cmake --build build/gpu -j $(JOBS) --target gpu_tests
	@tools/gpu/sanitize $(SANITIZE)

# No setup either: with BENCH_PRESET=gpu it is built where `make test-gpu` is.
BENCH_PRESET ?= release
bench-ops:
	@cmake --preset $(BENCH_PRESET) >/dev/null
	@cmake --build build/$(BENCH_PRESET) -j $(JOBS) --target bench_ops >/dev/null
	@build/$(BENCH_PRESET)/tools/bench_ops $(BENCH)

# No setup, as above. bench-peft needs a Python with torch and peft.
$(EXPERIMENTS:%=bench-%): bench-%:
	@cmake --preset release >/dev/null
	@cmake --build build/release -j $(JOBS) --target lorry bench_ops >/dev/null
	@tools/experiments/run $* --python "$(EXPERIMENTS_PYTHON)" $(BENCH)

bench-plots:
	@tools/experiments/run plots

cuda:
	@tools/setup --quiet cuda

cuda-all: cuda
	@cmake --preset cuda-all >/dev/null
	@cmake --build build/cuda-all -j $(JOBS) --target lorry_kernels

sim: build/dev/build.ninja
	@cmake --build build/dev -j $(JOBS) --target sim_scheduler
	@build/dev/tests/sim/sim_scheduler --seed $(or $(SEED),1)

fuzz: setup
	@tools/fuzz $(or $(FUZZ_SECONDS),60)

lint:
	@tools/setup --quiet packages cuda
	@tools/lint

fmt:
	@tools/lint --fix format

docs: build/dev/build.ninja
	@cmake --build build/dev --target docs

clean:
	@rm -rf build
