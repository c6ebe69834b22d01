use super::*;
use persistence::Secrets;

const HOUR: Duration = Duration::from_secs(3600);

fn secrets(current: u8, previous: Option<u8>, age: Duration) -> Secrets {
    let secret = |byte| Secret::from([byte; 32]);
    Secrets { current: secret(current), previous: previous.map(secret), age, now: 1_800_000_000 }
}

fn keys(current: u8, previous: Option<u8>, age: Duration) -> Keys {
    Keys::of(&secrets(current, previous, age))
}

fn chat() -> Event {
    Event::new(EventType::ChatMessage.as_str())
        .with("message", "hi")
        .with("group_name", "lobby")
        .with("seq", 7)
        .with("epoch", 3)
}

fn seals() -> Seals {
    Seals::new(&secrets(1, None, HOUR), &Arc::new(Metrics::new()))
}

#[test]
fn a_seal_is_of_one_event_for_one_group_with_one_key() {
    let keys = keys(1, None, HOUR);
    let sealed = keys.seal(chat(), "chat_lobby");
    assert!(keys.check(&sealed, "chat_lobby").is_ok());
    assert_eq!(sealed.text(SEAL).map(str::len), Some(SEAL_TEXT));
    assert_eq!(keys.check(&sealed, "chat_other"), Err(Flaw::Wrong));
    assert_eq!(keys.check(&chat(), "chat_lobby"), Err(Flaw::Unsealed));
    for (key, _) in chat().iter() {
        assert_eq!(keys.check(&sealed.clone().with(key, "x"), "chat_lobby"), Err(Flaw::Wrong), "{key}");
        let mut less = sealed.clone();
        less.remove(key);
        assert_eq!(keys.check(&less, "chat_lobby"), Err(Flaw::Wrong), "without {key}");
    }
    assert_eq!(keys.check(&sealed.clone().with("data", "x"), "chat_lobby"), Err(Flaw::Wrong), "one field more");
    assert_eq!(keys.check(&sealed.with(SEAL, "!".repeat(SEAL_TEXT)), "chat_lobby"), Err(Flaw::Unsealed));
}

#[test]
fn both_serializers_leave_a_seal_as_it_is() {
    let keys = keys(1, None, HOUR);
    let event =
        chat().with("message", "h\u{e9} \u{1F600} \\ \" \u{0} \u{7f}").with("ids", Value::List(vec!["a".into()]));
    let sealed = keys.seal(event.with("unseen", u64::MAX).with("back", true), "chat_lobby");
    for read in [
        Event::from_json(&sealed.to_json().unwrap()).unwrap(),
        Event::from_msgpack(&sealed.to_msgpack().unwrap()).unwrap(),
    ] {
        assert!(keys.check(&read, "chat_lobby").is_ok());
    }
}

#[test]
fn the_hash_is_siphash_2_4_of_the_bytes() {
    // As `openssl mac -macopt hexkey:KEY -macopt size:8 -in BYTES siphash` says.
    let sealing = keys(1, None, HOUR).sealing;
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let key = [sealing.halves.0.to_le_bytes(), sealing.halves.1.to_le_bytes()].concat();
    assert_eq!(hex(&key), "6e5e2fe0512182448996dc4664a5a480");
    let mut bytes = Vec::new();
    content::write(&chat(), "chat_lobby", SEAL, |piece| bytes.extend_from_slice(piece));
    assert_eq!(
        hex(&bytes),
        "0a636861745f6c6f6262790474797065740c636861745f6d657373616765076d657373616765740268690a67726f75705f6e616d65\
         74056c6f626279037365716907000000000000000565706f6368690300000000000000"
    );
    assert_eq!(hex(&sealing.hash(&chat(), "chat_lobby")), "3ca3a3280840e651");
}

#[test]
fn a_new_secret_is_valid_at_once_and_used_once_all_know_it() {
    let (before, fresh) = (keys(1, None, HOUR), keys(2, Some(1), Duration::from_secs(5)));
    let (settled, next) = (keys(2, Some(1), HOUR), keys(3, Some(2), HOUR));
    let by = |keys: &Keys| keys.seal(chat(), "g");
    for (sealed, valid) in [
        (by(&before), [true, true, true, false]),
        (by(&fresh), [true, true, true, false]),
        (by(&settled), [false, true, true, true]),
        (by(&next), [false, false, false, true]),
    ] {
        assert_eq!([&before, &fresh, &settled, &next].map(|keys| keys.check(&sealed, "g").is_ok()), valid);
    }
    assert_eq!(before.check(&by(&settled), "g"), Err(Flaw::UnknownKey));
    assert!(fresh.are(&settled) && !settled.are(&next) && !fresh.are(&before));
}

#[test]
fn a_word_is_heard_once_and_only_while_it_is_fresh() {
    let seals = seals();
    let keys = seals.keys();
    let hears = |word: &Event| seals.hears(&keys, "gateway_seen", word, "alice", false);
    let word = seals.word(Event::new(EventType::Seen.as_str()), "alice");
    assert!(hears(&word) && !hears(&word));
    assert!(hears(&seals.word(Event::new(EventType::Seen.as_str()), "alice")), "the same said again");
    let at = |seconds: i64| keys.seal(Event::new(EventType::Seen.as_str()).with(AT, keys.clock() + seconds), "alice");
    assert!(hears(&at(-FRESH + 5)) && hears(&at(AHEAD - 5)));
    assert!(!hears(&at(-FRESH - 5)) && !hears(&at(AHEAD + 5)) && !hears(&at(i64::MIN / 2)));
    assert!(!hears(&keys.seal(Event::new(EventType::Seen.as_str()), "alice")), "without a time");
    let typing = seals.word(Event::new(EventType::Typing.as_str()), "g");
    assert!((0..2).all(|_| seals.believe(&keys, Arc::new(typing.clone()), "g").is_some()));
}

#[test]
fn only_what_says_more_than_anybody_may_say_is_looked_at() {
    let seals = seals();
    let keys = seals.keys();
    let believed = |event: Event| seals.believe(&keys, Arc::new(event), "chat_lobby");
    let plain = Event::new("chat.message").with("message", "hi").with("seq", 5);
    assert_eq!(believed(plain.clone()).as_deref(), Some(&plain), "no epoch: no place");
    let own = Event::new("game.move").with("seq", 5).with("epoch", 3);
    assert_eq!(believed(own.clone()).as_deref(), Some(&own), "a site's own type");
    let sealed = keys.seal(chat(), "chat_lobby");
    assert_eq!(believed(sealed.clone()).as_deref(), Some(&sealed));
    let forged = believed(chat().with("type", "chat.message")).unwrap();
    assert!(events::position(&forged).is_none() && forged.text("message") == Some("hi"));
    for kind in EventType::ALL {
        let is_word = matches!(kind.trust(), Trust::Once | Trust::Often);
        assert_eq!(believed(Event::new(kind.as_str())).is_none(), is_word, "{kind:?}");
        assert_eq!(believed(Event::new(&kind.as_str().replacen('_', ".", 1))).is_none(), is_word, "{kind:?}");
    }
}
