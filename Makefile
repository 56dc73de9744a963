# Every target does its own set-up: a machine needs Python 3.10 to 3.12 and make.
#   make run               train the quick plan on the embedded data, build the tables
#   make run DATA=FOLDER   the same on the real motion capture in FOLDER/cmu, scored on FOLDER/hdm05 too
#   make test              everything that CI checks
#   make lab               JupyterLab on the notebooks
PYTHON ?= python3
VENV ?= .venv
DATA ?=
ARGS ?=
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PATH := $(BIN):$(PATH)
INSTALL := "$(BIN)/python" -m pip install --quiet --constraint constraints.txt

# no trailing slash, and an absolute path, so that notebooks find it from any folder
ROOT := $(if $(DATA),$(abspath $(DATA)))
NAME := $(if $(DATA),cmu,synthetic)

.PHONY: setup run test lab readme export
.DEFAULT_GOAL := run

setup: $(READY)

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12) and "poseprojects needs Python 3.10 to 3.12; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv "$(VENV)"
	$(INSTALL) setuptools wheel
	$(INSTALL) torch==2.13.0
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

run: setup readme
	@mkdir -p runs
	papermill --no-progress-bar nbs/train_martinez.ipynb runs/train_martinez_$(NAME).ipynb \
	  -p plan quick -p dataset $(NAME) $(if $(DATA),-p data_root "$(ROOT)/cmu" -p also_test hdm05) $(ARGS)
	papermill --no-progress-bar nbs/results.ipynb runs/results.ipynb
	@echo "Executed notebooks: runs/train_martinez_$(NAME).ipynb, runs/results.ipynb"
	@echo "Tables:             results/tables/ (start with index.md, or index.html in a browser)"

test: setup
	OMP_NUM_THREADS=1 POSEPROJECTS_PROGRESS=0 nbdev_test --n_workers 2 --timing
	OMP_NUM_THREADS=1 POSEPROJECTS_PROGRESS=0 python -m pytest -n 2 -m 'not alone'
	OMP_NUM_THREADS=1 POSEPROJECTS_PROGRESS=0 python -m pytest -m alone

lab: setup
	jupyter lab nbs

# README.md is the front page of the notebooks
readme: setup
	@python -c "from poseprojects.site import write_readme; write_readme()"

export: setup
	nbdev_export
	nbdev_clean
	@python -c "from poseprojects.site import write_readme; write_readme()"
