//! Which of several servers a name belongs to: `channels_redis`' own hash, and Redis Cluster's.
#![allow(dead_code, reason = "called by the Redis layers")]

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
