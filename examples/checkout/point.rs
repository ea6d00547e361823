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
            Self::InsideReserve => "inside the stage that reserves, before its commit",
            Self::AfterReserve => "reserved, or sold out",
            Self::BeforeCharge => "before the charge",
            Self::ChargeSent => "charge requested, no answer yet",
            Self::Charged => "charged, not stored yet",
            Self::InsideCharge => "inside the stage that stores the charge",
            Self::AfterCharge => "charge stored",
            Self::BeforeOrder => "before the stage that orders",
            Self::InsideOrder => "inside the stage that orders, before its commit",
            Self::AfterOrder => "ordered, no answer sent yet",
        })
    }
}
