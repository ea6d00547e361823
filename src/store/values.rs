//! Records and rows in sled: long ones in pieces, and the hints that lead to them.
//!
//! The order of writes makes every crash harmless: hints and pieces first, then the value by compare-and-swap, then what the
//! old value had. A hint that leads nowhere, or pieces that nobody names, cost bytes; a value without them would be damage. Only
//! what leads to records that expire is written later, before the next stamp: till then it is made again after a crash.

use std::borrow::Cow;

use ::sled::IVec;

use super::expiries::Expiries;
use super::format::envelope::{self, Envelope, MAX_INLINE, PIECE, PiecesId};
use super::format::frame::{Content, StoreKey};
use super::format::record::{self, HEAD, Head};
use super::format::{block, corrupt};
use super::overlay::Overlay;
use crate::store::sled::tables::{Name, Tables};
use crate::types::clock::NEVER;
use crate::types::error::{ErrorKind, Result};
use crate::types::record::{Status, StoredRecord};
use crate::types::value::Value;

/// How much of a record is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Load {
    All,
    /// All but the outcome.
    WithoutOutcome,
}

/// The content of a key in sled.
pub(crate) fn read(tables: &Tables, key: &StoreKey, load: Load) -> Result<Option<Content>> {
    let (name, raw) = place(key)?;
    let mut bytes = tables.get(name, raw)?;
    while let Some(found) = &bytes {
        let content = if key.is_record() {
            read_record(tables, raw, found, load)?.map(|stored| Content::Record(stored.into()))
        } else {
            body(tables, raw, found, |_| None)?.map(|body| Content::Row(Value::from(&*body)))
        };
        if content.is_some() {
            return Ok(content);
        }
        // A piece is gone: either the value was replaced meanwhile, or it is damaged.
        let again = tables.get(name, raw)?;
        if again == bytes {
            return Err(corrupt(format!("a piece of the value of {} is missing", raw.escape_ascii())));
        }
        bytes = again;
    }
    Ok(None)
}

fn read_record(tables: &Tables, raw: &[u8], found: &[u8], load: Load) -> Result<Option<StoredRecord>> {
    let wanted = |head: &[u8]| match load {
        Load::All => None,
        Load::WithoutOutcome => record::decode_head(head).map(|head| head.rest_len),
    };
    let Some(body) = body(tables, raw, found, wanted)? else { return Ok(None) };
    let mut stored = record::decode(&body, None)?;
    if load == Load::WithoutOutcome {
        stored.outcome = None;
    }
    Ok(Some(stored))
}

/// What an envelope holds; `None` if a piece is missing. `wanted` may say how much of the pieces is enough.
fn body<'a>(
    tables: &Tables,
    raw: &[u8],
    found: &'a [u8],
    wanted: impl FnOnce(&[u8]) -> Option<usize>,
) -> Result<Option<Cow<'a, [u8]>>> {
    let (id, len, head) = match envelope::decode(raw, found)? {
        Envelope::Inline(content) => return Ok(Some(content.into())),
        Envelope::Pieces { id, len, head } => (id, len, head),
    };
    let wanted = wanted(head).unwrap_or(len).min(len);
    let mut body = head.to_vec();
    for piece in 0..wanted.div_ceil(PIECE) {
        let key = envelope::piece_key(id, piece)?;
        let Some(bytes) = tables.get(Name::Chunks, &key)? else { return Ok(None) };
        let (_, content) = envelope::decode_piece(&key, &bytes)?;
        body.extend_from_slice(content);
    }
    // Of a record whose outcome is not wanted, no part of it either.
    body.truncate(head.len() + wanted);
    if body.len() < head.len() + wanted {
        return Err(corrupt(format!("the pieces of {} are too short", raw.escape_ascii())));
    }
    Ok(Some(body.into()))
}

/// Makes sled hold this content, or nothing, under the key. `id` is where the change is in the journal.
pub(crate) fn write(
    tables: &Tables,
    expiries: &mut Expiries,
    key: &StoreKey,
    content: Option<&Content>,
    id: PiecesId,
) -> Result<()> {
    let (name, raw) = place(key)?;
    let (hints, encoded) = match content {
        None => (Hints::default(), None),
        Some(Content::Record(stored)) => {
            (Hints::new(stored.state, stored.expires), Some(encode_record(tables, key, stored, id)?))
        }
        Some(Content::Row(value)) => (Hints::default(), Some(encode_body(tables, key, value, 0, id)?)),
    };
    // All of them: a power cut may have kept a record and not its hints.
    hints.insert(tables, expiries, raw)?;
    let encoded = encoded.map(IVec::from);
    // Most records are written once, and so are not looked for.
    let expected = if key.is_record() && encoded.is_some() { None } else { tables.get(name, raw)? };
    let old = replace(tables, (name, raw), expected, encoded.as_ref())?;
    let old_hints = if key.is_record() { hints_of(raw, old.as_ref())? } else { Hints::default() };
    drop_pieces(tables, raw, old.as_ref(), Some(id))?;
    if old_hints.unfinished && !hints.unfinished {
        tables.remove(Name::Unfinished, raw)?;
    }
    tables.changed()
}

/// Puts this in the place of what is there, and gives that back. If it is not what was expected it is what it is said to be:
/// nobody else writes.
fn replace(
    tables: &Tables,
    (name, raw): (Name<'_>, &[u8]),
    expected: Option<IVec>,
    new: Option<&IVec>,
) -> Result<Option<IVec>> {
    if expected.is_none() && new.is_none() {
        return Ok(None);
    }
    let Err(there) = tables.swap(name, raw, expected.as_deref(), new)? else { return Ok(expected) };
    match tables.swap(name, raw, there.as_deref(), new)? {
        Ok(()) => Ok(there),
        Err(_) => Err(corrupt(format!("somebody else wrote {} into the record store", raw.escape_ascii()))),
    }
}

/// A record to delete, if sled still holds these very bytes.
pub(crate) type Due = (StoreKey, IVec);

/// A record as sled holds it: how it begins, and the bytes that tell it from every other revision.
pub(crate) fn found(tables: &Tables, key: &StoreKey) -> Result<Option<(Head, IVec)>> {
    let raw = key.in_record_tree();
    let found = tables.get(Name::Records, raw)?;
    found.map(|bytes| Ok((head_of(raw, &bytes)?, bytes))).transpose()
}

/// Deletes a record that sled still holds as it was found, with all that belongs to it. Says what it was.
pub(crate) fn delete(tables: &Tables, key: &StoreKey, found: &IVec) -> Result<Option<Head>> {
    let raw = key.in_record_tree();
    if !tables.remove_same(Name::Records, raw, found)? {
        return Ok(None);
    }
    let head = head_of(raw, found)?;
    drop_pieces(tables, raw, Some(found), None)?;
    if Hints::new(head.state, head.expires).unfinished {
        tables.remove(Name::Unfinished, raw)?;
    }
    tables.changed()?;
    Ok(Some(head))
}

/// Reads all of a value that was found under its key, and looks for the hints that should lead to it. Says how many bytes it
/// read. Right only if nobody writes meanwhile.
pub(crate) fn check(
    tables: &Tables,
    overlay: &Overlay,
    expiries: &Expiries,
    key: &StoreKey,
    found: &IVec,
) -> Result<usize> {
    let (_, raw) = place(key)?;
    let named = || raw.escape_ascii();
    let Some(body) = body(tables, raw, found, |_| None)? else {
        return Err(corrupt(format!("a piece of the value of {} is missing", named())));
    };
    if key.is_record() {
        record::decode(&body, None).map_err(|error| error.wrap(error.kind(), &named().to_string()))?;
        let hints = hints_of(raw, Some(found))?;
        if hints.unfinished && tables.get(Name::Unfinished, raw)?.is_none() {
            return Err(corrupt(format!("{} is unfinished and not among the unfinished", named())));
        }
        // What was begun anew need not be led to as it was before; it is named when it is written anew.
        let is_led_to = |expires| expiries.lead_to(expires, raw) || overlay.contains(key);
        if hints.expires.is_some_and(|expires| !is_led_to(expires)) {
            return Err(corrupt(format!("{} expires and is not among what expires", named())));
        }
    }
    Ok(body.len())
}

/// Makes what leads to a record anew where it is gone: a power cut may undo a deletion and keep that of its hints. One that
/// cannot be read is left to whoever asks for it. For sled's only writer.
pub(crate) fn mend_hints(tables: &Tables, expiries: &mut Expiries, raw: &[u8], found: &IVec) -> Result<()> {
    let Ok(mut hints) = hints_of(raw, Some(found)) else { return Ok(()) };
    hints.expires = hints.expires.filter(|expires| !expiries.lead_to(*expires, raw));
    hints.insert(tables, expiries, raw)?;
    tables.changed()
}

/// What is deleted beside records. But for blocks that have served, and the note, it is what a crash between two writes may leave
/// behind: it leads nowhere, or nobody leads to it.
#[derive(Clone, Debug)]
pub(crate) enum Stray {
    /// A block of the expiry tree that cannot be read.
    Malformed(IVec),
    /// A block of the expiry tree whose time has come and whose records are gone, or begun anew.
    Emptied(IVec),
    /// Whose key is in the tree of unfinished records.
    Unfinished(StoreKey),
    /// Pieces, and whose they were.
    Pieces(PiecesId, StoreKey),
    /// The note that pieces are to be looked at: all were.
    SweepNote,
}

/// Whether it is one. Right for good only if nobody writes meanwhile.
pub(crate) fn is_stray(tables: &Tables, stray: &Stray) -> Result<bool> {
    Ok(match stray {
        Stray::Malformed(block) => {
            let found = tables.get(Name::Expiry, block)?;
            found.is_some_and(|bytes| {
                block::decode(block, &bytes).is_err_and(|error| error.kind() == ErrorKind::Corrupt)
            })
        }
        Stray::Unfinished(key) => {
            let raw = key.in_record_tree();
            !hints_of(raw, tables.get(Name::Records, raw)?.as_ref())?.unfinished
        }
        Stray::Pieces(id, owner) => {
            // Without an owner, because the first piece is gone, this is damage and not a leftover: it stays to be seen.
            let Ok((name, raw)) = place(owner) else { return Ok(false) };
            let found = tables.get(name, raw)?;
            let envelope = found.as_ref().map(|found| envelope::decode(raw, found)).transpose()?;
            !matches!(envelope, Some(Envelope::Pieces { id: named, .. }) if named == *id)
        }
        Stray::Emptied(_) | Stray::SweepNote => true,
    })
}

/// Deletes a leftover, if it is one, and says whether it counts as one. For sled's only writer.
pub(crate) fn drop_stray(tables: &Tables, stray: &Stray) -> Result<bool> {
    if !is_stray(tables, stray)? {
        return Ok(false);
    }
    match stray {
        Stray::Malformed(block) | Stray::Emptied(block) => tables.remove(Name::Expiry, block)?,
        Stray::Unfinished(key) => tables.remove(Name::Unfinished, key.in_record_tree())?,
        Stray::Pieces(id, _) => {
            let (from, end) = (envelope::piece_key(*id, 0)?, envelope::behind_pieces(*id));
            for (key, _) in tables.range(Name::Chunks, &from, Some(&end), usize::MAX)?.into_iter().rev() {
                tables.remove(Name::Chunks, &key)?;
                tables.changed()?;
            }
        }
        Stray::SweepNote => {
            tables.set_sweep(false)?;
            return Ok(false);
        }
    }
    tables.changed()?;
    Ok(!matches!(stray, Stray::Emptied(_)))
}

/// The first pieces at or behind `from`: whose they say they are, and where to go on.
pub(crate) fn next_pieces(tables: &Tables, from: &[u8]) -> Result<Option<(Stray, Vec<u8>)>> {
    let Some((key, bytes)) = tables.range(Name::Chunks, from, None, 1)?.pop() else { return Ok(None) };
    let id = envelope::piece_id(&key).ok_or_else(|| corrupt(format!("piece {} is malformed", key.escape_ascii())))?;
    let (owner, _) = envelope::decode_piece(&key, &bytes)?;
    Ok(Some((Stray::Pieces(id, StoreKey::from_bytes(owner)), envelope::behind_pieces(id).to_vec())))
}

/// The tree and the key in it.
fn place(key: &StoreKey) -> Result<(Name<'_>, &[u8])> {
    if key.is_record() {
        return Ok((Name::Records, key.in_record_tree()));
    }
    let (table, raw) = key.split().ok_or_else(|| corrupt("a row has no table"))?;
    Ok((Name::Table(table), raw))
}

fn encode_record(tables: &Tables, key: &StoreKey, stored: &StoredRecord, id: PiecesId) -> Result<Vec<u8>> {
    let mut body = Vec::new();
    record::encode(stored, &mut body)?;
    encode_body(tables, key, &body, HEAD, id)
}

/// The envelope of a body whose first `head_len` bytes stay in it; the pieces are written.
fn encode_body(tables: &Tables, key: &StoreKey, body: &[u8], head_len: usize, id: PiecesId) -> Result<Vec<u8>> {
    let (_, raw) = place(key)?;
    let inline = envelope::encode(raw, &Envelope::Inline(body))?;
    if inline.len() <= MAX_INLINE {
        return Ok(inline);
    }
    let (head, rest) = body.split_at(head_len.min(body.len()));
    for (piece, content) in rest.chunks(PIECE).enumerate() {
        let piece_key = envelope::piece_key(id, piece)?;
        let owner = if piece == 0 { key.bytes() } else { &[] };
        tables.insert(Name::Chunks, &piece_key, envelope::encode_piece(&piece_key, owner, content)?)?;
        tables.changed()?;
    }
    envelope::encode(raw, &Envelope::Pieces { id, len: rest.len(), head })
}

fn drop_pieces(tables: &Tables, raw: &[u8], old: Option<&IVec>, kept: Option<PiecesId>) -> Result<()> {
    let Some(old) = old else { return Ok(()) };
    let Envelope::Pieces { id, len, .. } = envelope::decode(raw, old)? else { return Ok(()) };
    if Some(id) == kept {
        return Ok(());
    }
    // The first last: it says whose they are, should a crash come in between.
    for piece in (0..len.div_ceil(PIECE)).rev() {
        tables.remove(Name::Chunks, &envelope::piece_key(id, piece)?)?;
        tables.changed()?;
    }
    Ok(())
}

fn head_of(raw: &[u8], found: &[u8]) -> Result<Head> {
    let (Envelope::Inline(head) | Envelope::Pieces { head, .. }) = envelope::decode(raw, found)?;
    record::decode_head(head).ok_or_else(|| corrupt(format!("the record of {} is malformed", raw.escape_ascii())))
}

fn hints_of(raw: &[u8], found: Option<&IVec>) -> Result<Hints> {
    let Some(found) = found else { return Ok(Hints::default()) };
    let head = head_of(raw, found)?;
    Ok(Hints::new(head.state, head.expires))
}

/// The entries that lead to a record.
#[derive(Debug, Default, PartialEq, Eq)]
struct Hints {
    unfinished: bool,
    expires: Option<u64>,
}

impl Hints {
    fn new(state: Status, expires: u64) -> Self {
        let unfinished = matches!(state, Status::InProgress | Status::Released | Status::Interrupted);
        Self { unfinished, expires: (expires != NEVER).then_some(expires) }
    }

    fn insert(&self, tables: &Tables, expiries: &mut Expiries, raw: &[u8]) -> Result<()> {
        if self.unfinished {
            tables.insert(Name::Unfinished, raw, Vec::new())?;
        }
        self.expires.map_or(Ok(()), |expires| expiries.add(tables, expires, raw))
    }
}
