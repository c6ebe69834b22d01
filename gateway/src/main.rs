//! The `gateway` binary: a node with the built-in consumers.

use std::process::ExitCode;

fn main() -> ExitCode {
    gateway::run(gateway::consumers::routes())
}
