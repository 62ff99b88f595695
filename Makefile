# vmbatch: everything starts here. Each target sets up what it needs (packaging/setup.sh says what it does).
PYTHON = $$(readlink -f build/venv)/bin/python -I
ROOT = $$([ "$$(id -u)" = 0 ] || echo sudo)
BENCH =
ARGS =
JOBS = $$(n=$$(nproc); [ $$n -lt 4 ] && echo $$n || echo 4)

help:  ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup:  ## install Debian packages and the virtual environment
	@packaging/setup.sh

demo: setup  ## run a job script in a real guest, from nothing
	@$(PYTHON) tests/demo.py

demo-slurm: setup  ## the same through a real Slurm: sbatch --vm=tiny job.sh
	@$(ROOT) $(PYTHON) tests/demo.py slurm

test: setup  ## all tests: real libvirt, real guests, real Slurm (ARGS='-k name' for some)
	@$(ROOT) $(PYTHON) -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-unit: setup  ## the tests that need no guest, in seconds
	@$(PYTHON) -m pytest tests/unit tests/golden $(ARGS)

bench: setup  ## speed, as ratios (BENCH=P2,P5 for some); writes build/bench.json
	@$(ROOT) $(PYTHON) tests/bench/bench.py $(BENCH)

lint: setup  ## ruff, mypy, shellcheck, man pages
	@$(PYTHON) -m pytest tests/unit/test_lint.py $(ARGS)

clean:  ## remove what was built, images for tests included
	rm -rf build .hypothesis .mypy_cache .ruff_cache
	rm -rf /var/tmp/vmbatch-dev-$$(id -u) "/var/tmp/vmbatch-venv-$$(printf %s "$$(pwd -P)" | cksum | cut -d' ' -f1)"

.PHONY: help setup demo demo-slurm test test-unit bench lint clean
