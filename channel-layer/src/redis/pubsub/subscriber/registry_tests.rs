//! The bookkeeping alone: races, failures and outages, without any Redis.

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{
    super::{JOIN, hearing::Taken},
    *,
};
use crate::{Event, RelaySink, Serializer, Value, event::RESERVED_KEY};

/// Everything a sink was given.
#[derive(Default)]
struct Heard(Mutex<Vec<Delivery>>);

impl RelaySink for Heard {
    fn deliver(&self, batch: &mut Vec<Delivery>) {
        self.0.lock().append(batch);
    }
}

impl Heard {
    fn take(&self) -> Vec<String> {
        let describe = |delivery: Delivery| match delivery {
            Delivery::Group { group, event } => format!("{group}:{}", event.text("n").unwrap_or("?")),
            Delivery::Channel { event, .. } => format!("own:{}", event.text("n").unwrap_or("?")),
            Delivery::Disconnected => "down".to_owned(),
            Delivery::Reconnected(_) => "up".to_owned(),
        };
        self.0.lock().drain(..).map(describe).collect()
    }
}

struct Bench {
    registry: Registry,
    heard: Arc<Heard>,
    alive: Option<Arc<()>>,
    relay: Member,
}

fn codec() -> Codec {
    Codec::new(Serializer::MsgPack, &[]).unwrap()
}

const PREFIX: &str = "asgispecific.0123456789abcdef";

impl Bench {
    fn new() -> Self {
        let counters = Arc::new(Counters::default());
        let mut registry = Registry::new("asgi".to_owned(), Directory::default(), codec(), counters);
        let (heard, alive) = (Arc::new(Heard::default()), Arc::new(()));
        let (reply, mut answer) = oneshot::channel();
        let new = NewRelay { sink: heard.clone(), prefix: PREFIX.to_owned(), alive: Arc::downgrade(&alive) };
        let (id, pattern) = registry.open_relay(new, true, reply);
        assert_eq!(pattern, format!("{PREFIX}*").into_bytes());
        registry.relay_asked(id, 2);
        registry.relay_confirmed(id);
        assert!(answer.try_recv().is_err(), "it waits for the confirmation of each host");
        registry.relay_confirmed(id);
        assert_eq!(answer.try_recv().unwrap().unwrap(), id);
        Self { registry, heard, alive: Some(alive), relay: Member::Relay(id) }
    }

    fn join(&mut self, member: &Member, groups: &[&str]) -> (Changes, Answer) {
        let (reply, answer) = oneshot::channel();
        (self.registry.join(member.clone(), names(groups), reply), Answer(answer))
    }

    fn relay_join(&mut self, groups: &[&str]) -> (Changes, Answer) {
        let relay = self.relay.clone();
        self.join(&relay, groups)
    }

    fn relay_leave(&mut self, groups: &[&str]) -> Changes {
        let relay = self.relay.clone();
        self.registry.leave(&relay, &names(groups))
    }

    fn message(&mut self, group: &str, n: &str) {
        let payload = Event::new("t").with("n", n).to_msgpack().unwrap();
        assert_ne!(self.registry.message(&topic_of(group), &payload), Taken::Undecodable);
        self.registry.deliver();
    }
}

struct Answer(oneshot::Receiver<Result<(), LayerError>>);

impl Answer {
    fn is_pending(&mut self) -> bool {
        matches!(self.0.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    fn now(mut self) -> Result<(), LayerError> {
        self.0.try_recv().expect("an answer")
    }
}

fn names(groups: &[&str]) -> Vec<GroupName> {
    groups.iter().map(|name| GroupName::parse(name).unwrap()).collect()
}

fn topic_of(group: &str) -> Topic {
    format!("asgi__group__{group}").into_bytes().into()
}

fn topics(changes: &[Topic]) -> Vec<String> {
    changes.iter().map(|topic| String::from_utf8_lossy(topic).replace("asgi__group__", "")).collect()
}

#[test]
fn a_join_answers_when_all_its_topics_are_confirmed() {
    let mut bench = Bench::new();
    let (changes, mut answer) = bench.relay_join(&["a", "b", "a"]);
    assert_eq!((topics(&changes.subscribe), topics(&changes.unsubscribe)), (vec!["a".into(), "b".into()], vec![]));
    bench.registry.confirmed(&topic_of("a"));
    assert!(answer.is_pending());
    bench.registry.confirmed(&topic_of("b"));
    answer.now().unwrap();
    // What is subscribed already costs nothing.
    let (changes, answer) = bench.relay_join(&["b", "a"]);
    assert_eq!(changes, Changes::default());
    answer.now().unwrap();
    bench.message("a", "1");
    assert_eq!(bench.heard.take(), ["a:1"]);
    assert_eq!(topics(&bench.relay_leave(&["a", "never"]).unsubscribe), ["a"]);
    bench.message("a", "2");
    assert!(bench.heard.take().is_empty());
}

#[test]
fn a_leave_that_overtakes_a_join_wins_and_a_later_join_waits_again() {
    let mut bench = Bench::new();
    let (_, first) = bench.relay_join(&["a"]);
    assert_eq!(topics(&bench.relay_leave(&["a"]).unsubscribe), ["a"]);
    first.now().unwrap();
    let (changes, mut second) = bench.relay_join(&["a"]);
    assert_eq!(topics(&changes.subscribe), ["a"]);
    assert!(second.is_pending());
    bench.registry.confirmed(&topic_of("a"));
    second.now().unwrap();
    bench.message("a", "1");
    assert_eq!(bench.heard.take(), ["a:1"]);
}

#[tokio::test(start_paused = true)]
async fn a_join_that_is_too_late_takes_back_only_its_own() {
    let mut bench = Bench::new();
    let (_, kept) = bench.relay_join(&["a"]);
    bench.registry.confirmed(&topic_of("a"));
    kept.now().unwrap();
    bench.registry.disconnected(|_| true);
    let (_, late) = bench.relay_join(&["a", "b"]);
    tokio::time::advance(JOIN / 2).await;
    let (_, mut later) = bench.relay_join(&["c"]);
    tokio::time::advance(JOIN / 2).await;
    let changes = bench.registry.expire(Instant::now());
    assert!(matches!(late.now(), Err(LayerError::Unavailable(_))));
    assert!(later.is_pending());
    // `a` was joined before, `c` still waits; only `b` is forgotten.
    assert_eq!(topics(&changes.unsubscribe), ["b"]);
    let mut left = topics(&bench.registry.everything(|_| true).0);
    left.sort();
    assert_eq!(left, ["a", "c"]);
}

#[test]
fn two_joins_of_one_topic_fail_apart() {
    let mut bench = Bench::new();
    let (_, first) = bench.relay_join(&["a", "b"]);
    let (changes, second) = bench.relay_join(&["a"]);
    assert_eq!(changes, Changes::default());
    // `b` is refused: the first join fails as a whole, the second has nothing to do with it.
    let (deaf, changes) = bench.registry.refused(&topic_of("b"), "NOPERM");
    assert!(!deaf);
    assert!(matches!(first.now(), Err(LayerError::Unavailable(_))));
    assert_eq!(topics(&changes.unsubscribe), ["b"]);
    bench.registry.confirmed(&topic_of("a"));
    second.now().unwrap();
    bench.message("a", "1");
    assert_eq!(bench.heard.take(), ["a:1"]);
}

#[test]
fn a_refusal_that_leaves_a_member_deaf_is_told() {
    let mut bench = Bench::new();
    let (_, joined) = bench.relay_join(&["a"]);
    bench.registry.confirmed(&topic_of("a"));
    joined.now().unwrap();
    bench.registry.disconnected(|_| true);
    assert!(bench.registry.refused(&topic_of("a"), "NOPERM").0);
    assert!(!bench.registry.refused(&topic_of("unknown"), "NOPERM").0);
}

#[test]
fn a_lost_host_takes_only_its_own_topics_with_it() {
    let mut bench = Bench::new();
    let (_, _joined) = bench.relay_join(&["a", "b"]);
    bench.registry.confirmed(&topic_of("a"));
    bench.registry.confirmed(&topic_of("b"));
    let of_b = |topic: &[u8]| topic == &*topic_of("b");
    bench.registry.disconnected(of_b);
    assert_eq!(topics(&bench.registry.everything(of_b).0), ["b"]);
    assert_eq!(bench.registry.everything(of_b).1.len(), 1, "a pattern belongs to every host");
    let (_, answer) = bench.relay_join(&["a"]);
    answer.now().unwrap();
    let (changes, mut answer) = bench.relay_join(&["b"]);
    assert_eq!(changes, Changes::default(), "the next connection asks for it");
    assert!(answer.is_pending());
    bench.message("a", "1");
    bench.registry.confirmed(&topic_of("b"));
    answer.now().unwrap();
    bench.registry.restored();
    assert_eq!(bench.heard.take(), ["down", "a:1", "up"]);
}

#[test]
fn what_nobody_wants_is_told_apart_from_what_nobody_can_read() {
    let mut bench = Bench::new();
    let (_, _joined) = bench.relay_join(&["a"]);
    assert_eq!(bench.registry.message(b"other", b"\xc1"), Taken::Unknown);
    assert_eq!(bench.registry.message(&topic_of("a"), b"\xc1"), Taken::Undecodable);
}

#[test]
fn r21_the_reserved_key_leads_nowhere_and_is_not_seen() {
    let mut bench = Bench::new();
    let (_, _joined) = bench.relay_join(&["a"]);
    for redirect in [Value::from("asgispecific.other"), Value::from(vec![Value::from("b"), Value::Null]), Value::Null] {
        let payload = Event::new("t").with("n", "1").with(RESERVED_KEY, redirect).to_msgpack().unwrap();
        assert_eq!(bench.registry.message(&topic_of("a"), &payload), Taken::Yes);
    }
    bench.registry.deliver();
    let heard = std::mem::take(&mut *bench.heard.0.lock());
    assert_eq!(heard.len(), 3);
    for delivery in heard {
        let Delivery::Group { group, event } = delivery else { panic!("{delivery:?}") };
        assert_eq!((group.as_str(), event.get(RESERVED_KEY), event.text("n")), ("a", None, Some("1")));
    }
}

#[test]
fn an_outage_is_told_once_and_everything_is_asked_for_again() {
    let mut bench = Bench::new();
    let (_, _joined) = bench.relay_join(&["a", "b"]);
    bench.registry.disconnected(|_| true);
    bench.registry.disconnected(|_| true);
    let (mut wanted, patterns) = bench.registry.everything(|_| true);
    wanted.sort();
    assert_eq!(topics(&wanted), ["a", "b"]);
    assert_eq!(patterns.len(), 1);
    bench.registry.restored();
    bench.registry.restored();
    assert_eq!(bench.heard.take(), ["down", "up"]);
}

#[test]
fn a_relay_opened_during_an_outage_starts_down() {
    let mut bench = Bench::new();
    let (heard, alive) = (Arc::new(Heard::default()), Arc::new(()));
    let (reply, mut answer) = oneshot::channel();
    let new = NewRelay { sink: heard.clone(), prefix: "p".to_owned(), alive: Arc::downgrade(&alive) };
    bench.registry.open_relay(new, false, reply);
    answer.try_recv().unwrap().unwrap();
    bench.registry.restored();
    assert_eq!(heard.take(), ["down", "up"]);
    assert!(bench.heard.take().is_empty(), "the other one never was down");
}

#[test]
fn a_relay_without_its_handle_leaves_everything() {
    let mut bench = Bench::new();
    let (_, _answer) = bench.relay_join(&["a", "b"]);
    bench.registry.confirmed(&topic_of("a"));
    bench.alive = None;
    bench.message("a", "1");
    let (changes, patterns) = bench.registry.close_dead_relays();
    let mut gone = topics(&changes.unsubscribe);
    gone.sort();
    assert_eq!(gone, ["a", "b"]);
    assert_eq!(patterns, [format!("{PREFIX}*").into_bytes()]);
    assert!(bench.heard.take().is_empty(), "nobody is there to hear");
    assert_eq!(bench.registry.everything(|_| true), (Vec::new(), Vec::new()));
}

#[test]
fn own_channels_of_a_relay_need_exactly_its_shape() {
    let mut bench = Bench::new();
    let payload = Event::new("t").with("n", "1").to_msgpack().unwrap();
    for (rest, heard) in [
        ("0123456789abcdef", true),
        ("0123456789abcde", false),
        ("0123456789abcdeff", false),
        ("0123456789abcdeé", false),
        ("zzzzzzzzzzzzzzzz", false),
    ] {
        bench.registry.pattern_message(format!("{PREFIX}{rest}").as_bytes(), &payload);
        bench.registry.deliver();
        assert_eq!(!bench.heard.take().is_empty(), heard, "{rest}");
    }
    assert!(bench.registry.pattern_message(b"\xff", &payload));
    let own = format!("{PREFIX}0123456789abcdef");
    assert!(!bench.registry.pattern_message(own.as_bytes(), b"\xc1"), "undecodable");
}

#[test]
fn a_channel_nobody_waits_for_any_more_is_ended() {
    let mut bench = Bench::new();
    let name = ChannelName::parse("asgispecific.a").unwrap();
    let (reply, answer) = oneshot::channel();
    let changes = bench.registry.open_channel(name.clone(), true, reply);
    assert_eq!(topics(&changes.subscribe), ["asgispecific.a"]);
    drop(answer);
    let changes = bench.registry.confirmed(&changes.subscribe[0]);
    assert_eq!(topics(&changes.unsubscribe), ["asgispecific.a"]);
    assert!(bench.registry.directory.lock().is_empty());
}

#[test]
fn channels_and_relays_share_a_topic_and_the_last_one_ends_it() {
    let mut bench = Bench::new();
    let name = ChannelName::parse("asgispecific.a").unwrap();
    let (reply, _answer) = oneshot::channel();
    let own = bench.registry.open_channel(name.clone(), true, reply).subscribe;
    bench.registry.confirmed(&own[0]);
    let member = Member::Channel(name.clone());
    let (changes, _first) = bench.join(&member, &["a"]);
    assert_eq!(topics(&changes.subscribe), ["a"]);
    bench.registry.confirmed(&topic_of("a"));
    let (changes, second) = bench.relay_join(&["a"]);
    assert_eq!(changes, Changes::default());
    second.now().unwrap();
    bench.message("a", "1");
    assert_eq!(bench.heard.take(), ["a:1"]);
    assert_eq!(bench.relay_leave(&["a"]), Changes::default());
    let changes = bench.registry.close_channel(&name);
    let mut gone = topics(&changes.unsubscribe);
    gone.sort();
    assert_eq!(gone, ["a", "asgispecific.a"]);
    let foreign = Member::Channel(name);
    assert!(matches!(bench.join(&foreign, &["a"]).1.now(), Err(LayerError::NotLocal(_))));
}

#[test]
fn a_sink_that_panics_does_not_end_the_reader() {
    struct Panics;
    impl RelaySink for Panics {
        fn deliver(&self, _batch: &mut Vec<Delivery>) {
            panic!("on purpose");
        }
    }
    let mut bench = Bench::new();
    let alive = Arc::new(());
    let (reply, _answer) = oneshot::channel();
    let new = NewRelay { sink: Arc::new(Panics), prefix: "p".to_owned(), alive: Arc::downgrade(&alive) };
    let (id, _) = bench.registry.open_relay(new, true, reply);
    let (_, _first) = bench.join(&Member::Relay(id), &["a"]);
    let (_, _second) = bench.relay_join(&["a"]);
    bench.message("a", "1");
    assert_eq!(bench.heard.take(), ["a:1"]);
}
