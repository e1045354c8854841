//! A partition of this node takes a copy: the leader's log does not reach back to what is here, or a person has ordered
//! that another history takes the place of this one.

use super::board::Following;
use super::following::{Stream, Trouble, fenced, next_frame};
use super::{Heartbeat, Host, Link, Replication, wait_for};
use turnstone_engine::Partition;
use turnstone_engine::copy::CopyIn;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::manifest::Upstream;
use turnstone_engine::types::Version;
use turnstone_replication::follower::Step;
use turnstone_replication::history::{Common, common_point};
use turnstone_replication::wire::{Copying, take_entries};

/// Why a partition is opened anew with a copy.
pub const COPY_TAKES_PLACE: &str = "a copy takes the place of what was here";

impl<H: Host> Replication<H> {
    /// Takes a copy until it is whole and in the place of what was here. `by_order` it may replace anything.
    pub(super) async fn take_copy(
        &self,
        partition: &Partition<H::Env>,
        upstream: &Upstream,
        stream: Stream<H::Link>,
        copying: Copying,
        is_current: &impl Fn() -> bool,
        by_order: bool,
    ) -> Result<(), Trouble> {
        let link = stream.link.clone();
        let beats = Heartbeat::start(&link, partition);
        let taken = self.take_within(partition, upstream, stream, &copying, is_current, by_order).await;
        drop(beats);
        link.close();
        let (copy, parted) = taken?;
        if !is_current() {
            return Err(Trouble::Over);
        }
        let number = partition.id();
        self.drop_copies(number);
        self.host.reopen(number, COPY_TAKES_PLACE, async |old| old.replace(copy, parted).await).await?;
        Ok(())
    }

    /// Answers the copy, and where this node's history parts from its own, if it does.
    async fn take_within(
        &self,
        partition: &Partition<H::Env>,
        upstream: &Upstream,
        stream: Stream<H::Link>,
        copying: &Copying,
        is_current: &impl Fn() -> bool,
        by_order: bool,
    ) -> Result<(CopyIn<H::Env>, Option<Version>), Trouble> {
        let number = partition.id();
        let head = copying.head();
        let own = partition.standing();
        let lenient = partition.env().sabotage() == Some(Sabotage::OldLeaderFollowed);
        if head.adopted != own.adopted && head.adopted.number <= own.adopted.number && !by_order && !lenient {
            return Err(fenced(own.adopted, head.adopted));
        }
        let common = common_point((&head.epochs, head.version), (&own.epochs, own.last));
        let (Common::Prefix(at) | Common::Diverged(at)) = common;
        let parted = match at < own.last {
            true => Some(at),
            // Who replaces a log that seems to be the other's beginning knows that it is none: all of it is kept aside.
            false if by_order => Some(partition.oldest_version().saturating_sub(1)),
            false => None,
        };
        if parted.is_some() && !by_order {
            let text = format!("the copy at version {} does not have what is here behind {at}", head.version);
            return Err(Trouble::Broken(text));
        }
        // One that broke off is of use only where the other side goes on with it.
        let begun = self.partial.borrow_mut().remove(&number).filter(|_| copying.resumed);
        let mut copy = match begun {
            Some(begun) if begun.head == head => begun,
            other => {
                if copying.resumed {
                    return Err(Trouble::Broken("the leader goes on with a copy that is not here".to_string()));
                }
                drop(other);
                partition.copy_in(upstream, head).await?
            }
        };
        let text = format!("takes a copy of {} keys at version {}", copying.keys, copying.version);
        self.log(number, Level::Info, text);
        match self.receive(partition, stream, copying, &mut copy, is_current).await {
            Ok(()) => Ok((copy, parted)),
            Err(trouble) => {
                if matches!(trouble, Trouble::Broken(_)) && is_current() {
                    self.partial.borrow_mut().insert(number, copy);
                }
                Err(trouble)
            }
        }
    }

    async fn receive(
        &self,
        partition: &Partition<H::Env>,
        stream: Stream<H::Link>,
        copying: &Copying,
        copy: &mut CopyIn<H::Env>,
        is_current: &impl Fn() -> bool,
    ) -> Result<(), Trouble> {
        let Stream { link, mut follower, .. } = stream;
        loop {
            let now = self.host.now();
            if !is_current() {
                return Err(Trouble::Over);
            }
            self.board.set_upstream(partition.id(), Following::Copying(copy.sum().keys, copying.keys));
            let Some(frame) = next_frame(&*link, &mut follower, now)? else {
                wait_for(partition.env(), &*link).await;
                continue;
            };
            match follower.take(frame, now).map_err(|violation| Trouble::Broken(violation.0))? {
                Step::Keys(bytes) => {
                    let entries = take_entries(&bytes).map_err(|bad| Trouble::Broken(bad.0.to_string()))?;
                    copy.add(entries).await?;
                    partition.env().give_way().await;
                }
                Step::CopyEnd(sum) if sum == copy.sum() => return Ok(()),
                Step::CopyEnd(sum) => {
                    // Engine trouble: it is begun anew, not gone on with.
                    let text = format!("a copy came to {:?}, and should to {sum:?}", copy.sum());
                    return Err(Trouble::Engine(turnstone_engine::Error::Upstream(text)));
                }
                Step::Refused(reason, text) => return Err(Trouble::Refused(reason, text)),
                _ => {}
            }
        }
    }
}
