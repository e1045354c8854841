//! Somebody else's side of a partition of this node: reads the log as it is written and sends it, notes what the follower
//! confirms; or answers a candidate's question.

use super::{Host, Link, PIECE, Replica, Replication, Speaks, resolve, wait_for};
use std::rc::Rc;
use std::time::Duration;
use turnstone_engine::Error;
use turnstone_engine::copy::CopyOut;
use turnstone_engine::env::{Env, Level, Sabotage};
use turnstone_engine::manifest::{MembersRecord, Role};
use turnstone_engine::sync::first_of;
use turnstone_engine::tail::{LogReader, Scope, Shipment};
use turnstone_engine::types::{Member, Members, Version};
use turnstone_engine::{Partition, Standing};
use turnstone_replication::leader::{Leader, Opening, View, is_stray};
use turnstone_replication::leadership::JUMP_MAX;
use turnstone_replication::quorum::Key;
use turnstone_replication::wire::{Frame, Hello, Ordered, PROTOCOL, Reason, Wish};

/// Bytes of bodies that are read at once.
const READ: usize = 1 << 20;
/// Who has connected has so long to say what it wants.
const GREETING: Duration = Duration::from_secs(10);
/// Where nobody waits for a follower's word, what is committed within this time leaves together, and shares what each side has
/// to do for a read, a record of TLS, a flush and a word.
const GATHER: Duration = Duration::from_millis(1);
/// Nothing is waited for behind so many bytes.
const ENOUGH: usize = 256 << 10;
/// A follower that is no member is made one, and tried again after this time.
const JOIN: Duration = Duration::from_secs(1);

struct Stream<'a, H: Host> {
    node: &'a Rc<Replication<H>>,
    link: &'a H::Link,
    partition: Partition<H::Env>,
    leader: Leader,
    reader: LogReader<H::Env>,
    stream: u64,
    member: Member,
    life: u64,
    dialed: String,
    joined: Option<Duration>,
    /// It is a member once it has this, which the leader had published at that time: until then it is too far behind to count.
    goal: (Version, Duration),
    /// Nothing was heard of it yet.
    fresh: bool,
    /// The list names it already.
    listed: bool,
    /// A candidate takes the end of the log, whether anybody leads here or not.
    fetched: bool,
    /// It sends what is left, and waits for nobody.
    leaving: bool,
    /// What keeps the log behind a copy, until what there was of it is sent.
    kept: Option<(CopyOut<H::Env>, Version)>,
}

impl<H: Host> Replication<H> {
    /// Serves who has connected until it is gone; answers why it ended.
    pub async fn serve(self: &Rc<Self>, link: Rc<H::Link>, env: H::Env) -> Result<(), String> {
        let deadline = self.host.now() + GREETING;
        let answer = loop {
            match link.next() {
                Err(why) => break Err(why),
                Ok(Some(Frame::Hello(hello))) => break self.feed(&link, &hello).await,
                Ok(Some(question)) => break self.answer(&link, question).await,
                Ok(None) if link.gone().is_some() => return Ok(()),
                Ok(None) if self.host.now() > deadline => break Err("it said nothing".to_string()),
                Ok(None) => wait_for(&env, &*link).await,
            }
        };
        link.close();
        answer
    }

    /// Remembers where a member is. Only of nodes that the list names: strangers cost no memory.
    fn note_address(&self, partition: &Partition<H::Env>, member: Key, address: &str) {
        if self.is_listed(partition, member) {
            self.addresses.borrow_mut().insert((partition.id(), member), address.to_string());
        }
    }

    /// Whether a list names a member: the one in force, or one that is pending.
    pub(super) fn is_listed(&self, partition: &Partition<H::Env>, member: Key) -> bool {
        let names = |record: &MembersRecord| record.members.nodes.iter().any(|m| m.key() == member);
        partition.standing().members.iter().any(names)
    }

    /// A node that was forgotten is turned away, until an operator orders it to follow again.
    async fn let_in(&self, partition: &Partition<H::Env>, hello: &Hello) -> Result<(), String> {
        let is_forgotten = |members: &Members| members.forgotten.contains(&hello.node);
        let kept = partition.env().sabotage() != Some(Sabotage::ForgottenNotKept);
        if !kept || !is_forgotten(&partition.members()) {
            return Ok(());
        }
        if hello.ordered == Ordered::No {
            return Err(format!("node {:016x} was forgotten here: `replicaof` at it lets it in again", hello.node));
        }
        if !partition.leads() {
            return Ok(());
        }
        let changed = partition.change_members(true, |members| {
            let mut next = members.clone();
            next.forgotten.retain(|node| *node != hello.node);
            (next != *members).then_some(next)
        });
        changed.await.map(drop).map_err(|error| format!("it was forgotten here, and cannot be let in now: {error}"))
    }

    async fn feed(self: &Rc<Self>, link: &Rc<H::Link>, hello: &Hello) -> Result<(), String> {
        let refuse = |frame: Frame| {
            link.say(&frame);
            match frame {
                Frame::Refuse(_, text) => Err(text),
                _ => Err("the histories part".to_string()),
            }
        };
        let Some(partition) = self.host.partition(hello.partition) else {
            let text = format!("partition {} is not here, or offline", hello.partition);
            return refuse(Frame::Refuse(Reason::NoPartition, text));
        };
        if hello.version != PROTOCOL {
            let text = format!("protocol {} is not spoken here, {PROTOCOL} is", hello.version);
            return refuse(Frame::Refuse(Reason::Protocol, text));
        }
        if hello.node == 0 {
            return refuse(Frame::Refuse(Reason::Stranger, "no node has the number 0".to_string()));
        }
        let same = |replica: &Replica| replica.node == hello.node && replica.partition == hello.own;
        if self.board.replicas(partition.id()).iter().any(|replica| same(replica) && replica.life != hello.life) {
            let text = format!(
                "node {:016x} follows already, by another process: its home was copied, or it was restarted a moment ago",
                hello.node
            );
            return refuse(Frame::Refuse(Reason::Stranger, text));
        }
        if let Err(error) = self.recognise(&partition, hello.node, link).await {
            return refuse(Frame::Refuse(Reason::Stranger, error.to_string()));
        }
        let member = (hello.node, hello.own);
        if self.is_listed(&partition, member) && !self.known.lives(partition.id(), member, hello.life) {
            let text = format!(
                "two processes say that they are node {:016x}: its home was copied, and both copies run; end one of them, \
                 and restart the other if it is still refused",
                hello.node
            );
            return refuse(Frame::Refuse(Reason::Stranger, text));
        }
        if hello.ordered == Ordered::ByForce {
            self.known.forget(partition.id(), hello.node);
        }
        let address = resolve(&hello.address, &link.peer());
        self.note_address(&partition, member, &address);
        if let Err(text) = self.let_in(&partition, hello).await {
            return refuse(Frame::Refuse(Reason::Stranger, text));
        }
        // A candidate fetches what is missing from whoever has it.
        if partition.role() == Role::SteppedDown && hello.wish != Wish::Log {
            let text = "the partition has stepped down there: promote it first".to_string();
            return refuse(Frame::Refuse(Reason::NotLeader, text));
        }
        let view = View {
            node: self.host.node(),
            partition: partition.id(),
            standing: partition.standing(),
            oldest: partition.oldest_version(),
            had: self.known.of(partition.id(), member),
        };
        // Numbers end: who is no member, or far off, does not make this leader use them up.
        let listed = partition.members().nodes.iter().any(|member| member.key() == (hello.node, hello.own));
        let near = hello.adopted.number <= view.standing.adopted.number.saturating_add(JUMP_MAX);
        if is_stray(hello.adopted, &view.standing) && near && (listed || hello.ordered != Ordered::No) {
            self.note_stray(partition.id(), hello.adopted.number, hello.ordered != Ordered::No);
        }
        let mut hello = hello.clone();
        if partition.env().sabotage() == Some(Sabotage::HistoryNotCompared) {
            hello.last = hello.last.min(view.standing.last);
            hello.epochs = view.standing.epochs.clone();
        }
        let hello = &hello;
        let (leader, accept) = match Leader::open(hello, &view, self.host.now()) {
            Opening::Stream(..) if partition.is_another(hello.last, hello.sum) => {
                let text = format!(
                    "version {} is another one here, in the same epoch: one of the two homes was copied, or has lost writes; `replicaof \
                     HOST:PORT PARTITION force` at the follower sets aside what it has",
                    hello.last
                );
                return refuse(Frame::Refuse(Reason::Diverged, text));
            }
            Opening::Stream(leader, accept) => (leader, accept),
            Opening::Copy => return self.lend(link, hello, partition).await,
            Opening::Refused(refusal) => return refuse(refusal),
        };
        let whole = partition.settled() >= hello.last && partition.settled() > 0;
        if hello.wish == Wish::CopyIfNeeded && whole && self.host.rather_copies() {
            return self.lend(link, hello, partition).await;
        }
        let reader = match partition.log_reader(hello.last + 1, Scope::Everything) {
            Ok(reader) => reader,
            Err(error) => return refuse(Frame::Refuse(Reason::Purged, error.to_string())),
        };
        link.say(&accept);
        let peer = link.peer();
        let text = format!("{peer} follows from version {} on", hello.last + 1);
        self.log(partition.id(), Level::Info, text);
        let member = Member { node: hello.node, partition: hello.own, address };
        let (stream, number) = (self.board.stream(), partition.id());
        let (dialed, life) = (hello.dialed.clone(), hello.life);
        let kept = self.redeem(number, hello).map(|copy| (copy, partition.prepared()));
        let goal = (partition.published(), self.host.now());
        let listed = partition.members().nodes.iter().any(|known| known.key() == member.key());
        let leader = *leader;
        let mut stream = Stream {
            node: self,
            link,
            partition,
            leader,
            reader,
            stream,
            member,
            life,
            dialed,
            joined: None,
            fetched: hello.wish == Wish::Log,
            goal,
            fresh: true,
            listed,
            leaving: false,
            kept,
        };
        let ended = stream.run().await;
        self.board.remove_replica(number, stream.stream);
        self.count(number);
        ended
    }
}

impl<H: Host> Stream<'_, H> {
    async fn run(&mut self) -> Result<(), String> {
        let deposed = self.partition.deposed();
        // There was nothing to send.
        let mut quiet = true;
        loop {
            if self.link.gone().is_some() {
                return Ok(());
            }
            if let Err(why) = self.room().await {
                self.leave().await;
                return Err(why);
            }
            if self.node.board.is_evicted(self.partition.id(), self.stream) {
                let text = "this node was forgotten: `replicaof` at it lets it in again".to_string();
                self.link.say(&Frame::Refuse(Reason::Stranger, text.clone()));
                return Err(text);
            }
            if self.partition.deposed() != deposed {
                return Err("the partition's role has changed".to_string());
            }
            if self.leader.comes_to_lead(self.partition.leads()) {
                self.say_standing();
            }
            let published = self.say_shown();
            let shipments = match self.reader.read(READ).await {
                Ok(shipments) => shipments,
                Err(error @ Error::Purged { .. }) => {
                    self.link.say(&Frame::Refuse(Reason::Purged, error.to_string()));
                    return Err(error.to_string());
                }
                Err(error) => return Err(error.to_string()),
            };
            if shipments.is_empty() {
                if let Some(beat) = self.leader.beat(self.partition.published(), self.node.host.now()) {
                    self.link.say(&beat);
                }
                let news = first_of(self.reader.ready(), self.partition.wait_published(published + 1));
                first_of(wait_for(self.partition.env(), self.link), news).await;
                quiet = true;
                continue;
            }
            if self.ship_all(shipments).await? < ENOUGH && !self.node.host.stopping() {
                self.gather(quiet).await;
            }
            quiet = false;
        }
    }

    /// Says what this node has, with the whole history: of a reign that begins behind the last version, too.
    fn say_standing(&mut self) {
        let standing = Standing { epochs: self.partition.history(), ..self.partition.standing() };
        let said = self.leader.standing(standing);
        self.link.say(&said);
    }

    /// Says what is shown, if that is news; answers what it is.
    fn say_shown(&mut self) -> Version {
        let published = self.partition.published();
        if let Some(shown) = self.leader.shown(published, self.node.host.now()) {
            self.link.say(&shown);
        }
        published
    }

    /// Waits a moment for more, unless somebody waits for the follower's word. Behind a quiet time it is said meanwhile that
    /// what was sent is shown: a lone commit is, at once. Where commits follow each other it is said with the next of them.
    async fn gather(&mut self, quiet: bool) {
        let partition = self.partition.clone();
        if !partition.leads_alone() {
            return;
        }
        let env = partition.env();
        let end = env.now() + GATHER;
        let rest = || first_of(env.sleep(end.saturating_sub(env.now())), partition.wait_not_alone());
        if quiet {
            first_of(rest(), partition.wait_published(self.leader.sent_to())).await;
            self.say_shown();
        }
        rest().await;
    }

    /// A leader that steps down, or closes, sends what is left, so that whoever is promoted has all that was answered. It waits
    /// for nobody: a follower that is far behind does without.
    async fn leave(&mut self) {
        let over = self.partition.role() == Role::SteppedDown || self.partition.is_closed();
        if !over || self.link.gone().is_some() {
            return;
        }
        self.leaving = true;
        let last = self.partition.prepared();
        self.partition.wait_flushed(last).await;
        while self.leader.sent_to() < last {
            match self.reader.read(READ).await {
                Ok(shipments) if !shipments.is_empty() => {
                    if self.ship_all(shipments).await.is_err() {
                        return;
                    }
                }
                _ => return,
            }
        }
        self.say_shown();
    }

    /// Sends batches; answers how many bytes they were.
    async fn ship_all(&mut self, shipments: Vec<Shipment>) -> Result<usize, String> {
        let (mut bytes, mut unbroken) = (0, 0);
        for shipment in shipments {
            let sent = self.ship(shipment).await?;
            bytes += sent;
            unbroken += sent;
            if unbroken >= PIECE {
                self.partition.env().give_way().await;
                unbroken = 0;
            }
        }
        Ok(bytes)
    }

    async fn ship(&mut self, shipment: Shipment) -> Result<usize, String> {
        let mut bytes = shipment.body.len();
        if self.leader.is_news(self.partition.adopted(), &self.partition.history(), self.partition.leads()) {
            self.say_standing();
        }
        // A FlushDB is carried out before anything comes behind it.
        self.say_shown();
        self.room().await?;
        self.link.say(&Frame::Batch(shipment.body));
        for value in &shipment.values {
            let value = self.reader.value(value).await.map_err(|e| e.to_string())?;
            self.room().await?;
            bytes += value.len();
            self.link.say(&Frame::Value(value.to_vec()));
        }
        self.leader.sent(shipment.last, self.node.host.now());
        self.kept.take_if(|(_, last)| *last <= shipment.last);
        Ok(bytes)
    }

    /// Waits until not too much waits at the link, and hears what comes meanwhile.
    async fn room(&mut self) -> Result<(), String> {
        loop {
            self.hear()?;
            if self.leaving {
                let there = self.link.gone().is_none() && !self.link.is_clogged();
                return if there { Ok(()) } else { Err("the follower takes no more".to_string()) };
            }
            if self.leader.is_gone(self.node.host.now()) {
                return Err("the follower is silent".to_string());
            }
            let stepped_down = self.partition.role() == Role::SteppedDown && !self.fetched;
            if stepped_down || self.partition.is_closed() {
                return Err("the partition stepped down".to_string());
            }
            match self.link.gone() {
                Some(_) => return Err("the connection is gone".to_string()),
                None if !self.link.is_clogged() => return Ok(()),
                None => wait_for(self.partition.env(), self.link).await,
            }
        }
    }

    fn hear(&mut self) -> Result<(), String> {
        let now = self.node.host.now();
        if self.link.heard() {
            self.leader.hears(now);
        }
        let before = self.leader.acked();
        while let Some(frame) = self.link.next()? {
            self.leader.take(&frame, now).map_err(|violation| violation.0)?;
        }
        let acked = self.leader.acked();
        if acked != before || self.fresh {
            self.fresh = false;
            let Member { node, partition, .. } = self.member;
            let life = self.life;
            let replica = Replica { node, partition, life, peer: self.link.peer(), acked: acked.1 };
            self.node.board.set_replica(self.partition.id(), self.stream, replica);
            if self.listed {
                self.node.known.note(self.partition.id(), self.leader.key(), acked.0, acked.1);
            }
            self.node.confirm(&self.partition, self.leader.key(), acked);
        }
        self.join(now);
        Ok(())
    }

    /// A leader's follower becomes a member.
    fn join(&mut self, now: Duration) {
        if self.joined.is_some_and(|at| now < at + JOIN) {
            return;
        }
        if !self.listed && self.leader.acked().1 < self.goal.0 {
            if now >= self.goal.1 + JOIN {
                self.goal = (self.partition.published(), now);
            }
            return;
        }
        self.joined = Some(now);
        if !self.partition.leads() {
            return;
        }
        let members = self.partition.members();
        let key = self.node.key(self.partition.id());
        let node = self.node.clone();
        // The list may have an address of before this node was moved. Where followers come through other ports it stays.
        let dialed = self.dialed.clone();
        let is_old = move |address: &str| {
            address.is_empty()
                || (!node.listens_at(address) && (node.listens_at(&dialed) || !node.host.address().starts_with(':')))
        };
        let own_known = members.nodes.iter().any(|m| m.key() == key && !is_old(&m.address));
        if own_known && members.nodes.contains(&self.member) {
            self.listed = true;
            return;
        }
        let own = Member {
            node: self.node.host.node(),
            partition: self.partition.id(),
            address: Some(self.node.host.address()).filter(|a| !a.starts_with(':')).unwrap_or(self.dialed.clone()),
        };
        let (partition, member) = (self.partition.clone(), self.member.clone());
        let kept = partition.env().sabotage() != Some(Sabotage::ForgottenNotKept);
        self.partition.env().spawn(async move {
            let added = partition.change_members(false, |members| {
                let mut next = members.clone();
                if next.forgotten.contains(&member.node) && kept {
                    return None;
                }
                match next.nodes.iter_mut().find(|m| m.key() == own.key()) {
                    Some(known) if is_old(&known.address) => known.address = own.address.clone(),
                    Some(_) => {}
                    None => next.nodes.push(own.clone()),
                }
                match next.nodes.iter_mut().find(|m| m.key() == member.key()) {
                    Some(known) => known.address = member.address.clone(),
                    None => next.nodes.push(member.clone()),
                }
                (next != *members).then_some(next)
            });
            if let Err(error) = added.await {
                let text = format!("partition {}: {} is no member yet: {error}", partition.id(), member.address);
                partition.env().log(Level::Debug, text);
            }
        });
    }
}
