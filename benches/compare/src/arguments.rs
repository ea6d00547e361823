//! The command line of the three programs.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::shared::on_disk;

/// Parsed arguments: `--name value` for known names, `--name` for flags, and words.
pub(crate) struct Arguments {
    values: Vec<(String, String)>,
    flags: Vec<String>,
    pub(crate) words: Vec<String>,
}

impl Arguments {
    pub(crate) fn read(values: &[&str], flags: &[&str]) -> Result<Self> {
        let mut found = Self { values: Vec::new(), flags: Vec::new(), words: Vec::new() };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let Some(name) = argument.strip_prefix("--") else {
                found.words.push(argument);
                continue;
            };
            if values.contains(&name) {
                let value = arguments.next().with_context(|| format!("--{name} wants a value"))?;
                found.values.push((name.to_owned(), value));
            } else if flags.contains(&name) {
                found.flags.push(name.to_owned());
            } else {
                bail!("--{name} is unknown; known are {values:?} with a value and {flags:?} without");
            }
        }
        Ok(found)
    }

    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn number(&self, name: &str, default: u64) -> Result<u64> {
        self.value(name).map_or(Ok(default), |text| text.parse().with_context(|| format!("--{name}: {text}")))
    }

    pub(crate) fn flag(&self, name: &str) -> bool {
        self.flags.iter().any(|known| known == name)
    }

    /// Returns the directory for stores: `--dir`, or one in the build directory. A file system in memory is rejected.
    pub(crate) fn directory(&self) -> PathBuf {
        on_disk(self.value("dir").map(str::to_owned))
    }

    /// Writes a file into the directory of `--out`, if it is given.
    pub(crate) fn write_out(&self, name: &str, text: &str) -> Result<()> {
        let Some(dir) = self.value("out") else { return Ok(()) };
        std::fs::create_dir_all(dir)?;
        let path = PathBuf::from(dir).join(name);
        std::fs::write(&path, text).with_context(|| path.display().to_string())?;
        println!("wrote {}", path.display());
        Ok(())
    }
}
