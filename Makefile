# make          set everything up in .venv (see .setup/install.py)
# make demo     ... and train: two MPI ranks, LEGW beside linear scaling, table and plot in demo/
# make test     ... and run all checks and tests: 10 minutes on 2 cores
# make test-faults    ranks that die or hang, disks that fill, a short campaign: 9 minutes; make test-slurm    the job scripts on a SLURM that answers here
# make faults   216 faults, each followed by a resume: about 45 minutes, results/faults.md
# make fuzz     the readers of files under a fuzzer, a million inputs: results/fuzz.md
# make results  draw every page of results/ again from the logs kept there; nothing is trained
# make bench    ... and run the quick set of benchmarks, 5 to 10 minutes; make bench-check: is any slower than recorded?
# GPUs: make HOROVOD_GPU_OPERATIONS=NCCL      another torch: make TORCH=torch==X.Y.Z

PYTHON ?= python3
export VENV ?= $(CURDIR)/.venv
export TORCH HOROVOD_GPU_OPERATIONS LEGW_CACHE
BIN = $(VENV)/bin

.PHONY: setup demo results test test-faults test-slurm faults fuzz lint bench bench-check peers clean

setup:
	@$(PYTHON) .setup/install.py

demo: setup
	@"$(BIN)/legw-hpc" sweep mnist-lstm-sample scheme=legw,linear batch=32,256,1024 --ranks 2 --to demo

results: setup
	@"$(BIN)/legw-hpc" figures --draw
	@"$(BIN)/python" -m benchmarks.scaling_study mnist-lstm --draw --to results/scaling/mnist-lstm

lint: setup
	@"$(BIN)/ruff" check --config .ruff.toml .
	@"$(BIN)/ruff" format --check --config .ruff.toml .
	@"$(BIN)/mypy" --config-file .mypy.ini

# Those that start ranks one after the other: their time limits are for two cores.  The others two at a time.
test: lint
	@"$(BIN)/pytest" -c .pytest.ini --rootdir . -m mpi
	@"$(BIN)/pytest" -c .pytest.ini --rootdir . -m "not mpi" -n 2

test-faults: setup
	@"$(BIN)/pytest" -c .pytest.ini --rootdir . tests/faults

test-slurm: setup
	@"$(BIN)/pytest" -c .pytest.ini --rootdir . -rs $(AGAIN) tests/cluster

faults: setup
	@"$(BIN)/python" -m tests.faults

fuzz: setup
	@"$(BIN)/pip" install -q --disable-pip-version-check -c "$(VENV)/constraints.txt" atheris
	@"$(BIN)/python" -m tests.fuzz

# What we are measured beside; a peer that is not there is left out of the tables.
PIP = "$(BIN)/pip" install -q --disable-pip-version-check -c "$(VENV)/constraints.txt"
peers: setup
	@$(PIP) --no-build-isolation -e ".[bench]"
	@$(PIP) --no-deps mosaicml-streaming timm

bench: peers
	@"$(BIN)/python" -m benchmarks --quick

bench-check: peers
	@"$(BIN)/python" -m benchmarks.check

clean:
	rm -rf .venv build *.egg-info demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
