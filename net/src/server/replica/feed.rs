//! The leader's side of a stream: reads the log as it is published and sends it, and notes what the follower confirms.

use super::super::core::{ServerCore, Slot};
use super::{Link, Replica};
use std::rc::Rc;
use turnstone_engine::Error;
use turnstone_engine::manifest::Role;
use turnstone_engine::sync::first_of;
use turnstone_engine::tail::{LogReader, Shipment};
use turnstone_engine::{Partition, env::Level};
use turnstone_executor::RealEnv;
use turnstone_executor::pace::give_way;
use turnstone_replication::leader::{Leader, View};
use turnstone_replication::wire::{Frame, Hello, Reason};

/// Bytes of bodies that are read at once.
const READ: usize = 1 << 20;

/// Serves one follower until it is gone.
pub(super) async fn feed(server: Rc<ServerCore>, id: u64, link: Rc<Link>) {
    let ended = serve(&server, id, &link).await;
    let peer = server.peer(id);
    if let Err(why) = ended
        && !link.gone.get()
    {
        server.core.log.line(Level::Info, &format!("the stream to {peer} ends: {why}"));
    }
    // What was said last still leaves.
    server.with(id, super::super::connection::Connection::say_goodbye);
}

async fn serve(server: &Rc<ServerCore>, id: u64, link: &Rc<Link>) -> Result<(), String> {
    let hello = loop {
        match server.next_frame(id, link)? {
            Some(Frame::Hello(hello)) => break hello,
            Some(_) => return Err("it did not begin with a hello".to_string()),
            None if link.gone.get() => return Ok(()),
            None => link.changed.notified().await,
        }
    };
    let partition = match server.partitions.borrow().get(&hello.partition) {
        Some(Slot::Open(partition)) => partition.clone(),
        _ => {
            let text = format!("partition {} is not here, or offline", hello.partition);
            server.say_frame(id, &Frame::Refuse(Reason::NoPartition, text.clone()));
            return Err(text);
        }
    };
    let (leader, reader) = match open(server, &partition, &hello) {
        Ok((leader, accept, reader)) => {
            server.say_frame(id, &accept);
            (leader, reader)
        }
        Err(refusal) => {
            let Frame::Refuse(_, text) = &refusal else { return Err("it was refused".to_string()) };
            server.say_frame(id, &refusal);
            return Err(text.clone());
        }
    };
    let peer = server.peer(id);
    let text = format!("partition {}: {peer} follows from version {} on", partition.id(), hello.last + 1);
    server.core.log.line(Level::Info, &text);
    let mut stream = Stream { server, id, link, partition, leader, reader, peer };
    let ended = stream.run().await;
    server.board.replicas.borrow_mut().remove(&(stream.partition.id(), id));
    ended
}

fn open(
    server: &ServerCore,
    partition: &Partition<RealEnv>,
    hello: &Hello,
) -> Result<(Leader, Frame, LogReader<RealEnv>), Frame> {
    let epochs = partition.history();
    let view = View {
        node: server.settings.node,
        partition: partition.id(),
        serves: partition.role() != Role::SteppedDown,
        published: partition.published(),
        oldest: partition.oldest_version(),
        epochs: &epochs,
    };
    let (leader, accept) = Leader::open(hello, &view, server.uptime())?;
    match partition.log_reader(hello.last + 1) {
        Ok(reader) => Ok((leader, accept, reader)),
        Err(error) => Err(Frame::Refuse(Reason::Purged, error.to_string())),
    }
}

struct Stream<'a> {
    server: &'a Rc<ServerCore>,
    id: u64,
    link: &'a Rc<Link>,
    partition: Partition<RealEnv>,
    leader: Leader,
    reader: LogReader<RealEnv>,
    peer: String,
}

impl Stream<'_> {
    async fn run(&mut self) -> Result<(), String> {
        loop {
            if self.link.gone.get() {
                return Ok(());
            }
            self.room().await?;
            let shipments = match self.reader.read(READ).await {
                Ok(shipments) => shipments,
                Err(error @ Error::Purged { .. }) => {
                    self.server.say_frame(self.id, &Frame::Refuse(Reason::Purged, error.to_string()));
                    return Err(error.to_string());
                }
                Err(error) => return Err(error.to_string()),
            };
            if shipments.is_empty() {
                if let Some(beat) = self.leader.beat(self.partition.published(), self.server.uptime()) {
                    self.server.say_frame(self.id, &beat);
                }
                let next = self.reader.next_version();
                first_of(self.link.changed.notified(), self.partition.wait_published(next)).await;
                continue;
            }
            for shipment in shipments {
                self.ship(shipment).await?;
                give_way().await;
            }
        }
    }

    async fn ship(&mut self, shipment: Shipment) -> Result<(), String> {
        if let Some(epochs) = self.leader.before_batch(&self.partition.history()) {
            self.server.say_frame(self.id, &epochs);
        }
        self.room().await?;
        self.server.say_frame(self.id, &Frame::Batch(shipment.body));
        for value in &shipment.values {
            let value = self.reader.value(value).await.map_err(|e| e.to_string())?;
            self.room().await?;
            self.server.say_frame(self.id, &Frame::Value(value.to_vec()));
        }
        self.leader.sent(shipment.last, self.server.uptime());
        Ok(())
    }

    /// Waits until not too much waits at the socket, and hears what comes meanwhile.
    async fn room(&mut self) -> Result<(), String> {
        loop {
            self.hear()?;
            if self.leader.is_gone(self.server.uptime()) {
                return Err("the follower is silent".to_string());
            }
            if self.partition.role() == Role::SteppedDown {
                return Err("the partition stepped down".to_string());
            }
            match self.server.has_backlog(self.id) {
                None => return Err("the connection is gone".to_string()),
                Some(false) => return Ok(()),
                Some(true) => self.link.changed.notified().await,
            }
        }
    }

    fn hear(&mut self) -> Result<(), String> {
        if self.link.heard.replace(false) {
            self.leader.hears(self.server.uptime());
        }
        while let Some(frame) = self.server.next_frame(self.id, self.link)? {
            self.leader.take(&frame, self.server.uptime()).map_err(|violation| violation.0)?;
        }
        let place = (self.partition.id(), self.id);
        let mut replicas = self.server.board.replicas.borrow_mut();
        if replicas.get(&place).is_some_and(|replica| replica.acked == self.leader.acked()) {
            return Ok(());
        }
        let replica = Replica { node: self.leader.node(), peer: self.peer.clone(), acked: self.leader.acked() };
        replicas.insert(place, replica);
        Ok(())
    }
}
