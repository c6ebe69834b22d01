//! The conversation alone: what is written, and what answers mean.

use super::*;

fn topics(names: &[&str]) -> Vec<Topic> {
    names.iter().map(|name| Topic::from(name.as_bytes())).collect()
}

/// What the session makes of one reply.
fn hear(session: &mut Session, reply: &str) -> Result<String, Broken> {
    let (reply, length) = wire::parse(reply.as_bytes()).unwrap().unwrap();
    assert!(length > 0);
    session.hear(reply).map(|heard| match heard {
        Heard::Message { topic, .. } => format!("message {}", String::from_utf8_lossy(topic)),
        Heard::PatternMessage { topic, .. } => format!("matched {}", String::from_utf8_lossy(topic)),
        Heard::Confirmed(topic) => format!("confirmed {}", String::from_utf8_lossy(&topic)),
        Heard::Moved(topic) => format!("moved {}", String::from_utf8_lossy(&topic)),
        Heard::Refused { topics, .. } => format!("refused {}", topics.len()),
        Heard::RelayConfirmed(id) => format!("relay {id}"),
        Heard::Restored => "restored".to_owned(),
        Heard::Nothing => String::new(),
    })
}

fn push(words: &[&str]) -> String {
    let words: Vec<&[u8]> = words.iter().map(|word| word.as_bytes()).collect();
    let mut out = Vec::new();
    wire::command(&mut out, words.into_iter());
    String::from_utf8(out).unwrap()
}

async fn written(session: &mut Session) -> String {
    let mut out = Vec::new();
    while session.has_output() {
        session.write(&mut out).await.unwrap();
    }
    String::from_utf8(out).unwrap()
}

#[tokio::test]
async fn plain_topics_share_a_command_and_sharded_ones_never_do() {
    let mut session = Session::default();
    session.subscribe(Kind::Plain, &topics(&["a", "b"]));
    session.subscribe(Kind::Sharded, &topics(&["c", "d"]));
    session.unsubscribe(Kind::Sharded, &topics(&["c"]));
    session.mark_restored();
    let expected = [
        push(&["SUBSCRIBE", "a", "b"]),
        push(&["SSUBSCRIBE", "c"]),
        push(&["SSUBSCRIBE", "d"]),
        push(&["SUNSUBSCRIBE", "c"]),
        push(&["PING"]),
    ];
    assert_eq!(written(&mut session).await, expected.concat());
    for (reply, means) in [
        (push(&["subscribe", "a", "1"]), "confirmed a"),
        (push(&["smessage", "x", "early"]), "message x"),
        (push(&["subscribe", "b", "2"]), "confirmed b"),
        (push(&["ssubscribe", "c", "1"]), "confirmed c"),
        (push(&["ssubscribe", "d", "2"]), "confirmed d"),
        (push(&["sunsubscribe", "c", "1"]), ""),
        (push(&["pong", ""]), "restored"),
    ] {
        assert_eq!(hear(&mut session, &reply).unwrap(), means);
    }
}

#[test]
fn a_subscription_that_ends_unasked_is_told_from_one_that_was_asked_to() {
    let mut session = Session::default();
    assert_eq!(hear(&mut session, &push(&["sunsubscribe", "a", "0"])).unwrap(), "moved a");
    session.unsubscribe(Kind::Sharded, &topics(&["b"]));
    assert_eq!(hear(&mut session, &push(&["sunsubscribe", "a", "0"])).unwrap(), "moved a");
    assert_eq!(hear(&mut session, &push(&["sunsubscribe", "b", "0"])).unwrap(), "");
    // Plain ones do not end by themselves.
    assert!(matches!(hear(&mut session, &push(&["unsubscribe", "b", "0"])), Err(Broken::OutOfStep(_))));
}

#[test]
fn a_refusal_belongs_to_the_oldest_question() {
    let mut session = Session::default();
    session.unsubscribe(Kind::Sharded, &topics(&["a"]));
    session.subscribe(Kind::Sharded, &topics(&["b"]));
    session.subscribe(Kind::Plain, &topics(&["c", "d"]));
    session.ping();
    assert_eq!(hear(&mut session, "-MOVED 1 h:1\r\n").unwrap(), "", "the slot is gone, and its subscription with it");
    assert_eq!(hear(&mut session, "-MOVED 1 h:1\r\n").unwrap(), "refused 1");
    assert_eq!(hear(&mut session, "-NOPERM no\r\n").unwrap(), "refused 2");
    assert!(matches!(hear(&mut session, "-LOADING\r\n"), Err(Broken::Refused(_))), "a PING is never refused in health");
}

#[test]
fn a_topic_left_and_joined_again_counts_with_its_last_confirmation() {
    let mut session = Session::default();
    session.subscribe(Kind::Sharded, &topics(&["a"]));
    session.unsubscribe(Kind::Sharded, &topics(&["a"]));
    session.subscribe(Kind::Sharded, &topics(&["a"]));
    assert_eq!(hear(&mut session, &push(&["ssubscribe", "a", "1"])).unwrap(), "");
    assert_eq!(hear(&mut session, &push(&["sunsubscribe", "a", "0"])).unwrap(), "");
    assert_eq!(hear(&mut session, &push(&["ssubscribe", "a", "1"])).unwrap(), "confirmed a");
}

#[tokio::test]
async fn one_that_reads_nothing_is_hopeless_but_a_long_beginning_is_not() {
    let mut session = Session::default();
    let many: Vec<Topic> = (0..1_000).map(|n| Topic::from(format!("{n:0>30000}").into_bytes())).collect();
    session.subscribe(Kind::Plain, &many);
    session.mark_restored();
    assert!(session.is_congested() && !session.is_hopeless());
    session.unsubscribe(Kind::Plain, &many);
    assert!(session.is_hopeless());
    assert!(!session.has_moved());
    written(&mut session).await;
    assert!(session.has_moved() && !session.is_congested() && !session.is_hopeless());
}
