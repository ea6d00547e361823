//! The outside effect: a file with one line per charge. It stands for the card processor, which knows nothing of the engine,
//! survives its crashes, and can be asked what has been charged.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

/// What a payment's effect is called: `effect_id` of this is the charge's name at the processor.
pub(crate) const CHARGE: &str = "charge";

/// One line.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Charge {
    /// What a real processor would take as its own idempotency key: the same in every attempt of a payment, and
    /// another when the key is used again after its record has expired.
    pub(crate) effect_id: String,
    pub(crate) key: String,
    pub(crate) amount_cents: u64,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    file: File,
    path: PathBuf,
    /// Sync more often than needed, so that a kill is likely to find a charge half done: before its line or after.
    slow: bool,
}

impl Ledger {
    pub(crate) fn open(path: &Path, slow: bool) -> anyhow::Result<Self> {
        let open = || -> io::Result<File> {
            let file = OpenOptions::new().create(true).append(true).open(path)?;
            // A line that a killed process wrote may not be on the disk yet, and is about to be believed.
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

    /// Charges. Durable when it returns; after an error nobody knows whether it happened.
    pub(crate) fn append(&self, charge: &Charge) -> io::Result<()> {
        if self.slow {
            self.file.sync_all()?;
        }
        // The line break comes first, so that a torn line does not spoil the next one; and what is missing of a torn line is
        // not written later, when it might land behind another thread's.
        let line = format!("\n{}", serde_json::to_string(charge)?);
        if (&self.file).write(line.as_bytes())? < line.len() {
            return Err(io::Error::new(io::ErrorKind::WriteZero, "the line was cut short"));
        }
        if self.slow {
            self.file.sync_all()?;
        }
        self.file.sync_data()
    }

    /// By their effect ids.
    pub(crate) fn charges(&self) -> anyhow::Result<HashMap<String, Charge>> {
        Ok(read(&self.path)?.into_iter().map(|charge| (charge.effect_id.clone(), charge)).collect())
    }
}

/// Every charge ever made. A torn line was never charged: the append that wrote it did not return.
pub(crate) fn read(path: &Path) -> anyhow::Result<Vec<Charge>> {
    let text = std::fs::read(path).with_context(|| format!("cannot read the ledger {}", path.display()))?;
    Ok(text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}
