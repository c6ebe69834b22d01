//! The command line: what may be asked, and the commands that are clients of the API.

mod client;
mod commands;
mod settings;
mod table;

use clap::ArgMatches;

use crate::plan::{self, Load};

pub use client::{ApiClient, ApiError};
pub use commands::{command, completions, manual};
pub use settings::{genconfig, settings, show};

/// What so many users need.
pub fn plan(matches: &ArgMatches) -> String {
    let given = |name: &str| matches.get_one::<f64>(name).copied().unwrap_or_default();
    plan::plan(&Load {
        users: given("users"),
        messages: given("messages"),
        members: given("members"),
        sockets_per_user: given("sockets-per-user"),
        connects: given("connects"),
        cores: given("cores"),
    })
    .unwrap_or_else(|error| format!("the figures cannot be read: {error}"))
}
