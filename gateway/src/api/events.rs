//! `POST /api/events`: durable publishing, answered after the commit.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use futures_util::StreamExt;
use http::{HeaderMap, StatusCode};
use persistence::{Append, AppendError, Appended, Refused, Stream};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::{ApiResult, Call, Problem, object};
use crate::envelope::{self, Envelope, Failed, Item, Outcome, Unusable, What};
use crate::events::rfc3339;
use crate::node::Node;
use crate::writer::{WHOLE, WholeError, WriteError};

/// Envelopes of one call.
const MAX_ENVELOPES: usize = 1000;

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
        }
    }
}

/// What is published: one envelope, or a list.
struct Published {
    envelopes: Vec<Envelope>,
    is_list: bool,
}

/// An item, and the envelope it is from.
type Placed = (Option<usize>, Item);

/// Everything is looked at before anything is stored; what is stored then is stored as a whole.
pub(super) async fn publish(call: &Call, node: &Arc<Node>) -> ApiResult {
    let published = Published::read(call)?;
    let count = check(node, &published).await?;
    let mut results = Vec::with_capacity(count);
    // Only as many as are stored together are spelled out: one text may go to a thousand recipients.
    let mut part = Vec::with_capacity(count.min(WHOLE));
    for index in 0..published.envelopes.len() {
        for item in published.items(node, index)? {
            part.push(item);
            if part.len() == WHOLE {
                results.extend(store(node, std::mem::take(&mut part)).await?);
            }
        }
    }
    results.extend(store(node, part).await?);
    Ok(json!({ "results": results }))
}

impl Published {
    fn read(call: &Call) -> Result<Self, Problem> {
        let body = call.json()?;
        let (list, is_list) = match &body {
            Value::Array(list) if list.len() > MAX_ENVELOPES => {
                return Err(Problem::bad(format!("at most {MAX_ENVELOPES} envelopes")));
            }
            Value::Array(list) => (list.as_slice(), true),
            one => (std::slice::from_ref(one), false),
        };
        let key = idempotency_key(&call.headers)?;
        let mut envelopes = Vec::with_capacity(list.len());
        for (index, value) in list.iter().enumerate() {
            let envelope: Result<Envelope, Problem> = object("the envelope", value);
            let mut envelope = envelope.map_err(|problem| problem.in_envelope(is_list.then_some(index)))?;
            envelope.id.get_or_insert_with(|| match &key {
                // One header for many envelopes: each has its place in the list as a part of its identity.
                Some(key) if is_list => format!("{key}/{index}"),
                Some(key) => key.clone(),
                None => Uuid::now_v7().to_string(),
            });
            envelopes.push(envelope);
        }
        Ok(Self { envelopes, is_list })
    }

    fn items(&self, node: &Node, index: usize) -> Result<impl Iterator<Item = Placed> + use<>, Problem> {
        let place = self.is_list.then_some(index);
        let items = self.envelopes[index].items(node, SOURCE, None);
        let items = items.map_err(|unusable| Problem::from(unusable).in_envelope(place))?;
        Ok(items.into_iter().map(move |item| (place, item)))
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

/// Finds what is wrong with any of it, and returns how many items it is.
async fn check(node: &Node, published: &Published) -> Result<usize, Problem> {
    let mut count = 0;
    let mut rooms: HashMap<String, Option<usize>> = HashMap::new();
    let mut contents: HashMap<[u8; 32], [u8; 32]> = HashMap::new();
    for index in 0..published.envelopes.len() {
        for (place, item) in published.items(node, index)? {
            count += 1;
            let What::Store(append) = &item.what else { continue };
            if let Stream::Room(room) = &append.stream {
                rooms.entry(room.clone()).or_insert(place);
            }
            let (identity, content) = digests(&item.to, append);
            match contents.entry(identity) {
                Entry::Occupied(known) if *known.get() != content => {
                    return Err(Problem::from(AppendError::KeyReused).in_envelope(place));
                }
                Entry::Occupied(_) => {}
                Entry::Vacant(free) => drop(free.insert(content)),
            }
        }
    }
    if !rooms.is_empty() {
        let names: Vec<String> = rooms.keys().cloned().collect();
        let known = node.store.room_heads(&names).await?;
        let missing = rooms.iter().filter(|(room, _)| !known.contains_key(*room)).map(|(_, place)| *place).min();
        if let Some(place) = missing {
            return Err(Problem::no_room().in_envelope(place));
        }
    }
    Ok(count)
}

/// Of what makes a repeat, and of what must be the same in a repeat.
fn digests(to: &str, append: &Append) -> ([u8; 32], [u8; 32]) {
    let digest = |parts: [&str; 3]| {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_be_bytes());
            hash.update(part.as_bytes());
        }
        hash.finalize().into()
    };
    let (source, id) = append.origin.as_ref().map_or(("", ""), |(source, id)| (source, id));
    (digest([source, id, to]), digest([&append.from_user, &append.message, ""]))
}

/// Stores what is to be stored, all or nothing, then sends what is to be sent.
async fn store(node: &Node, items: Vec<Placed>) -> Result<Vec<Value>, Problem> {
    let (mut appends, mut places) = (Vec::new(), Vec::new());
    let mut rest = Vec::new();
    let mut results: Vec<Value> = items.iter().map(|(_, item)| json!({"to": item.to})).collect();
    for (index, (place, item)) in items.into_iter().enumerate() {
        match item.what {
            What::Store(append) => {
                appends.push(append);
                places.push((index, place));
            }
            other => rest.push((index, place, other)),
        }
    }
    let stored = match appends.len() {
        // Into the transaction of others that come at the same time.
        1 => node.writer.write(appends.remove(0)).await.map(|stored| vec![stored]).map_err(|error| match error {
            WriteError::Refused(error) => WholeError::Refused(Refused { index: 0, error }),
            WriteError::Unavailable => WholeError::Unavailable,
        }),
        _ => node.writer.write_whole(appends).await,
    };
    let stored = stored.map_err(|error| match error {
        WholeError::Refused(Refused { index, error }) => {
            Problem::from(error).in_envelope(places.get(index).and_then(|(_, place)| *place))
        }
        WholeError::Unavailable => Problem::unavailable("the database is unavailable"),
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
            Ok(_) => {}
            Err(failed) => return Err(Problem::from(failed).in_envelope(place)),
        }
    }
    Ok(results)
}

fn fill(result: &mut Value, stored: &Appended) {
    result["id"] = json!(stored.id.to_string());
    result["seq"] = json!(stored.seq);
    result["date"] = json!(rfc3339(stored.date));
    result["repeated"] = json!(stored.repeated);
}
