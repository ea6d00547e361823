//! The socket of an open store: its protocol, its permissions, and its limits.
//!
//! A connection carries one request. The server first sends a [`frame::Greeting`] with its version. After the request
//! it sends replies in frames; the last one is marked as the last. This module does not know the meaning of requests
//! and replies.
//!
//! A client can occupy only its own connection, for a limited time: sizes, times and the number of connections are
//! limited, and no lock of the engine is held while a reply is written.

pub(crate) mod client;
pub(crate) mod frame;
pub(crate) mod server;
pub(crate) mod socket_dir;
