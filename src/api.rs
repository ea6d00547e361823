//! The public handles: engine, managers, claims, tables, transactions and listings.

pub(crate) mod claim;
pub(crate) mod engine;
pub(crate) mod live_store;
pub(crate) mod manager;
pub(crate) mod raw;
pub(crate) mod records;
pub(crate) mod resolution;
pub(crate) mod serve;
#[cfg(feature = "postgres")]
pub(crate) mod sql;
pub(crate) mod table;
pub(crate) mod transaction;

// Declared after the types to which they add methods: the pages of these types list the methods in the order of
// modules.
#[cfg(feature = "test-util")]
mod crash;
pub(crate) mod erase;
