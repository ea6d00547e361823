//! Who wants to commit, and what it may do that others may not.

/// Who wants to commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Waits for room, leaves the reserve.
    User,
    /// Ends what was begun, with an outcome: as `User`, but let in while those are held back; a small one may use as much as
    /// `Ending`.
    Finishing,
    /// Ends a claim without an outcome: waits for room, but not until less lies unapplied, and may use half of the reserve.
    Ending,
    /// As `Ending`, but must not wait: `Full` if there is no room now.
    GivingUp,
    /// The store itself: may use all of the reserve, and is let in while it closes. What it says makes room.
    Store,
}

/// The order of admission: a lower class goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Store,
    /// Needs no credit, and so must not wait for those who do.
    Ending,
    Finishing,
    User,
}

impl Priority {
    /// How much of the reserve a frame of `len` bytes must not use.
    pub(super) fn leaves(self, reserve: u64, len: u64) -> u64 {
        match self {
            Self::User => reserve,
            // A large outcome would leave nothing to the endings of others.
            Self::Finishing if len > reserve / 16 => reserve,
            Self::Finishing | Self::Ending | Self::GivingUp => reserve / 2,
            Self::Store => 0,
        }
    }

    /// Returns the class that it waits in, or `None` if it must not wait.
    pub(super) fn class(self) -> Option<Class> {
        match self {
            Self::User => Some(Class::User),
            Self::Finishing => Some(Class::Finishing),
            Self::Ending => Some(Class::Ending),
            Self::GivingUp => None,
            Self::Store => Some(Class::Store),
        }
    }

    /// Whether it gets `Busy` after a long wait. An ending never does: its operation has run and must be recorded, so it waits as
    /// long as anything moves.
    pub(super) fn may_be_busy(self) -> bool {
        self == Self::User
    }

    /// Whether it does not wait until less lies unapplied.
    pub(super) fn is_exempt(self) -> bool {
        !matches!(self, Self::User | Self::Finishing)
    }

    /// Whether a hold concerns it. What would have to wait meanwhile is refused, because nothing may come of the wait.
    pub(super) fn is_held_back(self, may_enter: bool) -> bool {
        match self {
            Self::User => true,
            Self::Finishing => !may_enter,
            Self::Ending | Self::GivingUp | Self::Store => false,
        }
    }
}
