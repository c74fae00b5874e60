# Everything happens in .venv: `make demo`, `make test`, `make bench` install what they need.

PYTHON ?= python3
BIN := .venv/bin
SOURCES := $(shell find csrc -type f) setup.py

.PHONY: setup build demo test interpreted interpreted-oldest budgets lint docs wheel wheel-test bench gpu report clean

setup: .venv/installed
build: .venv/built

.venv/installed: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed (set PYTHON=)")'
	@command -v $${CXX:-c++} >/dev/null || { echo "a C++17 compiler is needed (g++ or clang++)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt torch triton numpy ninja "pybind11>=2.13" "setuptools>=77" wheel
	$(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable ".[cli]"
	touch $@ .venv/built

.venv/built: .venv/installed $(SOURCES)
	$(BIN)/python setup.py --quiet build_ext --inplace
	touch $@

# What tests and benchmarks need besides.
INSTALL := $(BIN)/pip install --quiet --constraint constraints.txt --no-build-isolation --editable
.venv/tested: .venv/installed
	$(INSTALL) ".[cli,test]"
	touch $@ .venv/built
.venv/documented: .venv/installed
	$(INSTALL) ".[cli,docs]"
	touch $@ .venv/built
.venv/packaged: .venv/installed
	$(INSTALL) ".[cli,build]"
	touch $@ .venv/built
.venv/measured: .venv/tested
	$(INSTALL) ".[cli,test,bench]"
	touch $@ .venv/built

# make demo [VIDEO=clip.mp4] [CHECKPOINT=weights.pth]
demo: build
	$(BIN)/python -m uniformer demo $(if $(VIDEO),"$(VIDEO)") $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

# A process per core, at most 4 for the memory they need.
SIDE_BY_SIDE := --numprocesses=logical --maxprocesses=4 --dist=worksteal

test: .venv/tested build lint .venv/oldest
	$(BIN)/python -m pytest $(SIDE_BY_SIDE)
	$(MAKE) interpreted interpreted-oldest

# The Triton kernels run in its interpreter, under the newest and the oldest version they support.
INTERPRET := TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(SIDE_BY_SIDE) tests/ops tests/triton
interpreted: .venv/tested build
	$(INTERPRET)
interpreted-oldest: .venv/tested build .venv/oldest
	PYTHONPATH=.venv/oldest $(INTERPRET)
.venv/oldest: .venv/installed
	$(BIN)/pip install --quiet --no-deps --target $@.new triton==3.6.0 numpy==2.3.5
	rm -rf $@ && mv $@.new $@

# What every GPU kernel needs on every architecture: after changing one.
budgets: .venv/tested build
	$(BIN)/python -m tests.triton.budgets
	@if command -v nvcc; then $(BIN)/python -m tests.cuda.budgets; else echo "without nvcc csrc/cuda keeps its own"; fi

lint: .venv/tested
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# dist/: the sdist and the wheel of this machine, with the CUDA kernels where there is nvcc. It is a
# manylinux wheel if auditwheel can tell of which; PyTorch's libraries stay outside.
wheel: .venv/packaged
	rm -rf dist build/lib.* build/bdist.*
	$(BIN)/python setup.py --quiet sdist bdist_wheel
	PATH="$(abspath $(BIN)):$$PATH" auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' --wheel-dir dist \
		dist/*-linux_*.whl && rm dist/*-linux_*.whl || echo "no manylinux tag: auditwheel declined"
	ls -l dist

# build/site: the documentation as pages.
docs: .venv/documented
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

wheel-test: wheel .venv/tested
	$(BIN)/python -m pytest tests/packaging -m installs

# Microbenchmarks of every operator against its rivals.
bench: .venv/measured build
	$(BIN)/python -m pytest benchmarks --benchmark-only --override-ini testpaths=benchmarks \
		--benchmark-max-time 0.3 --benchmark-columns median,iqr,rounds

# On a GPU, with the Python that has PyTorch for it: make gpu PYTHON=python3 OUT=results MINUTES=9
gpu:
	$(PYTHON) -m benchmarks.gpu $(STAGES) $(if $(OUT),--out "$(OUT)") \
		$(if $(MINUTES),--minutes $(MINUTES)) $(if $(COMMIT),--commit $(COMMIT))

# The table of docs/performance.md.
report: .venv/measured build
	$(BIN)/python -m benchmarks.report --write-docs
	$(BIN)/python -m benchmarks.picture

clean:
	rm -rf build dist .venv demo *.egg-info uniformer_kernels/*.so uniformer_kernels/manifest.json
