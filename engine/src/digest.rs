//! A hash of everything that is settled: two nodes with the same digest at the same position hold the same keys with the same
//! values. Keys are hashed with their value's length and checksum, and the hashes added up, so that the order does not
//! matter and no value is read.

use crate::codec::{Put, crc};
use crate::env::Env;
use crate::error::Error;
use crate::index::Index;
use crate::partition::Partition;
use crate::types::{Settled, Version};

/// Keys that are asked for together.
const PAGE: usize = 512;

/// The finalizer of MurmurHash3 (Appleby): every bit of the input changes half of the output's.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

pub(crate) fn of_key(key: &[u8], length: u32, checksum: u32) -> u64 {
    let mut place = Vec::with_capacity(8);
    place.put_u32(length);
    place.put_u32(checksum);
    // Two checksums of different beginnings: one alone has 32 bits.
    mix((u64::from(crc(&[key, &place])) << 32) | u64::from(crc(&[&place, key])))
}

impl<E: Env> Partition<E> {
    /// Settles everything that is shown, and hashes it: the version, and the digest at it. Commits and checkpoints go on meanwhile.
    pub async fn digest(&self) -> Result<(Version, u64), Error> {
        /// An index that is mended meanwhile is looked at anew so often; then it is fed nothing until the end.
        const TRIES: u32 = 4;
        self.checkpoint().await?;
        for tried in 0..=TRIES {
            if let Some(digest) = self.try_digest(tried == TRIES).await? {
                return Ok(digest);
            }
        }
        Err(Error::Index("it is mended again and again".to_string()))
    }

    /// `None` if the index is another one now; not where nothing is to be ingested meanwhile (`alone`).
    async fn try_digest(&self, alone: bool) -> Result<Option<(Version, u64)>, Error> {
        let core = &self.0;
        let mut still = Some(core.ingest_gate.enter().await);
        let (version, index) = {
            let manifest = core.manifest.get();
            let published = core.published.get();
            // Lists of members change nothing that is settled.
            let all = core.overlay.borrow().bytes() == 0 && published == core.prepared.get();
            (if all { published } else { manifest.mark.version }, manifest.index)
        };
        if index == 0 {
            return Ok(Some((version, 0)));
        }
        let view = core.ask_index_within(still.as_ref(), async |index: &E::Index| index.view().await).await?;
        still.take_if(|_| !alone);
        let (mut digest, mut after) = (0u64, None);
        loop {
            let from: Option<Vec<u8>> = after.clone();
            let scan = async |index: &E::Index| index.scan(&view, from.clone(), PAGE).await;
            let page = match core.ask_index_within(still.as_ref(), scan).await {
                Err(Error::Index(_)) if core.manifest.get().index != index => return Ok(None),
                page => page?,
            };
            let Some(page) = page else { return Ok(None) };
            let Some((last, ..)) = page.last() else { break };
            after = Some(last.clone());
            for (key, _, settled) in page {
                if let Settled::Pointer(pointer) = settled {
                    digest = digest.wrapping_add(of_key(&key, pointer.length, pointer.checksum));
                }
            }
            core.env.give_way().await;
        }
        Ok(Some((version, digest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values_do_not_stand_for_each_other() {
        let all = [of_key(b"a", 1, 2), of_key(b"b", 1, 2), of_key(b"a", 2, 1), of_key(b"a", 1, 3)];
        for (i, one) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|other| other != one));
        }
    }
}
