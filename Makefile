# make demo: train both stages on drawn faces, from a fresh clone
# make test: run all tests        make check: ruff, import rules, mypy, fast tests, audit
# make bench: compare the speed with other projects
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A kill or a failed install leaves no stamp, so the next make starts the install again.
STAMP := $(VENV)/.installed
# One worker more than cores, as many tests wait for other processes.
PYTEST = $(BIN)/python -m pytest -n $$($(BIN)/python -c 'import os; print(min(os.cpu_count() + 1, 8))') --dist worksteal

.PHONY: setup demo test check audit bench lock clean

setup: $(STAMP)

$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "latentfaces needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $(STAMP)

demo: setup
	$(BIN)/python train.py model=vae experiment=demo name=demo resume=auto
	$(BIN)/python train.py model=ldm experiment=demo name=demo resume=auto
	@echo outputs/vae/demo/images/losses.png outputs/ldm/demo/images/losses.png
	$(BIN)/python sample.py run=demo

test: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	$(PYTEST) -m "not slow and not ddp"
	@$(MAKE) --no-print-directory audit

# A finding fails. Without a network the audit is skipped with a message.
audit: setup
	@if $(BIN)/python -c "from urllib.request import urlopen; urlopen('https://pypi.org/pypi/pip/json', timeout=10)" \
		2>/dev/null; then \
		$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip --progress-spinner off; \
	else \
		echo "requirements.lock was not audited: pypi.org cannot be reached"; \
	fi

bench: setup # with nothing else running
	$(BIN)/python benchmarks/speed.py

lock: # needs uv
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
		--extra dev --constraint constraints.txt --output-file requirements.lock pyproject.toml

clean:
	rm -rf $(VENV)
