//! The one place that knows sled 0.34.7. Its faults, and the file that answers each:
//!
//! | fault | answer |
//! |---|---|
//! | `flush` does not sync: a power cut loses what it returned for | [`tables`]: a sync after each flush, or synchronous writes where the file system has the flag |
//! | segments are reused before what was moved out of them is synced | [`write_barrier`]: no write between a flush and its sync |
//! | its I/O pool of seven threads, one for the process, waits for itself when all are busy | [`write_barrier`]: engines share 384 KiB under way |
//! | pages over 128 KiB go into blob files that are never synced | values of at most 4,000 bytes under keys of 12; [`blobs`] checks that there are none |
//! | a snapshot torn by a kill makes every later open fail | [`snapshots`]: torn ones are removed before an open |
//! | an open fills free segments with zeros before its snapshot is durable | [`open_on_copy`] |
//! | a failed write is final | [`disk_space`]: blocks of the file are claimed before anything is written |
//! | it panics on damage | [`tables`]: every call is guarded, and a panic becomes an error |
//! | reads skip what cannot be read, or return an older page | not here: blocks and their list have checksums and counts (`format`) |
//! | transactions and batches lock the whole process | not used |

pub(crate) mod blobs;
pub(crate) mod disk_space;
pub(crate) mod open_on_copy;
pub(crate) mod snapshots;
pub(crate) mod tables;
pub(crate) mod write_barrier;
