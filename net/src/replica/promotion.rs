//! Becoming a leader: the questions of [`turnstone_replication::election`], asked.

use super::following::Trouble;
use super::{Host, Link, Replication, Speaks, wait_for};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::error::Error;
use turnstone_engine::manifest::{Peer, Role, Upstream};
use turnstone_engine::sync::all;
use turnstone_engine::types::{Epoch, Member, Members, Version};
use turnstone_engine::{Partition, Standing};
use turnstone_replication::election::{Best, Election};
use turnstone_replication::follower::Word;
use turnstone_replication::quorum::Promises;
use turnstone_replication::wire::{Answer, Ask, Frame, PROTOCOL, Reason, Wish};

/// A member answers within this time, the connection included.
const ANSWER: Duration = Duration::from_secs(2);
/// A missing end of the log is fetched within this time.
const FETCH: Duration = Duration::from_secs(60);

/// How to promote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Followers that must hold a commit from now on; `None` leaves it.
    pub min_replicas: Option<u32>,
    /// Even without enough promises.
    pub force: bool,
    /// It led before it was restarted.
    pub returning: bool,
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
        let mine = self.next_order(number);
        let partition = self.open_partition(number)?;
        let election = self.ask_all(&partition, Epoch::default()).await;
        let partition = self.open_partition(number)?;
        let no_members = partition.standing().members.iter().all(|record| record.members.nodes.is_empty());
        let has_followed = match partition.role() {
            Role::Leader => false,
            Role::Follower(_) => true,
            // It agreed to an epoch and has nothing of it.
            Role::SteppedDown => partition.prepared() == 0 && partition.adopted().number > 0,
        };
        if no_members && has_followed && !order.force {
            return Err(no_list());
        }
        let lenient = order.force || partition.env().sabotage() == Some(Sabotage::FenceSkipped);
        let in_reach = election.in_reach();
        if !in_reach.suffice() && !lenient {
            return Err(too_few(in_reach));
        }
        self.check_order(number, mine)?;
        let (epoch, promised) = partition.promise_next(election.next_number()).await?;
        self.next_attempt(number);
        let led = self.win(number, mine, order, epoch, election, promised).await;
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
        election: Election,
        promised: Standing,
    ) -> Result<Promoted, Trouble> {
        let partition = self.open_partition(number)?;
        let sabotage = partition.env().sabotage();
        // Where nobody else must hold a commit there is nothing to promise: the others go on as they are.
        let alone = election.records().iter().all(|record| record.members.min_replicas == 0);
        let mut election = if alone { election } else { self.ask_all(&partition, epoch).await };
        election.answered(self.key(number), true, promised);
        let promises = election.promises();
        if !promises.suffice() && !order.force && sabotage != Some(Sabotage::FenceSkipped) {
            return Err(too_few(promises));
        }
        let partition = match election.best() {
            Best::Of(member) if sabotage != Some(Sabotage::BestLogNotFetched) => {
                let last = election.answer(member.key()).map_or(0, |standing| standing.last);
                self.fetch(number, &member, last, mine).await?
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
        partition.lead(epoch, members, by_force, || self.check_order(number, mine).is_ok()).await?;
        self.count(number);
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
        if self.orders.borrow().get(&number) == Some(&order) {
            return Ok(());
        }
        Err(Error::Superseded.into())
    }

    /// Asks every member, those that are only learned of meanwhile among them.
    pub(super) async fn ask_all(self: &Rc<Self>, partition: &Partition<H::Env>, epoch: Epoch) -> Election {
        let mut election = Election::new(self.key(partition.id()), partition.standing());
        loop {
            let members = election.unasked();
            if members.is_empty() {
                return election;
            }
            let asked = members.iter().map(|member| self.ask(partition, member, epoch));
            let answers = all(asked).await;
            for (member, answer) in members.iter().zip(answers) {
                match answer {
                    Ok(Answer { granted, standing }) => election.answered(member.key(), granted, standing),
                    Err(why) => {
                        let text = format!("{} does not answer: {why}", member.address);
                        self.log(partition.id(), Level::Debug, text);
                    }
                }
            }
        }
    }

    async fn ask(&self, partition: &Partition<H::Env>, member: &Member, epoch: Epoch) -> Result<Answer, String> {
        let deadline = self.host.now() + ANSWER;
        // Where it said hello from, and, if that is of long ago, where the list has it.
        let noted = self.addresses.borrow().get(&(partition.id(), member.key())).cloned();
        let listed = Some(member.address.clone()).filter(|address| noted.as_ref() != Some(address));
        let mut dialed = Err("its address is not known".to_string());
        for address in noted.into_iter().chain(listed).filter(|address| !address.is_empty()) {
            dialed = self.host.dial(address, member.partition).await;
            if dialed.is_ok() {
                break;
            }
        }
        let link = dialed?;
        let ask = Ask {
            version: PROTOCOL,
            node: self.host.node(),
            own: partition.id(),
            member: member.node,
            partition: member.partition,
            epoch,
            address: self.own_address(partition),
        };
        link.say(&Frame::Ask(ask));
        let answer = loop {
            match link.next() {
                Ok(Some(Frame::Answer(answer))) => break Ok(answer),
                Ok(Some(Frame::Refuse(_, text))) => break Err(text),
                Ok(Some(_)) => break Err("it says something else".to_string()),
                Err(why) => break Err(why),
                Ok(None) => {}
            }
            if let Some(why) = link.gone() {
                break Err(why);
            }
            if self.host.now() > deadline {
                break Err("not in time".to_string());
            }
            wait_for(partition.env(), &*link).await;
        };
        link.close();
        if answer.is_ok() {
            let peer = Peer { node: member.node, key: link.key() };
            partition.recognise(peer).await.map_err(|e| e.to_string())?;
        }
        answer
    }

    /// Where others reach this node: as it says, or as the list of members has it, if that is where it listens now.
    fn own_address(&self, partition: &Partition<H::Env>) -> String {
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
        member: &Member,
        last: Version,
        order: u64,
    ) -> Result<Partition<H::Env>, Trouble> {
        let upstream = Upstream { address: member.address.clone(), partition: member.partition };
        self.log(number, Level::Info, format_args!("fetches the log up to version {last} from {}", member.address));
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
            let tried = match self.open_stream(&partition, &upstream, Wish::Log).await {
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

/// A node that follows, or did, and has not got so far as to hold a list of the members does not know whose promises it needs.
fn no_list() -> Trouble {
    let text = "this node has followed another one and does not hold a list of the members, so it may lack what they hold: \
                promote one that does; `promote force` leads all the same, and acknowledged writes may be lost";
    Trouble::Engine(Error::TooFewAgree(text.to_string()))
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
