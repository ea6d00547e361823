//! The changes of a record that the page offers, in words.

use crate::{RecordInfo, Status as State};

/// A change of a record that people may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Release,
    Resolve,
    Undo,
    Revoke,
}

impl Act {
    pub(super) const ALL: [Self; 4] = [Self::Release, Self::Resolve, Self::Undo, Self::Revoke];

    /// Returns the word in addresses and forms.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Resolve => "resolve",
            Self::Undo => "undo",
            Self::Revoke => "revoke",
        }
    }

    pub(super) fn named(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|act| act.word() == word)
    }

    /// Returns the text of the button.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Release => "Release the key",
            Self::Resolve => "Store an outcome",
            Self::Undo => "Undo the resolution",
            Self::Revoke => "Take it from its owner",
        }
    }

    /// Returns the facts to consider before the change.
    pub(super) fn advice(self) -> &'static str {
        match self {
            Self::Release => {
                "Release the key only if you know that the operation has not happened. The next request with this key runs the \
                 operation."
            }
            Self::Resolve => {
                "Store an outcome only if you know how the operation ended. Every request with this key gets this \
                 outcome."
            }
            Self::Undo => "The record becomes interrupted again, as it was before it was resolved.",
            Self::Revoke => {
                "Its owner, such as a thread that hangs, can then neither finish it nor write rows. The record becomes \
                 interrupted: find out whether the operation has happened."
            }
        }
    }

    /// Returns the report of the finished change.
    pub(super) fn report(self) -> &'static str {
        match self {
            Self::Release => "The key is released: the next request with it runs the operation.",
            Self::Resolve => "The outcome is stored: every request with this key gets it.",
            Self::Undo => "The resolution is undone: the record is interrupted again.",
            Self::Revoke => "The owner has lost the key: the record is interrupted.",
        }
    }

    pub(super) fn is_possible(self, info: &RecordInfo) -> bool {
        match self {
            Self::Release | Self::Resolve => info.status() == State::Interrupted,
            Self::Undo => info.is_undoable(),
            Self::Revoke => info.status() == State::InProgress,
        }
    }

    /// Returns true if the state of the record can be the result of this change.
    pub(super) fn is_done(self, info: &RecordInfo) -> bool {
        match self {
            Self::Release => info.status() == State::Released,
            Self::Resolve => matches!(info.status(), State::Succeeded | State::Failed),
            Self::Undo | Self::Revoke => info.status() == State::Interrupted,
        }
    }
}
