//! Which node has which slot, in the types of the crate `redis`.
//!
//! Ours are only the reader of `CLUSTER SLOTS` and that of redirections without a host. The crate's reader is private,
//! and in a range whose primary has no address (`?`) it takes the first replica for the primary
//! (`cluster_handling/topology.rs`, line 87 in 1.8.1). The number of a `cluster_routing::Slot`, by which the map is
//! asked, is private too, hence [`slot`](crate::shard::slot). No issue of theirs was found that asks for either.

use std::collections::{BTreeMap, BTreeSet};

use redis::{
    Value,
    cluster_read_routing::{ClusterTopology, Shard},
};

use crate::{BoxError, redis::answer::Answer, shard::SLOTS};

/// A node's address; its text is `host:port`, an IPv6 address without brackets.
pub(crate) use redis::cluster::NodeAddress as Node;

/// Whether two maps say the same, if both are from [`read`].
pub(super) fn is_same(one: &ClusterTopology, other: &ClusterTopology) -> bool {
    one.shards().map(parts).eq(other.shards().map(parts))
}

fn parts(shard: &Shard) -> (&[(u16, u16)], &Node, &[Node]) {
    (shard.slot_ranges(), shard.primary(), shard.replicas())
}

/// What a primary has: ranges of slots, and replicas.
type Held = (BTreeSet<(u16, u16)>, BTreeSet<Node>);

/// Reads the reply of `CLUSTER SLOTS`. `asked` is the host that gave it: it stands for hosts that the cluster does not
/// know.
pub(super) fn read(reply: &Value, asked: &str) -> Result<ClusterTopology, BoxError> {
    // Sorted, so that the same map always looks the same.
    let mut found: BTreeMap<Node, Held> = BTreeMap::new();
    for range in reply.as_list().ok_or("CLUSTER SLOTS: not a list")? {
        let [first, last, nodes @ ..] = range.as_list().unwrap_or_default() else {
            return Err("CLUSTER SLOTS: not a range".into());
        };
        let bound = |value: &Value| value.as_int().and_then(|it| u16::try_from(it).ok()).filter(|it| *it < SLOTS);
        let range = match (bound(first), bound(last)) {
            (Some(first), Some(last)) if first <= last => (first, last),
            _ => return Err("CLUSTER SLOTS: not slots".into()),
        };
        let mut nodes = nodes.iter().map(|it| endpoint(it, asked));
        let primary = nodes.next().flatten().ok_or("CLUSTER SLOTS: a range without a node")?;
        let (ranges, replicas) = found.entry(primary).or_default();
        ranges.insert(range);
        replicas.extend(nodes.flatten());
    }
    if found.is_empty() {
        return Err("it serves no slot: it belongs to no cluster, or to one without slots".into());
    }
    let shards = found
        .into_iter()
        .map(|(primary, (ranges, replicas))| Shard::new(Vec::from_iter(ranges), primary, Vec::from_iter(replicas)));
    Ok(ClusterTopology::from_shards(shards.collect()))
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
    Some(Node::new(host, port))
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
    pub(crate) node: Node,
}

impl Redirection {
    /// Reads the text of an error reply that came from `asked`; `None` if it is no redirection or names
    /// nobody.
    pub(crate) fn read(text: &str, asked: &Node) -> Option<Self> {
        let mut words = text.split(' ');
        let ask = match words.next()? {
            "MOVED" => false,
            "ASK" => true,
            _ => return None,
        };
        words.next()?.parse::<u16>().ok().filter(|slot| *slot < SLOTS)?;
        let node = match words.next()?.rsplit_once(':')? {
            ("", port) => Node::new(asked.host(), port.parse().ok()?),
            ("?", _) => return None,
            (host, port) => Node::new(host, port.parse().ok()?),
        };
        Some(Self { ask, node })
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

    fn owner(map: &ClusterTopology, slot: u16) -> Option<String> {
        map.shard_for_slot(slot).map(|shard| shard.primary().to_string())
    }

    #[test]
    fn a_reply_as_it_comes_over_the_wire() {
        let reply = b"*2\r\n*4\r\n:0\r\n:8191\r\n\
            *4\r\n$9\r\n127.0.0.1\r\n:7000\r\n$2\r\nid\r\n*0\r\n*3\r\n$9\r\n127.0.0.1\r\n:7003\r\n$2\r\nid\r\n\
            *3\r\n:8192\r\n:16383\r\n*3\r\n$9\r\n127.0.0.1\r\n:7001\r\n$2\r\nid\r\n";
        let reply = redis::parse_redis_value(reply).unwrap();
        let map = read(&reply, "asked").unwrap();
        let nodes: Vec<_> = map.shards().map(|shard| (shard.primary(), shard.replicas())).collect();
        let node = |port| Node::new("127.0.0.1", port);
        assert_eq!(nodes, [(&node(7000), &[node(7003)][..]), (&node(7001), &[])]);
        for (slot, port) in [(0, 7000), (8191, 7000), (8192, 7001), (16_383, 7001)] {
            assert_eq!(owner(&map, slot), Some(format!("127.0.0.1:{port}")), "{slot}");
        }
        assert_eq!(owner(&map, 16_384), None);
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
        let map = read(&map, "nat.example.org").unwrap();
        let names: Vec<Option<String>> = (0..=7).map(|slot| owner(&map, slot)).collect();
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
        assert!(read(&list([range(0, 1, &[lost])]), "h").is_err());
    }

    #[test]
    fn maps_are_the_same_whatever_their_order() {
        let (a, b) = (range(0, 9, &[at(text("a"), 1)]), range(10, 19, &[at(text("b"), 1)]));
        let c = range(30, 39, &[at(text("a"), 1)]);
        let map =
            |ranges: &[&Value]| read(&list(ranges.iter().map(|it| (*it).clone()).collect::<Vec<_>>()), "h").unwrap();
        let one = map(&[&a, &b, &c]);
        assert!(is_same(&one, &map(&[&c, &b, &a])));
        assert!(!is_same(&one, &map(&[&a, &b])) && !is_same(&map(&[&a]), &map(&[&b])));
        assert!(!is_same(&map(&[&a]), &map(&[&range(0, 9, &[at(text("a"), 1), at(text("r"), 1)])])));
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
            assert!(read(&reply, "h").is_err(), "{reply:?}");
        }
    }

    #[test]
    fn redirections_are_read() {
        let read = |text| Redirection::read(text, &Node::new("asked.example.org", 7000));
        let to = |ask, host: &str| Some(Redirection { ask, node: Node::new(host, 6381) });
        assert_eq!(read("MOVED 3999 127.0.0.1:6381"), to(false, "127.0.0.1"));
        assert_eq!(read("ASK 16383 ::1:6381"), to(true, "::1"));
        assert_eq!(read("MOVED 0 :6381"), to(false, "asked.example.org"));
        for text in ["MOVED 1 ?:6381", "MOVED 16384 a:1", "MOVED 1", "MOVED 1 a", "MOVED 1 a:x", "OTHER 1 a:1", ""] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
