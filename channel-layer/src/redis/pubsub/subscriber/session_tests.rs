//! The conversation alone: what is asked, and what answers mean.

use super::*;
use crate::redis::answer::error;

fn topics(names: &[&str]) -> Vec<Topic> {
    names.iter().map(|name| Topic::from(name.as_bytes())).collect()
}

fn push(kind: PushKind, words: &[&str]) -> PushInfo {
    PushInfo { kind, data: words.iter().map(|word| Value::BulkString(word.as_bytes().to_vec())).collect() }
}

fn confirmed(kind: PushKind, topic: &str) -> Value {
    let PushInfo { kind, mut data } = push(kind, &[topic]);
    data.push(Value::Int(1));
    Value::Push { kind, data }
}

fn pong() -> Value {
    Value::SimpleString("PONG".into())
}

fn text(heard: Heard) -> String {
    match heard {
        Heard::Message { topic, .. } => format!("message {}", String::from_utf8_lossy(&topic)),
        Heard::PatternMessage { topic, .. } => format!("matched {}", String::from_utf8_lossy(&topic)),
        Heard::Confirmed(topic) => format!("confirmed {}", String::from_utf8_lossy(&topic)),
        Heard::Moved(topic) => format!("moved {}", String::from_utf8_lossy(&topic)),
        Heard::Refused { topic, .. } => format!("refused {}", String::from_utf8_lossy(&topic)),
        Heard::RelayConfirmed(id) => format!("relay {id}"),
        Heard::Restored => "restored".to_owned(),
        Heard::Nothing => String::new(),
    }
}

/// What is asked next, as words.
fn asked(session: &mut Session) -> Vec<String> {
    let pipeline = match session.take() {
        None => return Vec::new(),
        Some(Question::Each(pipeline)) => pipeline,
        Some(Question::Subscribe(topics)) => {
            let topics: Vec<_> = topics.iter().map(|topic| String::from_utf8_lossy(topic)).collect();
            return vec![format!("SUBSCRIBE {}", topics.join(" "))];
        }
    };
    let word = |word| match word {
        redis::Arg::Simple(word) => String::from_utf8_lossy(word).into_owned(),
        _ => panic!(),
    };
    pipeline.cmd_iter().map(|command| command.args_iter().map(word).collect::<Vec<_>>().join(" ")).collect()
}

fn answered(session: &mut Session, answers: Vec<Value>) -> Result<Vec<String>, Broken> {
    all_answered(session, Answers::Each(answers))
}

fn all_answered(session: &mut Session, answers: Answers) -> Result<Vec<String>, Broken> {
    Ok(session.answered(answers)?.into_iter().map(text).collect())
}

#[test]
fn what_is_wanted_goes_in_order_one_pipeline_after_the_other() {
    let mut session = Session::default();
    session.subscribe(Kind::Plain, &topics(&["a", "b"]));
    session.psubscribe(7, b"p*");
    session.unsubscribe(Kind::Sharded, &topics(&["c"]));
    session.mark_restored();
    assert_eq!(asked(&mut session), ["SUBSCRIBE a b"], "they share a command, and sharded ones never do");
    assert_eq!(all_answered(&mut session, Answers::Subscribed).unwrap(), ["confirmed a", "confirmed b"]);
    assert_eq!(asked(&mut session), ["PSUBSCRIBE p*", "SUNSUBSCRIBE c", "PING"]);
    session.subscribe(Kind::Sharded, &topics(&["d", "e"]));
    let answers = vec![confirmed(PushKind::PSubscribe, "p*"), confirmed(PushKind::SUnsubscribe, "c"), pong()];
    assert_eq!(answered(&mut session, answers).unwrap(), ["relay 7", "", "restored"]);
    assert_eq!(asked(&mut session), ["SSUBSCRIBE d", "SSUBSCRIBE e"]);
    let answers = ["d", "e"].map(|topic| confirmed(PushKind::SSubscribe, topic));
    assert_eq!(answered(&mut session, answers.into()).unwrap(), ["confirmed d", "confirmed e"]);
    assert!(asked(&mut session).is_empty());
}

#[test]
fn a_subscription_that_ends_unasked_is_told_from_one_that_was_asked_to() {
    let mut session = Session::default();
    let ends = |session: &Session, topic| text(session.hear(push(PushKind::SUnsubscribe, &[topic])));
    assert_eq!(ends(&session, "a"), "moved a");
    session.unsubscribe(Kind::Sharded, &topics(&["b"]));
    assert_eq!((ends(&session, "a"), ends(&session, "b")), ("moved a".into(), String::new()));
    asked(&mut session);
    assert_eq!(answered(&mut session, vec![confirmed(PushKind::SUnsubscribe, "b")]).unwrap(), [""]);
    assert_eq!(ends(&session, "b"), "moved b");
}

#[test]
fn an_end_that_is_taken_for_an_answer_ends_the_connection() {
    let mut session = Session::default();
    session.subscribe(Kind::Sharded, &topics(&["a"]));
    asked(&mut session);
    let wrong = vec![confirmed(PushKind::SUnsubscribe, "b")];
    assert!(matches!(answered(&mut session, wrong), Err(Broken::OutOfStep(_))));
    assert!(matches!(answered(&mut session, vec![pong()]), Err(Broken::OutOfStep(_))), "nothing was asked");
}

#[test]
fn a_refusal_belongs_to_its_question() {
    let mut session = Session::default();
    session.unsubscribe(Kind::Sharded, &topics(&["a"]));
    session.subscribe(Kind::Sharded, &topics(&["b"]));
    session.subscribe(Kind::Plain, &topics(&["c", "d"]));
    asked(&mut session);
    let answers = vec![error("MOVED 1 h:1"), error("MOVED 1 h:1")];
    assert_eq!(answered(&mut session, answers).unwrap(), ["", "refused b"], "with a slot its subscriptions go");
    asked(&mut session);
    let refused = all_answered(&mut session, Answers::Refused("NOPERM no".into()));
    assert_eq!(refused.unwrap(), ["refused c", "refused d"]);
    session.ping();
    asked(&mut session);
    let refused = answered(&mut session, vec![error("LOADING")]);
    assert!(matches!(refused, Err(Broken::Refused(_))), "a PING is never refused in health");
}

#[test]
fn a_topic_left_and_joined_again_counts_with_its_last_confirmation() {
    let mut session = Session::default();
    session.subscribe(Kind::Sharded, &topics(&["a"]));
    session.unsubscribe(Kind::Sharded, &topics(&["a"]));
    session.subscribe(Kind::Sharded, &topics(&["a"]));
    asked(&mut session);
    let kinds = [PushKind::SSubscribe, PushKind::SUnsubscribe, PushKind::SSubscribe];
    let answers = kinds.into_iter().map(|kind| confirmed(kind, "a")).collect();
    assert_eq!(answered(&mut session, answers).unwrap(), ["", "", "confirmed a"]);
}

#[test]
fn one_that_reads_nothing_is_hopeless_but_a_long_beginning_is_not() {
    let mut session = Session::default();
    let many: Vec<Topic> = (0..HOPELESS + 1).map(|n| Topic::from(n.to_string().into_bytes())).collect();
    session.subscribe(Kind::Plain, &many);
    session.mark_restored();
    assert!(session.is_congested() && !session.is_hopeless());
    session.unsubscribe(Kind::Plain, &many);
    assert!(session.is_hopeless());
}
