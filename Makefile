PYTHON ?= python3
PYTEST_ARGS ?= -q -n 2 --dist loadfile --no-loadscope-reorder
LAB_TESTS ?= tests/lab
ENVIRONMENT := $(PYTHON) -m trainer.environment

# Compiled modules are kept: hundreds of processes that tests start import the same ones.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test chaos lab lint types bench lock clean .venv .venv-train tools evaluation-tools

help:
	@echo 'make demo         train, preempt, resume and benchmark a tiny model on this machine'
	@echo 'make test         every test that needs no GPU and no money'
	@echo 'make chaos        kill, tear and starve runs at every point of a save; 20 minutes at most'
	@echo 'make lint types   ruff; mypy'
	@echo 'make lab          whole runs through the real SkyPilot here (root on Debian; tests/lab/up.sh)'
	@echo 'make bench        how fast the command line answers, and policies are replayed'
	@echo 'make .venv        the environment of the launcher: .venv/bin/ldlm'
	@echo 'make .venv-train  the environment of the trainer'
	@echo 'make evaluation-tools  adds MAUVE, plots and HumanEval to it'
	@echo 'make lock         write the lock files anew from pyproject.toml'
	@echo 'make clean        remove environments and caches, never the data of a run'
	@echo
	@echo 'PYTHON=python3.12 picks another Python (3.11 or newer). pip follows its own settings'
	@echo '(pip.conf, PIP_*), so they decide between the CPU and the CUDA build of torch.'

.venv:
	@$(ENVIRONMENT) launcher

.venv-train:
	@$(ENVIRONMENT) trainer

evaluation-tools:
	@$(ENVIRONMENT) trainer --with-evaluation

tools:
	@$(ENVIRONMENT) launcher --with-tests

demo: .venv .venv-train
	.venv/bin/python -m tests.demo

# Each test runs in one of the two environments; tests/conftest.py has the rule. Both at once, since many tests
# wait: the trainer's take longer and have two workers, and what the launcher's say comes after them.
test: tools
	@$(ENVIRONMENT) trainer --with-tests
	@said=$$(mktemp); failed=0; \
	.venv/bin/python -m pytest $(PYTEST_ARGS) -n 1 >"$$said" 2>&1 & launcher=$$!; \
	trap 'kill $$launcher; rm -f "$$said"; exit 130' INT TERM; \
	echo ".venv-train/bin/python -m pytest $(PYTEST_ARGS)"; \
	.venv-train/bin/python -m pytest $(PYTEST_ARGS) || failed=1; \
	wait $$launcher || failed=1; \
	echo ".venv/bin/python -m pytest $(PYTEST_ARGS) -n 1"; cat "$$said"; rm "$$said"; exit $$failed

# SEEDS="--seeds 300-599" are new cases; what a range has not finished, it does when it is called again.
chaos:
	@$(ENVIRONMENT) trainer --with-tests
	.venv-train/bin/python -m tests.chaos $(SEEDS)

lint: tools
	.venv/bin/ruff check launcher trainer tests

types: tools
	.venv/bin/mypy

# The real SkyPilot with a Slurm cluster and a fake of Vast on this machine; tests/lab/up.sh says what it needs.
lab: tools .venv-train
	.venv/bin/python -m pip install --quiet -c launcher/requirements.lock -e '.[slurm]'
	tests/lab/run.sh $(LAB_TESTS)

bench: .venv
	.venv/bin/python -m tests.bench_cli
	.venv/bin/python -m tests.bench_simulate

# $(call write_lock,EXTRA,LOCK FILE,pip options)
# The CUDA packages and the local version of torch depend on the machine, not on us. The setuptools
# that a new venv carries before Python 3.12 goes, so that only one that is required is written down.
define write_lock
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip uninstall --quiet --yes setuptools
	.venv-lock/bin/python -m pip install --quiet -e '.[$(1)]' $(3)
	( echo "# Made by 'make lock' from the extra [$(1)] of pyproject.toml; not edited by hand."; \
	  .venv-lock/bin/python -m pip freeze --all --exclude pip --exclude-editable \
	  | sed -E '/^(nvidia|cuda|triton)/d; s/^(torch==.*)\+.*/\1/' ) > $(2).new
	mv $(2).new $(2)
	rm -rf .venv-lock
endef

lock:
	$(call write_lock,launch,launcher/requirements.lock,)
	$(call write_lock,train,trainer/requirements.lock,)
	$(call write_lock,test,tests/requirements.lock,-c launcher/requirements.lock)
	$(call write_lock,evaluate,trainer/evaluation.lock,-c trainer/requirements.lock)
	$(call write_lock,reference,tests/trainer.lock,-c trainer/requirements.lock -c trainer/evaluation.lock)
	$(call write_lock,check,tests/launcher.lock,-c launcher/requirements.lock -c tests/requirements.lock)

clean:
	rm -rf .venv .venv-train .venv-lock .chaos ldlm.egg-info .pytest_cache .mypy_cache .ruff_cache
	find launcher trainer tests -name __pycache__ -prune -exec rm -rf {} +
