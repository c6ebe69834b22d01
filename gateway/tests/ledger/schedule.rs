//! What goes wrong and when: a pure function of the seed.

use std::fmt;
use std::time::Duration;

use crate::random::Random;

/// Clients are cut in turns, a part of them at a time, so that each is cut every 15 seconds.
pub(crate) const PARTS: usize = 3;
const CUT_EVERY: Duration = Duration::from_secs(5);
const CUT_FOR: Duration = Duration::from_secs(2);

/// About as long as a node needs to leave and to be back.
const REPLACED_EVERY: Duration = Duration::from_secs(8);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// `kill -9` of a node, which is started again afterwards.
    NodeKilled(usize),
    /// A node is asked to leave, and started again when it has gone; both take as long as they take.
    NodeReplaced(usize),
    /// `kill -9` of Redis, which comes back with nothing in it.
    RedisEmptied,
    /// `SIGSTOP` of Redis.
    RedisStopped,
    /// `kill -9` of PostgreSQL, which comes back with what was committed.
    PostgresKilled,
    /// The wall clock of a node is wrong by so many hours, then right again.
    ClockJumps { node: usize, hours: i64 },
    /// The network of a part of the clients is away. Silently: the nodes are not told, and go on writing
    /// to sockets that nobody reads.
    ClientsCut { part: usize, silently: bool },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) at: Duration,
    pub(crate) lasting: Duration,
    pub(crate) what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Schedule {
    pub(crate) seed: u64,
    pub(crate) length: Duration,
    /// By time. Those of one server do not overlap.
    pub(crate) faults: Vec<Fault>,
    /// Now and then a message between Redis and a node is dropped.
    pub(crate) drops: bool,
}

impl Schedule {
    pub(crate) fn new(seed: u64, length: Duration, nodes: usize) -> Self {
        let random = &mut Random::new(seed);
        let times = (length.as_secs() as usize / 30).max(1);
        let mut redis = vec![(What::RedisStopped, Duration::from_secs(5)); times];
        redis.extend((0..times).map(|_| (What::RedisEmptied, random.part_of(Duration::from_secs(2)))));
        let postgres = (0..times).map(|_| (What::PostgresKilled, random.part_of(Duration::from_secs(2)))).collect();
        let killed = |random: &mut Random| (What::NodeKilled(random.below(nodes)), random.part_of(CUT_EVERY / 2));
        let kills = (0..2 * times).map(|_| killed(random)).collect();
        let mut faults: Vec<Fault> =
            [redis, postgres, kills].into_iter().flat_map(|faults| lane(random, length, faults)).collect();
        let cuts = (0_u32..).map(|n| (n, CUT_EVERY * n + CUT_EVERY / 5)).take_while(|(_, at)| *at + CUT_FOR < length);
        faults.extend(cuts.map(|(n, at)| {
            let what = What::ClientsCut { part: n as usize % PARTS, silently: random.one_in(2) };
            Fault { at, lasting: CUT_FOR, what }
        }));
        let jump = |random: &mut Random| {
            let (node, hours) = (random.below(nodes), *random.pick(&[1, -1, 48, -48]));
            (What::ClockJumps { node, hours }, CUT_FOR + random.part_of(CUT_EVERY / 2))
        };
        let jumps = (0..2 * times).map(|_| jump(random)).collect();
        faults.extend(lane(random, length, jumps));
        faults.sort_by_key(|fault| fault.at);
        Self { seed, length, faults, drops: true }
    }

    /// One node after another is replaced, and nothing else happens.
    pub(crate) fn rolling(nodes: usize, rounds: usize) -> Self {
        let replaced = |n: usize| Fault {
            at: REPLACED_EVERY * n as u32 + Duration::from_secs(1),
            lasting: Duration::ZERO,
            what: What::NodeReplaced(n % nodes),
        };
        let length = REPLACED_EVERY * (nodes * rounds) as u32;
        Self { seed: 1, length, faults: (0..nodes * rounds).map(replaced).collect(), drops: false }
    }
}

/// Spreads the faults of one kind of server over the time, one after another.
fn lane(random: &mut Random, length: Duration, mut faults: Vec<(What, Duration)>) -> Vec<Fault> {
    random.shuffle(&mut faults);
    let slot = length / faults.len() as u32;
    let place = |(number, (what, lasting)): (usize, (What, Duration))| Fault {
        at: slot * number as u32 + random.part_of(slot.saturating_sub(lasting)),
        lasting,
        what,
    };
    faults.into_iter().enumerate().map(place).collect()
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "seed {}, {} s", self.seed, self.length.as_secs())?;
        for Fault { at, lasting, what } in &self.faults {
            writeln!(f, "{:7.3} s for {:.3} s: {what:?}", at.as_secs_f64(), lasting.as_secs_f64())?;
        }
        Ok(())
    }
}

#[test]
fn the_same_seed_prints_the_same_schedule() {
    let printed = |seed| Schedule::new(seed, Duration::from_secs(15), 3).to_string();
    assert_eq!(printed(1), include_str!("seed-1.txt"));
    assert_eq!(printed(2), printed(2));
    assert_ne!(printed(1), printed(2).replacen("seed 2", "seed 1", 1));
}

#[test]
fn every_kind_of_fault_is_in_every_schedule_and_those_of_one_server_do_not_overlap() {
    for (seed, seconds) in (0..200).flat_map(|seed| [(seed, 15), (seed, 60)]) {
        let schedule = Schedule::new(seed, Duration::from_secs(seconds), 3);
        let redis = |what| matches!(what, What::RedisEmptied | What::RedisStopped);
        let servers: [&dyn Fn(What) -> bool; 5] = [
            &redis,
            &|what| what == What::PostgresKilled,
            &|what| matches!(what, What::NodeKilled(_)),
            &|what| matches!(what, What::ClientsCut { .. }),
            &|what| matches!(what, What::ClockJumps { .. }),
        ];
        for of_server in servers {
            let faults: Vec<_> = schedule.faults.iter().filter(|fault| of_server(fault.what)).collect();
            assert!(!faults.is_empty(), "{schedule}");
            let apart = faults.windows(2).all(|pair| pair[0].at + pair[0].lasting <= pair[1].at);
            assert!(apart, "{schedule}");
        }
        assert!(schedule.faults.iter().any(|fault| fault.what == What::RedisEmptied), "{schedule}");
        assert!(schedule.faults.iter().all(|fault| fault.at + fault.lasting <= schedule.length), "{schedule}");
    }
}
