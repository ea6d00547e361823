//! Answers the requests at the socket of an open store.
//!
//! A thread that answers holds the engine only during one step. So dropping the last handle closes the store, even
//! while a client is connected. No lock is held while a reply is written.

pub(super) mod message;

use std::sync::{Arc, Weak};
use std::time::Duration;

use crate::api::records::RecordFilter;
use crate::live::server::{Replies, Server};
use crate::protocol::event::Events;
use crate::protocol::{Load, OpenReport, Protocol, RecordId, RowRange, Service};
use crate::types::clock::monotonic;
use crate::types::codec;
use crate::types::error::{Error, ErrorKind, Result};
use crate::types::key::check_name;
use crate::types::options::check_ttl;
use crate::types::record::RecordInfo;
use crate::types::record::SentRecord;
use message::{Name, Reply, Request, SentEvent};

/// The number of keys that one step reads. A step locks each shard of the memtable once, so it reads more keys than
/// there are shards. It is short, so that callers of the engine do not wait for the processor.
const KEYS: usize = 128;
/// The bytes of records after which a reply is sent.
const BYTES: usize = 256 << 10;
/// The number of rows that one step reads.
const ROWS: usize = 64;
/// The interval at which a subscription checks whether its client is there.
const ALIVE: Duration = Duration::from_secs(5);

/// The longest time after the end of the server in which the last events are sent.
const LAST_EVENTS: Duration = Duration::from_millis(250);

/// The state that answers requests.
#[derive(Debug)]
struct Answerer {
    protocol: Weak<Protocol>,
    opened: OpenReport,
    compaction_batch: usize,
}

impl Service for Server {
    fn stop(&self) {
        self.stop();
    }

    fn join(&self) {
        self.join();
    }
}

/// Serves the socket of an engine, until its store ends.
pub(super) fn serve(protocol: &Arc<Protocol>, opened: OpenReport, compaction_batch: usize) -> Result<Arc<Server>> {
    let answerer = Answerer { protocol: Arc::downgrade(protocol), opened, compaction_batch };
    let answer = Box::new(move |request: &[u8], replies: &Replies<'_>| answerer.answer(request, replies));
    let server = Arc::new(Server::start(protocol.path(), answer)?);
    protocol.serve(Arc::clone(&server) as Arc<dyn Service>);
    Ok(server)
}

impl Answerer {
    /// Returns the engine, for one step.
    fn protocol(&self) -> Result<Arc<Protocol>> {
        self.protocol.upgrade().ok_or_else(Error::closed)
    }

    fn answer(&self, request: &[u8], replies: &Replies<'_>) -> Result<()> {
        let request: Request = codec::decode_plain("request", request).map_err(|why| {
            let message = format!("the request was made by another build than the one that has the store open: {why}");
            Error::new(ErrorKind::UnsupportedFormat, message)
        })?;
        let send = |reply: &Reply| message::encode(reply).and_then(|bytes| replies.send_only(&bytes));
        let changed = |done: bool| send(&Reply::Changed(done));
        let goes_on = || replies.check();
        let protocol = self.protocol()?;
        match request {
            Request::List(filter) => {
                drop(protocol);
                self.list(&filter.into(), Load::WithoutOutcome, replies)
            }
            Request::Export(filter) => {
                drop(protocol);
                self.list(&filter.into(), Load::All, replies)
            }
            Request::Watch => {
                let events = protocol.subscribers().subscribe();
                drop(protocol);
                watch(&events, replies)
            }
            Request::Tables => send(&Reply::Tables(protocol.table_names()?)),
            Request::Rows { table, prefix } => {
                drop(protocol);
                self.rows(&table, &prefix, replies)
            }
            Request::About => send(&Reply::About(Box::new((self.opened, protocol.stats())))),
            Request::Get(name) => match protocol.inspect(&id(&name)?, Load::All)? {
                Some(info) => send(&Reply::Record(Box::new((&info).into()))),
                None => Ok(()),
            },
            Request::Resolve(name, resolution, seen) => {
                protocol.resolve(&id(&name)?, &resolution.into(), None, seen)?;
                changed(true)
            }
            Request::Undo(name, seen) => {
                protocol.undo(&id(&name)?, seen)?;
                changed(true)
            }
            Request::Revoke(name, seen) => {
                send(&Reply::Record(Box::new((&protocol.revoke(&id(&name)?, seen)?).into())))
            }
            Request::Forget(name) => changed(protocol.forget(&id(&name)?)?),
            Request::Remove(name) => changed(protocol.remove(&id(&name)?)?),
            Request::Extend(name, ttl) => {
                check_ttl("ttl", Duration::from_millis(ttl))?;
                changed(protocol.extend(&id(&name)?, ttl)?)
            }
            Request::Import(record) => {
                let info = RecordInfo::from(*record);
                let name = Name::new(info.manager(), info.key());
                changed(protocol.import(&id(&name)?, info.stored())?)
            }
            Request::Sync => {
                protocol.sync()?;
                changed(true)
            }
            Request::Compact => {
                send(&Reply::Compacted(protocol.compact_now(self.compaction_batch, &|| goes_on().is_ok())?))
            }
            Request::Verify => send(&Reply::Verified(protocol.verify(&goes_on)?)),
            Request::Backup(path) => send(&Reply::BackedUp(protocol.back_up(&path.into_path(), &goes_on)?)),
        }
    }

    fn rows(&self, table: &str, prefix: &[u8], replies: &Replies<'_>) -> Result<()> {
        check_name("table", table)?;
        let mut rest = Some(RowRange::prefix(table, prefix));
        while let Some(range) = rest {
            let began = monotonic();
            let (rows, next) = self.protocol()?.rows(&range, ROWS)?;
            rest = next;
            let mut batch = Batch::new(replies, Reply::Rows);
            for (key, value) in rows {
                let bytes = key.len() + value.len();
                batch.add((key, value), bytes)?;
            }
            batch.send()?;
            replies.rest(began);
        }
        Ok(())
    }

    fn list(&self, filter: &RecordFilter, load: Load, replies: &Replies<'_>) -> Result<()> {
        let mut rest = Some(filter.range()?);
        while let Some(range) = rest {
            let began = monotonic();
            let (infos, next) = self.protocol()?.inspect_all(&range, KEYS)?;
            rest = next;
            let mut batch = Batch::new(replies, Reply::Records);
            for info in infos.into_iter().filter(|info| filter.matches(info)) {
                // Read the outcome only of a record that matches.
                let info = match load {
                    Load::WithoutOutcome => Some(info),
                    Load::All => {
                        let id = RecordId::new(&info.manager().into(), info.key().clone());
                        self.protocol()?.inspect(&id, Load::All)?
                    }
                };
                if let Some(info) = info {
                    batch.add(SentRecord::from(&info), bytes_of(&info))?;
                }
            }
            batch.send()?;
            // If no record matches, nothing is sent, so check whether the client has gone.
            replies.keep_alive()?;
            replies.rest(began);
        }
        Ok(())
    }
}

/// Items that are sent in one reply.
struct Batch<'a, T> {
    replies: &'a Replies<'a>,
    reply: fn(Vec<T>) -> Reply,
    items: Vec<T>,
    bytes: usize,
}

impl<'a, T> Batch<'a, T> {
    fn new(replies: &'a Replies<'a>, reply: fn(Vec<T>) -> Reply) -> Self {
        Self { replies, reply, items: Vec::new(), bytes: 0 }
    }

    fn add(&mut self, item: T, bytes: usize) -> Result<()> {
        // Send a large item alone, because the size of a reply is limited.
        if self.bytes + bytes > BYTES {
            self.send()?;
        }
        self.bytes += bytes;
        self.items.push(item);
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        self.bytes = 0;
        let items = std::mem::take(&mut self.items);
        if items.is_empty() {
            return Ok(());
        }
        self.replies.send(&message::encode(&(self.reply)(items))?)
    }
}

/// Returns the approximate size of a record in a reply, without its fixed fields.
fn bytes_of(info: &RecordInfo) -> usize {
    let stored = info.stored();
    let outcome = stored.outcome.as_ref().map_or(0, |outcome| outcome.len());
    let checkpoint = stored.checkpoint.as_ref().map_or(0, |checkpoint| checkpoint.len());
    let context: usize = stored.context.iter().map(|(name, value)| name.len() + value.len()).sum();
    outcome + checkpoint + context
}

/// Sends events until the engine is closed or the client has gone.
fn watch(events: &Events, replies: &Replies<'_>) -> Result<()> {
    replies.send(&message::encode(&Reply::Changed(true))?)?;
    // Send the event even if the server has ended meanwhile: it is no longer in the queue.
    let send = |event| replies.send_only(&message::encode(&Reply::Event(Box::new(SentEvent::from(event))))?);
    while let Some(next) = events.next_until(replies.ended(), ALIVE) {
        next.map_or_else(|| replies.keep_alive(), send)?;
    }
    let began = monotonic();
    for event in events.ready() {
        // Limit the time, because a close waits for this thread.
        if monotonic().saturating_duration_since(began) > LAST_EVENTS {
            return Err(Error::new(
                ErrorKind::Busy,
                "the store was closed before this client had read the last events",
            ));
        }
        send(event)?;
    }
    Ok(())
}

fn id(name: &Name) -> Result<RecordId> {
    check_name("manager", &name.manager)?;
    Ok(RecordId::new(&name.manager.as_str().into(), name.key.clone()))
}
