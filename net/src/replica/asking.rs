//! Questions between nodes outside of streams: what a node is and has, whether it votes for an epoch, and the news that
//! somebody leads. Each is a connection of its own that one frame goes each way on.
//!
//! Asking what a node is changes nothing there; only a vote does ([`turnstone_replication::leadership`]).

use super::{Host, Link, Replication, Speaks, broken, resolve, wait_for};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::leadership::{Role, Upstream};
use turnstone_engine::manifest::Peer;
use turnstone_engine::sync::{Notify, all, first_of};
use turnstone_engine::types::{Epoch, Member};
use turnstone_engine::wal::body::MEMBERS_MAX;
use turnstone_engine::{Error, Partition};
use turnstone_replication::election::{Election, knows_candidate};
use turnstone_replication::leadership::{Event, Refusal, step};
use turnstone_replication::wire::{Caller, Follows, Frame, Had, PROTOCOL, Reason, Status, VoteRequest};

use super::finding::PerPartition;
use super::following::Trouble;

/// A node answers within this time, the connection included.
const ANSWER: Duration = Duration::from_secs(2);

/// What all members said.
pub(super) struct Asked {
    /// What follows from it.
    pub(super) election: Election,
    /// Who answered, where it was reached, and what it said.
    pub(super) statuses: Vec<(Upstream, Status)>,
    /// How many were asked.
    tried: usize,
}

impl Asked {
    /// Whether a promotion is under way at another node.
    pub(super) fn others_stand(&self) -> bool {
        self.statuses.iter().any(|(_, status)| status.is_candidate)
    }
}

/// A promotion is under way while this is there.
pub(super) struct Candidacy<'a> {
    candidates: &'a RefCell<PerPartition<u32>>,
    number: u8,
}

impl Drop for Candidacy<'_> {
    fn drop(&mut self) {
        if let Some(count) = self.candidates.borrow_mut().get_mut(&self.number) {
            *count -= 1;
        }
    }
}

impl<H: Host> Replication<H> {
    pub(super) fn stands(&self, number: u8) -> Candidacy<'_> {
        *self.candidates.borrow_mut().entry(number).or_default() += 1;
        Candidacy { candidates: &self.candidates, number }
    }

    /// Whether a promotion is under way here.
    pub(super) fn is_candidate(&self, number: u8) -> bool {
        self.candidates.borrow().get(&number).is_some_and(|count| *count > 0)
    }

    fn caller(&self, own: u8, member: u64, partition: u8) -> Caller {
        Caller { version: PROTOCOL, node: self.host.node(), own, member, partition }
    }

    /// What this node is and has.
    fn status(&self, partition: &Partition<H::Env>, caller: &Caller, granted: bool) -> Status {
        let leadership = partition.leadership();
        let mut follows = Vec::new();
        if let Role::Follower(upstream) = leadership.role {
            follows.push(Follows { node: leadership.upstream_node, upstream });
        }
        follows.extend(self.intent(partition.id()).map(|upstream| Follows { node: 0, upstream }));
        Status {
            node: self.host.node(),
            granted,
            is_candidate: self.is_candidate(partition.id()),
            is_learner: leadership.learner,
            promoted: leadership.promoted,
            follows,
            had: self.known.of(partition.id(), (caller.node, caller.own)),
            standing: partition.standing(),
        }
    }

    /// Asks every member by the newest list that anybody has, those that are only learned of meanwhile among them: for a vote
    /// if an epoch is given, what it is otherwise.
    pub(super) async fn ask_members(self: &Rc<Self>, partition: &Partition<H::Env>, epoch: Option<Epoch>) -> Asked {
        let mut asked = Asked {
            election: Election::new(self.key(partition.id()), partition.standing()),
            statuses: Vec::new(),
            tried: 0,
        };
        loop {
            let mut members = asked.election.unasked();
            // No list has more, and what a node says of lists is what it says.
            members.truncate(MEMBERS_MAX.saturating_sub(asked.tried));
            asked.tried += members.len();
            if members.is_empty() {
                return asked;
            }
            let standing = partition.standing();
            let say = |caller| match epoch {
                Some(epoch) => Frame::VoteRequest(VoteRequest { caller, epoch, standing: standing.clone() }),
                None => Frame::StatusRequest(caller),
            };
            let answers = all(members.iter().map(|member| self.ask_member(partition, member, say))).await;
            for (member, answer) in members.iter().zip(answers) {
                match answer {
                    Ok((address, status)) => {
                        // What a learner has and says is not what it has promised.
                        if !status.is_learner || broken(partition.env()).learner_votes {
                            asked.election.answered(member.key(), status.granted, status.standing.clone());
                        }
                        asked.statuses.push((Upstream { address, partition: member.partition }, status));
                    }
                    Err(why) => {
                        let text = format!("{} does not answer: {why}", member.address);
                        self.log(partition.id(), Level::Debug, text);
                    }
                }
            }
        }
    }

    /// Tells members that are not there that this node leads.
    pub(super) async fn announce(self: &Rc<Self>, partition: &Partition<H::Env>) {
        let (own, present) = (self.key(partition.id()), self.board.present(partition.id()));
        let members = partition.members().nodes;
        let absent = members.iter().filter(|member| member.key() != own && !present.contains(&member.key()));
        let address = self.own_address(partition);
        let say = |caller| Frame::Leads(caller, address.clone());
        // Who does not hear of it is told again, or asks.
        all(absent.map(|member| self.ask_member(partition, member, say))).await;
    }

    /// Asks a member where it said hello from, and, if that is of long ago, where the list has it.
    async fn ask_member(
        self: &Rc<Self>,
        partition: &Partition<H::Env>,
        member: &Member,
        say: impl Fn(Caller) -> Frame,
    ) -> Result<(String, Status), String> {
        let noted = self.addresses.borrow().get(&(partition.id(), member.key())).cloned();
        let listed = Some(member.address.clone()).filter(|address| noted.as_ref() != Some(address));
        let addresses: Vec<String> = noted.into_iter().chain(listed).filter(|address| !address.is_empty()).collect();
        let deadline = self.host.now() + ANSWER;
        let mut why = "its address is not known".to_string();
        for (i, address) in addresses.iter().enumerate() {
            let left = deadline.saturating_sub(self.host.now()) / (addresses.len() - i) as u32;
            let frame = say(self.caller(partition.id(), member.node, member.partition));
            match self.ask_within(partition, address, member.partition, member.node, frame, left).await {
                Ok(status) => return Ok((address.clone(), status)),
                Err(other) => why = other,
            }
        }
        Err(why)
    }

    /// Asks what a node is; `member` is 0 for whoever is there.
    pub(super) async fn ask_status(
        self: &Rc<Self>,
        partition: &Partition<H::Env>,
        address: &str,
        theirs: u8,
        member: u64,
    ) -> Result<Status, String> {
        let frame = Frame::StatusRequest(self.caller(partition.id(), member, theirs));
        self.ask_within(partition, address, theirs, member, frame, ANSWER).await
    }

    async fn ask_within(
        self: &Rc<Self>,
        partition: &Partition<H::Env>,
        address: &str,
        theirs: u8,
        member: u64,
        frame: Frame,
        left: Duration,
    ) -> Result<Status, String> {
        let deadline = self.host.now() + left;
        let link = self.dial_within(partition, address, theirs, left).await?;
        link.say(&frame);
        let answer = loop {
            match link.next() {
                Ok(Some(Frame::Status(status))) => break Ok(*status),
                Ok(Some(Frame::Refuse(_, text))) => break Err(text),
                Ok(Some(_)) => break Err("it says something else".to_string()),
                Err(why) => break Err(why),
                Ok(None) => {}
            }
            if let Some(why) = link.gone() {
                break Err(why);
            }
            if self.host.now() > deadline {
                break Err("it does not answer in time".to_string());
            }
            wait_for(partition.env(), &*link).await;
        };
        link.close();
        let status = answer?;
        if (member != 0 && status.node != member) || status.node == 0 {
            return Err("it is another node".to_string());
        }
        if status.node != self.host.node() {
            self.recognise(partition, status.node, &*link).await.map_err(|error| error.to_string())?;
            let leads_this = partition.leadership().upstream_node == status.node;
            let believed = leads_this || self.is_listed(partition, (status.node, theirs));
            if believed && let Err(trouble) = self.compare_with_known(partition, status.had).await {
                return Err(trouble.text());
            }
        }
        Ok(status)
    }

    /// Connects within a time. A connection that comes later is closed.
    async fn dial_within(
        self: &Rc<Self>,
        partition: &Partition<H::Env>,
        address: &str,
        theirs: u8,
        left: Duration,
    ) -> Result<Rc<H::Link>, String> {
        struct Dialed<L> {
            link: RefCell<Option<Result<Rc<L>, String>>>,
            given_up: Cell<bool>,
            done: Notify,
        }
        let dialed = Rc::new(Dialed { link: RefCell::new(None), given_up: Cell::new(false), done: Notify::default() });
        let (node, address, here) = (self.clone(), address.to_string(), dialed.clone());
        partition.env().spawn(async move {
            let link = node.host.dial(address, theirs).await;
            match link {
                Ok(link) if here.given_up.get() => link.close(),
                link => *here.link.borrow_mut() = Some(link),
            }
            here.done.notify();
        });
        first_of(dialed.done.notified(), partition.env().sleep(left)).await;
        dialed.given_up.set(true);
        let link = dialed.link.borrow_mut().take();
        link.unwrap_or_else(|| Err("it does not answer in time".to_string()))
    }

    /// The other side says to be the node with this number: its certificate must not say otherwise.
    pub(super) async fn recognise(
        &self,
        partition: &Partition<H::Env>,
        node: u64,
        link: &H::Link,
    ) -> Result<(), Error> {
        let (key, name) = link.identity();
        if let Some(news) = partition.recognise(Peer { node, key, name }).await? {
            self.log(partition.id(), Level::Warn, news);
        }
        Ok(())
    }

    /// Another node says what it knows this one to have had. Where that is more than what is here, this node's home was put back
    /// from an older copy.
    pub(super) async fn compare_with_known(&self, partition: &Partition<H::Env>, had: Had) -> Result<(), Trouble> {
        let standing = partition.standing();
        let is_short = had.version > standing.last && had.epoch.number >= standing.adopted.number;
        if !is_short || partition.env().sabotage() == Some(Sabotage::PutBackNotNoticed) {
            return Ok(());
        }
        if self.order(partition, &Event::FoundShort(had.epoch)).await? {
            let text = format!(
                "this node has had everything up to version {} and has {} now: its home was put back from an older copy, or its disk \
                 has lost writes; it votes for nobody and leads only by force until it has caught up with a leader",
                had.version, standing.last
            );
            self.log(partition.id(), Level::Error, text);
        }
        Ok(())
    }

    /// Answers a question.
    pub(super) async fn answer(self: &Rc<Self>, link: &H::Link, question: Frame) -> Result<(), String> {
        let refuse = |reason, text: String| {
            link.say(&Frame::Refuse(reason, text.clone()));
            Err(text)
        };
        let caller = match &question {
            Frame::StatusRequest(caller) | Frame::Leads(caller, _) => *caller,
            Frame::VoteRequest(request) => request.caller,
            _ => return Err("it did not begin with a question".to_string()),
        };
        if caller.version != PROTOCOL {
            return refuse(Reason::Protocol, format!("protocol {} is not spoken here, {PROTOCOL} is", caller.version));
        }
        if caller.node == 0 {
            return refuse(Reason::Stranger, "no node has the number 0".to_string());
        }
        if caller.member != 0 && caller.member != self.host.node() {
            return refuse(Reason::Itself, "somebody else is meant".to_string());
        }
        let Some(partition) = self.host.partition(caller.partition) else {
            return refuse(Reason::NoPartition, format!("partition {} is not here, or offline", caller.partition));
        };
        if caller.node != self.host.node()
            && let Err(error) = self.recognise(&partition, caller.node, link).await
        {
            return refuse(Reason::Stranger, error.to_string());
        }
        let mut granted = false;
        match question {
            Frame::VoteRequest(request) => match self.vote(&partition, &request).await {
                Ok(voted) => granted = voted,
                Err(error) => return refuse(Reason::NoPartition, error.to_string()),
            },
            Frame::Leads(_, address) => {
                let address = resolve(&address, &link.peer());
                self.hear_of_leader(&partition, caller, address);
            }
            _ => {}
        }
        link.say(&Frame::Status(Box::new(self.status(&partition, &caller, granted))));
        Ok(())
    }

    /// Votes for a candidate, if that may be.
    async fn vote(&self, partition: &Partition<H::Env>, request: &VoteRequest) -> Result<bool, Error> {
        let own = partition.standing();
        let caller = request.caller;
        let is_led = partition.role() == Role::Leader || self.board.is_streaming(partition.id());
        if !knows_candidate((self.key(partition.id()), &own), is_led, ((caller.node, caller.own), &request.standing)) {
            let text = format!("node {:016x} asks for a vote, and is no member here", caller.node);
            self.log(partition.id(), Level::Warn, text);
            return Ok(false);
        }
        let before = partition.adopted();
        let decide = |now: &_| step(now, &Event::VoteRequested(request.epoch), broken(partition.env()));
        match partition.vote(request.epoch, decide).await {
            Ok(Ok(standing)) => {
                if before != standing.adopted {
                    let text = format!("has voted for node {:016x} in epoch {}", caller.node, request.epoch.number);
                    self.log(partition.id(), Level::Info, text);
                }
                Ok(true)
            }
            Ok(Err(Refusal::Learner)) => {
                let text = format!("node {:016x} asks for a vote: a learner has none", caller.node);
                self.log(partition.id(), Level::Info, text);
                Ok(false)
            }
            Ok(Err(Refusal::TooFar(voted))) => {
                let text = format!(
                    "node {:016x} asks for a vote in epoch {}, which is too far above {}",
                    caller.node, request.epoch.number, voted.number
                );
                self.log(partition.id(), Level::Warn, text);
                Ok(false)
            }
            Ok(Err(_)) | Err(Error::Fenced { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
