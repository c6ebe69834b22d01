//! A long run on nodes that are never restarted: what they take is given back. The curves are drawn.
#![allow(clippy::print_stdout, reason = "the test reports what it saw")]

use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::task::JoinSet;

use crate::common::{Door, eventually_within, http_client};
use crate::run::{self, Load};
use crate::schedule::{Schedule, What};
use crate::site::{Kind, Site};

/// How long a node may take until it is quiet again, once nobody is there any more.
const QUIET: Duration = Duration::from_secs(120);

/// What is watched of a node: a name, what it is called in the picture, and the metric.
const WATCHED: [(&str, &str); 9] = [
    ("sockets", "gateway_connections "),
    ("groups", "gateway_groups "),
    ("tasks", "gateway_tasks "),
    ("open files", "process_open_fds "),
    ("threads", "process_threads "),
    ("resident memory, MiB", "process_resident_memory_bytes "),
    ("held", "gateway_held_bytes "),
    ("hub queue", "gateway_hub_queue_bytes "),
    ("write queue", "gateway_write_queue_bytes "),
];
const SOCKETS: usize = 0;
const MEMORY: usize = 5;
/// Those that are drawn.
const DRAWN: [usize; 4] = [SOCKETS, MEMORY, 3, 2];
/// What is nothing when nobody is there.
const EMPTY: [usize; 4] = [SOCKETS, 6, 7, 8];

/// One look at a node, in the order of `WATCHED`.
type Figures = [f64; WATCHED.len()];

async fn look(client: &reqwest::Client, door: Door) -> Option<Figures> {
    let answer = client.get(format!("http://{}/metrics", door.internal)).send().await.ok()?;
    let text = answer.text().await.ok()?;
    let mut figures = Figures::default();
    for (figure, (_, metric)) in figures.iter_mut().zip(WATCHED) {
        *figure = text.lines().find_map(|line| line.strip_prefix(metric)?.trim().parse().ok())?;
    }
    figures[MEMORY] /= f64::from(1 << 20);
    Some(figures)
}

/// What the nodes have when nobody is there: they get as long as they need for that.
async fn quiet(doors: &[Door]) -> Vec<Figures> {
    let client = http_client();
    let figures = || async {
        let mut all = Vec::new();
        for door in doors {
            all.extend(look(&client, *door).await);
        }
        all
    };
    eventually_within(QUIET, "nobody is there any more", || async {
        let all = figures().await;
        all.len() == doors.len() && all.iter().all(|node| EMPTY.iter().all(|at| node[*at] == 0.0))
    })
    .await;
    // The tasks of the last sockets, and what they were connected to, end a moment later.
    let mut least = figures().await;
    for _ in 0..50 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        for (least, now) in least.iter_mut().zip(figures().await) {
            for (least, now) in least.iter_mut().zip(now) {
                *least = least.min(now);
            }
        }
    }
    least
}

/// Everything a node does once it is used: connections to the database are made, threads are started.
async fn warm(doors: &[Door]) {
    let mut guests = JoinSet::new();
    for number in 0..20 * doors.len() {
        let door = doors[number % doors.len()];
        guests.spawn(async move {
            let mut guest = door.v1("/ws/chat/", &format!("user-{number}")).await;
            for _ in 0..20 {
                guest.rooms().await;
                guest.ask(serde_json::json!({"cate": "notifications"})).await;
            }
            guest.close().await;
        });
    }
    while let Some(done) = guests.join_next().await {
        done.unwrap();
    }
}

/// Runs so long under load, with every fault but the death of a node, and compares.
pub(crate) async fn soak(load: Load, seed: u64) {
    let mut schedule = Schedule::new(seed, Duration::from_secs(load.seconds), crate::NODES);
    schedule.faults.retain(|fault| !matches!(fault.what, What::NodeKilled(_)));
    let kind = Kind::Gateway { lossy: false };
    let site = Site::start(crate::NODES, kind).await;
    let doors: Vec<Door> = site.nodes.iter().map(|node| node.door).collect();
    run::make_members(load, &site).await;
    warm(&doors).await;
    let before = quiet(&doors).await;
    let began = Instant::now();
    let samples: Arc<Mutex<Vec<(f64, usize, Figures)>>> = Arc::default();
    let mut sampler = JoinSet::new();
    for (node, door) in doors.iter().copied().enumerate() {
        let samples = Arc::clone(&samples);
        sampler.spawn(async move {
            let client = http_client();
            loop {
                if let Some(figures) = look(&client, door).await {
                    samples.lock().push((began.elapsed().as_secs_f64(), node, figures));
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
    }
    let (site, verdict) = run::endure(site, load, &schedule, kind).await;
    let after = quiet(&doors).await;
    sampler.shutdown().await;
    assert!(verdict.is_clean(), "seed {seed}: {verdict}");
    let samples = std::mem::take(&mut *samples.lock());
    let picture = draw(&samples, &schedule, load);
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..");
    let writes = std::env::var_os("GATEWAY_WRITE_DOCUMENTS").is_some();
    let file = directory.join(if writes { "docs/soak.svg" } else { "target/soak.svg" });
    std::fs::write(&file, picture).unwrap();
    let mut wrong = Vec::new();
    for (node, (before, after)) in before.iter().zip(&after).enumerate() {
        for (at, (name, _)) in WATCHED.iter().enumerate() {
            println!("node {node}, {name}: {:.1} before, {:.1} after", before[at], after[at]);
            let most = match at {
                // The newest messages stay in memory, and an allocator keeps some of what it was given.
                MEMORY => before[at] * 1.25 + 48.0,
                // A connection to Redis or the database may be in its place twice for a moment.
                3 => before[at] + 8.0,
                2 | 4 => before[at] + 6.0,
                _ => before[at],
            };
            if after[at] > most {
                wrong.push(format!("node {node}: {name} {} before, {} after", before[at], after[at]));
            }
        }
        // It does not creep: the second half takes no more than the first.
        let of_node = |from: f64, to: f64| {
            let within = samples.iter().filter(|(at, of, _)| *of == node && (from..to).contains(at));
            let memory: Vec<f64> = within.map(|(.., figures)| figures[MEMORY]).collect();
            memory.iter().sum::<f64>() / memory.len().max(1) as f64
        };
        let length = load.seconds as f64;
        let (early, late) = (of_node(length * 0.2, length * 0.4), of_node(length * 0.8, length));
        println!("node {node}, memory under load: {early:.1} MiB early, {late:.1} late");
        if late > early * 1.2 + 16.0 {
            wrong.push(format!("node {node}: memory creeps from {early:.1} to {late:.1} MiB"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    drop(site);
}

const WIDTH: f64 = 960.0;
const LEFT: f64 = 60.0;
const HEIGHT: f64 = 120.0;
const GAP: f64 = 44.0;
const NODES: [&str; 3] = ["#1f6feb", "#d1242f", "#1a7f37"];

/// What is drawn behind the curves, and how it is called.
fn shade(what: What) -> Option<(&'static str, &'static str)> {
    Some(match what {
        What::RedisEmptied => ("#f5a623", "Redis killed, back empty"),
        What::RedisStopped => ("#f8d58c", "Redis stands still"),
        What::PostgresKilled => ("#b39ddb", "PostgreSQL killed"),
        What::ClientsCut { .. } => ("#dfe6ee", "a third of the clients cut off"),
        What::ClockJumps { .. } | What::NodeKilled(_) | What::NodeReplaced(_) => return None,
    })
}

/// The curves as a picture.
fn draw(samples: &[(f64, usize, Figures)], schedule: &Schedule, load: Load) -> String {
    let end = samples.iter().map(|(at, ..)| *at).fold(load.seconds as f64, f64::max);
    let x = |at: f64| LEFT + at / end * (WIDTH - LEFT - 20.0);
    let all = GAP + DRAWN.len() as f64 * (HEIGHT + GAP) + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {all}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let mut shades = Vec::new();
    for fault in &schedule.faults {
        if let Some(shade) = shade(fault.what).filter(|shade| !shades.contains(shade)) {
            shades.push(shade);
        }
    }
    let nodes = NODES.iter().enumerate().map(|(node, colour)| (*colour, format!("node {node}")));
    let key = nodes.chain(shades.iter().map(|(colour, name)| (*colour, (*name).to_owned())));
    let mut at = LEFT;
    for (colour, name) in key {
        writeln!(svg, "<rect x=\"{at:.0}\" y=\"10\" width=\"12\" height=\"12\" fill=\"{colour}\"/>").unwrap();
        writeln!(svg, "<text x=\"{:.0}\" y=\"20\">{name}</text>", at + 16.0).unwrap();
        at += 34.0 + 6.4 * name.len() as f64;
    }
    for (panel, watched) in DRAWN.iter().enumerate() {
        let top = GAP + panel as f64 * (HEIGHT + GAP);
        let most = samples.iter().map(|(.., figures)| figures[*watched]).fold(1.0, f64::max) * 1.05;
        let y = |value: f64| top + HEIGHT - value / most * HEIGHT;
        for fault in &schedule.faults {
            let Some((colour, _)) = shade(fault.what) else { continue };
            let (from, width) =
                (x(fault.at.as_secs_f64()), (fault.lasting.as_secs_f64() / end * (WIDTH - LEFT - 20.0)).max(1.0));
            writeln!(
                svg,
                "<rect x=\"{from:.1}\" y=\"{top:.0}\" width=\"{width:.1}\" height=\"{HEIGHT}\" fill=\"{colour}\"/>"
            )
            .unwrap();
        }
        writeln!(svg, "<text x=\"{LEFT}\" y=\"{:.0}\" font-weight=\"bold\">{}</text>", top - 6.0, WATCHED[*watched].0)
            .unwrap();
        for part in [0.0, 0.5, 1.0] {
            let value = most * part;
            let label = if most < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") };
            writeln!(
                svg,
                "<path d=\"M{LEFT} {0:.1}H{1:.0}\" stroke=\"#bbb\" stroke-width=\"0.5\"/>\
                 <text x=\"{2:.0}\" y=\"{3:.1}\" text-anchor=\"end\">{label}</text>",
                y(value),
                WIDTH - 20.0,
                LEFT - 6.0,
                y(value) + 4.0
            )
            .unwrap();
        }
        for (node, colour) in NODES.iter().enumerate() {
            let points = samples.iter().filter(|(_, of, _)| *of == node);
            let points: Vec<_> =
                points.map(|(at, _, figures)| format!("{:.1},{:.1}", x(*at), y(figures[*watched]))).collect();
            writeln!(
                svg,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.2\" points=\"{}\"/>",
                points.join(" ")
            )
            .unwrap();
        }
    }
    let bottom = all - GAP + 14.0;
    for minute in (0..).map(|minute| f64::from(minute) * 60.0).take_while(|at| *at <= end) {
        writeln!(
            svg,
            "<text x=\"{:.0}\" y=\"{bottom:.0}\" text-anchor=\"middle\">{:.0} min</text>",
            x(minute),
            minute / 60.0
        )
        .unwrap();
    }
    svg.push_str("</svg>\n");
    svg
}
