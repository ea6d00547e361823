//! Priorities of commits: the order of admission, and the use of reserved space.

/// The kind of a commit, which decides how long the commit waits, and how much reserved space it may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Begins or changes something. Waits for space, and leaves the reserve untouched.
    User,
    /// Ends an operation with an outcome. Behaves as `User`, but is admitted during a stall if it need not wait. A
    /// small one may use as much of the reserve as `Ending`.
    Finishing,
    /// Ends a claim without an outcome. Waits for space, but not for the apply thread. May use half of the reserve.
    Ending,
    /// Behaves as `Ending`, but never waits: returns `Full` if there is no space now.
    GivingUp,
    /// A commit of the store itself, such as a checkpoint, which frees space. May use all of the reserve, and is
    /// admitted during a close.
    Store,
}

/// The classes of admission. A lower one goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    Store,
    /// Needs no credit, so it does not wait for commits that do.
    Ending,
    Finishing,
    User,
}

impl Priority {
    /// Returns the number of bytes of the reserve that a frame of `len` bytes must leave free.
    pub(super) fn leaves(self, reserve: u64, len: u64) -> u64 {
        match self {
            Self::User => reserve,
            // A large outcome would leave no space for the endings of others.
            Self::Finishing if len > reserve / 16 => reserve,
            Self::Finishing | Self::Ending | Self::GivingUp => reserve / 2,
            Self::Store => 0,
        }
    }

    /// Returns the class in which the commit waits, or `None` if it must not wait.
    pub(super) fn class(self) -> Option<Class> {
        match self {
            Self::User => Some(Class::User),
            Self::Finishing => Some(Class::Finishing),
            Self::Ending => Some(Class::Ending),
            Self::GivingUp => None,
            Self::Store => Some(Class::Store),
        }
    }

    /// Returns true if the commit gets `Busy` after the timeout. An ending never does: its operation has run and must
    /// be recorded. So it waits as long as there is progress.
    pub(super) fn may_be_busy(self) -> bool {
        self == Self::User
    }

    /// Returns true if the commit does not wait for the apply thread.
    pub(super) fn is_exempt(self) -> bool {
        !matches!(self, Self::User | Self::Finishing)
    }

    /// Returns true if a stall rejects the commit. A commit that would have to wait is rejected, because the wait might
    /// never end.
    pub(super) fn is_held_back(self, may_enter: bool) -> bool {
        match self {
            Self::User => true,
            Self::Finishing => !may_enter,
            Self::Ending | Self::GivingUp | Self::Store => false,
        }
    }
}
