//! Instructions per delivery and per connect, counted by valgrind. The figures of a busy machine are
//! those of an idle one, so they show small changes.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::generator::{Crowd, Generator};
use crate::servers::{Database, Limits, Site};

/// One room of so many.
const MEMBERS: usize = 100;
const MESSAGES: usize = 200;
const SOCKETS: usize = 200;
const OUT: &str = "callgrind.out";

/// Prints the counts. Each is the difference of two runs of which one does twice as much, so that
/// what starting and stopping costs is in neither.
pub(crate) fn count(gateway: &Path, cookies: &[String]) -> Result<()> {
    anyhow::ensure!(testkit::process::on_path("valgrind"), "valgrind is missing: apt-get install valgrind");
    let deliver = |messages| run(gateway, cookies, MEMBERS, messages);
    let connect = |sockets| run(gateway, cookies, sockets, 0);
    let each = |twice: u64, once: u64, count: usize| (twice as f64 - once as f64) / count as f64;
    let (once, twice) = (deliver(MESSAGES)?, deliver(2 * MESSAGES)?);
    let messages = each(twice, once, MESSAGES);
    let connects = each(connect(2 * SOCKETS)?, connect(SOCKETS)?, SOCKETS);
    println!("| what | instructions |\n| --- | ---: |");
    println!("| message stored, acked and sent to a room of {MEMBERS} | {messages:.0} |");
    println!("| per delivery | {:.0} |", messages / MEMBERS as f64);
    println!("| connect and leave | {connects:.0} |");
    Ok(())
}

/// The instructions of a node that so many sockets join and hear so many messages, one at a time.
fn run(gateway: &Path, cookies: &[String], sockets: usize, messages: usize) -> Result<u64> {
    eprintln!("{sockets} sockets, {messages} messages");
    let wrapper = ["valgrind".to_owned(), "--tool=callgrind".to_owned(), format!("--callgrind-out-file={OUT}")];
    let mut site = Site::start(gateway, &wrapper, 1, Limits::Off, Database::Sqlite)?;
    let crowd =
        Crowd { addresses: &site.addresses, secret: &site.secret, cookies, sockets, room_size: MEMBERS, resume: false };
    let mut generator = Generator::new(&crowd)?;
    // One after another: what goes together would depend on timing.
    generator.open(1)?;
    generator.step(messages, MEMBERS)?;
    generator.close(0);
    let node = site.own.as_mut().and_then(|own| own.nodes.first_mut()).context("a node")?;
    // A node that still has sockets would leave another way.
    wait(|| Ok(node.metric("gateway_connections ")? == 0.0))?;
    // The sum is written at the end, which takes longer than a stop may.
    node.process.signal("TERM");
    wait(|| Ok(!node.process.running()))?;
    let out = fs::read_to_string(node.process.dir().join(OUT)).context("what callgrind has counted")?;
    let total = out.lines().find_map(|line| line.strip_prefix("totals:").or(line.strip_prefix("summary:")));
    total
        .and_then(|total| total.trim().parse().ok())
        .with_context(|| format!("callgrind has written no sum{}", node.process.log_tail()))
}

fn wait(done: impl Fn() -> Result<bool>) -> Result<()> {
    let late = Instant::now() + Duration::from_secs(60);
    while !done()? {
        anyhow::ensure!(Instant::now() < late, "the gateway does not leave");
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
