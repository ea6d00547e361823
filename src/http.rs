//! HTTP requests that carry an idempotency key, and the responses to them.

pub(crate) mod header;
pub(crate) mod problem;
pub(crate) mod requests;
pub(crate) mod response;

pub use problem::Problem;
pub use requests::{
    Created, HandleOptions, Locked, Locking, NewRequest, RequestPatch, Requests, SameRequest, TransactionRequests,
};
pub use response::Response;
