# make demo: everything once, on what the repository carries.   make test: the tests.   make docs: the tables of docs/.
# make lock: requirements.txt, after constraints.txt was changed.
# make bench-peers: ours beside what a user could take instead, 20 minutes on two cores.
# make fuzz MINUTES=60: damaged files of every kind, by what code they reach; KINDS="onnx bundle" for some.
PYTHON ?= python3
VENV ?= .venv
# On Linux the plain wheel of torch brings gigabytes of CUDA. Without a GPU, put here what PyTorch's install page says for "CPU":
#   make demo TORCH="torch==2.13.0 --index-url <the URL that it shows>"
TORCH ?= torch==2.13.0
BIN = $(VENV)/bin

MINUTES ?= 60

.PHONY: demo test docs bench-peers fuzz lint lock clean
demo: $(VENV)/ready
	$(BIN)/rtseg-deploy demo

test: $(VENV)/ready
	$(BIN)/python -m pytest -n auto --dist loadgroup

docs: $(VENV)/ready
	$(BIN)/python docs/tables.py docs/networks.md docs/algebra.md docs/matrix.md docs/estimate.md docs/check.md

bench-peers: $(VENV)/ready
	$(BIN)/python benchmarks/peers.py -o results/peers.json --document docs/peers.md

fuzz: $(VENV)/ready
	$(BIN)/pip install --quiet --no-deps --require-hashes -r requirements-fuzz.txt
	$(BIN)/python -m tests.fuzz --minutes $(MINUTES) $(KINDS)

lint: $(VENV)/ready
	$(BIN)/ruff check .

lock:
	$(PYTHON) -m venv --clear $(VENV)-lock
	$(VENV)-lock/bin/pip install --quiet uv==0.13.9
	$(VENV)-lock/bin/python lock.py
	rm -rf $(VENV)-lock

# Every file is held against its sha256 but PyTorch's, which is the user's choice: SECURITY.md says more
$(VENV)/ready: setup.cfg constraints.txt requirements.txt requirements-rtx.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.10 or newer is needed: make PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-deps --only-binary :all: --require-hashes -r requirements.txt
	$(BIN)/pip install --quiet -c constraints.txt $(TORCH)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --require-hashes -r requirements-rtx.txt || echo "no tensorrt-rtx for this platform: engines cannot be built here, the rest works"
	touch $@

clean:
	rm -rf $(VENV) demo
