//! The golden payloads of both Redis layers, and what the vectors cannot show.

use serde_json::Value as Json;
use sha2::{Digest, Sha256};

use super::{
    golden::{argument, bytes, event, hex, list, same, vectors},
    *,
};

fn codec(serializer: Serializer, keys: &[&str]) -> Codec {
    let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
    Codec::new(serializer, &keys).unwrap()
}

fn plain() -> Codec {
    codec(Serializer::MsgPack, &[])
}

fn texts(list: &Json) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

fn serializer(name: &Json) -> Serializer {
    match name.as_str().unwrap() {
        "msgpack" => Serializer::MsgPack,
        "json" => Serializer::Json,
        other => panic!("serializer {other}"),
    }
}

/// The bytes a client or a script of the vectors adds to a queue: key, score, member.
fn added(step: &Json) -> Vec<(&str, Vec<u8>)> {
    let commands = step["commands"].as_array().unwrap().iter().filter(|command| {
        let args = &command["args"];
        let key = args[1].as_str().unwrap_or_default();
        args[0] == "ZADD" && !key.ends_with("$inflight") && !key.contains(":group:")
    });
    commands.map(|command| (command["args"][1].as_str().unwrap(), argument(&command["args"][3]))).collect()
}

/// Every message of both core sections: read, its body made anew, and with its routing key written to
/// the same bytes. Where the step says what was sent, it is also that.
#[test]
fn messages_of_the_core_layer_are_written_byte_for_byte() {
    let vectors = vectors();
    let mut routed = [0, 0, 0];
    for section in ["core_one_host", "core_four_hosts"] {
        for step in list(&vectors, section) {
            for (key, member) in added(step) {
                let json = step["step"].as_str().unwrap().contains("json");
                let (serializer, prefix) = if json { (Serializer::Json, 4) } else { (Serializer::MsgPack, 12) };
                let codec = codec(serializer, &[]);
                let (prefix, payload) = member.split_at(prefix);
                assert!(prefix.iter().all(|byte| *byte == prefix[0]), "{step}");
                let (read, routing) = codec.decode_routed(payload, None).unwrap();
                if let Some(sent) = event(&step["message"]) {
                    assert!(same(&read, &sent), "{step}");
                }
                let named: Vec<&str> = match &routing {
                    Routing::None => Vec::new(),
                    Routing::One(name) => vec![name],
                    Routing::Many(names) => names.iter().map(|name| name.as_str()).collect(),
                };
                let (form, route) = match &routing {
                    Routing::None => (0, Route::None),
                    Routing::One(name) => (1, Route::One(name)),
                    Routing::Many(_) => (2, Route::Many(&named)),
                };
                routed[form] += 1;
                for name in &named {
                    let queue = crate::ChannelName::parse(name).unwrap();
                    assert!(key.ends_with(queue.non_local()), "{step}");
                }
                let body = codec.body(&read).unwrap();
                let mut ours = prefix.to_vec();
                codec.append_payload(&mut ours, &body, route, None).unwrap();
                assert_eq!(hex(&ours), hex(&member), "{step}");
            }
        }
    }
    assert_eq!(routed, [6, 2, 8], "without, with one, with a list");
}

#[test]
fn payloads_of_the_pubsub_layer_are_written_byte_for_byte() {
    let vectors = vectors();
    let (mut plain_ones, mut encrypted) = (0, 0);
    for section in ["pubsub_one_host", "pubsub_four_hosts"] {
        for step in list(&vectors, section) {
            for command in list(step, "commands").iter().filter(|command| command["args"][0] == "PUBLISH") {
                let payload = argument(&command["args"][2]);
                let name = step["step"].as_str().unwrap();
                let serializer = if name.contains("json") { Serializer::Json } else { Serializer::MsgPack };
                if name.contains("symmetric_encryption_keys") {
                    let codec = codec(serializer, &["a-test-key"]);
                    let read = codec.decode(&payload, None).unwrap();
                    assert_eq!(read.event_type(), Some("t"));
                    check_token(&codec, &read, &payload);
                    encrypted += 1;
                    continue;
                }
                let codec = codec(serializer, &[]);
                let read = codec.decode(&payload, None).unwrap();
                if let Some(sent) = event(&step["message"]) {
                    assert!(same(&read, &sent), "{step}");
                }
                assert_eq!(hex(&codec.encode(&read).unwrap()), hex(&payload), "{step}");
                assert_eq!(hex(&codec.encode_for_group(&read).unwrap()), hex(&payload), "{step}");
                plain_ones += 1;
            }
        }
    }
    assert_eq!((plain_ones, encrypted), (10, 2));
}

/// The frozen clock and the fixed random bytes of the vectors.
const NOW: u64 = 1_700_000_000;

fn iv(token: &[u8]) -> [u8; 16] {
    let raw = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE, token).unwrap();
    raw[9..25].try_into().unwrap()
}

/// The same time and IV make the same token.
fn check_token(codec: &Codec, event: &Event, token: &[u8]) {
    let body = codec.body(event).unwrap();
    let mut ours = Vec::new();
    let keys = codec.keys().unwrap();
    keys.seal(&mut ours, NOW, iv(token), 0, |raw| body.write(raw, Route::None)).unwrap();
    assert_eq!(String::from_utf8_lossy(&ours), String::from_utf8_lossy(token));
}

#[test]
fn tokens_are_written_and_read_byte_for_byte() {
    let vectors = vectors();
    let cases = list(&vectors, "fernet.tokens");
    assert_eq!(cases.len(), 8);
    for case in cases {
        let codec = codec(serializer(&case["serializer"]), &texts(&case["configured_keys"]));
        let member = bytes(case["member_hex"].as_str().unwrap());
        let prefix = bytes(case["random_prefix_hex"].as_str().unwrap());
        let token = member.strip_prefix(&prefix[..]).unwrap();
        assert_eq!(token, case["token_ascii"].as_str().unwrap().as_bytes());
        assert_eq!(case["timestamp"].as_u64().unwrap(), NOW);
        let sent = event(&case["message"]).unwrap();
        // Without an age limit, as the core layer's tokens are years old by now.
        assert!(same(&codec.decode(token, None).unwrap(), &sent), "{case}");
        let opened = codec.keys().unwrap().open(token, None, |plain| Ok(plain.to_vec())).unwrap();
        assert_eq!(hex(&opened), case["plaintext_hex"].as_str().unwrap());
        check_token(&codec, &sent, token);
        // Only the first key writes.
        let only = [case["encrypts_with"].as_str().unwrap()];
        check_token(&self::codec(serializer(&case["serializer"]), &only), &sent, token);
    }
}

#[test]
fn keys_are_derived_as_in_python() {
    let vectors = vectors();
    let cases = list(&vectors, "fernet.key_derivation");
    assert_eq!(cases.len(), 4);
    for case in cases {
        let key = case["configured_key"].as_str().unwrap();
        let digest = hex(&Sha256::digest(key.as_bytes()));
        assert_eq!(digest, case["sha256_hex"].as_str().unwrap());
        let halves = [&case["hmac_sha256_key_hex"], &case["aes128_cbc_key_hex"]].map(|half| half.as_str().unwrap());
        assert_eq!(digest, halves.concat());
        // And with these halves a token is signed and encrypted, by the plain rules of the format.
        let token = codec(Serializer::Json, &[key]).encode(&Event::new("t")).unwrap();
        let raw = base64::Engine::decode(&base64::engine::general_purpose::URL_SAFE, &token).unwrap();
        let (signed, mac) = raw.split_last_chunk::<32>().unwrap();
        let mut hmac = <hmac::Hmac<Sha256> as hmac::KeyInit>::new_from_slice(&bytes(halves[0])).unwrap();
        hmac::Mac::update(&mut hmac, signed);
        assert_eq!(mac[..], hmac::Mac::finalize(hmac).into_bytes()[..]);
        let mut text = signed[25..].to_vec();
        let cipher =
            <cbc::Decryptor<aes::Aes128> as aes::cipher::KeyIvInit>::new_from_slices(&bytes(halves[1]), &signed[9..25]);
        let text = aes::cipher::BlockModeDecrypt::decrypt_padded::<aes::cipher::block_padding::Pkcs7>(
            cipher.unwrap(),
            &mut text,
        );
        assert_eq!(text.unwrap(), br#"{"type": "t"}"#);
    }
}

#[test]
fn ages_are_limited_as_in_python() {
    let vectors = vectors();
    let cases = list(&vectors, "fernet.age_limits");
    assert_eq!(cases.len(), 8);
    let token = list(&vectors, "fernet.tokens")[0]["token_ascii"].as_str().unwrap();
    let codec = codec(Serializer::MsgPack, &["a-test-key"]);
    for case in cases {
        let now = NOW.checked_add_signed(case["reader_clock_minus_token_timestamp"].as_i64().unwrap()).unwrap();
        let age = case["expiry"].as_u64().map(|expiry| AgeLimit { now, max_age: expiry + 10 });
        let error = codec.decode(token.as_bytes(), age).err();
        assert_eq!(error, case["error"].as_str().map(|_| EventError::WrongAge), "{case}");
    }
}

fn keys(serializer: Serializer) -> [Codec; 3] {
    [codec(serializer, &["old"]), codec(serializer, &["old", "new"]), codec(serializer, &["new", "old"])]
}

#[test]
fn keys_are_changed_without_losing_a_message() {
    let event = Event::new("t").with("text", "é");
    for serializer in [Serializer::MsgPack, Serializer::Json] {
        let [old, both, new] = keys(serializer);
        for (writer, reader) in [(&old, &both), (&both, &old), (&both, &new), (&new, &both), (&new, &new)] {
            assert_eq!(reader.decode(&writer.encode(&event).unwrap(), None).unwrap(), event);
        }
        assert_eq!(old.decode(&new.encode(&event).unwrap(), None), Err(EventError::WrongKey));
    }
}

#[test]
fn plain_text_where_a_token_is_expected_is_refused_and_the_reverse() {
    let event = Event::new("t");
    for serializer in [Serializer::MsgPack, Serializer::Json] {
        let (open, sealed) = (codec(serializer, &[]), codec(serializer, &["key"]));
        assert_eq!(sealed.decode(&open.encode(&event).unwrap(), None), Err(EventError::WrongKey));
        assert!(open.decode(&sealed.encode(&event).unwrap(), None).is_err());
    }
}

#[test]
fn a_changed_token_is_refused_wherever_it_is_changed() {
    let codec = codec(Serializer::MsgPack, &["key"]);
    let token = codec.encode(&Event::new("t")).unwrap();
    for at in 0..token.len() {
        let mut changed = token.clone();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        assert_eq!(codec.decode(&changed, None), Err(EventError::WrongKey), "{at}");
        assert_eq!(codec.decode(&token[..at], None), Err(EventError::WrongKey), "{at}");
    }
}

#[test]
fn two_tokens_of_an_event_differ() {
    let codec = codec(Serializer::MsgPack, &["key"]);
    let event = Event::new("t");
    assert_ne!(codec.encode(&event).unwrap(), codec.encode(&event).unwrap());
}

#[test]
fn a_time_at_the_end_of_all_times_is_no_accident() {
    let codec = codec(Serializer::MsgPack, &["key"]);
    let body = codec.body(&Event::new("t")).unwrap();
    let mut token = Vec::new();
    codec.append_payload(&mut token, &body, Route::None, Some(u64::MAX)).unwrap();
    assert_eq!(codec.decode(&token, Some(AgeLimit { now: NOW, max_age: 70 })), Err(EventError::WrongAge));
    assert!(codec.decode(&token, Some(AgeLimit { now: u64::MAX, max_age: u64::MAX })).is_ok());
    assert!(codec.decode(&token, None).is_ok());
}

#[test]
fn an_empty_key_is_a_mistake_of_configuration() {
    for texts in [&[""][..], &["key", ""]] {
        let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
        assert!(matches!(Codec::new(Serializer::MsgPack, &texts), Err(LayerError::Config(_))));
    }
}

#[test]
fn keys_are_not_shown() {
    let shown = format!("{:?}", codec(Serializer::MsgPack, &["secret"]));
    assert_eq!(shown, "Codec { serializer: MsgPack, encrypted: true }");
}

#[test]
fn the_reserved_key_is_refused_by_send_and_left_out_for_groups() {
    let event = Event::new("t").with(RESERVED_KEY, "elsewhere").with("n", 1);
    let without = Event::new("t").with("n", 1);
    for serializer in [Serializer::MsgPack, Serializer::Json] {
        for codec in [codec(serializer, &[]), codec(serializer, &["key"])] {
            assert_eq!(codec.encode(&event), Err(EventError::ReservedKey));
            assert_eq!(codec.decode(&codec.encode_for_group(&event).unwrap(), None).unwrap(), without);
            let payload = codec.payload(&codec.body(&event).unwrap(), Route::Many(&["a", "b!c"])).unwrap();
            let routing = Routing::Many(vec!["a".into(), "b!c".into()]);
            assert_eq!(codec.decode_routed(&payload, None).unwrap(), (without.clone(), routing));
        }
    }
}

#[test]
fn an_event_without_keys_is_routed_too() {
    for (serializer, one) in [
        (Serializer::MsgPack, &b"\x81\xb0__asgi_channel__\xa1a"[..]),
        (Serializer::Json, br#"{"__asgi_channel__": "a"}"#),
    ] {
        let codec = codec(serializer, &[]);
        let body = codec.body(&Event::default()).unwrap();
        assert_eq!(codec.payload(&body, Route::One("a")).unwrap(), one);
        assert_eq!(codec.payload(&body, Route::None).unwrap(), codec.encode(&Event::default()).unwrap());
        let (event, routing) = codec.decode_routed(&codec.payload(&body, Route::Many(&[])).unwrap(), None).unwrap();
        assert_eq!((event, routing), (Event::default(), Routing::Many(Vec::new())));
    }
}

#[test]
fn routing_that_names_no_channel_is_none() {
    let codec = plain();
    let read = |value: Value| {
        let payload = Event::new("t").with(RESERVED_KEY, value).to_msgpack().unwrap();
        codec.decode_routed(&payload, None).unwrap().1
    };
    for value in [Value::Null, 5.into(), vec![0_u8].into(), Value::Map(Vec::new())] {
        assert_eq!(read(value), Routing::None);
    }
    assert_eq!(read(vec![Value::from("a"), 5.into(), "b".into()].into()), Routing::Many(vec!["a".into(), "b".into()]));
}

/// Maps of 15 and 65,535 keys change their head when one is added.
#[test]
fn a_map_at_the_border_of_its_head_gets_the_next_one() {
    for count in [14, 15, 16, 65_534, 65_535] {
        let entries = (0..count).map(|n| (n.to_string().into(), Value::Null)).collect();
        let event = Event::try_from(Value::Map(entries)).unwrap();
        let routed = Event::try_from(Value::Map(
            event
                .iter()
                .map(|(key, value)| (key.into(), value.clone()))
                .chain([(RESERVED_KEY.into(), Value::from("a"))])
                .collect(),
        ));
        let payload = plain().payload(&plain().body(&event).unwrap(), Route::One("a")).unwrap();
        assert!(payload == routed.unwrap().to_msgpack().unwrap(), "{count}");
    }
}
