.PHONY: check test fmt run

check: ## everything that continuous integration runs
	./test.sh

test: ## the Rust tests alone; ./test.sh --install-only installs what they need
	cargo test --workspace

fmt:
	cargo fmt --all

run: ## one node with the demo page on http://127.0.0.1:8000
	cargo run --package gateway -- serve --dev
