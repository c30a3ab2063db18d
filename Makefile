# On a fresh machine: `make demo` paints, `make test` proves. Everything lives in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

APT := DEBIAN_FRONTEND=noninteractive apt-get -qq -o Acquire::Retries=0 -o Acquire::http::Timeout=20

.PHONY: demo serve-demo test-fast test slow-tests browser postgres check hooks bench reproduce docs clean

$(READY): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)

demo: $(READY)  ## prompts to pictures through the cascade, offline, on the bundled models
	rm -rf out/demo
	$(BIN)/allaprima generate --demo --out out/demo

serve-demo: $(READY)  ## the bundled models behind OpenAI's images API at http://127.0.0.1:8000/v1 until Ctrl+C
	$(BIN)/allaprima serve

test-fast: $(READY)  ## while working: all but the tests that are marked slow, in under 2 minutes on two cores
	ALLAPRIMA_TEST_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile -m "not slow"

test: $(READY) browser postgres  ## two processes of one thread each: small tests lose more by sharing threads than they gain
	ALLAPRIMA_TEST_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

slow-tests: $(READY) browser postgres  ## measure which tests are slow, and list them in tests/slow.txt (tests/slow.py); TESTS=PATH: of a part
	ALLAPRIMA_RECORD_SLOW=1 ALLAPRIMA_TEST_THREADS=1 OMP_NUM_THREADS=1 $(BIN)/pytest $(TESTS)

browser:  ## for the demo page's tests; where there is none and apt can't be asked, they skip and say so
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null \
		|| { test "$$(id -u)" = 0 && $(APT) update && $(APT) install -y --no-install-recommends chromium; } \
		|| echo "no chromium here: the demo page's tests will be skipped"

postgres:  ## for the preference study's tests on Postgres; without one they skip and say so
	@command -v pg_ctl >/dev/null || ls /usr/lib/postgresql/*/bin/pg_ctl >/dev/null 2>&1 \
		|| { test "$$(id -u)" = 0 && $(APT) update && $(APT) install -y --no-install-recommends postgresql; } \
		|| echo "no Postgres here: the study's tests on it will be skipped"

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

hooks: $(READY)  ## install the hooks of .pre-commit-config.yaml, which run before each commit
	$(BIN)/pre-commit install

bench: $(READY)  ## both sides in one run, ratios printed
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.quality

reproduce: $(READY)  ## the paper's frontier on the bundled pair: resumable, hours; docs/results/README.md says what was run
	$(BIN)/allaprima frontier --prompts 1000 --seeds 3 --usual-guidance 3 --budgets 5,8,10,12,15,17,25,32 \
		--reference benchmarks/data/emoji_reference.safetensors --out runs/frontier

docs: $(READY)  ## the pages under docs/ are plain Markdown; this checks that their local links lead somewhere
	$(BIN)/python docs/check_links.py

clean:
	rm -rf .venv out
