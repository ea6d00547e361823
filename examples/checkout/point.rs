//! The points at which the process may be killed.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A point before, inside or after a commit or the effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Point {
    BeforeReserve,
    InsideReserve,
    AfterReserve,
    BeforeCharge,
    ChargeSent,
    Charged,
    InsideCharge,
    AfterCharge,
    BeforeOrder,
    InsideOrder,
    AfterOrder,
}

/// A callback for every point that a checkout reaches.
pub(crate) type Watch = Box<dyn Fn(Point) + Send + Sync>;

impl Point {
    pub(crate) const ALL: [Self; 11] = [
        Self::BeforeReserve,
        Self::InsideReserve,
        Self::AfterReserve,
        Self::BeforeCharge,
        Self::ChargeSent,
        Self::Charged,
        Self::InsideCharge,
        Self::AfterCharge,
        Self::BeforeOrder,
        Self::InsideOrder,
        Self::AfterOrder,
    ];
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BeforeReserve => "before the stage that reserves",
            Self::InsideReserve => "inside it, nothing committed",
            Self::AfterReserve => "reserved, or sold out",
            Self::BeforeCharge => "before the charge",
            Self::ChargeSent => "the charge is asked for, not answered",
            Self::Charged => "charged, and the store does not know",
            Self::InsideCharge => "inside the stage that notes it",
            Self::AfterCharge => "the charge is noted",
            Self::BeforeOrder => "before the stage that orders",
            Self::InsideOrder => "inside it, no order yet",
            Self::AfterOrder => "ordered, and nobody was told",
        })
    }
}
