//! The outside effect: a file with one line for each charge. It stands for a card processor, which does not know the
//! engine, survives its crashes, and can be asked for its charges.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// The label of the effect. `effect_id` of this label names the charge at the processor.
pub(crate) const CHARGE: &str = "charge";

/// One line of the file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Charge {
    /// The idempotency key for a real processor. The same in every attempt of a payment. Different if the client's key
    /// is used again after its record has expired.
    pub(crate) effect_id: String,
    pub(crate) key: String,
    pub(crate) amount_cents: u64,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    file: File,
    path: PathBuf,
    /// Syncs more often than needed, so that a kill is likely to hit a charge before or after its line.
    slow: bool,
}

impl Ledger {
    pub(crate) fn open(path: &Path, slow: bool) -> anyhow::Result<Self> {
        let open = || -> io::Result<File> {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            // A killed process may have written a line that is not on disk yet. Sync before anyone relies on it.
            file.sync_all()?;
            #[cfg(unix)]
            File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))?
                .sync_all()?;
            Ok(file)
        };
        let file = open().with_context(|| format!("cannot open the ledger {}", path.display()))?;
        Ok(Self { file, path: path.to_owned(), slow })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Appends a charge. The charge is durable when this returns. After an error it may have happened or not.
    pub(crate) fn append(&self, charge: &Charge) -> io::Result<()> {
        if self.slow {
            self.file.sync_all()?;
        }
        // The line break comes first, so that a torn line does not spoil the next one. The rest of a torn line is not
        // written later, because it could land after another thread's line.
        let line = format!("\n{}", serde_json::to_string(charge)?);
        if (&self.file).write(line.as_bytes())? < line.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the line was cut short"));
        }
        if self.slow {
            self.file.sync_all()?;
        }
        self.file.sync_data()
    }

    /// Returns the charges by effect id.
    pub(crate) fn charges(&self) -> anyhow::Result<HashMap<String, Charge>> {
        Ok(read(&self.path)?.into_iter().map(|charge| (charge.effect_id.clone(), charge)).collect())
    }
}

/// Returns all charges. Skips a torn line: its append did not return, so the charge did not happen.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Charge>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read the ledger {}", path.display()))?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}
