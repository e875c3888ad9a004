# The whole of the set-up is here: a virtual environment in .venv, from the lock file with its hashes.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
RECIPE ?= emoji
ARGS ?=
TRIALS ?= tests
FUZZ ?= 800
FAISS := 1.15.1
LITDATA := 0.2.76
ROWS ?= 50000 100000 200000 1000000

.PHONY: setup demo cluster test results encoders bench bench-bank bench-data bench-gpu trials lint lock clean

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in ((3, 11), (3, 12)) else "make setup needs Python 3.11 or 3.12, found %d.%d; set PYTHON=python3.11" % v)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV)/bin/uv pip sync --quiet --compile-bytecode --require-hashes --python $(VENV)/bin/python requirements.lock
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps --editable .
	@touch $@

demo: setup
	$(VENV)/bin/gmem run $(RECIPE) $(ARGS)

cluster: setup
	$(VENV)/bin/python -m infra.local_cluster $(ARGS)

test: setup
	$(VENV)/bin/python -m pytest -n 2 --no-loadscope-reorder -m "not trials and not benchmark"
	$(VENV)/bin/python -m pytest -m benchmark

twitter.tar: setup
	npm pack --silent emoji-datasource-twitter@16.0.0
	mkdir -p build && tar xzf emoji-datasource-twitter-16.0.0.tgz -C build
	$(VENV)/bin/python -m flows.assets.build_emoji build/package --drawing twitter --target $@

# About an hour of two CPU cores. Without emoji-arms, which takes four; of it is told what its own command has left in MLflow.
results: setup
	$(VENV)/bin/gmem compare-arms emoji emoji-memory $(ARGS)
	$(VENV)/bin/gmem compare-arms emoji emoji-budget $(ARGS)
	test ! -e twitter.tar || $(VENV)/bin/gmem adapt emoji twitter.tar --name twitter --network shipped:emoji-network $(ARGS)
	$(VENV)/bin/gmem results emoji $(ARGS)

# What `gmem compare-arms emoji emoji-encoders` asks for; about ten minutes of two CPU cores.
encoders: setup
	$(VENV)/bin/gmem pretrain encoder emoji --out build/encoders/barlow --with method=barlow --with seed=2 --with steps=500
	$(VENV)/bin/gmem pretrain encoder emoji --out build/encoders/narrow --with width=64 --with heads=2
	$(VENV)/bin/gmem pretrain encoder emoji --out build/encoders/brief --with steps=100
	$(VENV)/bin/gmem pretrain encoder emoji --out build/encoders/untrained --with steps=1

bench: setup
	PYTHONPATH=. $(VENV)/bin/python tests/benchmarks/bench.py $(ARGS)

bench-bank: setup
	$(VENV)/bin/uv pip install --quiet --python $(VENV)/bin/python --no-deps faiss-cpu==$(FAISS)
	PYTHONPATH=. $(VENV)/bin/python tests/benchmarks/bank.py --rows $(ROWS) $(ARGS)

bench-data: setup
	$(VENV)/bin/uv pip install --quiet --target build/litdata --no-deps litdata==$(LITDATA) lightning-utilities==0.15.3 tifffile==2026.3.3
	PYTHONPATH=.:build/litdata $(VENV)/bin/python tests/benchmarks/bench.py training_data $(ARGS)

bench-gpu: setup
	PYTHONPATH=. $(VENV)/bin/python tests/benchmarks/gpu.py $(ARGS)

fuzz: setup
	FUZZ=$(FUZZ) $(VENV)/bin/python -m pytest -n 2 --timeout=3600 tests/fuzz

trials: setup
	$(VENV)/bin/python -m pytest -m trials $(TRIALS)

lint: setup
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

lock: setup
	$(VENV)/bin/uv pip compile --quiet pyproject.toml --extra dev --extra onnx --extra servers --universal --python-version 3.11 --generate-hashes --no-emit-index-url --output-file requirements.lock

clean:
	rm -rf $(VENV)
