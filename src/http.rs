//! A whole HTTP request that carries a key, and its answer.

pub(crate) mod header;
pub(crate) mod problem;
pub(crate) mod requests;
pub(crate) mod response;
