# Everything that a developer, and CI, does. `make demo` and `make test` set up what they need.
.PHONY: demo test lint fmt doc bench bench-fleet soak fuzz simulate deny pure parity

export CARGO_TERM_COLOR ?= auto

demo:
	@scripts/setup demo
	@cargo build --quiet -p distributary-server -p distributary-agent -p distributary-e2e --bins
	@target/debug/demo

test:
	@scripts/setup test
	@scripts/controlplane > /dev/null
	@scripts/controlplane helm > /dev/null
	cargo build --workspace --bins
	cargo test --workspace

lint: pure parity
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

# The pure folders know no clock, file, socket, process or task.
pure:
	@scripts/pure

# docs/parity.md leaves out no assertion and names only tests that are there.
parity:
	@scripts/parity

fmt:
	cargo fmt --all

doc:
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

bench:
	@scripts/setup test
	@scripts/controlplane kube-proxy > /dev/null
	cargo build --release --workspace --bins
	cargo bench -p distributary-agent --bench layout
	target/release/bench

# One server with thousands of agents.
bench-fleet:
	@scripts/setup test
	cargo build --release -p distributary-e2e --bins
	target/release/bench-fleet

# Half an hour of changes and kills, or SOAK_MINUTES.
soak:
	@scripts/setup test
	cargo build --workspace --bins
	target/debug/soak

# What comes from outside, broken in 100,000 ways each, or FUZZ_CASES.
fuzz:
	PROPTEST_CASES=$(or $(FUZZ_CASES),100000) cargo test -p distributary-e2e --test fuzz

# A fleet of 100,000 agents, simulated; it takes a while.
simulate:
	cargo run --release -p distributary-e2e --bin simulate

# Licences, advisories and duplicates of dependencies; needs cargo-deny.
deny:
	cargo deny check
