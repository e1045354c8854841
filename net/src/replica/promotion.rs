//! Becoming a leader: the questions of [`turnstone_replication::election`], asked.

use super::asking::Asked;
use super::following::Trouble;
use super::{Host, Replication, broken};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::error::Error;
use turnstone_engine::leadership::{Leadership, Role, Upstream};
use turnstone_engine::types::{Epoch, Member, Members, Version};
use turnstone_engine::{Partition, Standing};
use turnstone_replication::election::Best;
use turnstone_replication::follower::Word;
use turnstone_replication::leadership::{Event, Refusal, step};
use turnstone_replication::quorum::Promises;
use turnstone_replication::wire::{Ordered, Reason, Wish};

/// A missing end of the log is fetched within this time.
const FETCH: Duration = Duration::from_secs(60);

/// How to promote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Followers that must hold a commit from now on; `None` leaves it.
    pub min_replicas: Option<u32>,
    /// Even without enough promises.
    pub force: bool,
    /// Why.
    pub purpose: Purpose,
    /// The epoch's number is above this one.
    pub above: u64,
}

/// Why a node is to lead.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Purpose {
    /// An operator has ordered it.
    #[default]
    Operator,
    /// It led before it was restarted, and nobody was promoted meanwhile.
    Return,
    /// It leads, or led, and followers have voted for a candidate that does not lead: they are called back.
    Recall,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Promoted {
    /// It leads in this epoch.
    pub epoch: Epoch,
    /// Promises that were missing: what only those members hold may be lost.
    pub missing: usize,
}

impl<H: Host> Replication<H> {
    /// Makes a partition of this node the leader.
    pub async fn promote(self: &Rc<Self>, number: u8, order: Order) -> Result<Promoted, Trouble> {
        // What nodes do by themselves ends with the next order.
        let mine = match order.purpose {
            Purpose::Operator => self.next_order(number),
            _ => self.newest_order(number),
        };
        let _candidacy = self.stands(number);
        let partition = self.open_partition(number)?;
        let has_followed = partition.leadership().has_followed;
        let asked = self.ask_members(&partition, None).await;
        let others_stand = asked.others_stand();
        let election = &asked.election;
        match order.purpose {
            Purpose::Operator => {}
            // What nodes do by themselves stands behind what an operator does elsewhere.
            _ if election.newer_leader().is_some() || others_stand => return Err(Error::Superseded.into()),
            _ if self.open_partition(number)?.role() != Role::Leader => return Err(Error::Superseded.into()),
            Purpose::Return if !election.may_return() => return Err(Error::Superseded.into()),
            _ => {}
        }
        let partition = self.open_partition(number)?;
        let newcomers_lead = partition.env().sabotage() == Some(Sabotage::NewcomerLeads);
        if election.is_no_member(has_followed) && !order.force && !newcomers_lead {
            return Err(no_list());
        }
        let learns = partition.leadership().learner && !broken(partition.env()).learner_votes;
        if learns && !order.force {
            return Err(learner());
        }
        if election.is_forgotten() && !order.force {
            let text = "this node was forgotten: `replicaof` makes a member of it again; `promote force` leads a history of its own";
            return Err(Trouble::Engine(Error::TooFewAgree(text.to_string())));
        }
        let missed = election.missed_by_a_raise();
        if order.min_replicas.is_some_and(|n| n > 0) && !missed.is_empty() && !order.force {
            return Err(must_hold_the_raise(&missed));
        }
        let lenient = order.force || partition.env().sabotage() == Some(Sabotage::FenceSkipped);
        let in_reach = election.in_reach();
        if !in_reach.suffice() && !lenient {
            return Err(too_few(in_reach));
        }
        self.check_order(number, mine)?;
        let (epoch, promised) = partition.stand(election.next_number().max(order.above + 1)).await?;
        self.next_attempt(number);
        let led = self.win(number, mine, order, epoch, asked, promised).await;
        if led.is_err()
            && let Some(partition) = self.host.partition(number)
        {
            partition.fetch_from(None);
            // A follower goes on to follow; who has agreed to the epoch is there for the next attempt.
            self.go_on(&partition);
        }
        led
    }

    /// Asks for promises, fetches what is missing, and leads.
    async fn win(
        self: &Rc<Self>,
        number: u8,
        mine: u64,
        order: Order,
        epoch: Epoch,
        asked: Asked,
        promised: Standing,
    ) -> Result<Promoted, Trouble> {
        let partition = self.open_partition(number)?;
        let sabotage = partition.env().sabotage();
        // Where nobody else must hold a commit there is nothing to promise: the others go on as they are.
        let alone = asked.election.records().iter().all(|record| record.members.min_replicas == 0);
        let asked = if alone { asked } else { self.ask_members(&partition, Some(epoch)).await };
        let Asked { mut election, statuses, .. } = asked;
        election.answered(self.key(number), true, promised);
        let promises = election.promises();
        if !promises.suffice() && !order.force && sabotage != Some(Sabotage::FenceSkipped) {
            return Err(too_few(promises));
        }
        let partition = match election.best() {
            Best::Of(member) if sabotage != Some(Sabotage::BestLogNotFetched) => {
                let last = election.answer(member.key()).map_or(0, |standing| standing.last);
                // Where it has answered, which is not always where the list has it.
                let place = statuses.iter().find(|(at, status)| (status.node, at.partition) == member.key());
                let listed = Upstream { address: member.address.clone(), partition: member.partition };
                self.fetch(number, place.map_or(listed, |(at, _)| at.clone()), last, mine).await?
            }
            Best::Own | Best::Of(_) => self.open_partition(number)?,
        };
        self.check_order(number, mine)?;
        let mut members = election.records().last().map(|record| record.members.clone()).unwrap_or_default();
        members.min_replicas = order.min_replicas.unwrap_or(members.min_replicas);
        let by_force = order.force && !promises.suffice();
        if by_force {
            // The others are given up; one that comes back joins anew.
            members.nodes.retain(|member| election.has_agreed(member.key()));
        }
        self.join_own(number, &mut members);
        let by_order = order.purpose == Purpose::Operator;
        let event = Event::Wins { epoch, by_order, forced: order.force };
        let decide = |now: &Leadership| {
            if self.check_order(number, mine).is_err() {
                return Err(Error::Superseded);
            }
            match step(now, &event, broken(partition.env())) {
                Ok(next) => Ok(next.unwrap_or_else(|| now.clone())),
                Err(Refusal::Fenced(adopted)) => Err(Error::Fenced { adopted }),
                Err(_) => Err(Error::Superseded),
            }
        };
        partition.lead(epoch, members, by_force, decide).await?;
        self.count(number);
        if !alone {
            let (node, partition) = (self.clone(), partition.clone());
            partition.env().clone().spawn(async move { node.announce(&partition).await });
        }
        Ok(Promoted { epoch, missing: promises.needed.saturating_sub(promises.there) })
    }

    /// The leader is a member wherever followers are asked for, or listed.
    pub fn join_own(&self, number: u8, members: &mut Members) {
        if members.min_replicas == 0 && members.nodes.is_empty() {
            return;
        }
        if !members.nodes.iter().any(|member| member.key() == self.key(number)) {
            let address = Some(self.host.address()).filter(|a| !a.starts_with(':')).unwrap_or_default();
            members.nodes.push(Member { node: self.host.node(), partition: number, address });
        }
    }

    fn open_partition(&self, number: u8) -> Result<Partition<H::Env>, Trouble> {
        let offline = || Trouble::Broken("the partition is offline, or being cut; try again".to_string());
        self.host.partition(number).ok_or_else(offline)
    }

    fn check_order(&self, number: u8, order: u64) -> Result<(), Trouble> {
        if self.newest_order(number) == order {
            return Ok(());
        }
        Err(Error::Superseded.into())
    }

    /// Where others reach this node: as it says, or as the list of members has it, if that is where it listens now.
    pub(super) fn own_address(&self, partition: &Partition<H::Env>) -> String {
        let own = self.host.address();
        let key = self.key(partition.id());
        let known = partition.members().nodes.into_iter().find(|member| member.key() == key);
        known.map(|member| member.address).filter(|address| self.listens_at(address)).unwrap_or(own)
    }

    /// Whether an address can be this node's: it is as the node says, or has the port that it listens on.
    pub(super) fn listens_at(&self, address: &str) -> bool {
        let own = self.host.address();
        if own.starts_with(':') { address.ends_with(&own) } else { address == own }
    }

    /// Takes a member's log, up to `last`. What is durable of this node's role stays: if it ends meanwhile, it begins anew.
    async fn fetch(
        self: &Rc<Self>,
        number: u8,
        upstream: Upstream,
        last: Version,
        order: u64,
    ) -> Result<Partition<H::Env>, Trouble> {
        self.log(number, Level::Info, format_args!("fetches the log up to version {last} from {}", upstream.address));
        let deadline = self.host.now() + FETCH;
        loop {
            self.check_order(number, order)?;
            let partition = self.open_partition(number)?;
            partition.fetch_from(Some(upstream.clone()));
            let current = || {
                !partition.is_closed()
                    && partition.takes_from(&upstream)
                    && self.check_order(number, order).is_ok()
                    && self.host.now() < deadline
            };
            let tried = match self.open_stream(&partition, &upstream, Wish::Log, Ordered::No).await {
                Ok(stream) => self.apply(&partition, &upstream, stream, &current, Some(last)).await,
                Err(Trouble::Parted(welcome)) if current() => {
                    self.part(&partition, &welcome, Word::Members).await?;
                    continue;
                }
                Err(other) => Err(other),
            };
            match tried {
                Ok(()) => return Ok(partition),
                Err(trouble) if self.host.now() > deadline || self.host.stopping() => return Err(trouble),
                Err(Trouble::Engine(error @ Error::Fenced { .. })) => return Err(error.into()),
                // A candidate that needs a copy is no candidate.
                Err(trouble @ Trouble::Refused(Reason::Purged, _)) => return Err(trouble),
                Err(_) => partition.env().sleep(Duration::from_millis(50)).await,
            }
        }
    }
}

/// A node that follows, or did, and is no member by the newest list that it finds: members do not vote for it.
fn no_list() -> Trouble {
    let text = "this node has followed another one and no list of the members that it finds names it, so it may lack what they \
                hold: promote one that does; `promote force` leads all the same, and acknowledged writes may be lost";
    Trouble::Engine(Error::TooFewAgree(text.to_string()))
}

/// Others know it to have had more.
fn learner() -> Trouble {
    let text = "this node has had more than it has: its home was put back from an older copy, or its disk has lost writes. It leads \
                when it has caught up with a leader: promote another member; `promote force` leads all the same, and acknowledged \
                writes may be lost";
    Trouble::Engine(Error::TooFewAgree(text.to_string()))
}

/// Under N = 0 each member may lead without asking: until all of them hold the change, one that does not could lead without
/// what is acknowledged behind it.
pub(super) fn must_hold_the_raise(missed: &[Member]) -> Trouble {
    let names: Vec<String> = missed.iter().map(|m| format!("{:016x} ({})", m.node, m.address)).collect();
    let text = format!(
        "min_replicas is 0, and each member must hold the change to more, since any of them may lead without asking the others \
         now; these are not there: {}. Bring them back, or forget them at the leader first (`replicas forget ID`); one that was \
         forgotten may still be led by force of its own operator, in a history of its own",
        names.join(", ")
    );
    Trouble::Engine(Error::TooFewAgree(text))
}

fn too_few(promises: Promises) -> Trouble {
    let text = format!(
        "{} members agree, this one among them, and {} must: the others may hold commits that this node does not have, \
         and may still confirm those of the old leader; `promote force` goes on without them, and acknowledged writes \
         may be lost",
        promises.there, promises.needed
    );
    Trouble::Engine(Error::TooFewAgree(text))
}
