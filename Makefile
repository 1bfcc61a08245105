# `make` alone prints what there is. Pure pip: Python 3.11+ and this file are all that is needed.
PYTHON ?= python3
VENV   ?= .venv
PORT   ?= 8000
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed
CHECKS  = _build/checks
PYTEST  = OMP_NUM_THREADS=1 $(BIN)/python -m pytest
UNIT    = tests collage --doctest-modules --doctest-ignore-import-errors --ignore=tests/browser -n 2 --dist loadfile
NBVAL   = --nbval --nbval-current-env --nbval-cell-timeout=300 --nbval-kernel-startup-timeout=120 \
          --nbval-sanitize-with tests/nbval_sanitize.cfg -p no:cacheprovider

help:
	@echo "make book              build the book into _build/html"
	@echo "make serve             serve it at http://localhost:$(PORT)"
	@echo "make test              everything that keeps it true: lint, types, tests, notebooks, site, browser"
	@echo "make quick [NAME=sam]  before each commit: lint, types, the fast tests, one chapter if named"
	@echo "make audit [NAME=sam] [SHIFTS=10]  how sure is each claim? other seeds, other processors"
	@echo "make chapter NAME=sam  run one chapter again and keep its outputs"
	@echo "make chapters          run all chapters again"
	@echo "make live [NAME=nbeats]  write what the live figures read, from the package and the records"
	@echo "make bench             run the benchmarks against their peers"
	@echo "make gpu [OUT=dir]     on a GPU: its tests, benchmarks and experiments, in 8 minutes (PRETEND=1: without one)"
	@echo "make edition VERSION=0.2.0  write a version wherever it stands, its tag in every set-up cell"
	@echo "make epub, make pdf    the whole book as one file, into _build/html/downloads"
	@echo "make shots             screenshots of every page into shots/"
	@echo "make links             do the links to elsewhere still lead anywhere?"
	@echo "make package PYTHON=python3.12  the package's tests with another Python and its libraries"
	@echo "make clean             remove what was built ($(VENV) stays)"

$(STAMP): requirements.txt pyproject.toml
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "Python 3.11 or newer is needed; set PYTHON=... to name one."; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pins of requirements.txt into $(VENV) (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

install: $(STAMP)

book: $(STAMP)
	@$(BIN)/python -m tools.book
	@echo "The book is in _build/html. Read it with: make serve"

serve: book
	@echo "http://localhost:$(PORT) (stop with Ctrl-C)"
	@$(BIN)/python -m http.server --directory _build/html --bind localhost $(PORT)

# All parts run, also after one that failed; the last line counts what ran and what was skipped.
test: $(STAMP)
	@$(BIN)/python -m tools.tally begin $(CHECKS)
	@$(MAKE) --no-print-directory -k lint unit notebooks browser; status=$$?; \
	  $(BIN)/python -m tools.tally end $(CHECKS) && exit $$status

quick: $(STAMP)
	@test -z "$(NAME)" || $(BIN)/python -m tools.chapters --check "$(NAME)"
	@$(MAKE) --no-print-directory lint
	@MPLBACKEND=agg $(PYTEST) $(UNIT) -q -m "not slow"
	@test -z "$(NAME)" || $(PYTEST) "chapters/$(NAME).ipynb" $(NBVAL) -q

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: $(STAMP)
	MPLBACKEND=agg $(PYTEST) $(UNIT) --junitxml=$(CHECKS)/unit.xml

notebooks: $(STAMP)
	$(PYTEST) chapters $(NBVAL) -n 2 --dist loadfile --junitxml=$(CHECKS)/notebooks.xml

browser: book
	$(BIN)/python -m pytest tests/browser -n 2 --junitxml=$(CHECKS)/browser.xml

# The package's own tests in the environment of PYTHON, which may have other versions than the book's.
package:
	$(PYTHON) -m pip install --quiet --editable ".[book,data,test]"
	$(PYTHON) -m pytest collage tests --doctest-modules -n 2 --dist loadfile -m "not slow" \
	  --ignore=tests/browser $(foreach name,chapters results experiments audit,--ignore=tests/test_$(name).py)

# Weights and curves of the live figures: assets/live/*.json
live: $(STAMP)
	@$(BIN)/python -m tools.live $(NAME)

# Links to elsewhere; those within the book are checked by every build.
links: $(STAMP)
	@$(BIN)/python -m tools.book --links

chapters: $(STAMP)
	@$(BIN)/python -m tools.chapters $(notdir $(basename $(wildcard chapters/*.ipynb)))

edition: $(STAMP)
	@$(BIN)/python -m tools.edition "$(VERSION)"

chapter: $(STAMP)
	@$(BIN)/python -m tools.chapters "$(NAME)"

audit: $(STAMP)
	@$(BIN)/python -m tools.audit --name="$(NAME)" --shifts="$(or $(SHIFTS),10)"

bench: $(STAMP)
	@$(BIN)/python -m tools.bench

gpu: $(STAMP)
	@$(BIN)/python -m tools.gpu $(if $(OUT),--out "$(OUT)") $(if $(PRETEND),--pretend)

# Both are printed by Chromium from the pages that `make book` built.
epub pdf: book
	@$(BIN)/python -m tools.bound.$@

shots: book
	@$(BIN)/python -m tools.shots

clean:
	rm -rf _build shots .pytest_cache .ruff_cache .mypy_cache

.PHONY: help install book edition serve test quick audit package links lint unit notebooks browser chapters chapter live bench gpu epub pdf shots clean
