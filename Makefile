# The commands for users, maintainers and CI. `make` lists them.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready
LOG ?=
LINES ?=
JOBS ?=
OPERATIONS ?=
MESSAGES ?=
PORT ?=
SEED ?=
ONLY ?=

.DEFAULT_GOAL := help
.PHONY: help demo demo-sync demo-replay demo-jobs demo-bridges demo-console test check docs format bench bench-recovery faults lock clean

help:
	@echo "make demo          run the log-analysis job on a real Kafka, LINES=200000 of a generated log, or LOG=/path/to/access.log"
	@echo "make demo-sync     synchronise a Postgres with another one while workers and servers fail (OPERATIONS=100000, SEED=1)"
	@echo "make demo-replay   try a changed rule on a log beside production, switch to it at exact offsets, and roll it back (LINES=60000)"
	@echo "make demo-jobs     send 20,000 mails as jobs while a worker is killed, and account for every one (JOBS=20000)"
	@echo "make demo-bridges  send messages through every bridge while workers and servers are killed, and check what each promises (MESSAGES=10000)"
	@echo "make demo-console  an app with traffic, a step that is slow at times, dead letters and jobs, in the console in the browser (PORT=8090)"
	@echo "make test          all tests, those on a real broker included"
	@echo "make check         format, lint, types, layering, deployment files: what CI checks before the tests"
	@echo "make bench         this library, a raw client loop, Kafka Streams and Quix Streams on one broker (ONLY=json for one workload, ONLY=sync for data sync, ONLY=sync-sink for the Postgres sink alone, ONLY=sync-snapshot for a snapshot of a large table, ONLY=replay for bounded runs beside a live worker, ONLY=jobs for jobs beside Celery and Dramatiq, ONLY=bridges for bridges beside plain loops)"
	@echo "make bench-recovery  how long tasks are interrupted when workers are killed and join, with and without standby replicas"
	@echo "make faults        inject faults into workers, brokers, disks and topics for MINUTES=10, and verify the results (SEED=1, SOAK=1, ONLY=sync for data sync, ONLY=jobs for jobs)"
	@echo "make docs          build the documentation site in build/site, and check it"
	@echo "make format        format the code and apply ruff's automatic fixes"
	@echo "make lock          resolve the dependencies again and pin them"
	@echo "make clean         remove .venv and build (the Kafka cache stays: streams broker clean)"

.venv/.dependencies: requirements/dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "streams needs Python 3.11 or newer, but '$(PYTHON)' is older or missing. Choose another one with 'make PYTHON=python3.12 …'."; exit 1; }
	@echo "Setting up .venv with the locked dependencies (once; about half a minute and 400 MB) …"
	@$(PYTHON) -m venv --clear .venv || { \
	  echo "The virtual environment could not be created. On Debian and Ubuntu: apt-get install python3-venv."; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/dev.txt || { \
	  echo "The dependencies could not be installed. Check that the package index is reachable and that there is space in $(CURDIR)."; exit 1; }
	@touch $@

$(STAMP): .venv/.dependencies pyproject.toml
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: $(STAMP)
	@$(BIN)/python -m apps.log_analysis.demo $(LOG) $(if $(LINES),--lines $(LINES))

demo-replay: $(STAMP)
	@$(BIN)/python -m apps.log_analysis.replay_demo $(if $(LINES),--lines $(LINES))

demo-jobs: .venv/.bridges
	@$(BIN)/python -m apps.email_jobs.demo $(if $(JOBS),--jobs $(JOBS))

# Postgres, Debezium and Parquet, 460 MB: tests and demo-sync install them, make demo does not need them.
.venv/.sync: $(STAMP) requirements/sync.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/sync.txt
	@touch $@

demo-sync: .venv/.sync
	@$(BIN)/python -m apps.data_sync.demo $(if $(OPERATIONS),--operations $(OPERATIONS)) $(if $(SEED),--seed $(SEED))

# The clients of Redis and ZeroMQ, and a Valkey.
.venv/.bridges: $(STAMP) requirements/bridges.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bridges.txt
	@touch $@

demo-bridges: .venv/.bridges
	@$(BIN)/python -m apps.bridges.demo $(if $(MESSAGES),--messages $(MESSAGES))

demo-console: $(STAMP)
	@$(BIN)/python -m apps.orders.demo $(if $(PORT),--port $(PORT))

# Tests start some hundred processes. Each takes half a second more where images or editors forbid bytecode
# files. Of three files at a time, one waits for something: the end of a session, a restart, an answer.
test: .venv/.sync
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

# pyright brings Node, so it is installed here only: demo and tests do not need it.
.venv/.check: $(STAMP) requirements/check.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/check.txt
	@touch $@

check: .venv/.check
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pyright
	$(BIN)/python -m tests.typing.docs
	$(BIN)/python -m pytest --quiet tests/test_layers.py tests/deployment/test_kubernetes.py

# The site generator is installed here only: tests do not need it.
.venv/.docs: $(STAMP) requirements/docs.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/docs.txt
	@touch $@

docs: .venv/.docs
	$(BIN)/zensical build --clean --strict
	$(BIN)/python -m pytest --quiet tests/test_site.py
	@echo "The first page is build/site/index.html. Search needs a server:"
	@echo "  $(BIN)/python -m http.server --bind 127.0.0.1 --directory build/site 8000"

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(if $(filter sync sync-sink sync-snapshot,$(ONLY)),.venv/.sync,$(if $(filter bridges,$(ONLY)),.venv/.bridges,$(STAMP)))
	@$(BIN)/python -m benchmarks.run $(ONLY)

bench-recovery: $(STAMP)
	@$(BIN)/python -m benchmarks.recovery

faults: .venv/.sync
	@$(BIN)/python -m tests.faults.run

# With hashes but without index URLs, so that the files work with any package index.
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/pip install --quiet uv
	build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --extra broker --extra dev pyproject.toml -o requirements/dev.txt
	build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --constraint requirements/dev.txt --extra console pyproject.toml -o requirements/console.txt
	build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --constraint requirements/dev.txt --extra docs pyproject.toml -o requirements/docs.txt
	build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --constraint requirements/dev.txt --extra sync pyproject.toml -o requirements/sync.txt
	build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --constraint requirements/sync.txt --extra bridges pyproject.toml -o requirements/bridges.txt
	build/lock/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --constraint requirements/dev.txt --constraint requirements/bridges.txt --extra check pyproject.toml -o requirements/check.txt

clean:
	rm -rf .venv build dist
