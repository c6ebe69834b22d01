//! Which of several servers a name belongs to: `channels_redis`' own hash, and Redis Cluster's.

/// What Python divides into equal parts, one per host.
const RING: u32 = 4096;

/// The number of hash slots of a Redis Cluster.
pub(crate) const SLOTS: u16 = 16_384;

static CRC16: crc::Crc<u16> = crc::Crc::<u16>::new(&crc::CRC_16_XMODEM);

/// The index of the host that holds `name` (without the prefix) among `shards` hosts.
pub(crate) fn shard(name: &[u8], shards: usize) -> usize {
    if shards <= 1 {
        return 0;
    }
    let low = crc32fast::hash(name) % RING;
    // Python divides floats; the same formula in integers differs from 186 hosts on.
    let index = f64::from(low) / (f64::from(RING) / shards as f64);
    (index as usize).min(shards - 1)
}

/// The hash slot of a key in a Redis Cluster: only what is between the first `{` and the next `}`
/// counts, if there is anything.
pub(crate) fn slot(key: &[u8]) -> u16 {
    CRC16.checksum(hash_tag(key).unwrap_or(key)) % SLOTS
}

fn hash_tag(key: &[u8]) -> Option<&[u8]> {
    let open = key.iter().position(|byte| *byte == b'{')?;
    let inside = &key[open + 1..];
    let close = inside.iter().position(|byte| *byte == b'}')?;
    (close > 0).then(|| &inside[..close])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::golden;

    #[test]
    fn names_are_on_the_shards_where_python_puts_them() {
        let vectors = golden::vectors();
        let mut checked = 0;
        for case in vectors["shards"].as_array().unwrap() {
            let name = case["name"].as_str().unwrap();
            assert_eq!(format!("{:08x}", crc32fast::hash(name.as_bytes())), case["crc32"].as_str().unwrap());
            for (shards, index) in case["shard_by_ring_size"].as_object().unwrap() {
                assert_eq!(shard(name.as_bytes(), shards.parse().unwrap()) as u64, index.as_u64().unwrap(), "{name}");
                checked += 1;
            }
        }
        assert_eq!(checked, 37 * 8);
    }

    #[test]
    fn rings_where_integers_would_round_otherwise_are_divided_in_floats() {
        let vectors = golden::vectors();
        let cases = vectors["shard_integer_formula_differs"].as_array().unwrap();
        assert_eq!(cases.len(), 5);
        for case in cases {
            let (low, shards) = (case["low12"].as_u64().unwrap(), case["ring_size"].as_u64().unwrap());
            // Any name with these low bits will do.
            let name = (0..)
                .map(|n: u32| n.to_string())
                .find(|name| u64::from(crc32fast::hash(name.as_bytes()) % RING) == low);
            let index = shard(name.unwrap().as_bytes(), shards as usize) as u64;
            assert_eq!(index, case["python"].as_u64().unwrap(), "{case}");
            assert_ne!(index, case["integer_formula"].as_u64().unwrap());
        }
    }

    /// Where Python really sent its commands: topics with their prefix, group keys and queues without.
    #[test]
    fn commands_go_to_the_servers_python_sent_them_to() {
        let vectors = golden::vectors();
        let mut checked = 0;
        for section in ["pubsub_four_hosts", "core_four_hosts"] {
            for command in golden::list(&vectors, section).iter().flat_map(|step| golden::list(step, "commands")) {
                let args = &command["args"];
                let text = |at: usize| args[at].as_str().unwrap();
                let name = match (text(0), section, command["by"].as_str().unwrap()) {
                    ("SUBSCRIBE" | "UNSUBSCRIBE" | "PUBLISH", "pubsub_four_hosts", _) => text(1),
                    ("ZADD" | "ZRANGE" | "ZREM", _, "client") if text(1).starts_with("asgi:group:") => &text(1)[11..],
                    // What group_send delivers.
                    ("ZADD", _, "script") => &text(1)[4..],
                    _ => continue,
                };
                assert_eq!(shard(name.as_bytes(), 4) as u64, command["db"].as_u64().unwrap(), "{command}");
                checked += 1;
            }
        }
        assert_eq!(checked, 25);
    }

    #[test]
    fn every_shard_index_exists() {
        for shards in [0, 1, 2, 3, 10, 185, 4096, 5000, usize::MAX] {
            for name in 0..2000 {
                assert!(shard(name.to_string().as_bytes(), shards) < shards.max(1));
            }
        }
    }

    #[test]
    fn slots_are_those_of_redis_cluster() {
        // CLUSTER KEYSLOT of Redis 7.0.
        for (key, expected) in [
            ("123456789", 0x31c3),
            ("", 0),
            ("foo", 12_182),
            ("foo{hash_tag}", 2_515),
            ("{hash_tag}bar", 2_515),
            ("hash_tag", 2_515),
            ("foo{}{bar}", 8_363),
            ("foo{{bar}}zap", 4_015),
            ("foo{bar}{zap}", 5_061),
            ("bar", 5_061),
            ("foo{bar", 15_278),
            ("foo}bar{", 11_073),
        ] {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }
}
