# Every target does its own set-up: a machine needs Python 3.10 to 3.12 and make.
#   make run               train every method's quick plan on the embedded data, build the tables
#   make run DATA=FOLDER   the same on the real motion capture in FOLDER/cmu, scored on FOLDER/hdm05 too
#   make grid NAME=...     the runs of results/grids/NAME.toml that have no record yet; [DATA=FOLDER] [ARGS='--list --workers 2']
#   make data NAME=cmu SOURCE=FOLDER   converts a source of poses once, checks it, shows samples (SOURCE=example: made-up files); [ARGS='-p input_2d cpn-like']
#   make doctor DATA=PATH  says what a folder or file of poses holds and what is wrong with it; [ARGS='--skeleton h36m17 --frame world']
#   make docs              the documentation site, in _site/
#   make test              everything that CI checks
#   make lab               JupyterLab on the notebooks
PYTHON ?= python3
VENV ?= .venv
DATA ?=
SOURCE ?=
ARGS ?=
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PATH := $(BIN):$(PATH)
INSTALL := "$(BIN)/python" -m pip install --quiet --constraint constraints.txt

# no trailing slash, and an absolute path, so that notebooks find it from any folder
ROOT := $(if $(DATA),$(abspath $(DATA)))
GRID := python -m poseprojects.results.grid

.PHONY: setup run grid data doctor docs test lab readme export browser
.DEFAULT_GOAL := run

setup: $(READY)

$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12) and "poseprojects needs Python 3.10 to 3.12; name one with make PYTHON=python3.12")'
	$(PYTHON) -m venv "$(VENV)"
	$(INSTALL) setuptools wheel
	$(INSTALL) torch==2.13.0
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	@touch $@

# a finished run is not trained again, only scored
run: setup readme
	$(GRID) quick-all --force --tables $(if $(ROOT),--data "$(ROOT)") $(ARGS)
	@echo "Executed notebooks: runs/quick-all/"
	@echo "Tables:             results/tables/ (start with index.md, or index.html in a browser)"

grid: setup
	@test -n "$(NAME)" || { echo "make grid needs a name: make grid NAME=$$(cd results/grids && ls *.toml | sed 's/.toml//' | paste -sd'|')"; exit 2; }
	$(GRID) "$(NAME)" --tables $(if $(ROOT),--data "$(ROOT)") $(ARGS)

data: setup
	@test -n "$(NAME)" || { echo "make data needs a name: make data NAME=$$(cd data_recipes && ls */convert.ipynb | sed 's,/.*,,' | paste -sd'|') [SOURCE=folder]"; exit 2; }
	@python -m poseprojects.results.conversions "$(NAME)" $(if $(SOURCE),--source "$(SOURCE)") $(ARGS)

doctor: setup
	@test -n "$(DATA)" || { echo "make doctor needs a path: make doctor DATA=folder"; exit 2; }
	@python -m poseprojects.data.diagnosis "$(DATA)" $(ARGS)

test: setup browser
	OMP_NUM_THREADS=1 POSEPROJECTS_PROGRESS=0 nbdev_test --n_workers 2 --timing
	OMP_NUM_THREADS=1 POSEPROJECTS_PROGRESS=0 python -m pytest -n 2 --dist loadgroup --durations=15 -m 'not alone'
	OMP_NUM_THREADS=1 POSEPROJECTS_PROGRESS=0 python -m pytest -m alone

docs: setup
	python -c "from poseprojects.site import build_site; print('Site:', build_site())"

# the site is tested in Debian's chromium; without one its tests are skipped, and say so
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update -qq && apt-get install -y -qq chromium; \
	  else echo "No chromium: the site will not be opened in a browser; install it with: sudo apt-get install chromium"; fi

lab: setup
	jupyter lab nbs

# README.md is the front page of the notebooks
readme: setup
	@python -c "from poseprojects.site import write_readme; write_readme()"

export: setup
	nbdev_export
	nbdev_clean
	@python -c "from poseprojects.site import write_readme; write_readme()"
