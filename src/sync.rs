//! Primitives for threads that wait for each other.
//!
//! With `--cfg oncekey_shuttle`, tests replace the system's primitives by those of a scheduler, which tries orders of
//! steps that are rare on a real machine.

#[cfg(not(all(test, oncekey_shuttle)))]
mod real {
    pub(crate) use std::collections::hash_map::RandomState;
    pub(crate) use std::sync::{OnceLock, atomic};
    pub(crate) use std::thread;

    pub(crate) use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
}

pub(crate) mod event_count;
pub(crate) mod give_way;
pub(crate) mod group_commit;
pub(crate) mod key_locks;
pub(crate) mod wait_limit;
pub(crate) mod wait_queue;
pub(crate) mod worker;

#[cfg(all(test, oncekey_shuttle))]
pub(crate) mod models;

#[cfg(all(test, oncekey_shuttle))]
pub(crate) use models::*;
#[cfg(not(all(test, oncekey_shuttle)))]
pub(crate) use real::*;
