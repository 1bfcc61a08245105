# `make` alone prints what there is. Pure pip: Python 3.11+ and this file are all that is needed.
PYTHON ?= python3
VENV   ?= .venv
PORT   ?= 8000
BIN     = $(VENV)/bin
STAMP   = $(VENV)/.installed

help:
	@echo "make book              build the book into _build/html"
	@echo "make serve             serve it at http://localhost:$(PORT)"
	@echo "make test              everything that keeps it true: lint, tests, notebooks, site, browser"
	@echo "make chapter NAME=sam  run one chapter again and keep its outputs"
	@echo "make chapters          run all chapters again"
	@echo "make bench             run the benchmarks against their peers"
	@echo "make shots             screenshots of every page into shots/"
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

test: $(STAMP) lint unit notebooks book browser
	@echo "All checks passed."

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

unit: $(STAMP)
	MPLBACKEND=agg OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests collage --doctest-modules \
	  --ignore=tests/browser -n 2 --dist loadfile

notebooks: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest chapters --nbval --nbval-current-env \
	  --nbval-cell-timeout=300 --nbval-kernel-startup-timeout=120 \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg -n 2 --dist loadfile -p no:cacheprovider

browser: book
	$(BIN)/python -m pytest tests/browser

chapters: $(STAMP)
	@for path in chapters/*.ipynb; do $(BIN)/python -m tools.chapters $$path || exit 1; done

chapter: $(STAMP)
	@test -n "$(NAME)" || { echo "which one? make chapter NAME=sam"; exit 1; }
	@$(BIN)/python -m tools.chapters chapters/$(NAME).ipynb

bench: $(STAMP)
	@$(BIN)/python -m tools.bench

shots: book
	@$(BIN)/python -m tools.shots

clean:
	rm -rf _build shots .pytest_cache .ruff_cache

.PHONY: help install book serve test lint unit notebooks browser chapters chapter bench shots clean
