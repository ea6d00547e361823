//! The socket of an open store: who may connect, how bytes become messages, and what a client can cost.
//!
//! A connection carries one request. The server speaks first: [`frame::Greeting`] with its version, then, after the request, frames
//! with replies, the last of which says that it is the last. What the messages mean is not known here.
//!
//! A client can cost at most its own connection, for a bounded time: sizes, times and the number of connections are limited, and
//! nothing of the engine is locked while a reply is written.

pub(crate) mod client;
pub(crate) mod frame;
pub(crate) mod place;
pub(crate) mod server;
