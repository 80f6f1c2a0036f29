# Two networks in; one fused network, a table and a figure out. `make` alone lists the targets.
#   make reproduce ARGS="-p preset=paper"    parameters for every experiment
#   make test PYTHON=python                  an environment of your own (conda): nothing is installed, no .venv
# Works with GNU make from 3.81 (macOS) on.

.DEFAULT_GOAL := help
.PHONY: help reproduce published simplenet vgg11 transformers leaderboard sweep zoo many architectures figures site lab test lint bench ffcv own-environment FORCE

# The experiments that `reproduce` runs, in this order.
EXPERIMENTS := notebooks/simplenet_mnist.ipynb notebooks/vgg11_cifar10.ipynb

ifeq ($(origin PYTHON),command line)
  PY := '$(PYTHON)'
  READY := own-environment
  TIMM := true
  SPHINX = $(PY) -c 'import furo, myst_nb' || { echo "$(PYTHON) lacks the extra site: $(PYTHON) -m pip install -e '.[site]'" >&2; exit 1; }
else
  PY := .venv/bin/python
  READY := .venv/.ready
  TIMM = $(PY) -c 'import timm' 2>/dev/null || $(PIP) -e '.[architectures]' || true  # then torchvision's alone
  SPHINX = $(PY) -c 'import furo, myst_nb' 2>/dev/null || $(PIP) -e '.[site]'
endif

# pip shows its bars where somebody is looking, and says nothing elsewhere
PIP := .venv/bin/python -m pip install $$([ -t 2 ] || echo -qq) --disable-pip-version-check -c constraints.txt
BATCH := set -f; $(PY) -m lib.batch
APT := libopencv-dev libturbojpeg0-dev pkg-config build-essential
CONDA := compilers pkg-config libopencv libjpeg-turbo

# An option's brackets, -p matchers=[graph(solver=ipfp)], are the shell's unless they are escaped; what is quoted stays so.
OPEN := (
CLOSE := )
QUOTES := $(findstring ',$(ARGS))$(findstring ",$(ARGS))
GIVEN = $(if $(QUOTES),$(ARGS),$(subst $(CLOSE),\$(CLOSE),$(subst $(OPEN),\$(OPEN),$(ARGS))))

help:  ## this list
	@awk -F ':.*  ## ' '/^[a-z0-9]+:.*  ## / {printf "  make %-11s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo '  ARGS="-p NAME VALUE -p NAME=VALUE -y YAML -f FILE" gives the notebooks other parameters.'
	@echo '  PYTHON=/path/to/python uses your own environment instead of building .venv.'

reproduce: $(READY)  ## run every experiment: record, table, figures, executed notebook
	@$(BATCH) $(EXPERIMENTS) $(GIVEN)

published: $(READY)  ## the SimpleNet pair that was published, fetched (PAIR=FOLDER: from there), beside its published table
	@set -f; $(PY) -m lib.study.published $(if $(PAIR),--pair '$(PAIR)') $(GIVEN)

simplenet: $(READY)  ## only SimpleNet on MNIST
	@$(BATCH) notebooks/simplenet_mnist.ipynb $(GIVEN)

vgg11: $(READY)  ## only VGG11 on CIFAR-10
	@$(BATCH) notebooks/vgg11_cifar10.ipynb $(GIVEN)

transformers: $(READY)  ## only transformers: a ViT on MNIST; a GPT with ARGS="-p model gpt"
	@$(BATCH) notebooks/transformer_fusion.ipynb $(GIVEN)

many: $(READY)  ## only many networks in one order: SimpleNets; VGG11s with ARGS="-p model vgg11"
	@$(BATCH) notebooks/many_networks.ipynb $(GIVEN)

leaderboard: $(READY)  ## every matcher with every correction on the shipped pairs (long)
	@$(BATCH) notebooks/leaderboard.ipynb $(GIVEN)

sweep: $(READY)  ## a notebook over a grid: SWEEP=tiny, or a YAML file as in notebooks/sweeps (CORES=2 PROFILE=slurm KEEP=1)
	@set -f; $(PY) -m lib.batch.sweep '$(SWEEP)' $(if $(PROFILE),--profile '$(PROFILE)') $(if $(KEEP),--keep) \
	  $(if $(PROFILE)$(CORES),$(if $(CORES),--cores $(CORES)),--cores 2) $(GIVEN)

zoo: $(READY)  ## train the shipped checkpoints that are missing
	@$(PY) -m lib.study.zoo $(GIVEN)

architectures: $(READY)  ## trace and prove the architectures of torchvision and timm, random weights (ARGS="resnet18" picks)
	@$(TIMM)
	@$(PY) -m lib.study.architectures $(GIVEN)

figures: $(READY)  ## figures, tables and the numbers of the READMEs from the records in data/results (ARGS=FOLDER: of another)
	@$(PY) -m lib.paper $(GIVEN)

site: $(READY)  ## a static site, build/site/html: notebooks with outputs, methods, gallery, API (minutes)
	@$(SPHINX)
	@$(PY) -m notebooks.site $(GIVEN)

lab: $(READY)  ## JupyterLab on copies of the notebooks (notebooks/local), with the environment's own kernel
	@$(PY) -m lib.batch.copies
	@prefix=$$($(PY) -c 'import sys; print(sys.prefix)') && JUPYTER_PREFER_ENV_PATH=1 \
	  JUPYTER_PATH="$$prefix/share/jupyter$${JUPYTER_PATH:+:$$JUPYTER_PATH}" \
	  $(PY) -m jupyterlab --ServerApp.root_dir="$(CURDIR)" \
	  --LabApp.default_url=/lab/tree/notebooks/local $(GIVEN)

test: $(READY)  ## pytest on two cores; the notebooks are executed too (ARGS="-k name" picks; "-n 0": on one)
	@$(PY) -m pytest -n 2 --dist loadfile $(GIVEN)

lint: $(READY)  ## ruff: rules and format, of code and notebooks; import-linter: what may import what
	@$(PY) -m ruff check . && $(PY) -m ruff format --check .
	@broken=$$($(PY) -c 'from importlinter.cli import lint_imports_command as lint; lint()' --no-logo --no-cache 2>&1) \
	  || { echo "$$broken"; exit 1; }

bench: $(READY)  ## time and memory against the published implementations: a record (ARGS="spectral" picks)
	@$(PY) -m tests.bench $(GIVEN)

# A virtual environment knows its checkout by absolute path: one that was moved or copied along is built anew.
ifneq ($(shell cat .venv/.ready 2>/dev/null),$(CURDIR))
.venv/.ready: FORCE
endif

.venv/.ready: pyproject.toml constraints.txt
	@home=$$(cat $@ 2>/dev/null || echo "$(CURDIR)"); \
	if [ "$$home" = "$(CURDIR)" ] && .venv/bin/python -c '' 2>/dev/null; then \
	  echo "updating .venv from constraints.txt"; \
	else \
	  found=; \
	  for python in python3.13 python3.12 python3.11 python3 python; do \
	    $$python -c 'import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null \
	      && found=$$python && break; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo "No Python 3.11 to 3.13 with venv on PATH (Debian, Ubuntu: apt install python3-venv); or make PYTHON=/path/to/python" >&2; \
	    exit 1; \
	  fi; \
	  echo "building .venv ($$($$found --version)) from constraints.txt: about 3 GB to download where PyTorch comes with CUDA, takes some minutes"; \
	  rm -rf .venv && $$found -m venv .venv; \
	fi
	@$(PIP) -e '.[dev,sweep]'
	@$(MAKE) --no-print-directory -f $(firstword $(MAKEFILE_LIST)) install-ffcv
	@echo "$(CURDIR)" > $@
	@echo "installed"

# FFCV compiles against system libraries, which make never installs; without it the in-memory loader does the work.
.PHONY: install-ffcv
install-ffcv:
	@if ! pkg-config --exists opencv4 libturbojpeg 2>/dev/null; then \
	  echo "without FFCV (optional, a loader for CUDA): apt install $(APT), or conda install -c conda-forge $(CONDA); then make ffcv"; \
	elif $(PIP) -e '.[ffcv]' >.venv/ffcv.log 2>&1 && .venv/bin/python -c 'import ffcv' >>.venv/ffcv.log 2>&1; then \
	  echo "with FFCV"; \
	else \
	  echo "without FFCV (optional): it did not build, see .venv/ffcv.log"; \
	fi

ifeq ($(READY),own-environment)
ffcv:
	@echo "$(PYTHON) is yours: $(PYTHON) -m pip install -e '.[ffcv]' (needs $(APT))"
else
ffcv: $(READY) install-ffcv  ## try again to install FFCV, the optional loader for CUDA
endif

OWN := import importlib.metadata as m, pathlib, re, lib; \
  [m.version(re.match("[A-Za-z0-9._-]+", r)[0]) for r in m.requires("fusebook") if "extra ==" not in r or "dev" in r]; \
  assert pathlib.Path(lib.__file__).parents[1] == pathlib.Path.cwd()
own-environment:
	@$(PY) -P -c '$(OWN)' >/dev/null 2>&1 || { \
	  echo "$(PYTHON) lacks this checkout or a package it needs: conda env update -f environment.yml, or $(PYTHON) -m pip install -e '.[dev,sweep]'" >&2; \
	  exit 1; }
