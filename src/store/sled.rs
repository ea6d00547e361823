//! The only place that knows sled 0.34.7. Its faults, and the file that handles each:
//!
//! | fault | handled by |
//! |---|---|
//! | `flush` does not sync: data that it has flushed can be lost in a power cut | [`tables`]: a sync after each flush, or synchronous writes where the file system has the flag |
//! | segments are reused before data moved out of them is synced | [`write_barrier`]: no write between a flush and its sync |
//! | its I/O pool, seven threads for the process, deadlocks when all are busy | [`write_barrier`]: all engines together give sled at most 384 KiB between two flushes |
//! | pages over 128 KiB are written into blob files that are never synced | values of at most 4,000 bytes under keys of 12 bytes; [`blobs`] checks that there are no such files |
//! | a snapshot torn by a kill makes every later open fail | [`snapshots`]: torn ones are removed before an open |
//! | an open fills free segments with zeros before its snapshot is durable | [`exchange`]: where the file system has no flag, sled opens a copy first, which then replaces the original |
//! | an open of damaged files destroys what could still be read, and then fails | [`open`] first reads all of them with [`log`]. If one is not whole, a new sled is built from their blocks: [`raw`], [`rebuild`] |
//! | a failed write is final | [`disk_space`]: blocks of the file are claimed before anything is written |
//! | it panics on damage | [`tables`]: every call is guarded, a panic becomes an error, and [`panics`] keeps it from the terminal |
//! | a read skips data that it cannot read, or returns an older page | not here: blocks and their list have checksums and counts (`format`) |
//! | transactions and batches lock the whole process | not used |

pub(crate) mod blobs;
pub(crate) mod disk_space;
mod exchange;
pub(crate) mod log;
pub(crate) mod open;
mod panics;
pub(crate) mod raw;
mod rebuild;
pub(crate) mod snapshots;
pub(crate) mod tables;
pub(crate) mod write_barrier;
