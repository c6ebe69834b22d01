//! `POST /api/events`: durable publishing, answered after the commit.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use std::sync::Arc;

use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use persistence::{AppendError, Appended, ChangeKind, Refused};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use time::OffsetDateTime;
use uuid::Uuid;

use super::{Call, Problem, lenient, not_json, object, share};
use crate::events::rfc3339;
use crate::node::Node;
use crate::publish::changes;
use crate::publish::envelope::{self, Delivery, Envelope, Failed, Item, Outcome, PIECE, Unusable, What};
use crate::storing::writer::{MOST_TOGETHER, TogetherError, Trace, WriteError};
use crate::traces::{Parent, is_traceparent};

/// Envelopes of one call.
const MAX_ENVELOPES: usize = 1000;

/// Recipients of all envelopes of a call together.
const MAX_RECIPIENTS: usize = 50_000;

/// What a result takes, with what is noted for it before.
const RESULT: usize = 400;

/// Events that are sent at once.
const AT_ONCE: usize = 64;

/// The source of who names none.
const SOURCE: &str = "api";

impl From<Unusable> for Problem {
    fn from(unusable: Unusable) -> Self {
        match unusable.reason {
            "no_room" => Self::no_room(),
            "too_large" => Self::too_large(unusable.detail),
            _ => Self::bad(unusable.detail),
        }
    }
}

impl From<AppendError> for Problem {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::KeyReused => {
                Self::new(StatusCode::UNPROCESSABLE_ENTITY, "this id was used before with other content")
            }
            AppendError::RoomNotFound => Self::no_room(),
            error => Self::bad(error.to_string()),
        }
    }
}

impl From<Failed> for Problem {
    fn from(failed: Failed) -> Self {
        match failed {
            Failed::Unusable(unusable) => unusable.into(),
            Failed::Unavailable(detail) => Self::unavailable(detail),
            Failed::NotStored => Self::unavailable("the database refused the request"),
        }
    }
}

/// What is published: one envelope, or a list.
struct Published {
    deliveries: Vec<Delivery>,
    is_list: bool,
}

/// The envelopes of a list, not looked into.
struct List<'a>(Vec<&'a RawValue>);

/// An item, and the envelope it is from.
type Placed = (Option<usize>, Item);

/// Everything is looked at before anything is stored; what is stored then is stored in parts, each as a whole.
pub(super) async fn publish(call: &Call, node: &Arc<Node>) -> Result<String, Problem> {
    let mut published = Published::read(call, node.clock.database(), node.config.limits.data_bytes)?;
    let given = || Parent::of(&call.headers).traceparent.filter(|trace| is_traceparent(trace)).map(Into::into);
    // Of a trace that is not kept here, as it came.
    let trace: Trace = call.span.traceparent().or_else(given);
    published.deliveries.iter_mut().for_each(|delivery| delivery.set_traceparent(&trace));
    if published.deliveries.iter().any(|delivery| delivery.change().is_some()) {
        let now = changes::now(node).await;
        published.deliveries.iter_mut().for_each(|delivery| delivery.set_time(now));
    }
    let _share = share(node, &node.publishing, published.bytes()).await?;
    check(node, &published).await?;
    let mut results = String::from(r#"{"results":["#);
    // Only as many as are stored together are spelled out: one text may go to a thousand recipients.
    let (mut part, mut bytes) = (Vec::new(), 0);
    for (place, delivery) in published.placed() {
        for index in 0..delivery.recipients() {
            if part.len() == MOST_TOGETHER || (bytes > 0 && bytes + delivery.bytes_each() > PIECE) {
                store(node, std::mem::take(&mut part), &mut results).await?;
                bytes = 0;
            }
            let item = delivery.item(node, index).map_err(|unusable| Problem::from(unusable).in_envelope(place))?;
            if matches!(item.what, What::Change(_)) {
                // In its turn: what comes behind it may need it.
                store(node, std::mem::take(&mut part), &mut results).await?;
                store(node, vec![(place, item)], &mut results).await?;
                bytes = 0;
                continue;
            }
            part.push((place, item));
            bytes += delivery.bytes_each();
        }
    }
    store(node, part, &mut results).await?;
    results.push_str("]}");
    Ok(results)
}

impl<'de: 'a, 'a> Deserialize<'de> for List<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Envelopes;
        impl<'de> Visitor<'de> for Envelopes {
            type Value = Vec<&'de RawValue>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a list of envelopes")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
                let mut envelopes = Vec::new();
                while let Some(envelope) = list.next_element()? {
                    // However many follow, no more are read.
                    if envelopes.len() == MAX_ENVELOPES {
                        return Err(A::Error::custom(format!("at most {MAX_ENVELOPES} envelopes")));
                    }
                    envelopes.push(envelope);
                }
                Ok(envelopes)
            }
        }
        deserializer.deserialize_seq(Envelopes).map(List)
    }
}

impl Published {
    fn read(call: &Call, now: OffsetDateTime, data_bytes: usize) -> Result<Self, Problem> {
        let key = idempotency_key(&call.headers)?.unwrap_or_else(|| Uuid::now_v7().to_string());
        lenient(call.text()?, |body| Self::of(body, &key, now, data_bytes))
    }

    fn of(body: &str, key: &str, now: OffsetDateTime, data_bytes: usize) -> Result<Self, Problem> {
        let body = body.trim_start();
        let is_list = body.starts_with('[');
        let malformed = |error: serde_json::Error| match error.classify() {
            Category::Data => Problem::bad(error.to_string()),
            _ => not_json(),
        };
        let envelopes = match is_list {
            true => serde_json::from_str::<List<'_>>(body).map_err(malformed)?.0,
            false => vec![serde_json::from_str(body).map_err(malformed)?],
        };
        let (mut deliveries, mut recipients) = (Vec::with_capacity(envelopes.len()), 0);
        for (index, json) in envelopes.into_iter().enumerate() {
            let place = is_list.then_some(index);
            let envelope: Result<Envelope<'_>, Problem> = object("the envelope", json.get());
            let mut envelope = envelope.map_err(|problem| problem.in_envelope(place))?;
            envelope.id.get_or_insert_with(|| match is_list {
                // One key for many envelopes: each has its place in the list as a part of its identity.
                true => format!("{key}/{index}"),
                false => key.to_owned(),
            });
            let delivery = envelope.delivery(SOURCE, now, data_bytes);
            let delivery = delivery.map_err(|unusable| Problem::from(unusable).in_envelope(place))?;
            recipients += delivery.recipients();
            if recipients > MAX_RECIPIENTS {
                let detail = format!("at most {MAX_RECIPIENTS} recipients in all");
                return Err(Problem::too_large(detail).in_envelope(place));
            }
            deliveries.push(delivery);
        }
        Ok(Self { deliveries, is_list })
    }

    fn placed(&self) -> impl Iterator<Item = (Option<usize>, &Delivery)> {
        self.deliveries.iter().enumerate().map(|(index, delivery)| (self.is_list.then_some(index), delivery))
    }

    /// What it takes until it is answered, beside the body and what was made of it here.
    fn bytes(&self) -> usize {
        let all = self.deliveries.iter().map(|delivery| delivery.recipients() * delivery.bytes_each()).sum::<usize>();
        let recipients = self.deliveries.iter().map(Delivery::recipients).sum::<usize>();
        all.min(PIECE) + recipients * RESULT
    }
}

/// The header's text: bare, as most clients send it, or in quotes, as the draft standard has it.
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, Problem> {
    let mut given = headers.get_all("idempotency-key").iter();
    let Some(key) = given.next() else { return Ok(None) };
    if given.next().is_some() {
        return Err(Problem::bad("there is more than one Idempotency-Key"));
    }
    let key = key.to_str().map_err(|_| Problem::bad("the Idempotency-Key must be ASCII text"))?.trim();
    let key = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
    if key.is_empty() { Err(Problem::bad("the Idempotency-Key is empty")) } else { Ok(Some(key.to_owned())) }
}

/// Finds what is wrong with all of it together.
async fn check(node: &Node, published: &Published) -> Result<(), Problem> {
    let mut rooms: HashMap<&str, Option<usize>> = HashMap::new();
    let mut made: HashSet<&str> = HashSet::new();
    let mut contents: HashMap<[u8; 32], [u8; 32]> = HashMap::new();
    for (place, delivery) in published.placed() {
        let content = match (delivery.content(), delivery.change()) {
            (Some(content), _) => digest(content),
            (None, Some(change)) => digest([&format!("{change:?}")]),
            (None, None) => continue,
        };
        let [source, id] = delivery.identity();
        for to in delivery.names() {
            if let Some(room) = envelope::room_of(to) {
                if matches!(delivery.change(), Some(ChangeKind::Is(_))) {
                    made.insert(room);
                } else if !made.contains(room) {
                    rooms.entry(room).or_insert(place);
                }
            }
            // The recipients of one envelope get the same.
            if !published.is_list {
                continue;
            }
            match contents.entry(digest([source, id, to])) {
                Entry::Occupied(known) if *known.get() != content => {
                    return Err(Problem::from(AppendError::KeyReused).in_envelope(place));
                }
                Entry::Occupied(_) => {}
                Entry::Vacant(free) => drop(free.insert(content)),
            }
        }
    }
    if !rooms.is_empty() {
        let names: Vec<String> = rooms.keys().map(|room| (*room).to_owned()).collect();
        let known = node.store.room_heads(&names).await?;
        let missing = rooms.iter().filter(|(room, _)| !known.contains_key(**room)).map(|(_, place)| *place).min();
        if let Some(place) = missing {
            return Err(Problem::no_room().in_envelope(place));
        }
    }
    Ok(())
}

/// Of what makes a repeat, and of what must be the same in a repeat.
fn digest<const PARTS: usize>(parts: [&str; PARTS]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    hash.finalize().into()
}

/// Stores what is to be stored, all or nothing, then sends what is to be sent. The results go behind those before.
async fn store(node: &Node, items: Vec<Placed>, answer: &mut String) -> Result<(), Problem> {
    if items.is_empty() {
        return Ok(());
    }
    let (mut appends, mut traces, mut places) = (Vec::new(), Vec::new(), Vec::new());
    let mut rest = Vec::new();
    let mut results: Vec<Value> = items.iter().map(|(_, item)| json!({"to": item.to})).collect();
    for (index, (place, item)) in items.into_iter().enumerate() {
        match item.what {
            What::Store(append, trace) => {
                appends.push(append);
                traces.push(trace);
                places.push((index, place));
            }
            other => rest.push((index, place, other)),
        }
    }
    let parts = node.traces.begin_parts("store", &mut traces);
    let stored = match appends.len() {
        // Into the transaction of others that come at the same time.
        1 => node.writer.write(appends.remove(0), traces.remove(0)).await.map(|stored| vec![stored]).map_err(|error| {
            match error {
                WriteError::Refused(error) => TogetherError::Refused(Refused { index: 0, error }),
                WriteError::Unavailable | WriteError::Failed => TogetherError::Unavailable,
            }
        }),
        _ => node.writer.write_whole(appends, traces).await,
    };
    drop(parts);
    let stored = stored.map_err(|error| match error {
        TogetherError::Refused(Refused { index, error }) => {
            Problem::from(error).in_envelope(places.get(index).and_then(|(_, place)| *place))
        }
        TogetherError::Unavailable => Problem::unavailable("the database is unavailable"),
    })?;
    for ((index, _), stored) in places.into_iter().zip(stored) {
        fill(&mut results[index], &stored);
    }
    let mut sent = futures_util::stream::iter(rest)
        .map(|(index, place, what)| async move { (index, place, envelope::run(node, what).await) })
        .buffered(AT_ONCE);
    while let Some((index, place, outcome)) = sent.next().await {
        match outcome {
            Ok(Outcome::Expired) => results[index]["expired"] = json!(true),
            Ok(Outcome::Changed(changed)) => {
                results[index]["date"] = json!(rfc3339(changed.date));
                results[index]["repeated"] = json!(changed.repeated);
            }
            Ok(Outcome::Reused) => return Err(Problem::from(AppendError::KeyReused).in_envelope(place)),
            Ok(Outcome::Sent | Outcome::Stored(_)) => {}
            Err(failed) => return Err(Problem::from(failed).in_envelope(place)),
        }
    }
    for result in results {
        if !answer.ends_with('[') {
            answer.push(',');
        }
        // Writing to a string does not fail.
        let _ = write!(answer, "{result}");
    }
    Ok(())
}

fn fill(result: &mut Value, stored: &Appended) {
    result["id"] = json!(stored.id.to_string());
    result["seq"] = json!(stored.seq);
    result["date"] = json!(rfc3339(stored.date));
    result["repeated"] = json!(stored.repeated);
}
