//! Sentinels: asked at each opening of a connection where the primary is.
//!
//! The question is ours, on the crate's connection and in its types. The crate `redis` has a client for Sentinels too,
//! `redis::sentinel`, which asks the same and cannot take its place yet (line numbers of 1.8.1):
//!
//! - It takes no name that a certificate must hold if it is not the address (`sentinel.rs`, lines 454 and 629: nothing
//!   of an `AsyncConnectionConfig`). Sentinels name addresses, and most certificates do not. This is
//!   [redis-rs issue 1931](https://github.com/redis-rs/redis-rs/issues/1931).
//! - It asks the primary for its role over a connection of its own each time, and refuses one whose user may use neither
//!   `ROLE` nor `INFO` (lines 450 to 469 and 399 to 409; `tests/redis_crate.rs` fails once that works). A pool, which
//!   asks for every question, would open a connection to the primary for each.
//! - Its time limits are fixed, and the answers are taken in the order of the list, so a Sentinel that hangs is waited
//!   for until its limit (line 1046).
//!
//! No issue of theirs was found about the last two.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use redis::Value;

use super::race::{Found, race};
use crate::{
    BoxError,
    redis::{
        access::{Access, Address},
        answer::{command, text_of},
        refusal::{Failed, Refused},
    },
};

/// The Sentinels of one primary.
pub(crate) struct Sentinels {
    master_name: String,
    access: Arc<Access>,
    /// The one that answered last comes first.
    addresses: Mutex<Vec<Address>>,
}

/// What a Sentinel said.
pub(crate) struct Verdict {
    pub(crate) primary: Address,
    pub(crate) by: Address,
}

impl Sentinels {
    /// `access` is for the Sentinels themselves.
    pub(super) fn new(addresses: Vec<Address>, master_name: String, access: Arc<Access>) -> Self {
        Self { master_name, access, addresses: Mutex::new(addresses) }
    }

    /// The first that knows the name as a primary which is not down decides, and is asked first from
    /// then on.
    pub(crate) async fn ask(&self) -> Result<Verdict, BoxError> {
        let addresses = self.addresses.lock().clone();
        let questions = addresses.into_iter().map(|by| {
            let (access, name) = (self.access.clone(), self.master_name.clone());
            async move {
                let primary = ask_one(&access, &by, &name).await?;
                Ok(Found::Good(Verdict { primary, by }))
            }
        });
        match race(questions).await {
            Ok(verdict) => {
                self.reorder(&verdict.by, true);
                Ok(verdict)
            }
            Err(errors) => {
                let what = format!("no Sentinel names a primary for {:?}", self.master_name);
                Err(Failed::all(what, &errors).into())
            }
        }
    }

    /// Asks this one last from now on.
    pub(crate) fn distrust(&self, by: &Address) {
        self.reorder(by, false);
    }

    fn reorder(&self, by: &Address, first: bool) {
        let mut addresses = self.addresses.lock();
        let Some(at) = addresses.iter().position(|address| address == by) else { return };
        match first {
            true => addresses[..=at].rotate_right(1),
            false => addresses[at..].rotate_left(1),
        }
    }
}

async fn ask_one(access: &Access, at: &Address, name: &str) -> Result<Address, BoxError> {
    // Within the same 2 seconds as the opening: whoever asks does not wait longer.
    let mut connection = access.open(at, "channel-layer:sentinel").await?;
    // As channels_redis asks; `SENTINEL MASTER` would need another right.
    let answer = connection.ask_one(command([&b"SENTINEL"[..], b"MASTERS"])).await.map_err(BoxError::from);
    answer.and_then(|answer| verdict(answer, name)).map_err(|error| Failed::at(at.to_string(), &error).into())
}

/// Reads the reply of `SENTINEL MASTERS`.
fn verdict(answer: Value, name: &str) -> Result<Address, BoxError> {
    if let Value::ServerError(error) = answer {
        return Err(Refused(text_of(&error)).into());
    }
    let masters: Vec<HashMap<String, String>> = redis::from_redis_value(answer)?;
    let master = masters.iter().find(|it| field(it, "name") == name).ok_or("it does not know the name")?;
    let flags = field(master, "flags");
    let has = |flag: &str| flags.split(',').any(|it| it == flag);
    if !has("master") || has("s_down") || has("o_down") {
        return Err(format!("the primary is down ({flags})").into());
    }
    match (field(master, "ip"), field(master, "port").parse()) {
        (host, Ok(port)) if !host.is_empty() => Ok(Address::Tcp(host.into(), port)),
        _ => Err("it names no address".into()),
    }
}

fn field<'a>(master: &'a HashMap<String, String>, name: &str) -> &'a str {
    master.get(name).map(String::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn masters(of: &[&[(&str, &str)]]) -> Value {
        let text = |it: &str| Value::BulkString(it.into());
        let one = |fields: &&[(&str, &str)]| {
            Value::Array(fields.iter().flat_map(|(name, value)| [text(name), text(value)]).collect())
        };
        Value::Array(of.iter().map(one).collect())
    }

    #[test]
    fn only_a_healthy_primary_of_that_name_will_do() {
        let other: &[(&str, &str)] = &[("name", "other"), ("ip", "10.0.0.9"), ("port", "1"), ("flags", "master")];
        let with = |flags| masters(&[other, &[("name", "site"), ("ip", "::1"), ("port", "6380"), ("flags", flags)]]);
        assert_eq!(verdict(with("master"), "site").unwrap(), Address::Tcp("::1".into(), 6380));
        for flags in ["master,s_down", "s_down,o_down,master", "slave", "", "master,o_down"] {
            assert!(verdict(with(flags), "site").unwrap_err().to_string().contains("is down"), "{flags}");
        }
        let error = verdict(with("master"), "nobody").unwrap_err().to_string();
        assert!(error.contains("does not know"), "{error}");
        assert!(verdict(crate::redis::answer::error("NOAUTH x"), "site").unwrap_err().to_string().contains("NOAUTH"));
        assert!(verdict(masters(&[&[("name", "site"), ("flags", "master")]]), "site").is_err());
        assert!(verdict(Value::Nil, "site").is_err());
    }

    #[test]
    fn whoever_answered_comes_first_and_whoever_was_wrong_last() {
        let address = |port| Address::Tcp("s".into(), port);
        let addresses = (1..=3).map(address).collect();
        let access = Access { login: Arc::default(), tls: None };
        let sentinels = Sentinels::new(addresses, "site".into(), Arc::new(access));
        let order = || -> Vec<String> { sentinels.addresses.lock().iter().map(ToString::to_string).collect() };
        sentinels.reorder(&address(3), true);
        assert_eq!(order(), ["s:3", "s:1", "s:2"]);
        sentinels.distrust(&address(3));
        assert_eq!(order(), ["s:1", "s:2", "s:3"]);
        sentinels.distrust(&address(9));
        assert_eq!(order(), ["s:1", "s:2", "s:3"]);
    }
}
