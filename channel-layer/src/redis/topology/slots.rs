//! Which node has which slot: the reply of `CLUSTER SLOTS`, and texts that name a node.

use std::{collections::BTreeSet, sync::Arc};

use redis::Value;

use crate::{
    BoxError,
    redis::{answer::Answer, connection::Address},
};

/// How many slots a cluster has.
pub(super) const SLOTS: usize = 16_384;
/// A slot nobody serves.
const NOBODY: u16 = u16::MAX;

/// A node's address as `host:port`, an IPv6 address without brackets.
pub(crate) type Node = Arc<str>;

pub(super) fn node(host: &str, port: u16) -> Node {
    format!("{host}:{port}").into()
}

pub(super) fn address(node: &str) -> Option<Address> {
    let (host, port) = node.rsplit_once(':')?;
    Some(Address::Tcp(host.trim_start_matches('[').trim_end_matches(']').into(), port.parse().ok()?))
}

/// A map of the slots.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Map {
    /// Sorted, so that the same map always looks the same.
    primaries: Vec<Node>,
    /// Also sorted. Can be asked for a newer map.
    replicas: Vec<Node>,
    /// An index into `primaries` for each slot.
    owners: Box<[u16]>,
}

impl Map {
    pub(super) fn empty() -> Self {
        Self { primaries: Vec::new(), replicas: Vec::new(), owners: vec![NOBODY; SLOTS].into() }
    }

    pub(super) fn node_of(&self, slot: u16) -> Option<Node> {
        let owner = *self.owners.get(usize::from(slot))?;
        self.primaries.get(usize::from(owner)).cloned()
    }

    pub(super) fn primaries(&self) -> &[Node] {
        &self.primaries
    }

    pub(super) fn replicas(&self) -> &[Node] {
        &self.replicas
    }

    /// Reads the reply of `CLUSTER SLOTS`. `asked` is the host that gave it: it stands for hosts that
    /// the cluster does not know.
    pub(super) fn read(reply: &Value, asked: &str) -> Result<Self, BoxError> {
        let ranges = reply.as_list().ok_or("CLUSTER SLOTS: not a list")?;
        let mut found = Vec::with_capacity(ranges.len());
        let mut replicas = BTreeSet::new();
        for range in ranges {
            let [first, last, nodes @ ..] = range.as_list().unwrap_or_default() else {
                return Err("CLUSTER SLOTS: not a range".into());
            };
            let bound = |value: &Value| value.as_int().and_then(|it| usize::try_from(it).ok()).filter(|it| *it < SLOTS);
            let (Some(first), Some(last)) = (bound(first), bound(last)) else {
                return Err("CLUSTER SLOTS: not a slot".into());
            };
            let mut nodes = nodes.iter().map(|it| endpoint(it, asked));
            let primary = nodes.next().flatten().ok_or("CLUSTER SLOTS: a range without a node")?;
            replicas.extend(nodes.flatten());
            found.push((first, last, primary));
        }
        let primaries: BTreeSet<Node> = found.iter().map(|(_, _, primary)| primary.clone()).collect();
        let primaries: Vec<Node> = primaries.into_iter().collect();
        if primaries.is_empty() {
            return Err("it serves no slot: it belongs to no cluster, or to one without slots".into());
        }
        let mut owners = vec![NOBODY; SLOTS];
        for (first, last, primary) in found {
            let at = primaries.binary_search(&primary).map_err(|_| "CLUSTER SLOTS: unsorted")?;
            let at = u16::try_from(at).map_err(|_| "CLUSTER SLOTS: too many nodes")?;
            owners.get_mut(first..=last).ok_or("CLUSTER SLOTS: a range that ends before it begins")?.fill(at);
        }
        Ok(Self { primaries, replicas: replicas.into_iter().collect(), owners: owners.into() })
    }
}

/// A node of a range: host, port, id, and since Redis 7 a list of further names.
fn endpoint(value: &Value, asked: &str) -> Option<Node> {
    let [host, port, rest @ ..] = value.as_list()? else { return None };
    let port = port.as_int().and_then(|port| u16::try_from(port).ok())?;
    let host = match (host, host.as_text()) {
        // A node that does not know its own address: the one we reached it by.
        (Value::Nil, _) | (_, Some("")) => asked,
        // It should go by its host name, and has none.
        (_, Some("?")) => further_ip(rest)?,
        (_, host) => host?,
    };
    Some(node(host, port))
}

fn further_ip(rest: &[Value]) -> Option<&str> {
    let names = rest.get(1)?.as_list()?;
    names.chunks_exact(2).find(|pair| pair[0].as_text() == Some("ip")).and_then(|pair| pair[1].as_text())
}

/// Where a `MOVED` or an `ASK` points.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Redirection {
    /// `ASK`: only this one command goes there, after `ASKING`.
    pub(crate) ask: bool,
    pub(crate) slot: u16,
    pub(crate) node: Node,
}

impl Redirection {
    /// Reads the text of an error reply that came from `asked`; `None` if it is no redirection or names
    /// nobody.
    pub(crate) fn read(text: &str, asked: &str) -> Option<Self> {
        let mut words = text.split(' ');
        let ask = match words.next()? {
            "MOVED" => false,
            "ASK" => true,
            _ => return None,
        };
        let slot = words.next()?.parse().ok().filter(|slot| usize::from(*slot) < SLOTS)?;
        let (host, port) = words.next()?.rsplit_once(':')?;
        let port = port.parse().ok()?;
        let host = match host {
            "" => asked.rsplit_once(':')?.0,
            "?" => return None,
            host => host,
        };
        Some(Self { ask, slot, node: node(host, port) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(it: &str) -> Value {
        Value::BulkString(it.into())
    }

    fn list(items: impl Into<Vec<Value>>) -> Value {
        Value::Array(items.into())
    }

    fn range(first: i64, last: i64, nodes: &[Value]) -> Value {
        list([&[Value::Int(first), Value::Int(last)], nodes].concat())
    }

    fn at(host: Value, port: i64) -> Value {
        list([host, Value::Int(port), text("id"), list([])])
    }

    #[test]
    fn a_reply_as_it_comes_over_the_wire() {
        let reply = b"*2\r\n*4\r\n:0\r\n:8191\r\n\
            *4\r\n$9\r\n127.0.0.1\r\n:7000\r\n$2\r\nid\r\n*0\r\n*3\r\n$9\r\n127.0.0.1\r\n:7003\r\n$2\r\nid\r\n\
            *3\r\n:8192\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:7001\r\n$2\r\nid\r\n";
        let reply = redis::parse_redis_value(reply).unwrap();
        let map = Map::read(&reply, "asked").unwrap();
        assert_eq!(map.primaries(), [node("127.0.0.1", 7000), node("127.0.0.1", 7001)]);
        assert_eq!(map.replicas(), [node("127.0.0.1", 7003)]);
        for (slot, port) in [(0, 7000), (8191, 7000), (8192, 7001), (16_383, 7001)] {
            assert_eq!(map.node_of(slot), Some(node("127.0.0.1", port)), "{slot}");
        }
        assert_eq!(map.node_of(16_384), None);
        assert_eq!(Map::empty().node_of(0), None);
    }

    #[test]
    fn nodes_without_an_address_and_behind_other_addresses() {
        let hidden = list([text("?"), Value::Int(4), text("id"), list([text("ip"), text("10.0.0.4")])]);
        let lost = list([text("?"), Value::Int(5), text("id"), list([])]);
        let map = list([
            range(0, 0, &[at(text(""), 1)]),
            range(1, 1, &[at(Value::Nil, 2)]),
            range(2, 2, &[at(text("2001:db8::7"), 3)]),
            range(3, 3, &[hidden, lost.clone()]),
            range(5, 6, &[at(text("redis-1.example.org"), 6379)]),
        ]);
        let map = Map::read(&map, "nat.example.org").unwrap();
        let names: Vec<Option<String>> = (0..=7).map(|slot| map.node_of(slot).map(|it| it.to_string())).collect();
        let wanted = [
            Some("nat.example.org:1"),
            Some("nat.example.org:2"),
            Some("2001:db8::7:3"),
            Some("10.0.0.4:4"),
            None,
            Some("redis-1.example.org:6379"),
            Some("redis-1.example.org:6379"),
            None,
        ];
        assert_eq!(names.iter().map(Option::as_deref).collect::<Vec<_>>(), wanted);
        assert_eq!(address("2001:db8::7:3"), Some(Address::Tcp("2001:db8::7".into(), 3)));
        assert_eq!(address("[::1]:3"), Some(Address::Tcp("::1".into(), 3)));
        assert_eq!(address("nothing"), None);
        assert!(Map::read(&list([range(0, 1, &[lost])]), "h").is_err());
    }

    #[test]
    fn maps_are_the_same_whatever_their_order() {
        let (a, b) = (range(0, 9, &[at(text("a"), 1)]), range(10, 19, &[at(text("b"), 1)]));
        let one = Map::read(&list([a.clone(), b.clone()]), "h").unwrap();
        assert!(one == Map::read(&list([b.clone(), a.clone()]), "h").unwrap());
        assert!(one != Map::read(&list([a]), "h").unwrap());
    }

    #[test]
    fn nonsense_is_refused() {
        let good = at(text("a"), 1);
        for reply in [
            Value::Nil,
            text("x"),
            list([]),
            list([Value::Int(1)]),
            list([list([Value::Int(0)])]),
            list([range(0, 1, &[])]),
            list([range(-1, 1, std::slice::from_ref(&good))]),
            list([range(0, 16_384, std::slice::from_ref(&good))]),
            list([range(5, 1, std::slice::from_ref(&good))]),
            list([range(0, 1, &[at(text("a"), 65_536)])]),
        ] {
            assert!(Map::read(&reply, "h").is_err(), "{reply:?}");
        }
    }

    #[test]
    fn redirections_are_read() {
        let read = |text| Redirection::read(text, "asked.example.org:7000");
        let to = |ask, slot, node: &str| Some(Redirection { ask, slot, node: node.into() });
        assert_eq!(read("MOVED 3999 127.0.0.1:6381"), to(false, 3999, "127.0.0.1:6381"));
        assert_eq!(read("ASK 16383 ::1:6381"), to(true, 16_383, "::1:6381"));
        assert_eq!(read("MOVED 0 :6381"), to(false, 0, "asked.example.org:6381"));
        for text in ["MOVED 1 ?:6381", "MOVED 16384 a:1", "MOVED 1", "MOVED 1 a", "MOVED 1 a:x", "OTHER 1 a:1", ""] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
