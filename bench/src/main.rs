//! This program measures the cost of a socket and of a delivery: it starts servers, loads them, and prints one table.
//!
//! `scenarios` lists the measurements, and `measure` makes them. `servers` starts the servers, the `generator` loads them
//! and counts every message, and `usage` reads clocks and memory at the edges.
#![allow(clippy::print_stdout, reason = "the table goes to standard output")]

#[cfg(not(target_os = "linux"))]
compile_error!("the generator needs Linux: epoll, and the clocks and memory of other processes");

mod args;
mod frames;
mod generator;
mod instructions;
mod measure;
mod neighbours;
mod publisher;
mod report;
mod scenarios;
mod servers;
mod socket;
mod tally;
mod usage;

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

use args::{Args, Command};
use measure::Bench;
use report::{Report, Row};
use scenarios::Scenario;

fn main() -> Result<ExitCode> {
    let args = Args::parse();
    // Each socket is a file, here and there.
    rlimit::increase_nofile_limit(u64::MAX)?;
    if let Some(Command::Instructions) = args.command {
        instructions::count(&servers::gateway_binary(args.gateway.as_deref())?, &args.cookies()?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let (scenarios, bench) = (args.scenarios()?, args.bench()?);
    let mut report = Report { machine: usage::machine_name(), servers: args.servers(), rows: Vec::new() };
    let mut code = ExitCode::SUCCESS;
    for scenario in scenarios {
        eprintln!("{}", scenario.name);
        match median(scenario, &bench, args.runs.max(1)) {
            Ok(rows) => report.rows.extend(rows),
            // The others have something to tell.
            Err(error) => {
                eprintln!("error: {}: {error:#}", scenario.name);
                code = ExitCode::FAILURE;
            }
        }
    }
    match args.json {
        true => println!("{}", serde_json::to_string_pretty(&report)?),
        false => print!("{}", report.table()),
    }
    Ok(code)
}

/// The rows of the run whose first row has the median cost.
fn median(scenario: &Scenario, bench: &Bench, runs: usize) -> Result<Vec<Row>> {
    let mut all = (0..runs).map(|_| scenario.measure(bench)).collect::<Result<Vec<_>>>()?;
    let cost = |rows: &Vec<Row>| rows.first().and_then(|row| row.gateway_us).unwrap_or(0.0);
    all.sort_by(|one, other| cost(one).total_cmp(&cost(other)));
    Ok(all.swap_remove(runs / 2))
}
