//! Somebody else gets a copy of a partition of this node: its log does not reach back to where they are.
//!
//! A copy that breaks off is kept for a while, with what it pins: who comes back goes on where it was. One that was sent
//! keeps the log behind it until its receiver has come for that.

use super::{Heartbeat, Host, Link, Replication, Speaks, wait_for};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::Partition;
use turnstone_engine::copy::CopyOut;
use turnstone_engine::env::{Env, Level};
use turnstone_engine::manifest::Role;
use turnstone_replication::SILENCE;
use turnstone_replication::wire::{Copying, Frame, Hello, Reason, Welcome, put_entry};

/// Whose copy broke off, or who has one and does not come for the log, is waited for so long.
const KEPT: Duration = Duration::from_secs(60);

/// A copy that nobody receives now.
pub(super) struct Lent<E: Env> {
    copy: CopyOut<E>,
    whole: bool,
    since: Duration,
}

impl<H: Host> Replication<H> {
    /// Sends a copy, or the rest of one.
    pub(super) async fn lend(
        self: &Rc<Self>,
        link: &Rc<H::Link>,
        hello: &Hello,
        partition: Partition<H::Env>,
    ) -> Result<(), String> {
        // Also while it goes back to where a copy broke off.
        let _beats = Heartbeat::start(link, &partition);
        let place = (partition.id(), (hello.node, hello.own));
        let found = self.lent.borrow_mut().remove(&place);
        let (mut copy, resumed) = match (found, &hello.resume) {
            (Some(mut lent), Some((version, after))) if lent.copy.head.version == *version => {
                lent.copy.go_back(after).await.map_err(|e| e.to_string())?;
                (lent.copy, true)
            }
            _ => match partition.copy_out().await {
                Ok(copy) => (copy, false),
                Err(error) => {
                    link.say(&Frame::Refuse(Reason::Purged, format!("no copy can be made now: {error}")));
                    return Err(error.to_string());
                }
            },
        };
        let peer = link.peer();
        let text = format!("{peer} gets a copy at version {}", copy.head.version);
        self.log(partition.id(), Level::Info, if resumed { format!("{text}, the rest of it") } else { text });
        let mut standing = partition.standing();
        standing.members.clear();
        (standing.adopted, standing.epochs) = (copy.head.adopted, copy.head.epochs.clone());
        let had = self.known.of(partition.id(), (hello.node, hello.own));
        let welcome = Welcome { node: self.host.node(), had, standing };
        let (version, members) = (copy.head.version, copy.head.members.clone());
        link.say(&Frame::Copy(Copying { welcome, version, keys: copy.keys(), members, resumed }));
        let sent = self.send(link, &partition, &mut copy).await;
        let since = self.host.now();
        if sent.is_ok() {
            copy.sent();
        }
        if !partition.is_closed() {
            self.lent.borrow_mut().insert(place, Lent { copy, whole: sent.is_ok(), since });
        }
        sent
    }

    async fn send(
        &self,
        link: &Rc<H::Link>,
        partition: &Partition<H::Env>,
        copy: &mut CopyOut<H::Env>,
    ) -> Result<(), String> {
        let (began, deposed) = (self.host.now(), partition.deposed());
        let mut heard = began;
        let mut bytes_sent = 0u64;
        let (rate, frame_bytes) = (partition.settings().copy_rate, self.host.copy_frame_bytes());
        loop {
            self.hear_receiver(&**link, &mut heard)?;
            if partition.deposed() != deposed || partition.is_closed() || partition.role() == Role::SteppedDown {
                return Err("the partition's role has changed".to_string());
            }
            let due = Duration::from_secs_f64(bytes_sent as f64 / rate.max(1) as f64);
            let early = if rate == 0 { Duration::ZERO } else { (began + due).saturating_sub(self.host.now()) };
            if !early.is_zero() {
                // Not longer than it takes to hear of the receiver.
                partition.env().sleep(early.min(super::TICK)).await;
                continue;
            }
            if link.is_clogged() {
                wait_for(partition.env(), &**link).await;
                continue;
            }
            let entries = copy.next(frame_bytes).await.map_err(|e| e.to_string())?;
            if entries.is_empty() {
                break;
            }
            let mut bytes = Vec::with_capacity(frame_bytes + frame_bytes / 4);
            entries.iter().for_each(|entry| put_entry(entry, &mut bytes));
            bytes_sent += bytes.len() as u64;
            link.say(&Frame::Keys(bytes));
            partition.env().give_way().await;
        }
        link.say(&Frame::CopyEnd(copy.sum()));
        // The receiver ends the connection when it has everything.
        while link.gone().is_none() {
            self.hear_receiver(&**link, &mut heard)?;
            wait_for(partition.env(), &**link).await;
        }
        Ok(())
    }

    fn hear_receiver(&self, link: &H::Link, heard: &mut Duration) -> Result<(), String> {
        let now = self.host.now();
        if link.heard() {
            *heard = now;
        }
        while let Some(frame) = link.next()? {
            if !matches!(frame, Frame::Beat(_)) {
                return Err("it sent what nobody says who takes a copy".to_string());
            }
            *heard = now;
        }
        if let Some(why) = link.gone() {
            return Err(why);
        }
        if now.saturating_sub(*heard) > SILENCE {
            return Err("the receiver of the copy is silent".to_string());
        }
        Ok(())
    }

    /// Who got a copy comes for the log behind it: what keeps that log, until it is read.
    pub(super) fn redeem(&self, number: u8, hello: &Hello) -> Option<CopyOut<H::Env>> {
        let place = (number, (hello.node, hello.own));
        let mut lent = self.lent.borrow_mut();
        let comes_for_it = |lent: &Lent<H::Env>| lent.whole && hello.last >= lent.copy.head.version;
        if lent.get(&place).is_some_and(comes_for_it) { lent.remove(&place).map(|lent| lent.copy) } else { None }
    }

    /// Lets go of copies that nobody comes back for.
    pub(super) fn forget_copies(&self, number: u8) {
        let now = self.host.now();
        let gone: Vec<Lent<H::Env>> = {
            let mut lent = self.lent.borrow_mut();
            let late = |(place, lent): (&(u8, _), &Lent<H::Env>)| {
                (place.0 == number && now > lent.since + KEPT).then_some(*place)
            };
            let places: Vec<_> = lent.iter().filter_map(late).collect();
            places.iter().filter_map(|place| lent.remove(place)).collect()
        };
        for lent in gone {
            let text = format!("a copy at version {} is given up: nobody came back for it", lent.copy.head.version);
            self.log(number, Level::Info, text);
        }
    }

    /// The partition was closed: its copies are of no use.
    pub(super) fn drop_copies(&self, number: u8) {
        self.lent.borrow_mut().retain(|place, _| place.0 != number);
    }
}
